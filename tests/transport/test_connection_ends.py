"""However a connection is broken, and whenever: its tasks and its calls end, on both sides; in virtual time."""

import random

import anyio
import pytest
import trio
from echo_service import Echo, framed
from grpclib.const import Cardinality
from rig import Rig
from test_rfc9113 import heads

from actorserve.services.transport import frames as f
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.server import GrpcServer, Limits

LIMITS = {"handshake_timeout_s": 5, "keepalive_interval_s": 20, "keepalive_timeout_s": 5, "max_idle_s": 30}
STALLS = {"write_stall_timeout_s": 10, "body_stall_timeout_s": 10, "max_connection_age_s": 60}
METHODS = (b"Unary", b"Many", b"Chat", b"Wait", b"Idle", b"Nothing")
AT_MOST_S = 300  # more than every timeout together
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Stubborn(Echo):
    """Some methods take a while to end when they are cancelled."""

    async def wait(self, stream):
        try:
            await super().wait(stream)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.5)


def request(number, path, body, *, end):
    """Give the frames of one call."""
    first = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    return heads(number, first=first) + f.encode(f.DATA, f.END_STREAM if end else 0, number, body)


def part(dice, number):
    """Give an honest call, a flood, half a frame, junk."""
    path, body = b"/test.Echo/" + dice.choice(METHODS), framed(b"\x0a\x10" + bytes(16))
    match dice.randrange(8):
        case 0 | 1:
            return request(number, path, body, end=dice.random() < 0.7)
        case 2:
            return request(number, path, body[: dice.randrange(20)], end=True)
        case 3:
            return f.encode(f.PING, 0, 0, bytes(8)) * dice.choice([1, 200])
        case 4:
            return f.encode_rst_stream(max(number - 2, 1), f.CANCEL)
        case 5 | 6:
            return dice.choice([f.encode_window_update(0, 1000), f.encode(f.HEADERS, 0, number, b"\x83")])
        case _:
            return dice.randbytes(dice.randrange(1, 30)) if dice.random() < 0.3 else b""


def script(dice):
    """Give what one client sends, in any order; seldom without the preface."""
    windows = f.encode_settings([(f.INITIAL_WINDOW_SIZE, dice.choice([0, 10, 65_535]))])
    calls = [part(dice, 2 * n + 1) for n in range(dice.randrange(12))]
    return [f.PREFACE, windows, *calls][dice.random() < 0.05 :]


async def client(pipe, dice):
    """Send at random times, read or not, and end the connection in one of the ways there are, or never."""

    async def read():
        while await pipe.receive(dice.choice([1, 100, 65_536])):
            await anyio.sleep(dice.choice([0, 0, 0.1]))

    try:
        async with trio.open_nursery() as nursery:
            if dice.random() < 0.7:
                nursery.start_soon(read)
            for said in script(dice):
                cut = dice.randrange(len(said) + 1)
                for piece in (said[:cut], said[cut:]):
                    await pipe.send(piece)
                    for _ in range(dice.randrange(4)):
                        await trio.lowlevel.checkpoint()
                    await trio.sleep(dice.choice([0, 0, 0, 0.3, 6]))
            match dice.randrange(4):
                case 0:
                    await pipe.aclose()
                case 1:
                    await pipe.send_eof()
            nursery.cancel_scope.cancel()
    except* GONE:
        pass


@pytest.mark.parametrize("seed", range(150))
async def test_a_connection_always_ends(nursery, autojump_clock, seed):
    """Broken at any moment by either side, small pipes or large: it ends, with every call, and nothing is left."""
    dice = random.Random(seed)  # noqa: S311  a seed, no secret
    records = []
    limits = Limits(**LIMITS, **STALLS, max_connection_age_grace_s=5, request_timeout_s=dice.choice([0, 40]))
    server = GrpcServer([Stubborn()], limits=limits, on_end=records.append)
    pipe, end = memory_pair(dice.choice([100, 65_536]))
    with trio.fail_after(AT_MOST_S):
        async with trio.open_nursery() as both:
            both.start_soon(server.serve_connection, end, "tester")
            both.start_soon(client, pipe, dice)
            if dice.random() < 0.3:
                await trio.sleep(dice.choice([0, 0.1, 3, 15]))
                server.drain()

    statistics = server.statistics()
    assert (statistics.connections, statistics.calls) == (0, 0)
    assert sum(statistics.closed.values()) == 1
    assert "bug" not in statistics.closed


async def test_a_peer_that_does_not_read_the_last_word_does_not_keep_its_connection(nursery, autojump_clock):
    """The last GOAWAY of a drain is a write like any other: it stalls for write_stall_timeout_s at most."""
    server = GrpcServer([Echo()], limits=Limits(write_stall_timeout_s=10, keepalive_interval_s=0, max_idle_s=0))
    pipe, end = memory_pair(40)  # holds the first GOAWAY and its PING, not the second GOAWAY
    with trio.fail_after(60):
        async with trio.open_nursery() as both:
            both.start_soon(server.serve_connection, end, "tester")
            await pipe.send(f.PREFACE + f.encode_settings([]))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(1):
                while True:
                    await pipe.receive(100)
            server.drain()

    assert server.statistics().connections == 0


async def test_whoever_still_reads_hears_that_the_call_has_ended(nursery, autojump_clock):
    """A method that sends its trailers while a task of it waits for a message: that task gets the end, not silence."""
    read = []

    async def method(stream):
        async with trio.open_nursery() as tasks:
            tasks.start_soon(reader, stream)
            await trio.sleep(1)
            await stream.send_trailing_metadata()

    async def reader(stream):
        read.append(await stream.recv_message())

    rig = Rig(nursery, method, Cardinality.STREAM_STREAM, **LIMITS)
    client = rig.raw()
    with trio.fail_after(AT_MOST_S):
        await client.request("/test.T/M", None, end=False)
        while not read:
            await trio.sleep(1)

    assert read == [None]
