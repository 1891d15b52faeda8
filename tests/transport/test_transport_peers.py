"""Clients and servers that were not written here, over TCP on the loopback."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import anyio
import grpc
import pytest
import trio
from echo_service import Echo
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.client import StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve.client import Channel
from actorserve.services.transport.server import GrpcServer

CODEC = {"request_serializer": BytesValue.SerializeToString, "response_deserializer": BytesValue.FromString}


def grpcio_calls(port: int) -> list[object]:
    """Make one call of each kind with grpcio's sync client; give what it saw."""
    seen: list[object] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        big = BytesValue(value=b"x" * 1_000_000)
        unary = channel.unary_unary("/test.Echo/Unary", **CODEC)
        seen.append(unary(BytesValue(value=b"hello"), timeout=30).value)
        seen.append(unary(big, timeout=30) == big)
        _, call = channel.unary_unary("/test.Echo/Metadata", **CODEC).with_call(
            BytesValue(), timeout=30, metadata=[("x-key", "a"), ("x-key", "b"), ("x-octets-bin", b"\0\xff")]
        )
        seen.append([tuple(item) for item in call.initial_metadata()])
        seen.append([tuple(item) for item in call.trailing_metadata()])
        seen.append(len(list(channel.unary_stream("/test.Echo/Many", **CODEC)(big, timeout=30))))
        messages = [BytesValue(value=b"%d" % number) for number in range(50)]
        seen.append(list(channel.stream_stream("/test.Echo/Chat", **CODEC)(iter(messages), timeout=30)) == messages)
        seen.append(channel.stream_unary("/test.Echo/Total", **CODEC)(iter([big] * 3), timeout=30).value)
        for path, message, timeout in [("Fail", b"status", 30), ("Nothing", b"", 30), ("Wait", b"", 0.1)]:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/test.Echo/{path}", **CODEC)(BytesValue(value=message), timeout=timeout)
            seen.append(caught.value.code())
    return seen


async def test_grpcios_client_is_served():
    """All kinds of call, metadata, large messages, statuses and a deadline, from grpcio's C core."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(GrpcServer([Echo()]).serve, listeners)
        seen = await trio.to_thread.run_sync(grpcio_calls, port)
        nursery.cancel_scope.cancel()
    metadata = [("x-key", "a"), ("x-key", "b"), ("x-octets-bin", b"\0\xff")]
    codes = [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED]

    assert [b"hello", True, metadata, metadata, 100, True, b"3000000", *codes] == seen


GRPCLIB_CLIENT = """
import asyncio, sys
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.client import Channel, StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.exceptions import GRPCError

async def main():
    channel = Channel("127.0.0.1", int(sys.argv[1]))
    try:
        stub = lambda kind, name: kind(channel, "/test.Echo/" + name, BytesValue, BytesValue)
        big = BytesValue(value=b"x" * 300_000)
        assert await stub(UnaryUnaryMethod, "Unary")(big, timeout=30) == big
        assert await stub(UnaryStreamMethod, "Many")(big) == [big] * 100
        assert await stub(StreamStreamMethod, "Chat")([big] * 5) == [big] * 5
        try:
            await stub(UnaryUnaryMethod, "Fail")(BytesValue(value=b"status"))
        except GRPCError as error:
            print(error.status.name, error.details[0].value)
    finally:
        channel.close()

asyncio.run(main())
"""


async def test_grpclibs_client_is_served():
    """Grpclib's own client on asyncio, in a process of its own."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(GrpcServer([Echo()]).serve, listeners)
        done = await trio.run_process(
            [sys.executable, "-c", GRPCLIB_CLIENT, str(port)],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        nursery.cancel_scope.cancel()

    assert done.stdout == b"NOT_FOUND detail\n"


def grpcio_server() -> tuple[grpc.Server, int]:
    """Give grpcio's own server with methods like Echo's."""

    def fail(message, context):
        context.set_trailing_metadata([("x-key", "value")])
        context.abort(grpc.StatusCode.NOT_FOUND, "no 100 % such thing: å")

    def many(message, context):
        for _ in range(100):
            yield message

    def wait(message, context):
        context.add_callback(lambda: None)
        while context.is_active():
            pass
        return message

    codec = {"request_deserializer": BytesValue.FromString, "response_serializer": BytesValue.SerializeToString}
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(lambda message, _: message, **codec),
        "Fail": grpc.unary_unary_rpc_method_handler(fail, **codec),
        "Many": grpc.unary_stream_rpc_method_handler(many, **codec),
        "Chat": grpc.stream_stream_rpc_method_handler(lambda messages, _: messages, **codec),
        "Wait": grpc.unary_unary_rpc_method_handler(wait, **codec),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    return server, server.add_insecure_port("127.0.0.1:0")


async def use(port: int) -> None:
    """Call grpcio's server with our channel."""
    big = BytesValue(value=b"x" * 1_000_000)
    async with Channel(f"127.0.0.1:{port}") as channel:

        def stub(kind, name):
            return kind(channel, f"/test.Echo/{name}", BytesValue, BytesValue)

        assert big == await stub(UnaryUnaryMethod, "Unary")(big, timeout=30)
        assert [big] * 100 == await stub(UnaryStreamMethod, "Many")(big)
        assert [big] * 5 == await stub(StreamStreamMethod, "Chat")([big] * 5)
        async with stub(UnaryUnaryMethod, "Fail").open() as stream:
            await stream.send_message(big)
            with pytest.raises(GRPCError) as caught:
                await stream.recv_initial_metadata()
        assert (caught.value.status, caught.value.message) == (Status.NOT_FOUND, "no 100 % such thing: å")
        assert stream.trailing_metadata["x-key"] == "value"
        with pytest.raises(GRPCError) as caught:
            await stub(UnaryUnaryMethod, "Wait")(BytesValue(), timeout=0.1)
        assert Status.DEADLINE_EXCEEDED is caught.value.status
        assert big == await stub(UnaryUnaryMethod, "Unary")(big)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_our_channel_calls_grpcios_server(backend):
    """Large messages, all kinds of streams, statuses, trailers and a deadline, on both event loops."""
    server, port = grpcio_server()
    server.start()
    try:
        anyio.run(use, port, backend=backend)
    finally:
        server.stop(0).wait()


async def test_a_server_that_cannot_be_reached_is_unavailable():
    """The error names the target; the channel can be used again."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    async with Channel(f"127.0.0.1:{port}") as channel:
        for _ in range(2):
            with pytest.raises(GRPCError, match=str(port)) as caught:
                await UnaryUnaryMethod(channel, "/test.Echo/Unary", BytesValue, BytesValue)(BytesValue())
            assert Status.UNAVAILABLE is caught.value.status
