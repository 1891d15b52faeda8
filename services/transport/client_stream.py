"""One call as the client sees it, with the interface of `grpclib.client.Stream`.

What lives here: `ClientStream`: a call's messages, metadata, status and deadline.
What must not: reading or writing the connection, opening connections.

Rules
1. The deadline is sent as grpc-timeout and kept here too: once it has passed, the call is reset, and the error is
   DEADLINE_EXCEEDED.
2. Leaving the block early resets the stream with CANCEL. Leaving it in order waits for the trailers.
3. A status other than OK is GRPCError. A reset without trailers is StreamTerminatedError, except REFUSED_STREAM, which
   says that nothing was done: UNAVAILABLE, like a lost connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from multidict import MultiDict

from actorserve.services.transport import frames, grpc
from actorserve.services.transport.client_connection import ClientConnection, Waiter
from actorserve.services.transport.grpc import MessageReader, Metadata
from actorserve.services.transport.streams import Stream

SEND_BUFFER = 65_536


class Caller(Protocol):
    """What a call needs of its channel."""

    authority: bytes
    user_agent: bytes
    max_receive_bytes: int
    max_send_bytes: int

    async def connected(self) -> ClientConnection:
        """Give the connection; open it if there is none."""


class ClientStream:
    """One call; use it as an async context manager."""

    def __init__(  # noqa: PLR0917  made by the channel alone
        self,
        channel: Caller,
        path: str,
        cardinality: Cardinality,
        reply_type: type[Any],
        timeout: float | None,
        metadata: bytes,
    ) -> None:
        self.initial_metadata: Metadata | None = None
        self.trailing_metadata: Metadata | None = None
        self._channel = channel
        self._path = path
        self._cardinality = cardinality
        self._reply_type = reply_type
        self._timeout = timeout
        self._metadata = metadata
        self._waiter = Waiter()
        self._reader = MessageReader(channel.max_receive_bytes)
        self._connection: ClientConnection
        self._stream: Stream | None = None
        self._scope: anyio.CancelScope | None = None
        self._sent = False  # a message was sent
        self._ended = False  # our side has ended
        self._cancelled = False
        self._initial_done = False
        self._trailing_done = False

    # --- the block ---------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._timeout is not None:
            self._scope = anyio.CancelScope(deadline=anyio.current_time() + self._timeout)
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
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.__exit__(type(failure) if failure else None, failure, trace)
            if scope.cancelled_caught:
                raise GRPCError(Status.DEADLINE_EXCEEDED, "the deadline passed") from None
        if failure is not None and failure is not error:
            raise failure
        return False

    async def _finish(self) -> None:
        if not self._initial_done:
            await self.recv_initial_metadata()
        if not self._trailing_done:
            await self.recv_trailing_metadata()

    # --- sending -----------------------------------------------------------------------------

    async def send_request(self, *, end: bool = False) -> None:
        """Send the request headers; done by the first send_message where it was not before."""
        if self._stream is not None:
            raise ProtocolError("the request was already sent")
        if end and not self._cardinality.client_streaming:
            raise ProtocolError("a unary request needs a message before its end")
        self._connection = connection = await self._channel.connected()
        channel = self._channel
        timeout = None if self._scope is None else self._scope.deadline - anyio.current_time()
        block = grpc.request_block(self._path, channel.authority, channel.user_agent, timeout) + self._metadata
        self._stream = await connection.open(block, self._waiter)
        if end:
            await self.end()

    async def send_message(self, message: Any, *, end: bool = False) -> None:
        """Send one message; waits while too much is unsent. A unary request ends by itself."""
        data = grpc.frame_message(message.SerializeToString(), self._channel.max_send_bytes)
        if self._ended or (self._sent and not self._cardinality.client_streaming):
            raise ProtocolError("the request was already ended")
        if self._stream is None:
            await self.send_request()
        stream = self._open_stream()
        self._check_open(stream)
        self._sent = True
        self._ended = end or not self._cardinality.client_streaming
        self._connection.core.send_data(stream, data, end=self._ended)
        self._connection.flush()
        while len(stream.pending) > SEND_BUFFER and stream.reset_code is None and self._connection.error is None:
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
        stream = self._open_stream()
        if self._initial_done:
            raise ProtocolError("initial metadata was already received")
        while not stream.fields:
            self._check_open(stream)
            await self._waiter.wait()
        self._initial_done = True
        grpc.check_answer(stream.fields)
        if b"grpc-status" in stream.fields:
            self.initial_metadata = MultiDict()
            self._trailing_done = True
            self._end_with(stream.fields, stream.metadata)
        else:
            self.initial_metadata = grpc.decode_metadata(stream.metadata)

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
            if stream.trailer_fields is not None or b"grpc-status" in stream.fields:
                return None
            self._check_open(stream)
            await self._waiter.wait()
        try:
            return self._reply_type.FromString(body)
        except DecodeError:
            name = self._reply_type.DESCRIPTOR.full_name
            raise GRPCError(Status.INTERNAL, f"the answer is not a valid {name} message") from None

    async def recv_trailing_metadata(self) -> None:
        """Wait for the trailers; raises GRPCError for a status other than OK. Messages not read are dropped."""
        stream = self._open_stream()
        if not self._initial_done:
            raise ProtocolError("initial metadata was not received yet")
        if self._trailing_done:
            raise ProtocolError("trailing metadata was already received")
        while stream.trailer_fields is None:
            if stream.inbox:
                self._connection.core.consumed(stream, sum(map(len, stream.inbox)))
                stream.inbox.clear()
                self._connection.flush()
            self._check_open(stream)
            await self._waiter.wait()
        self._trailing_done = True
        self._end_with(stream.trailer_fields, stream.trailer_metadata)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    # --- how it ended ------------------------------------------------------------------------

    def _open_stream(self) -> Stream:
        if self._stream is None:
            raise ProtocolError("the request was not sent yet")
        return self._stream

    def _check_open(self, stream: Stream) -> None:
        """Raise if nothing more can come (rule 3)."""
        if self._connection.error is not None:
            raise GRPCError(self._connection.error.status, self._connection.error.message)
        if stream.reset_code == frames.REFUSED_STREAM:
            raise GRPCError(Status.UNAVAILABLE, "the server refused the call before it began")
        if stream.reset_code is not None:
            raise StreamTerminatedError(f"the stream was reset with code {stream.reset_code}")
        if stream.ended:
            raise GRPCError(Status.INTERNAL, "the server ended the stream without a status")

    def _end_with(self, fields: dict[bytes, bytes], metadata: list[tuple[bytes, bytes]]) -> None:
        self.trailing_metadata = grpc.decode_metadata(metadata)
        status, text, details = grpc.read_status(fields)
        if status is not Status.OK:
            raise GRPCError(status, text, details)

    def _status_error(self) -> GRPCError | None:
        """Give the status if trailers came before the reset."""
        stream = self._stream
        fields = None if stream is None else stream.trailer_fields or stream.fields
        if not fields or b"grpc-status" not in fields:
            return None
        status, text, details = grpc.read_status(fields)
        return None if status is Status.OK else GRPCError(status, text, details)
