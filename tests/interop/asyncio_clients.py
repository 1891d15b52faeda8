"""grpcio.aio and grpclib call TestService: `python asyncio_clients.py aio|grpclib PORT`. Prints one word a check."""

import asyncio
import sys

import grpc
import grpclib
import pytest
from grpclib.client import Channel
from interop_grpc import TestServiceStub as GrpclibStub
from interop_pb2 import (
    EchoStatus,
    Payload,
    ResponseParameters,
    SimpleRequest,
    StreamingInputCallRequest,
    StreamingOutputCallRequest,
)
from interop_pb2_grpc import TestServiceStub

UP = (27_182, 8, 1_828, 45_904)
DOWN = (31_415, 9, 2_653, 58_979)
METADATA = {"x-grpc-test-echo-initial": "value", "x-grpc-test-echo-trailing-bin": b"\xab" * 3}
LARGE = SimpleRequest(response_size=314_159, payload=Payload(body=bytes(271_828)))
BROKEN = SimpleRequest(response_status=EchoStatus(code=2, message="☺ 😈\n"))
OUTPUTS = StreamingOutputCallRequest(response_parameters=[ResponseParameters(size=size) for size in DOWN])
INPUTS = [StreamingInputCallRequest(payload=Payload(body=bytes(size))) for size in UP]
TURNS = [StreamingOutputCallRequest(response_parameters=[ResponseParameters(size=size)]) for size in DOWN]


def sizes(answers):
    return tuple(len(answer.payload.body) for answer in answers)


async def aio(port):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = TestServiceStub(channel)
        call = stub.UnaryCall(LARGE, metadata=tuple(METADATA.items()))
        assert sizes([await call]) == (314_159,)
        seen = dict(await call.initial_metadata()) | dict(await call.trailing_metadata())
        assert METADATA.items() <= seen.items()
        print("unary")
        with pytest.raises(grpc.RpcError) as caught:
            await stub.UnaryCall(BROKEN)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNKNOWN, "☺ 😈\n")
        print("status")
        assert sizes([answer async for answer in stub.StreamingOutputCall(OUTPUTS)]) == DOWN
        print("server")
        assert (await stub.StreamingInputCall(iter(INPUTS))).aggregated_payload_size == sum(UP)
        print("client")
        call = stub.FullDuplexCall()
        answers = []
        for turn in TURNS:
            await call.write(turn)
            answers.append(await call.read())
        await call.done_writing()
        assert (sizes(answers), await call.read()) == (DOWN, grpc.aio.EOF)
        print("bidirectional")
        with pytest.raises(grpc.RpcError) as caught:
            await stub.FullDuplexCall(timeout=0.05).read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        print("deadline")


async def with_grpclib(port):
    async with Channel("127.0.0.1", port) as channel:
        stub = GrpclibStub(channel)
        async with stub.UnaryCall.open(metadata=METADATA) as stream:
            await stream.send_message(LARGE, end=True)
            assert sizes([await stream.recv_message()]) == (314_159,)
            await stream.recv_trailing_metadata()
        assert METADATA.items() <= {**stream.initial_metadata, **stream.trailing_metadata}.items()
        print("unary")
        with pytest.raises(grpclib.GRPCError) as caught:
            await stub.UnaryCall(BROKEN)
        assert (caught.value.status, caught.value.message) == (grpclib.Status.UNKNOWN, "☺ 😈\n")
        print("status")
        assert sizes(await stub.StreamingOutputCall(OUTPUTS)) == DOWN
        print("server")
        assert (await stub.StreamingInputCall(INPUTS)).aggregated_payload_size == sum(UP)
        print("client")
        async with stub.FullDuplexCall.open() as stream:
            answers = []
            for turn in TURNS:
                await stream.send_message(turn)
                answers.append(await stream.recv_message())
            await stream.end()
            assert (sizes(answers), await stream.recv_message()) == (DOWN, None)
        print("bidirectional")
        with pytest.raises((TimeoutError, grpclib.GRPCError)) as caught:  # whose clock is first
            await stub.FullDuplexCall([], timeout=0.000001)
        assert getattr(caught.value, "status", grpclib.Status.DEADLINE_EXCEEDED) is grpclib.Status.DEADLINE_EXCEEDED
        print("deadline")


if __name__ == "__main__":
    asyncio.run({"aio": aio, "grpclib": with_grpclib}[sys.argv[1]](int(sys.argv[2])))
