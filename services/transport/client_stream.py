"""One call as the client sees it, with the interface of `grpclib.client.Stream`.

What lives here: `ClientStream`: a call's messages, metadata, status and deadline.
What must not: reading or writing the connection, beginning a call (client_call.py), opening connections.

Rules
1. The deadline is sent as grpc-timeout and kept here too: once it has passed, the call is reset, and the error is
   DEADLINE_EXCEEDED.
2. Leaving the block early resets the stream with CANCEL. Leaving it in order waits for the trailers.
3. A status other than OK is GRPCError. Sending to a server that has answered sends nothing.
4. A unary answer is exactly one message: none or two with OK are UNIMPLEMENTED (gRPC's statuscodes.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
from google.protobuf.message import DecodeError
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from multidict import MultiDict

from actorserve.services.transport import compression, frames, grpc, messages, values
from actorserve.services.transport.client_call import ClientCall
from actorserve.services.transport.streams import Stream

SEND_BUFFER = 65_536


class ClientStream(ClientCall):
    """One call; use it as an async context manager."""

    # --- the block ---------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._timeout is not None:
            self._scope = anyio.move_on_after(self._timeout)
            self._scope.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        failure = error
        if error is None and self._stream is not None and not self._cancelled:
            try:
                await self._finish()
            except BaseException as raised:  # noqa: BLE001  kept, and raised below or by the scope
                failure = raised
        if isinstance(failure, StreamTerminatedError):
            failure = self._status_error() or failure
        if self._stream is not None:
            self._connection.release(self._stream)
        late = self._is_late(failure)
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.__exit__(type(failure) if failure else None, failure, trace)
            if scope.cancelled_caught or late:
                raise GRPCError(Status.DEADLINE_EXCEEDED, "the deadline passed") from None
        if failure is not None and failure is not error:
            raise failure
        return False

    def _is_late(self, failure: BaseException | None) -> bool:
        """Whether CANCELLED stands for a deadline that the server saw first (PROTOCOL-HTTP2, Client Cancellation)."""
        return (
            isinstance(failure, GRPCError)
            and failure.status is Status.CANCELLED
            and self._scope is not None
            and anyio.current_time() >= self._scope.deadline
        )

    async def _finish(self) -> None:
        if not self._initial_done:
            await self.recv_initial_metadata()
        if not self._trailing_done:
            await self.recv_trailing_metadata()

    # --- compression -------------------------------------------------------------------------

    @property
    def request_encoding(self) -> str:
        """The encoding of what is sent; set it before the request goes out. The channel's by default."""
        return (self._encoding or compression.IDENTITY).decode()

    @request_encoding.setter
    def request_encoding(self, name: str) -> None:
        if self._stream is not None:
            raise ProtocolError("the encoding cannot change once the request was sent")
        self._encoding = compression.encoding_of(name)

    @property
    def received_compressed(self) -> bool:
        """Whether the message received last was compressed."""
        return self._reader.compressed

    # --- beginning ---------------------------------------------------------------------------

    async def send_request(self, *, end: bool = False) -> None:
        """Send the request headers; done by the first send_message where it was not before."""
        if self._stream is not None:
            raise ProtocolError("the request was already sent")
        if end and not self._cardinality.client_streaming:
            raise ProtocolError("a unary request needs a message before its end")
        await self._begin()
        if end:
            await self.end()

    # --- sending -----------------------------------------------------------------------------

    async def send_message(self, message: Any, *, end: bool = False, compress: bool | None = None) -> None:
        """Send one message; waits while too much is unsent. A unary request ends by itself.

        `compress`: whether to use `request_encoding` for this message; None: where it makes the message smaller.
        """
        body, limit = message.SerializeToString(), self._channel.max_send_bytes
        if self._encoding is None or compress is False:
            data = messages.frame_message(body, limit)
        else:
            pause = anyio.lowlevel.checkpoint
            data = await messages.frame_compressed(body, limit, self._encoding, pause, always=compress is True)
        if self._ended or (self._sent and not self._cardinality.client_streaming):
            raise ProtocolError("the request was already ended")
        if self._stream is None:
            await self.send_request()
        self._sent = True
        await self._send(data, end=end or not self._cardinality.client_streaming)

    async def _send(self, data: tuple[bytes, bytes], *, end: bool) -> None:
        stream = self._open_stream()
        if not self._answered(stream):
            await self._check(stream)
        stream = self._open_stream()
        self._ended = end
        self._keep(data)
        if self._answered(stream):
            return
        self._connection.core.send_data(stream, *data, end=end)
        self._connection.flush()
        while stream.pending.size > SEND_BUFFER and stream.reset_code is None and self._connection.error is None:
            await self._waiter.wait()

    async def end(self) -> None:
        """End the request; for a unary one that was done by its message."""
        stream = self._open_stream()
        if not self._cardinality.client_streaming:
            if not self._sent:
                raise ProtocolError("a unary request needs a message before its end")
            return
        if self._ended:
            raise ProtocolError("the request was already ended")
        self._ended = True
        self._connection.core.send_data(stream, b"", end=True)
        self._connection.flush()

    async def cancel(self) -> None:
        """Reset the stream: the server's method is cancelled."""
        stream = self._open_stream()
        if self._cancelled:
            raise ProtocolError("the call was already cancelled")
        self._cancelled = True
        self._connection.core.reset(stream, frames.CANCEL)
        self._connection.flush()

    # --- receiving ---------------------------------------------------------------------------

    async def recv_initial_metadata(self) -> None:
        """Wait for the response headers; raises GRPCError where they already say the status."""
        if self._initial_done:
            raise ProtocolError("initial metadata was already received")
        while not (stream := self._open_stream()).fields:
            await self._wait(stream)
        self._initial_done = True
        self._kept = None
        grpc.check_answer(stream.fields)
        if b"grpc-status" in stream.fields:
            self.initial_metadata = MultiDict()
            self._trailing_done = True
            self._end_with(stream.fields, stream.metadata)
        else:
            self.initial_metadata = values.decode_metadata(stream.metadata)
            self._reader.encoding = stream.fields.get(b"grpc-encoding")

    async def recv_message(self) -> Any:
        """Give the next message, or None at the end; the status follows when the block is left."""
        if not self._initial_done:
            await self.recv_initial_metadata()
        stream, reader, connection = self._open_stream(), self._reader, self._connection
        while True:
            body = reader.next_message(stream.inbox)
            if reader.taken:
                connection.core.consumed(stream, reader.taken)
                reader.taken = 0
                if connection.core.wants_write:
                    connection.flush()
            if body is not None:
                break
            if reader.more:
                await anyio.lowlevel.checkpoint()
            elif self._answered(stream):
                return self._at_end(stream)
            else:
                await self._wait(stream)
        if self._received and not self._cardinality.server_streaming:
            raise GRPCError(Status.UNIMPLEMENTED, "the method answers with one message, the server sent more")
        self._received = True
        try:
            return self._reply_type.FromString(body)
        except DecodeError:
            name = self._reply_type.DESCRIPTOR.full_name
            raise GRPCError(Status.INTERNAL, f"the answer is not a valid {name} message") from None

    def _at_end(self, stream: Stream) -> None:
        """Check what an answer with status OK must be (rule 4)."""
        fields = stream.trailer_fields if stream.trailer_fields is not None else stream.fields
        if fields.get(b"grpc-status") != b"0":
            return
        if not self._reader.between_messages:
            raise GRPCError(Status.INTERNAL, "the answer ended inside a message")
        if not self._received and not self._cardinality.server_streaming:
            raise GRPCError(Status.UNIMPLEMENTED, "the method answers with one message, the server sent none")

    async def recv_trailing_metadata(self) -> None:
        """Wait for the trailers; raises GRPCError for a status other than OK. Messages not read are dropped."""
        if not self._initial_done:
            raise ProtocolError("initial metadata was not received yet")
        if self._trailing_done:
            raise ProtocolError("trailing metadata was already received")
        while not self._cardinality.server_streaming and await self.recv_message() is not None:
            pass  # rule 4
        stream = self._open_stream()
        while stream.trailer_fields is None:
            if stream.inbox:
                self._reader.skip(stream.inbox)
                self._connection.core.consumed(stream, self._reader.taken)
                self._reader.taken = 0
                self._connection.flush()
            await self._wait(stream)
        self._trailing_done = True
        self._end_with(stream.trailer_fields, stream.trailer_metadata)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    def _end_with(self, fields: dict[bytes, bytes], metadata: list[tuple[bytes, bytes]]) -> None:
        self.trailing_metadata = values.decode_metadata(metadata)
        status, text, details = grpc.read_status(fields)
        if status is not Status.OK:
            raise GRPCError(status, text, details)
