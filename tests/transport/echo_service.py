"""A service for the transport's tests, made of google's wrapper messages, and a raw HTTP/2 client on the h2 library."""

from collections.abc import Callable, Iterator

import h2.config
import h2.connection
import h2.events
import h2.settings
import trio
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from actorserve.services.transport import frames as f
from actorserve.services.transport.memory import MemoryClientStream

PATIENCE_S = 100_000
REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Echo/Unary"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class Echo:
    """Methods that answer, stream, wait, fail; `log` records what happened to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.sent = 0
        self.gate = trio.Event()

    async def unary(self, stream):
        message = await stream.recv_message()
        await stream.send_message(message)

    async def metadata(self, stream):
        received = [(key, value) for key, value in stream.metadata.items() if key.startswith("x-")]
        await stream.recv_message()
        await stream.send_initial_metadata(metadata=received)
        await stream.send_message(BytesValue(value=stream.peer.encode()))
        await stream.send_trailing_metadata(metadata=received)

    async def many(self, stream):
        message = await stream.recv_message()
        for _ in range(100):
            await stream.send_message(message)
            self.sent += 1

    async def chat(self, stream):
        async for message in stream:
            await stream.send_message(message)

    async def total(self, stream):
        size = 0
        async for message in stream:
            size += len(message.value)
        await stream.send_message(BytesValue(value=b"%d" % size))

    async def wait(self, stream):
        await stream.recv_message()
        self.log.append("began")
        try:
            await self.gate.wait()
            await stream.send_message(BytesValue(value=b"done"))
        except trio.Cancelled:
            self.log.append("cancelled")
            raise

    async def idle(self, stream):
        await self.gate.wait()

    async def remaining(self, stream):
        await stream.recv_message()
        await trio.sleep(2)
        left = "none" if stream.deadline is None else f"{stream.deadline.time_remaining():.3f}"
        await stream.send_message(BytesValue(value=left.encode()))

    async def fail(self, stream):
        message = await stream.recv_message()
        match message.value:
            case b"status":
                raise GRPCError(Status.NOT_FOUND, "no 100 % such thing: å", [StringValue(value="detail")])
            case b"bug":
                raise RuntimeError("secret")
            case b"key":
                raise KeyError("known")
            case b"group":
                raise ExceptionGroup("one", [GRPCError(Status.ABORTED, "inner")])
            case b"silent":
                return
            case b"late":
                await stream.send_initial_metadata()
                raise GRPCError(Status.DATA_LOSS, "late")

    def __mapping__(self):
        unary, streaming = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        methods = {
            "Unary": (self.unary, unary),
            "Metadata": (self.metadata, unary),
            "Many": (self.many, streaming),
            "Chat": (self.chat, Cardinality.STREAM_STREAM),
            "Idle": (self.idle, Cardinality.STREAM_STREAM),
            "Total": (self.total, Cardinality.STREAM_UNARY),
            "Wait": (self.wait, unary),
            "Remaining": (self.remaining, unary),
            "Fail": (self.fail, unary),
        }
        return {
            f"/test.Echo/{name}": Handler(func, cardinality, BytesValue, BytesValue)
            for name, (func, cardinality) in methods.items()
        }


class RawClient:
    """h2's client over one end of a memory pair: sees frames, where a gRPC client sees calls."""

    def __init__(self, stream: MemoryClientStream, **settings: int) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings({h2.settings.SettingCodes[name]: value for name, value in settings.items()})
        self.events: list[h2.events.Event] = []

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send(data)

    async def request(self, path: str, body: bytes | None, extra=(), *, end: bool = True) -> int:
        number = self.h2.get_next_available_stream_id()
        headers = [(key, path if key == ":path" else value) for key, value in REQUEST] + list(extra)
        self.h2.send_headers(number, headers, end_stream=body is None and end)
        if body is not None:
            self.h2.send_data(number, body, end_stream=end)
        await self.flush()
        return number

    async def until(self, done: Callable[[h2.events.Event], bool], *, acknowledge: bool = True) -> h2.events.Event:
        """Read until an event is what is asked for; give it."""
        with trio.fail_after(PATIENCE_S):  # a virtual clock has no other end to what never comes
            await self.flush()  # its preface: the server waits for that
            while True:
                for event in self.events:  # one read may have brought it with what was waited for before
                    if done(event):
                        self.events.remove(event)
                        return event
                for event in self.h2.receive_data(await self.stream.receive()):
                    self.events.append(event)
                    if acknowledge and isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                await self.flush()

    async def ended(self, number: int) -> dict[str, str]:
        """Give the last headers of a stream, when it has ended."""
        await self.until(lambda event: isinstance(event, h2.events.StreamEnded) and event.stream_id == number)
        lists = [
            dict(event.headers)
            for event in self.events
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived) and event.stream_id == number
        ]
        return lists[-1]


def framed(body: bytes, flag: int = 0) -> bytes:
    """Give a length-prefixed message."""
    return bytes([flag]) + len(body).to_bytes(4, "big") + body


def frames_of(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Give type, stream id and payload of each frame."""
    while data:
        high, low, kind, _, number = f.HEADER.unpack_from(data)
        stop = f.HEADER_SIZE + (high << 8 | low)
        yield kind, number, data[f.HEADER_SIZE : stop]
        data = data[stop:]
