"""The peers of the echo benchmark: the same contract on grpclib's asyncio server and on grpcio.aio.

Each decodes a PredictionsRequest and encodes a PredictionResponse, as ours does, but has no model, no queue and no
worker: the answer is made in the method itself. `bare` is our transport alone: the service class of grpclib's peer,
unchanged, on GrpcServer. Run: python benchmarks/peers.py {grpclib,grpcio,bare} PORT
What must not live here: the load, the measuring.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpclib.server
import trio

from actorserve.__main__ import keep_free_memory
from actorserve.proto.inference_grpc import InferenceAPIsServiceBase
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from actorserve.services.transport.server import GrpcServer

SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MAX_MESSAGE = 6_553_500  # as ours; grpcio's own default is below the largest message measured


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
        """Always well; not measured."""
        await stream.recv_message()
        await stream.send_message(TorchServeHealthResponse(health="Healthy"))

    async def StreamPredictions2(self, stream: Any) -> None:  # noqa: N802
        """Each message is answered when it comes."""
        async for request in stream:
            await stream.send_message(PredictionResponse(prediction=request.input["data"]))


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


async def chat(requests: AsyncIterator[PredictionsRequest], _context: Any) -> AsyncIterator[PredictionResponse]:
    """Each message is answered when it comes, the way of grpcio.aio."""
    async for request in requests:
        yield PredictionResponse(prediction=request.input["data"])


async def run_grpcio(port: int) -> None:
    """Serve until killed."""
    coders = {
        "request_deserializer": PredictionsRequest.FromString,
        "response_serializer": PredictionResponse.SerializeToString,
    }
    methods = {
        "Predictions": grpc.unary_unary_rpc_method_handler(predict, **coders),
        "StreamPredictions": grpc.unary_stream_rpc_method_handler(stream_predict, **coders),
        "StreamPredictions2": grpc.stream_stream_rpc_method_handler(chat, **coders),
    }
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def run_bare(port: int) -> None:
    """Serve until killed, on trio."""
    await GrpcServer([GrpclibEcho()]).serve(await trio.open_tcp_listeners(port, host="127.0.0.1"))


def main() -> None:
    """Serve one of the three."""
    which, port = sys.argv[1], int(sys.argv[2])
    if which == "bare":
        keep_free_memory()  # as the server does
        trio.run(run_bare, port)
        return
    asyncio.run({"grpclib": run_grpclib, "grpcio": run_grpcio}[which](port))


if __name__ == "__main__":
    main()
