"""A script that starts the server and runs what it is told, a JSON line at a time; written once.

    python script.py PORT HTTP_PORT REQUEST_TIMEOUT_S FUNCTION ...

Answers are lines of standard output that begin with "ANSWER ". What must not live here: applications, calls.
"""

import json
import sys

import applications
from ray import serve
from ray.serve.config import gRPCOptions


def answer(**said):
    print("ANSWER " + json.dumps(said), flush=True)


def obey(order):
    """One order: run, delete or status. Gives what is said."""
    match order["do"]:
        case "run":
            bound = applications.application(order["app"], order.get("config"))
            serve.run(bound, name=order["name"], route_prefix=f"/{order['name']}")
            return {}
        case "delete":
            serve.delete(order["name"])
            return {}
        case "status":
            found = serve.status().applications
            return {"applications": {name: one.status.rpartition(".")[2] for name, one in sorted(found.items())}}
    raise ValueError(order)


def main():
    port, http_port, timeout = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    options = gRPCOptions(port=port, grpc_servicer_functions=sys.argv[4:], request_timeout_s=timeout or None)
    serve.start(http_options={"host": "127.0.0.1", "port": http_port}, grpc_options=options)
    answer(started=True)
    for line in sys.stdin:
        try:
            answer(**obey(json.loads(line)))
        except Exception as error:  # noqa: BLE001  # told to the tool
            answer(error=type(error).__name__, text=str(error))
    serve.shutdown()


if __name__ == "__main__":
    main()
