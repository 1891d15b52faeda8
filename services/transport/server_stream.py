"""What a service method gets: one call's messages, metadata and deadline, as `grpclib.server.Stream` offers them.

What lives here: `ServerStream`: messages and metadata, either way.
What must not: what is under it (server_call.py); reading or writing the connection; deciding what an exception means.

Rules
1. `send_message` waits while more than `send_buffer` octets of this stream are unsent; `recv_message` gives flow
   control back only for what it takes. Both return without a checkpoint when there is nothing to wait for.
2. A unary request is exactly one message: none or two are UNIMPLEMENTED, as gRPC's table of status codes has it.
3. Answers are not compressed unless the method sets `reply_encoding`, nor for a client that does not take it.
4. The calls of one connection inflate one after another, a turn a tick: a crowd of bombs costs its sender's connection
   time, and the others no more than one. A message that inflates beyond the limit is a fault of the client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio
from google.protobuf.message import DecodeError
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from actorserve.services.transport import compression, frames, grpc, messages
from actorserve.services.transport.messages import MessageReader
from actorserve.services.transport.server_call import ServerCall, Wire
from actorserve.services.transport.streams import CLOSED, Stream
from actorserve.services.transport.values import MetadataLike


class Malformed(GRPCError):
    """The client's bytes are not a message of the method's request."""


class ServerStream(ServerCall):
    """One call. Made by the driver, used by the service method."""

    __slots__ = ("_encoding", "_reader", "_received")

    def __init__(self, wire: Wire, stream: Stream, handler: Handler, method: str, expires: float | None) -> None:
        super().__init__(wire, stream, handler, method, expires)
        self._reader = MessageReader(wire.max_receive_bytes, stream.fields.get(b"grpc-encoding"))
        self._reader.turn = 0
        self._encoding: bytes | None = None  # of the answer
        self._received = False

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
            raise Malformed(Status.INVALID_ARGUMENT, f"the request is not a valid {name} message") from None

    async def _next_body(self) -> bytes | None:
        stream, reader, core = self.stream, self._reader, self._wire.core
        while True:
            body = self._take()
            if reader.more:
                body = await self._inflate()
            if body is not None:
                if stream.held:
                    core.hold(stream, 0)
                return body
            if stream.ended:
                return None
            self._hold(reader.held)
            await self._wait_readable()

    async def _inflate(self) -> bytes | None:
        """Inflate what has come of a message, a turn a tick (rule 4)."""
        reader = self._reader
        async with self._wire.inflating:
            reader.turn = compression.TURN
            try:
                while (body := self._take()) is None and reader.more:
                    await trio.lowlevel.checkpoint()
            finally:
                reader.turn = 0
        return body

    def _take(self) -> bytes | None:
        """Take a message, or as much of it as one turn allows; open the window again by what was taken."""
        reader, wire = self._reader, self._wire
        try:
            body = reader.next_message(self.stream.inbox)
        except compression.Bomb:
            wire.blame()
            raise
        if reader.taken:
            wire.core.consumed(self.stream, reader.taken)
            reader.taken = 0
            if wire.core.wants_write:
                wire.flush()
        return body

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
        block = self._head + self.block_of(metadata) if metadata else self._head
        self.headers_sent = True
        self._wire.core.send_headers(self.stream, block)
        self._wire.flush()

    async def send_message(self, message: Any, *, compress: bool | None = None) -> None:
        """Queue one message; wait while too much of this stream is unsent (rule 1).

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
        wire.core.send_data(stream, *data)
        wire.flush()
        while stream.pending.size > wire.send_buffer:
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
        extra = self.block_of(metadata) if metadata else b""
        self.end(status, status_message, status_details, extra)

    async def cancel(self) -> None:
        """Reset the stream: the client sees CANCELLED."""
        self.abort(frames.CANCEL)
