"""What a TorchServe user's test suite may hold in one process; run by test_contracts_side_by_side.py.

Stubs built from the contracts at top-level paths, registered in protobuf's default pool; grpcio's health and
reflection modules; and actorserve. argv: the folder of the stubs. The calls are those of TorchServe's published client.
"""

import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import grpc
import inference_pb2
import inference_pb2_grpc
import management_pb2
import management_pb2_grpc
import trio
from google.protobuf import descriptor_pool, empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from actorserve import testing
from actorserve.proto import inference_pb2 as ours

ECHO = {"models": {"echo": {"handler": "actorserve.handlers.echo:Echo"}}}
METADATA = (("protocol", "gRPC"), ("session_id", "12345"))


def call(inference: str, management: str) -> None:
    with grpc.insecure_channel(inference) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        assert '"Healthy"' in stub.Ping(empty_pb2.Empty(), timeout=10).health
        request = inference_pb2.PredictionsRequest(model_name="echo", input={"data": b"hello", "count": b"3"})
        assert stub.Predictions(request, metadata=METADATA, timeout=10).prediction == b"hello"
        answers = stub.StreamPredictions(request, metadata=METADATA, timeout=10)
        assert [answer.prediction for answer in answers] == [b"hello"] * 3
        assert health_pb2_grpc.HealthStub(channel)
        assert reflection_pb2_grpc.ServerReflectionStub(channel)
        assert health_pb2.DESCRIPTOR.pool is reflection_pb2.DESCRIPTOR.pool is inference_pb2.DESCRIPTOR.pool
    with grpc.insecure_channel(management) as channel:
        stub = management_pb2_grpc.ManagementAPIsServiceStub(channel)
        register = management_pb2.RegisterModelRequest(
            model_name="second", handler="actorserve.handlers.echo:Echo", initial_workers=1, synchronous=True
        )
        assert "registered" in stub.RegisterModel(register, timeout=60).msg
        assert '"second"' in stub.ListModels(management_pb2.ListModelsRequest(), timeout=10).msg
        gone = stub.UnregisterModel(management_pb2.UnregisterModelRequest(model_name="second"), timeout=60)
        assert gone.msg == 'Model "second" unregistered'


async def main() -> None:
    async with testing.serve(ECHO) as app:
        await trio.to_thread.run_sync(call, app.address("inference"), app.address("management"))


def check_pools() -> None:
    """The two sets of classes are apart, and bytes cross between them."""
    theirs = inference_pb2.PredictionsRequest(model_name="m", input={"data": b"x"})
    assert type(theirs) is not ours.PredictionsRequest
    assert ours.PredictionsRequest.FromString(theirs.SerializeToString()).input["data"] == b"x"
    default = descriptor_pool.Default().FindFileByName("inference.proto")
    assert default is inference_pb2.DESCRIPTOR
    assert Path(inference_pb2.__file__).parent == Path(sys.argv[1])


check_pools()
trio.run(main)
print("side by side", file=sys.stderr)
