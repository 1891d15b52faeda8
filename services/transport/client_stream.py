"""One call as the client sees it, with the interface of `grpclib.client.Stream`.

What lives here: `ClientStream`: a call's messages, metadata, status and deadline, and when it is repeated.
What must not: reading or writing the connection, opening connections.
Over 300 lines: grpclib's interface is one class.

Rules
1. The deadline is sent as grpc-timeout and kept here too: once it has passed, the call is reset, and the error is
   DEADLINE_EXCEEDED.
2. Leaving the block early resets the stream with CANCEL. Leaving it in order waits for the trailers.
3. A status other than OK is GRPCError. A reset without trailers is `StreamReset`: GRPCError with the status that gRPC
   gives to the code, and grpclib's StreamTerminatedError too. Sending to a server that has answered sends nothing.
4. What the server has not begun (`NotBegun`) is begun anew, within `Retry` and the deadline: what was sent is kept for
   that until the response headers come, or until it is too much.
5. A unary answer is exactly one message: none or two with OK are UNIMPLEMENTED (gRPC's statuscodes.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
import anyio.lowlevel
from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from multidict import MultiDict

from actorserve.services.transport import compression, frames, grpc, messages
from actorserve.services.transport.client_connection import ClientConnection, NotBegun, Waiter
from actorserve.services.transport.client_retry import Retry
from actorserve.services.transport.grpc import Metadata, MetadataLike
from actorserve.services.transport.messages import MessageReader
from actorserve.services.transport.streams import Stream

SEND_BUFFER = 65_536


class StreamReset(GRPCError, StreamTerminatedError):
    """The server reset the stream without a status (rule 3)."""


class Caller(Protocol):
    """What a call needs of its channel."""

    user_agent: bytes
    max_receive_bytes: int
    max_send_bytes: int
    encoding: bytes | None
    retry: Retry

    async def connected(self) -> ClientConnection:
        """Give a connection; open one if there is none."""


class ClientStream:
    """One call; use it as an async context manager."""

    def __init__(  # noqa: PLR0917  made by the channel alone
        self,
        channel: Caller,
        path: str,
        cardinality: Cardinality,
        reply_type: type[Any],
        timeout: float | None,
        metadata: MetadataLike | None,
    ) -> None:
        self.initial_metadata: Metadata | None = None
        self.trailing_metadata: Metadata | None = None
        self._channel = channel
        self._path = path
        self._cardinality = cardinality
        self._reply_type = reply_type
        self._timeout = timeout
        self._metadata = metadata
        self._metadata_block = grpc.encode_metadata(metadata) if metadata else b""
        self._encoding = channel.encoding
        self._waiter = Waiter()
        self._reader = MessageReader(channel.max_receive_bytes)
        self._connection: ClientConnection
        self._stream: Stream | None = None
        self._scope: anyio.CancelScope | None = None
        self._attempt = 0
        self._kept: list[bytes] | None = [] if channel.retry.attempts > 1 else None  # what was sent (rule 4)
        self._kept_size = 0
        self._again: anyio.Lock | None = None
        self._sent = False  # a message was sent
        self._received = False  # a message came
        self._ended = False  # our side has ended
        self._cancelled = False
        self._initial_done = False
        self._trailing_done = False

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

    async def _begin(self) -> None:
        """Open a stream, and send on it what was sent before."""
        channel = self._channel
        while True:
            self._attempt += 1
            try:
                connection = await channel.connected()
                if self._metadata:
                    grpc.check_size(self._metadata, connection.core.peer_max_header_list)
                timeout = None if self._scope is None else self._scope.deadline - anyio.current_time()
                block = grpc.request_block(
                    self._path,
                    connection.authority,
                    channel.user_agent,
                    timeout,
                    secure=connection.secure,
                    encoding=self._encoding,
                )
                stream = await connection.open(block + self._metadata_block, self._waiter)
                break
            except NotBegun as error:
                await self._pause(error)
        self._connection, self._stream = connection, stream
        if self._kept or self._ended:
            connection.core.send_data(stream, b"".join(self._kept or ()), end=self._ended)
            connection.flush()

    async def _pause(self, error: NotBegun) -> None:
        """Wait before the next attempt; raise the error if there is none."""
        retry = self._channel.retry
        delay = 0.0 if error.at_once and self._attempt == 1 else retry.delay(self._attempt)
        deadline = float("inf") if self._scope is None else self._scope.deadline
        if self._attempt >= retry.attempts or anyio.current_time() + delay >= deadline:
            raise error
        await anyio.sleep(delay)

    async def _repeat(self, refused: Stream, error: NotBegun) -> None:
        """Begin anew what the server has refused (rule 4); the sender and the receiver may both ask for it."""
        self._again = self._again or anyio.Lock()
        async with self._again:
            if self._stream is not refused:
                return
            if self._kept is None:
                raise error
            self._connection.release(refused)
            await self._pause(error)
            await self._begin()

    def _keep(self, data: bytes) -> None:
        if self._kept is not None:
            self._kept_size += len(data)
            if self._kept_size > self._channel.retry.buffer_bytes:
                self._kept = None
            else:
                self._kept.append(data)

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

    async def _send(self, data: bytes, *, end: bool) -> None:
        stream = self._open_stream()
        if not self._answered(stream):
            await self._check(stream)
        stream = self._open_stream()
        self._ended = end
        self._keep(data)
        if self._answered(stream):
            return
        self._connection.core.send_data(stream, data, end=end)
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
            self.initial_metadata = grpc.decode_metadata(stream.metadata)
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
        """Check what an answer with status OK must be (rule 5)."""
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
            pass  # rule 5
        stream = self._open_stream()
        while stream.trailer_fields is None:
            if stream.inbox:
                self._connection.core.consumed(stream, sum(map(len, stream.inbox)))
                stream.inbox.clear()
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

    # --- how it ended ------------------------------------------------------------------------

    def _open_stream(self) -> Stream:
        if self._stream is None:
            raise ProtocolError("the request was not sent yet")
        return self._stream

    @staticmethod
    def _answered(stream: Stream) -> bool:
        """Whether the server's status is here."""
        return stream.trailer_fields is not None or b"grpc-status" in stream.fields

    async def _wait(self, stream: Stream) -> None:
        """Wait for something to come; begin anew what was refused; raise if nothing more can come."""
        if not await self._check(stream):
            await self._waiter.wait()

    async def _check(self, stream: Stream) -> bool:
        """Raise if nothing more can come; give True if the call was begun anew."""
        try:
            self._raise_if_over(stream)
        except NotBegun as error:
            await self._repeat(stream, error)
            return True
        return False

    def _raise_if_over(self, stream: Stream) -> None:
        """Raise what rules 3 and 4 say of a stream without a status."""
        code = stream.reset_code
        if code == frames.REFUSED_STREAM and not stream.fields and not self._cancelled:
            raise NotBegun("the server refused the call before it began", at_once=True)
        if code is None and self._connection.error is not None:
            raise GRPCError(self._connection.error.status, self._connection.error.message)
        if code is not None:
            raise StreamReset(*grpc.from_reset(code))
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
