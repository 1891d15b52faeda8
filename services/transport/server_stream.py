"""What a service method gets: one call's messages, metadata and deadline, as `grpclib.server.Stream` offers them.

What lives here: `ServerStream` and the deadline that reads trio's clock.
What must not: reading or writing the connection; deciding what an exception means.

Rules
1. A unary answer is held until the method returns and then leaves whole, in one append: headers, message, trailers.
2. `send_message` waits while more than `send_buffer` octets of this stream are unsent; `recv_message` gives flow
   control back only for what it takes. Both return without a checkpoint when there is nothing to wait for.
3. Every wait has its own trio.Event. A reset cancels the call's scope; no wait outlives it.
4. A unary request is exactly one message: none or two are UNIMPLEMENTED, as gRPC's table of status codes has it.
5. Answers are not compressed unless the method sets `reply_encoding`, nor for a client that does not take it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any, Protocol

import trio
from google.protobuf.message import DecodeError
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.metadata import Deadline

from actorserve.services.transport import compression, frames, grpc, hpack, messages
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.grpc import Metadata, MetadataLike
from actorserve.services.transport.messages import MessageReader
from actorserve.services.transport.streams import CLOSED, Stream
from actorserve.services.transport.tls import PeerIdentity


class TrioDeadline(Deadline):
    """grpclib's deadline on trio's clock, so that a virtual clock moves it."""

    @classmethod
    def from_timeout(cls, timeout: float) -> TrioDeadline:
        """Give the deadline that is so many seconds from now."""
        return cls(_timestamp=trio.current_time() + timeout)

    def time_remaining(self) -> float:
        """Give the seconds left, 0 when it has passed."""
        return max(0.0, self._timestamp - trio.current_time())


class Wire(Protocol):
    """What a call needs of its connection's driver."""

    core: Connection
    peer: str
    identity: PeerIdentity | None
    max_receive_bytes: int
    max_send_bytes: int
    send_buffer: int

    def flush(self) -> None:
        """Have what is queued written in the next tick."""


class ServerStream:
    """One call. Made by the driver, used by the service method."""

    __slots__ = (
        "_encoding",
        "_head",
        "_held",
        "_metadata",
        "_readable",
        "_reader",
        "_received",
        "_request_id",
        "_wire",
        "_writable",
        "expires",
        "handler",
        "headers_sent",
        "method",
        "scope",
        "status",
        "status_message",
        "stream",
        "token",
    )

    def __init__(self, wire: Wire, stream: Stream, handler: Handler, method: str, expires: float | None) -> None:
        self._wire = wire
        encoding = stream.fields.get(b"grpc-encoding")
        self._reader = MessageReader(wire.max_receive_bytes, encoding)
        self._head = grpc.HEAD if encoding is None else grpc.HEADS[None]
        self._encoding: bytes | None = None  # of the answer
        self.token: Any = None  # what an interceptor found that the caller may do
        self._metadata: Metadata | None = None
        self._held: bytes | None = None  # a unary answer (rule 1)
        self._received = False
        self._request_id: str | None = None
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self.stream = stream
        self.handler = handler
        self.method = method
        self.expires = expires
        self.scope = trio.CancelScope() if expires is None else trio.CancelScope(deadline=expires)
        self.headers_sent = False
        self.status: Status | None = None  # once trailers are queued
        self.status_message = ""

    # --- what is known of the call -----------------------------------------------------------

    @property
    def peer(self) -> str:
        """The address of the client."""
        return self._wire.peer

    @property
    def identity(self) -> PeerIdentity | None:
        """Who the client's certificate is for; None without one."""
        return self._wire.identity

    @property
    def deadline(self) -> TrioDeadline | None:
        """When the call ends by itself, on trio's clock."""
        return None if self.expires is None else TrioDeadline(_timestamp=self.expires)

    @property
    def metadata(self) -> Metadata:
        """The request's metadata; values of -bin keys are bytes."""
        if self._metadata is None:
            self._metadata = grpc.decode_metadata(self.stream.metadata)
        return self._metadata

    @property
    def user_agent(self) -> str | None:
        """What the client calls itself."""
        value = self.stream.fields.get(b"user-agent")
        return None if value is None else value.decode("latin-1")

    @property
    def request_id(self) -> str:
        """The id that the client sent (x-request-id, else request_id), or one made earlier, or nothing."""
        if self._request_id is None:
            self._request_id = self._sent_request_id().decode("latin-1")
        return self._request_id

    def _sent_request_id(self) -> bytes:
        found = dict(reversed(self.stream.metadata))
        return found.get(b"x-request-id") or found.get(b"request_id") or b""

    def ensure_request_id(self) -> str:
        """Give the request id; make one if there is none."""
        if not self.request_id:
            self._request_id = os.urandom(16).hex()
        return self.request_id

    # --- compression ---------------------------------------------------------------------------

    @property
    def request_encoding(self) -> str:
        """The encoding that the client announced: "identity", "deflate" or "gzip"."""
        return (self._reader.encoding or compression.IDENTITY).decode()

    @property
    def received_compressed(self) -> bool:
        """Whether the message received last was compressed."""
        return self._reader.compressed

    @property
    def reply_encoding(self) -> str:
        """The encoding of the answer. Set it before anything is sent; it stays if the client takes no such."""
        return (self._encoding or compression.IDENTITY).decode()

    @reply_encoding.setter
    def reply_encoding(self, name: str) -> None:
        encoding = compression.encoding_of(name)
        if self.headers_sent or self._held is not None or self.status is not None:
            raise ProtocolError("the encoding cannot change once something was sent")
        if encoding is None or compression.accepts(self.stream.fields.get(b"grpc-accept-encoding"), encoding):
            self._encoding = encoding
            self._head = grpc.HEADS[encoding]

    # --- receiving ---------------------------------------------------------------------------

    async def recv_message(self) -> Any:
        """Give the next message, or None when the client has ended. Cancelling loses nothing."""
        body = await self._next_body()
        if body is None:
            return self._at_end()
        stream = self.stream
        if not self.handler.cardinality.client_streaming:
            while not stream.ended and not stream.inbox:
                self._hold(len(body))
                await self._wait_readable()
            if stream.inbox or self._received:
                raise GRPCError(Status.UNIMPLEMENTED, "the method takes one message, the client sent more")
        self._received = True
        try:
            return self.handler.request_type.FromString(body)
        except DecodeError:
            name = self.handler.request_type.DESCRIPTOR.full_name
            raise GRPCError(Status.INVALID_ARGUMENT, f"the request is not a valid {name} message") from None

    async def _next_body(self) -> bytes | None:
        stream, reader, core = self.stream, self._reader, self._wire.core
        while True:
            body = reader.next_message(stream.inbox)
            if reader.taken:
                core.consumed(stream, reader.taken)
                reader.taken = 0
                if core.wants_write:
                    self._wire.flush()
            if body is not None:
                if stream.held:
                    core.hold(stream, 0)
                return body
            if reader.more:
                await trio.lowlevel.checkpoint()
            elif stream.ended:
                return None
            else:
                self._hold(reader.held)
                await self._wait_readable()

    def _hold(self, size: int) -> None:
        """Count what is kept of a message while the client is waited for."""
        if not self._wire.core.hold(self.stream, size):
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "the connection has too many messages that are not whole")

    def _at_end(self) -> None:
        if self.stream.reset_code not in {None, frames.NO_ERROR}:
            raise StreamTerminatedError(f"the client reset the stream with code {self.stream.reset_code}")
        if not self._reader.between_messages:
            raise GRPCError(Status.INTERNAL, "the request ended inside a message")
        if not self._received and not self.handler.cardinality.client_streaming:
            raise GRPCError(Status.UNIMPLEMENTED, "the method takes one message, the client sent none")

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    # --- sending -----------------------------------------------------------------------------

    async def send_initial_metadata(self, *, metadata: MetadataLike | None = None) -> None:
        """Queue the response headers. Waits for nothing."""
        if self.headers_sent or self.status is not None:
            raise ProtocolError("initial metadata was already sent")
        block = self._head + self._block_of(metadata) if metadata else self._head
        self.headers_sent = True
        self._wire.core.send_headers(self.stream, block)
        self._wire.flush()

    async def send_message(self, message: Any, *, compress: bool | None = None) -> None:
        """Queue one message; wait while too much of this stream is unsent (rule 2).

        `compress`: whether to use `reply_encoding` for this message; None: where it makes the message smaller.
        """
        handler, stream, wire = self.handler, self.stream, self._wire
        if self.status is not None:
            raise ProtocolError("trailing metadata was already sent")
        if not isinstance(message, handler.reply_type):
            raise TypeError(f"the reply must be a {handler.reply_type!r}, not {type(message)!r}")
        body = message.SerializeToString()
        if self._encoding is None or compress is False:
            data = messages.frame_message(body, wire.max_send_bytes)
        else:
            data = await messages.frame_compressed(
                body, wire.max_send_bytes, self._encoding, trio.lowlevel.checkpoint, always=compress is True
            )
        if not handler.cardinality.server_streaming:
            if self._held is not None:
                raise ProtocolError("a unary answer is one message")
            self._held = data
            return
        if stream.state == CLOSED:
            raise StreamTerminatedError("the stream is closed")
        if not self.headers_sent:
            self.headers_sent = True
            wire.core.send_headers(stream, self._head)
        wire.core.send_data(stream, data)
        wire.flush()
        while len(stream.pending) > wire.send_buffer:
            await self._wait_writable()

    async def send_trailing_metadata(
        self,
        *,
        status: Status = Status.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: MetadataLike | None = None,
    ) -> None:
        """Queue the trailers, which end the call. Waits for nothing."""
        if self.status is not None:
            raise ProtocolError("trailing metadata was already sent")
        if status is Status.OK and self._held is None and not self.handler.cardinality.server_streaming:
            raise ProtocolError("a unary answer with status OK needs a message")
        extra = self._block_of(metadata) if metadata else b""
        self.end(status, status_message, status_details, extra)

    async def cancel(self) -> None:
        """Reset the stream: the client sees CANCELLED."""
        self.abort(frames.CANCEL)

    async def drained(self) -> None:
        """Wait until flow control has taken everything that was queued on this stream."""
        while self.stream.queued:
            await self._wait_writable()

    # --- the driver's ------------------------------------------------------------------------

    def finish(self) -> None:
        """Answer OK: the method has returned."""
        held = self._held
        if self.headers_sent or held is None or self.stream.state == CLOSED:
            self.end(Status.OK, None, None, b"")
            return
        self._held = None
        self.status = Status.OK
        tail = grpc.TAIL
        if self.stream.metadata and (sent := self._sent_request_id()):
            tail += hpack.literal(b"x-request-id", sent)
        self._wire.core.respond(self.stream, self._head, held, tail)
        self._wire.flush()

    def end(self, status: Status, text: str | None, details: Any, extra: bytes) -> None:
        """Queue what is held and the trailers; trailers-only where nothing was sent."""
        self.status, self.status_message = status, text or ""
        ok, core = status is Status.OK, self._wire.core
        held, self._held = self._held, None
        if ok and not self.headers_sent and (held is not None or not extra):
            self.headers_sent = True
            core.send_headers(self.stream, self._head)
        if ok and held is not None:
            core.send_data(self.stream, held)
        block = (b"" if self.headers_sent else grpc.HEAD) + extra
        block += grpc.TAIL if ok else grpc.status_block(status, text, details)
        id = self._sent_request_id() if ok else self.ensure_request_id().encode("latin-1")
        if id and b"x-request-id" not in extra:
            block += hpack.literal(b"x-request-id", id)
        core.send_trailers(self.stream, block)
        self._wire.flush()

    def abort(self, code: int) -> None:
        """Reset the stream."""
        if self.status is None:
            self.status, self.status_message = Status.CANCELLED, "the call was reset"
        self._wire.core.reset(self.stream, code)
        self._wire.flush()

    @property
    def answered(self) -> bool:
        """Whether OK can be said: a unary answer has its message."""
        return self._held is not None or self.handler.cardinality.server_streaming

    def wake_reader(self) -> None:
        """Something came."""
        if self._readable is not None:
            self._readable.set()

    def wake_writer(self) -> None:
        """Something was taken."""
        if self._writable is not None:
            self._writable.set()

    def _block_of(self, metadata: MetadataLike) -> bytes:
        grpc.check_size(metadata, self._wire.core.peer_max_header_list)
        return grpc.encode_metadata(metadata)

    async def _wait_readable(self) -> None:
        self._readable = trio.Event()
        await self._readable.wait()

    async def _wait_writable(self) -> None:
        if self._writable is None or self._writable.is_set():  # two tasks may send
            self._writable = trio.Event()
        await self._writable.wait()
