"""The peers of the echo benchmark: the same contract on grpclib's asyncio server and on grpcio.aio.

Each decodes a PredictionsRequest and encodes a PredictionResponse, as ours does, but has no model, no queue and no
worker: the answer is made in the method itself. Run: python benchmarks/peers.py {grpclib,grpcio} PORT
What must not live here: the load, the measuring.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpclib.server

from actorserve.proto.inference_grpc import InferenceAPIsServiceBase
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"


def copies_of(request: PredictionsRequest) -> int:
    """How many answers a stream gives."""
    return int(request.input["count"])


class GrpclibEcho(InferenceAPIsServiceBase):  # type: ignore[misc]  # generated without types
    """grpclib's own way: a service class; the stream is asyncio's."""

    async def Predictions(self, stream: Any) -> None:  # noqa: N802  # the rpc's name
        """One answer."""
        request = await stream.recv_message()
        await stream.send_message(PredictionResponse(prediction=request.input["data"]))

    async def StreamPredictions(self, stream: Any) -> None:  # noqa: N802
        """As many answers as `count` says."""
        request = await stream.recv_message()
        data = request.input["data"]
        for _ in range(copies_of(request)):
            await stream.send_message(PredictionResponse(prediction=data))

    async def Ping(self, stream: Any) -> None:  # noqa: N802
        """Not measured."""
        raise NotImplementedError

    async def StreamPredictions2(self, stream: Any) -> None:  # noqa: N802
        """Not measured."""
        raise NotImplementedError


async def run_grpclib(port: int) -> None:
    """Serve until killed."""
    server = grpclib.server.Server([GrpclibEcho()])
    await server.start("127.0.0.1", port)
    await server.wait_closed()


async def predict(request: PredictionsRequest, _context: Any) -> PredictionResponse:
    """One answer, the way of grpcio.aio."""
    return PredictionResponse(prediction=request.input["data"])


async def stream_predict(request: PredictionsRequest, _context: Any) -> AsyncIterator[PredictionResponse]:
    """As many answers as `count` says, the way of grpcio.aio."""
    data = request.input["data"]
    for _ in range(copies_of(request)):
        yield PredictionResponse(prediction=data)


async def run_grpcio(port: int) -> None:
    """Serve until killed."""
    coders = {
        "request_deserializer": PredictionsRequest.FromString,
        "response_serializer": PredictionResponse.SerializeToString,
    }
    methods = {
        "Predictions": grpc.unary_unary_rpc_method_handler(predict, **coders),
        "StreamPredictions": grpc.unary_stream_rpc_method_handler(stream_predict, **coders),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Serve one of the two."""
    which, port = sys.argv[1], int(sys.argv[2])
    asyncio.run({"grpclib": run_grpclib, "grpcio": run_grpcio}[which](port))


if __name__ == "__main__":
    main()
