"""Clients and servers that were not written here, over TCP on the loopback."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import grpc
import pytest
import trio
from echo_service import Echo
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from google.rpc import status_pb2
from grpc_status import rpc_status
from grpclib.client import StreamStreamMethod, StreamUnaryMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve.client import Channel
from actorserve.services.transport.server import GrpcServer

CODEC = {"request_serializer": BytesValue.SerializeToString, "response_deserializer": BytesValue.FromString}


COMPRESSIONS = [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]


def grpcio_calls(port: int, compression: grpc.Compression) -> list[object]:
    """Make one call of each kind with grpcio's sync client; give what it saw."""
    seen: list[object] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", compression=compression) as channel:
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


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_grpcios_client_is_served(compression):
    """All kinds of call, metadata, large messages, statuses and a deadline, from grpcio's C core, compressed or not."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(GrpcServer([Echo()]).serve, listeners)
        seen = await trio.to_thread.run_sync(grpcio_calls, port, compression)
        nursery.cancel_scope.cancel()
    metadata = [("x-key", "a"), ("x-key", "b"), ("x-octets-bin", b"\0\xff")]
    codes = [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED]

    assert [b"hello", True, metadata, metadata, 100, True, b"3000000", *codes] == seen


class Packing(Echo):
    """Compresses its answers as the metadata ask, and tells in the trailers how the request came."""

    async def unary(self, stream):
        message = await stream.recv_message()
        stream.reply_encoding = stream.metadata["x-encoding"]
        await stream.send_message(message)
        how = f"{stream.request_encoding} {stream.received_compressed} {stream.reply_encoding}"
        await stream.send_trailing_metadata(metadata={"x-how": how})

    async def chat(self, stream):
        stream.reply_encoding = stream.metadata["x-encoding"]
        async for message in stream:
            await stream.send_message(message)


AIO_CLIENT = """
import asyncio, sys
import grpc
from google.protobuf.wrappers_pb2 import BytesValue

CODEC = dict(request_serializer=BytesValue.SerializeToString, response_deserializer=BytesValue.FromString)

async def main(port, encoding):
    compression = getattr(grpc.Compression, encoding.title())
    metadata, big = (("x-encoding", encoding),), BytesValue(value=bytes(300_000))
    async with grpc.aio.insecure_channel("127.0.0.1:" + port, compression=compression) as channel:
        call = channel.unary_unary("/test.Echo/Unary", **CODEC)(big, metadata=metadata, timeout=30)
        assert await call == big
        print(dict(await call.trailing_metadata())["x-how"])
        chat = channel.stream_stream("/test.Echo/Chat", **CODEC)(metadata=metadata)
        for _ in range(5):
            await chat.write(big)
            assert await chat.read() == big
        await chat.done_writing()
        assert await chat.read() == grpc.aio.EOF
        total = await channel.stream_unary("/test.Echo/Total", **CODEC)(iter([big] * 3), timeout=30)
        many = [message async for message in channel.unary_stream("/test.Echo/Many", **CODEC)(big, timeout=30)]
        print(total.value.decode(), len(many))
        for path, timeout in ("Fail", 30), ("Nothing", 30), ("Wait", 0.1):
            try:
                await channel.unary_unary("/test.Echo/" + path, **CODEC)(BytesValue(value=b"status"), timeout=timeout)
            except grpc.aio.AioRpcError as error:
                print(error.code().name)

asyncio.run(main(*sys.argv[1:]))
"""


async def served(service, code: str, *arguments: str) -> list[str]:
    """Run a client of asyncio's against a service, in a process of its own; give the lines that it printed."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = str(listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        await nursery.start(GrpcServer([service]).serve, listeners)
        command = [sys.executable, "-c", code, port, *arguments]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        nursery.cancel_scope.cancel()
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_grpcio_aios_client_compresses_and_is_answered_so(encoding):
    """Its requests are seen as compressed, per call, and it reads what is compressed for it; all cardinalities."""
    lines = await served(Packing(), AIO_CLIENT, encoding)

    assert f"{encoding} True {encoding}" == lines[0]
    assert lines == [f"{encoding} True {encoding}", "900000 100", "NOT_FOUND", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"]


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
    assert await served(Echo(), GRPCLIB_CLIENT) == ["NOT_FOUND detail"]


# --- the other way round: our client --------------------------------------------------------------


def fail(message, context):
    if message.value == b"details":
        status = status_pb2.Status(code=5, message="rich")
        status.details.add().Pack(StringValue(value="detail"))
        context.abort_with_status(rpc_status.to_status(status))
    context.abort(grpc.StatusCode.NOT_FOUND, "no 100 % such thing: å")


def many(message, context):
    for number in range(100):
        if number % 2:
            context.disable_next_message_compression()
        yield message


def wait(message, context):
    over = threading.Event()
    if context.add_callback(over.set):  # otherwise the call has ended already
        over.wait()
    return message


def total(messages, context):
    return BytesValue(value=b"%d" % sum(len(message.value) for message in messages))


def metadata_back(message, context):
    received = [item for item in context.invocation_metadata() if item[0].startswith("x-")]
    context.send_initial_metadata(received)
    context.set_trailing_metadata(received)
    return message


def grpcio_server(compression: grpc.Compression) -> tuple[grpc.Server, int]:
    """Give grpcio's own server with methods like Echo's."""
    codec = {"request_deserializer": BytesValue.FromString, "response_serializer": BytesValue.SerializeToString}
    unary = grpc.unary_unary_rpc_method_handler
    methods = {
        "Unary": unary(lambda message, _: message, **codec),
        "Metadata": unary(metadata_back, **codec),
        "Fail": unary(fail, **codec),
        "Wait": unary(wait, **codec),
        "Many": grpc.unary_stream_rpc_method_handler(many, **codec),
        "Total": grpc.stream_unary_rpc_method_handler(total, **codec),
        "Chat": grpc.stream_stream_rpc_method_handler(lambda messages, _: messages, **codec),
    }
    server = grpc.server(ThreadPoolExecutor(8), compression=compression)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    return server, server.add_insecure_port("127.0.0.1:0")


async def use(port: int, encoding: str, *, replies_compressed: bool) -> None:
    """Call a peer's server with our channel: all cardinalities, an error, a deadline, a cancellation."""
    big = BytesValue(value=bytes(1_000_000))
    async with Channel(f"127.0.0.1:{port}", compression=encoding) as channel:

        def stub(kind, name):
            return kind(channel, f"/test.Echo/{name}", BytesValue, BytesValue)

        assert big == await stub(UnaryUnaryMethod, "Unary")(big, timeout=30)
        assert [big] * 100 == await stub(UnaryStreamMethod, "Many")(big)
        assert (await stub(StreamUnaryMethod, "Total")([big] * 3)).value == b"3000000"
        few = [BytesValue(value=bytes(10_000))] * 5  # all are sent before one is read: they must fit the windows
        assert few == await stub(StreamStreamMethod, "Chat")(few)
        async with stub(StreamStreamMethod, "Chat").open(timeout=30) as stream:
            for compress in (True, False, None):
                await stream.send_message(big, compress=compress)
                assert big == await stream.recv_message()
                assert stream.received_compressed is replies_compressed
            await stream.end()
            assert await stream.recv_message() is None
        async with stub(UnaryUnaryMethod, "Fail").open() as stream:
            await stream.send_message(big)
            with pytest.raises(GRPCError) as caught:
                await stream.recv_initial_metadata()
        assert (caught.value.status, caught.value.message) == (Status.NOT_FOUND, "no 100 % such thing: å")
        await fails_as_it_should(stub)
        assert big == await stub(UnaryUnaryMethod, "Unary")(big)


async def fails_as_it_should(stub) -> None:
    """A deadline, an unknown method, a cancellation."""
    for name, timeout, status in [("Wait", 0.1, Status.DEADLINE_EXCEEDED), ("Nothing", 30, Status.UNIMPLEMENTED)]:
        with pytest.raises(GRPCError) as caught:
            await stub(UnaryUnaryMethod, name)(BytesValue(), timeout=timeout)
        assert status is caught.value.status
    async with stub(StreamStreamMethod, "Chat").open() as stream:
        await stream.send_message(BytesValue(value=b"x"))
        assert (await stream.recv_message()).value == b"x"
        await stream.cancel()


async def use_metadata(port: int) -> None:
    """Metadata and rich errors with grpcio's server."""
    sent = [("x-key", "a"), ("x-key", "b"), ("x-octets-bin", b"\0\xff")]
    async with Channel(f"127.0.0.1:{port}") as channel:
        async with UnaryUnaryMethod(channel, "/test.Echo/Metadata", BytesValue, BytesValue).open(
            metadata=sent
        ) as stream:
            await stream.send_message(BytesValue())
            await stream.recv_message()
            await stream.recv_trailing_metadata()
        for received in (stream.initial_metadata, stream.trailing_metadata):
            assert sent == [item for item in received.items() if item[0].startswith("x-")]
        async with UnaryUnaryMethod(channel, "/test.Echo/Fail", BytesValue, BytesValue).open() as stream:
            await stream.send_message(BytesValue(value=b"details"))
            with pytest.raises(GRPCError) as caught:
                await stream.recv_initial_metadata()
        assert (caught.value.status, caught.value.message) == (Status.NOT_FOUND, "rich")
        assert [detail.value for detail in caught.value.details] == ["detail"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_our_channel_calls_grpcios_server(backend, compression):
    """Large messages, all kinds of streams, statuses and a deadline, compressed both ways, on both event loops."""
    server, port = grpcio_server(compression)
    server.start()
    name = {0: "identity", 1: "deflate", 2: "gzip"}[int(compression)]
    try:
        anyio.run(partial(use, port, name, replies_compressed=name != "identity"), backend=backend)
        anyio.run(use_metadata, port, backend=backend)
    finally:
        server.stop(0).wait()


AIO_SERVER = """
import asyncio, sys
import grpc
from google.protobuf.wrappers_pb2 import BytesValue

async def unary(message, context):
    return message

async def total(messages, context):
    return BytesValue(value=b"%d" % sum([len(message.value) async for message in messages]))

async def many(message, context):
    for _ in range(100):
        yield message

async def chat(messages, context):
    async for message in messages:
        yield message

async def fail(message, context):
    await context.abort(grpc.StatusCode.NOT_FOUND, "no 100 % such thing: å")

async def wait(message, context):
    await asyncio.Event().wait()

async def main():
    codec = dict(request_deserializer=BytesValue.FromString, response_serializer=BytesValue.SerializeToString)
    unary_handler = grpc.unary_unary_rpc_method_handler
    methods = {
        "Unary": unary_handler(unary, **codec),
        "Fail": unary_handler(fail, **codec),
        "Wait": unary_handler(wait, **codec),
        "Many": grpc.unary_stream_rpc_method_handler(many, **codec),
        "Total": grpc.stream_unary_rpc_method_handler(total, **codec),
        "Chat": grpc.stream_stream_rpc_method_handler(chat, **codec),
    }
    server = grpc.aio.server(compression=getattr(grpc.Compression, sys.argv[1].title()))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""

GRPCLIB_SERVER = """
import asyncio, socket
from google.protobuf.wrappers_pb2 import BytesValue
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server

class Echo:
    async def unary(self, stream):
        await stream.send_message(await stream.recv_message())
    async def many(self, stream):
        message = await stream.recv_message()
        for _ in range(100):
            await stream.send_message(message)
    async def chat(self, stream):
        async for message in stream:
            await stream.send_message(message)
    async def total(self, stream):
        size = sum([len(message.value) async for message in stream])
        await stream.send_message(BytesValue(value=b"%d" % size))
    async def fail(self, stream):
        raise GRPCError(Status.NOT_FOUND, "no 100 % such thing: å")
    async def wait(self, stream):
        await asyncio.Event().wait()
    def __mapping__(self):
        c = Cardinality
        kinds = {"Unary": c.UNARY_UNARY, "Many": c.UNARY_STREAM, "Chat": c.STREAM_STREAM, "Total": c.STREAM_UNARY,
                 "Fail": c.UNARY_UNARY, "Wait": c.UNARY_UNARY}
        return {"/test.Echo/" + name: Handler(getattr(self, name.lower()), kind, BytesValue, BytesValue)
                for name, kind in kinds.items()}

async def main():
    server, sock = Server([Echo()]), socket.create_server(("127.0.0.1", 0))
    await server.start(sock=sock)
    print(sock.getsockname()[1], flush=True)
    await server.wait_closed()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("code", "encoding"),
    [(AIO_SERVER, "gzip"), (AIO_SERVER, "deflate"), (GRPCLIB_SERVER, "identity")],
    ids=["grpcio.aio gzip", "grpcio.aio deflate", "grpclib"],
)
async def test_our_channel_calls_servers_of_asyncio(nursery, code, encoding):
    """grpcio.aio's server with compression, and grpclib's, which has none: each in a process of its own."""
    process = await nursery.start(
        partial(trio.run_process, [sys.executable, "-c", code, encoding], stdout=subprocess.PIPE, check=False)
    )
    port = int(await process.stdout.receive_some())
    try:
        await use(port, encoding, replies_compressed=encoding != "identity")
    finally:
        process.terminate()


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
