"""Conversations that nobody should have: what a client sends, changed octet by octet and frame by frame, from a seed.

Used by the fuzz's short form (test_fuzz_short.py) and by its long one (benchmarks/fuzz.py): a seed gives the same
octets in both.
"""

import random

import trio
from echo_service import Echo, framed
from google.protobuf.wrappers_pb2 import BytesValue
from test_transport_connection import conversation, split_at, take_all

from actorserve.services.transport import frames as f
from actorserve.services.transport import grpc
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.server import GrpcServer, Limits

PATHS = ("Unary", "Metadata", "Many", "Chat", "Idle", "Total", "Wait", "Fail", "Nothing")
VALUES = (b"", b"status", b"bug", b"silent", b"late", b"x" * 300)
LIMIT = 1 << 20
SECONDS = 3600.0  # of the virtual clock: far above every timeout
LIMITS = Limits(max_idle_s=60.0, max_receive_bytes=LIMIT)


def frames_of(wire: bytes) -> list[bytes]:
    """Cut into whole frames; what is left over is the last."""
    parts, at = [], 0
    while at < len(wire):
        stop = at + f.HEADER_SIZE + int.from_bytes(wire[at : at + 3], "big")
        parts.append(wire[at:stop])
        at = stop
    return parts


def good(dice: random.Random) -> list[bytes]:
    """Give the frames of a few calls, without the preface: h2's, or ours with any method, encoding and timeout."""
    if dice.random() < 0.5:
        bodies = [[dice.randbytes(dice.randrange(400)) for _ in range(dice.randrange(4))] for _ in range(3)]
        wire = conversation(bodies, padding=dice.choice((0, 7)), priority=dice.random() < 0.5)
        return frames_of(wire[len(f.PREFACE) :])
    core = Connection(client=True)
    core.receive(f.encode_settings([]))
    for _ in range(dice.randrange(1, 6)):
        encoding = dice.choice((None, b"gzip", b"deflate"))
        timeout = dice.choice((None, 0.0, 5.0))
        path = f"/test.Echo/{dice.choice(PATHS)}"
        stream = core.open_stream(grpc.request_block(path, b"localhost", b"fuzz", timeout, encoding=encoding))
        body = BytesValue(value=dice.choice(VALUES)).SerializeToString()
        for _ in range(dice.randrange(3)):
            core.send_data(stream, framed(body, dice.choice((0, 0, 0, 1))))
        core.send_data(stream, framed(body), end=dice.random() < 0.8)
    return frames_of(take_all(core)[len(f.PREFACE) :])


def any_frame(dice: random.Random) -> bytes:
    """Give a frame of any type, with any flags, on a stream that may exist."""
    payload = dice.randbytes(dice.choice((0, 1, 4, 5, 6, 8, 12, 100)))
    return f.encode(
        dice.randrange(12), dice.choice((0, 1, 4, 5, 8, 0x20, dice.randrange(256))), dice.randrange(10), payload
    )


def mutated(dice: random.Random) -> bytes:
    """Give a conversation with a few things wrong."""
    parts = good(dice)
    for _ in range(dice.randrange(5)):
        at = dice.randrange(len(parts))
        match dice.randrange(8):
            case 0:
                parts.insert(at, any_frame(dice))
            case 1:
                parts.insert(at, dice.choice(parts))
            case 2:
                other = dice.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at] = parts[at][: dice.randrange(len(parts[at]) + 1)]
            case 4:
                parts.insert(at, f.encode_rst_stream(2 * dice.randrange(6) + 1, dice.randrange(16)))
            case _:
                octets = bytearray(parts[at] or b"\0")
                octets[min(dice.randrange(len(octets)), dice.choice((8, 1 << 20)))] = dice.randrange(256)
                parts[at] = bytes(octets)
    return b"".join(parts)


def try_core(seed: int) -> str | None:
    """Feed one to the sans-IO core, in either role; give what is wrong."""
    dice = random.Random(seed)  # noqa: S311  a seed is the point
    client, library = dice.random() < 0.3, dice.choice(("jh2", "hpack"))
    core = Connection(client=client, hpack_library=library)
    if client:
        core.open_stream(grpc.request_block("/test.Echo/Unary", b"localhost", b"fuzz", None))
    wire = (b"" if client else f.PREFACE) + mutated(dice)
    events: list[s.Event] = []
    now = 0.0
    for part in split_at(wire, [dice.randrange(10_000) for _ in range(dice.randrange(4))]):
        now += dice.choice((0.0, 0.5, 20.0))
        new = core.receive(part, now, dice.choice((1, 128, 1 << 60)))
        while core.more:
            new += core.receive(b"", now, 1)
        for event in new:
            if isinstance(event, s.RequestReceived) and dice.random() < 0.7:
                core.respond(event.stream, grpc.HEAD, grpc.TAIL, dice.randbytes(50))
        events += new
    sent = take_all(core)
    if core.broken != any(isinstance(event, s.ConnectionBroken) for event in events):
        return "broken without an event, or the other way round"
    if core.broken and (b"\x07\x00\x00\x00\x00\x00" not in sent or core.receive(conversation([[b"a"]]), now)):
        return "broken without GOAWAY, or something was read after it"
    held = sum(len(chunk) for stream in core.streams.values() for chunk in stream.inbox)
    if (
        held > len(wire)
        or len(core._buffer) > 16_393 + len(wire) * (not core.settings_seen)
        or len(core._blocks.waiting) > 65_536
    ):
        return "more is held than may be"
    return None


async def try_server(seed: int) -> str | None:
    """Feed one to a whole server, in memory and on a virtual clock; give what is wrong, once its time is over."""
    dice = random.Random(seed)  # noqa: S311  a seed is the point
    wire = f.PREFACE + mutated(dice)
    records: list[object] = []
    server = GrpcServer([Echo()], limits=LIMITS, on_end=records.append)
    client, theirs = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_connection, theirs)
        nursery.start_soon(_read, client)
        try:
            for part in split_at(wire, [dice.randrange(10_000) for _ in range(dice.randrange(4))]):
                await client.send(part)
                await trio.sleep(dice.choice((0.0, 0.0, 1.0)))
            if dice.random() < 0.5:
                await client.send_eof()
        except trio.BrokenResourceError:
            pass  # the server has closed
        except Exception as error:
            if type(error).__name__ != "BrokenResourceError":  # anyio's
                raise
        await trio.sleep(SECONDS)
        await client.aclose()
        await trio.sleep(SECONDS)
        told = server.statistics()
        nursery.cancel_scope.cancel()
    if told.closed.get("bug"):
        return "an exception ended the connection"
    if told.connections or told.calls:
        return f"something is still open: {told}"
    return None


async def _read(client) -> None:
    try:
        while True:
            await client.receive()
    except Exception as error:
        if type(error).__name__ not in {"EndOfStream", "ClosedResourceError", "BrokenResourceError"}:
            raise
