"""What is under a call of the client: beginning it, beginning it anew, waiting, and how it can end.

What lives here: `ClientCall`, the base of `ClientStream`, and what it needs of a channel.
What must not: the interface of grpclib's streams (client_stream.py), connections as bytes.

Rules
1. What the server has not begun (`NotBegun`) is begun anew, within `Retry` and the deadline: what was sent is kept for
   that until the response headers come, or until it is too much.
2. A reset without trailers is `StreamReset`: GRPCError with the status that gRPC gives to the code, and grpclib's
   StreamTerminatedError too.
"""

from __future__ import annotations

from typing import Any, Protocol

import anyio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from actorserve.services.transport import frames, grpc, values
from actorserve.services.transport.client_connection import ClientConnection, NotBegun, Waiter
from actorserve.services.transport.client_retry import Retry
from actorserve.services.transport.messages import MessageReader
from actorserve.services.transport.streams import Stream
from actorserve.services.transport.values import Metadata, MetadataLike


class StreamReset(GRPCError, StreamTerminatedError):
    """The server reset the stream without a status (rule 2)."""


class Caller(Protocol):
    """What a call needs of its channel."""

    user_agent: bytes
    max_receive_bytes: int
    max_send_bytes: int
    encoding: bytes | None
    retry: Retry

    async def connected(self) -> ClientConnection:
        """Give a connection; open one if there is none."""


class ClientCall:
    """One call, without its interface."""

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
        self._metadata_block = values.encode_metadata(metadata) if metadata else b""
        self._encoding = channel.encoding
        self._waiter = Waiter()
        self._reader = MessageReader(channel.max_receive_bytes)
        self._connection: ClientConnection
        self._stream: Stream | None = None
        self._scope: anyio.CancelScope | None = None
        self._attempt = 0
        self._kept: list[bytes] | None = [] if channel.retry.attempts > 1 else None  # what was sent (rule 1)
        self._kept_size = 0
        self._again: anyio.Lock | None = None
        self._sent = False  # a message was sent
        self._received = False  # a message came
        self._ended = False  # our side has ended
        self._cancelled = False
        self._initial_done = False
        self._trailing_done = False

    # --- beginning ---------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Open a stream, and send on it what was sent before."""
        channel = self._channel
        while True:
            self._attempt += 1
            try:
                connection = await channel.connected()
                if self._metadata:
                    values.check_size(self._metadata, connection.core.peer_max_header_list)
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
            connection.core.send_data(stream, *(self._kept or ()), end=self._ended)
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
        """Begin anew what the server has refused (rule 1); the sender and the receiver may both ask for it."""
        self._again = self._again or anyio.Lock()
        async with self._again:
            if self._stream is not refused:
                return
            if self._kept is None:
                raise error
            self._connection.release(refused)
            await self._pause(error)
            await self._begin()

    def _keep(self, pieces: tuple[bytes, bytes]) -> None:
        if self._kept is not None:
            self._kept_size += sum(map(len, pieces))
            if self._kept_size > self._channel.retry.buffer_bytes:
                self._kept = None
            else:
                self._kept.extend(pieces)

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
        """Raise what the rules say of a stream without a status."""
        code = stream.reset_code
        if code == frames.REFUSED_STREAM and not stream.fields and not self._cancelled:
            raise NotBegun("the server refused the call before it began", at_once=True)
        if code is None and self._connection.error is not None:
            raise GRPCError(self._connection.error.status, self._connection.error.message)
        if code is not None:
            raise StreamReset(*grpc.from_reset(code))
        if stream.ended:
            raise GRPCError(Status.INTERNAL, "the server ended the stream without a status")

    def _status_error(self) -> GRPCError | None:
        """Give the status if trailers came before the reset."""
        stream = self._stream
        fields = None if stream is None else stream.trailer_fields or stream.fields
        if not fields or b"grpc-status" not in fields:
            return None
        status, text, details = grpc.read_status(fields)
        return None if status is Status.OK else GRPCError(status, text, details)
