"""A deployment that does nothing, behind the service of Ray Serve's own microbenchmark; written once for both servers.

    python noop.py PORT HTTP_PORT FUNCTION      FUNCTION: the path of add_RayServeBenchmarkServiceServicer_to_server

It serves until its input ends. What must not live here: the load, the measuring.
"""

import json
import sys

from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.generated.serve_pb2 import ModelOutput

OUTPUT = 9.0


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})
class Noop:
    """Nothing but an answer."""

    async def call_with_string(self, _request):  # noqa: ANN001, ANN201
        """The rpc."""
        return ModelOutput(output=OUTPUT)


if __name__ == "__main__":
    options = gRPCOptions(port=int(sys.argv[1]), grpc_servicer_functions=[sys.argv[3]])
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, grpc_options=options)
    serve.run(Noop.bind(), name="noop", route_prefix="/noop")
    print("ANSWER " + json.dumps({"started": True}), flush=True)
    sys.stdin.read()
    serve.shutdown()
