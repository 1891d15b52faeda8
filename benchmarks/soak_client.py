"""One connection of the soak: some dozen calls of every kind, then an end, polite or rude.

The client is our sans-IO core over a trio socket; frames are counted as they pass, either way. What must not live here:
how many there are, the server, judgement of memory.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import trio
from calls import INFERENCE

from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.services.transport import frames as f
from actorserve.services.transport import grpc
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.messages import MessageReader, frame_message
from actorserve.services.transport.streams import CLOSED, ConnectionBroken, DataReceived, GoawayReceived, Stream

MAX_MESSAGE = 1 << 20
READ_SIZE = 65_536
PATIENCE_S = 60.0
IDLE_S = 2.0
COPIES = 20


def framed(body: bytes) -> bytes:
    """Give a message with its prefix."""
    return b"".join(frame_message(body, MAX_MESSAGE))


def request(size: int, copies: int = 1) -> bytes:
    """Give a framed request to the echo model."""
    inputs = {"data": bytes(size), "count": str(copies).encode()}
    return framed(PredictionsRequest(model_name="echo", input=inputs).SerializeToString())


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of call, and how it must end."""

    method: str
    bodies: tuple[bytes, ...]
    status: tuple[bytes, ...] = (b"0",)
    messages: int | None = 1
    timeout: float | None = None
    cancel: bool = False  # once something has come


KINDS = {
    "ping": Kind("Ping", (framed(b""),)),
    "small": Kind("Predictions", (request(16),)),
    "large": Kind("Predictions", (request(60_000),)),
    "stream": Kind("StreamPredictions", (request(64, COPIES),), messages=COPIES),
    "cancelled": Kind("StreamPredictions", (request(64, 1000),), cancel=True),
    "late": Kind("Predictions", (request(16),), (b"0", b"4"), None, timeout=0.001),
    "unknown": Kind("Nothing", (request(16),), (b"12",), 0),
    "no model": Kind("Predictions", (framed(b"\x0a\x02no"),), (b"5",), 0),
    "broken": Kind("Predictions", (framed(b"\xff"),), (b"3",), 0),
    "two messages": Kind("Predictions", (request(16), request(16)), (b"12",), 0),
}
ENDS = ("polite", "abrupt", "half a frame", "calls in hand", "fault")


@dataclass
class Tally:
    """What all connections have done."""

    connections: int = 0
    calls: int = 0
    frames: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)


class FrameCount:
    """Counts the frames of one direction."""

    def __init__(self, skip: int) -> None:
        self._skip = skip  # octets before the next frame's header
        self._head = b""

    def feed(self, data: bytes | bytearray) -> int:
        """How many frames begin here."""
        at, found = self._skip, 0
        data = self._head + data
        while at + f.HEADER_SIZE <= len(data):
            found += 1
            at += f.HEADER_SIZE + int.from_bytes(data[at : at + 3], "big")
        self._head = bytes(data[at:]) if at < len(data) else b""
        self._skip = max(0, at - len(data))
        return found


class Talk:
    """One connection."""

    def __init__(self, stream: trio.SocketStream, tally: Tally) -> None:
        self.core = Connection(client=True)
        self.stream = stream
        self.farewell = ""  # what the server said in its GOAWAY
        self._tally = tally
        self._up, self._down = FrameCount(len(f.PREFACE)), FrameCount(0)

    async def flush(self) -> None:
        """Write what is queued."""
        while data := self.core.take():
            self._tally.frames += self._up.feed(data)
            await self.stream.send_all(data)

    async def read(self) -> bool:
        """Take what comes; False at the end. What is read of calls is taken out of their inboxes."""
        data = await self.stream.receive_some(READ_SIZE)
        self._tally.frames += self._down.feed(data)
        for event in self.core.receive(bytes(data), trio.current_time()):
            if isinstance(event, DataReceived) and event.stream.owner is not None:
                event.stream.owner.take(self.core)
            elif isinstance(event, GoawayReceived):
                self.farewell = f"{grpc.code_name(event.code)} {event.text}"
            elif isinstance(event, ConnectionBroken):
                self._tally.wrong[f"the server broke the protocol: {event.text}"] += 1
                return False
        return bool(data)

    def begin(self, name: str) -> Call:
        """Open one call of a kind, whole."""
        kind = KINDS[name]
        block = grpc.request_block(f"{INFERENCE}/{kind.method}", b"localhost", b"soak", kind.timeout)
        stream = self.core.open_stream(block)
        stream.owner = call = Call(name, kind, stream)
        self.core.send_data(stream, b"".join(kind.bodies), end=True)
        self._tally.calls += 1
        return call


class Call:
    """One call in hand."""

    def __init__(self, name: str, kind: Kind, stream: Stream) -> None:
        self.name, self.kind, self.stream = name, kind, stream
        self.messages = 0
        self._reader = MessageReader(MAX_MESSAGE)

    def take(self, core: Connection) -> None:
        """Count whole messages; cancel where that is the kind's way."""
        while self._reader.next_message(self.stream.inbox) is not None:
            self.messages += 1
        core.consumed(self.stream, self._reader.taken)
        self._reader.taken = 0
        if self.kind.cancel and self.messages:
            core.reset(self.stream, f.CANCEL)

    @property
    def open(self) -> bool:
        """Whether something may still come."""
        return not self.stream.ended and self.stream.state != CLOSED

    def wrong(self) -> str | None:
        """What is not as it should be."""
        if self.kind.cancel:
            return None if self.messages else f"{self.name}: nothing came"
        status = (self.stream.trailer_fields or self.stream.fields).get(b"grpc-status")
        if status not in self.kind.status:
            return f"{self.name}: status {status!r}, reset {self.stream.reset_code}"
        if self.kind.messages not in {None, self.messages}:
            return f"{self.name}: {self.messages} messages"
        return None


async def live(port: int, dice: random.Random, turns: trio.CapacityLimiter, tally: Tally) -> None:
    """Open, call, idle, call, end."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    tally.connections += 1
    async with stream:
        talk = Talk(stream, tally)
        try:
            with trio.fail_after(PATIENCE_S + IDLE_S * 10):
                await talk.flush()  # the preface: the server waits for it a few seconds only
                for _ in range(dice.randrange(1, 6)):
                    async with turns:
                        await burst(talk, dice, tally)
                    await trio.sleep(dice.uniform(0, IDLE_S))
                how = dice.choice(ENDS)
                await end(talk, dice, how, tally)
            tally.ends[how] += 1
        except trio.TooSlowError:
            tally.wrong["no answer in time"] += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            tally.wrong[f"lost: {error}"] += 1


async def burst(talk: Talk, dice: random.Random, tally: Tally) -> None:
    """Make a few calls at once; each must end as its kind says."""
    made = [talk.begin(name) for name in dice.choices(list(KINDS), k=dice.randrange(1, 12))]
    await talk.flush()
    while any(call.open for call in made):
        if not await talk.read():
            tally.wrong[f"the server closed a connection: {talk.farewell or 'without GOAWAY'}"] += 1
            return
        await talk.flush()
    for call in made:
        found = call.wrong()
        if found is not None:
            tally.wrong[found] += 1
        talk.core.release(call.stream)


async def end(talk: Talk, dice: random.Random, how: str, tally: Tally) -> None:
    """End the connection, in one of the ways."""
    if how == "polite":
        talk.core.goaway(f.NO_ERROR)
        await talk.flush()
        await talk.stream.send_eof()
    elif how == "half a frame":
        await talk.stream.send_all(f.encode(f.HEADERS, f.END_HEADERS, 999, bytes(100))[: dice.randrange(1, 100)])
    elif how == "calls in hand":
        for name in dice.choices(list(KINDS), k=5):
            talk.begin(name)
        await talk.flush()
    elif how == "fault":
        await talk.stream.send_all(f.encode(f.PING, 0, 1, bytes(8)))
        while await talk.read():
            pass
        if not talk.core.goaway_received:
            tally.wrong["no GOAWAY after a fault"] += 1
