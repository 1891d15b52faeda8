"""Several buffers in one write: bare sockets, TLS and memory alike."""

import ssl

import pytest
import trio
from echo_service import framed
from google.protobuf.wrappers_pb2 import BytesValue
from rig import Service
from trio.testing import memory_stream_pair

from actorserve.services.transport import grpc
from actorserve.services.transport.connection import Connection, Settings
from actorserve.services.transport.server import GrpcServer, Limits
from actorserve.services.transport.writing import AHEAD, forget_unsent, let_ahead, send_parts

PARTS = [b"head", bytearray(b"x" * 300_000), memoryview(bytes(range(256)) * 5000)[7:], b"", b"tail"]


async def socket_pair():
    """Two connected TCP streams."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream(*listener.socket.getsockname())
        return await listener.accept(), client


async def read_all(stream, expected, pause=0.0):
    """Read so many octets, in portions."""
    data = b""
    while len(data) < expected:
        portion = await stream.receive_some(50_000)
        assert portion, "it has ended"
        data += portion
        await trio.sleep(pause)
    return data


@pytest.mark.parametrize("kind", ["tcp", "unix", "memory"])
@pytest.mark.parametrize("parts", [PARTS, PARTS[:1], PARTS[1:2]], ids=["many", "one small", "one large"])
async def test_all_parts_arrive_in_order(kind, parts):
    """A reader that is slower than the writer gets every octet; of each portion that was taken, the size is told."""
    if kind == "tcp":
        sender, receiver = await socket_pair()
    elif kind == "unix":
        sender, receiver = map(trio.SocketStream, trio.socket.socketpair())
    else:
        sender, receiver = memory_stream_pair()
    whole, told = b"".join(parts), []
    async with sender, receiver, trio.open_nursery() as nursery:
        nursery.start_soon(send_parts, sender, list(parts), told.append)
        assert whole == await read_all(receiver, len(whole), 0.001)
    assert sum(told) == len(whole)
    assert len(whole) < 100_000 or len(told) > 1


async def test_a_peer_that_has_gone_breaks_the_write():
    """The error is trio's, not the operating system's."""
    sender, receiver = await socket_pair()
    await receiver.aclose()
    async with sender:
        with pytest.raises(trio.BrokenResourceError):
            await send_often(sender)


async def test_a_side_that_was_closed_ends_the_write():
    """It is told apart from a peer that has gone."""
    sender, receiver = await socket_pair()
    async with receiver, trio.open_nursery() as nursery:
        nursery.start_soon(close_soon, sender)
        with pytest.raises(trio.ClosedResourceError):
            await send_often(sender)


async def send_often(stream):
    """Send more than the kernels hold."""
    for _ in range(100):
        await send_parts(stream, list(PARTS), lambda _: None)


async def close_soon(stream):
    """Close it when the writer waits."""
    await trio.testing.wait_all_tasks_blocked(0.05)
    await stream.aclose()


async def test_the_kernel_takes_more_than_it_has_sent():
    """A TCP connection has AHEAD; a Unix socket has no such option, and that is no error."""
    sender, receiver = await socket_pair()
    async with sender, receiver:
        let_ahead(sender)
        if hasattr(trio.socket, "TCP_NOTSENT_LOWAT"):
            told = sender.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT)
            assert told == AHEAD
    for stream in map(trio.SocketStream, trio.socket.socketpair()):
        async with stream:
            let_ahead(stream)


async def test_a_peer_that_does_not_read_is_reset(autojump_clock):
    """The kernel drops what it holds for it, at once: the peer finds a reset, not the rest of what it never read."""
    server = GrpcServer([Service(answer_much)], limits=Limits(write_stall_timeout_s=20, max_send_bytes=1 << 27))
    ours, theirs = await socket_pair()
    theirs.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    core = Connection(client=True, settings=Settings(stream_window=1 << 30, connection_window=1 << 30))
    stream = core.open_stream(grpc.request_block("/test.T/M", b"localhost", b"tester", None))
    core.send_data(stream, framed(b""), end=True)
    async with theirs:
        await theirs.send_all(core.take())
        await server.serve_connection(ours, "tester")

        assert server.statistics().closed == {"stall": 1}
        with pytest.raises(trio.BrokenResourceError):
            await read_all(theirs, 1 << 26)


async def test_under_tls_it_is_the_socket_that_forgets():
    """What is not a socket has nothing to forget."""
    sender, receiver = await socket_pair()
    async with receiver:
        forget_unsent(trio.SSLStream(sender, ssl.create_default_context(), server_hostname="localhost"))
        await sender.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await receiver.receive_some()
    forget_unsent(memory_stream_pair()[0])


async def answer_much(stream):
    """Answer with more than the kernels take."""
    await stream.recv_message()
    await stream.send_message(BytesValue(value=bytes(1 << 26)))
