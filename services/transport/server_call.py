"""What is under a call of the server: what is known of it, its waits, and how it can end.

What lives here: `ServerCall`, the base of `ServerStream`, what it needs of its connection, and the deadline.
What must not: messages (server_stream.py), deciding what an exception means (server_calls.py).

Rules
1. A unary answer is held until the method returns and then leaves whole, in one append: headers, message, trailers.
2. Every wait has its own trio.Event. A reset cancels the call's scope; no wait outlives it.
3. Thousands of calls may be open at once: what most of them never need is made when it is asked for.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import trio
from grpclib.const import Handler, Status
from grpclib.metadata import Deadline

from actorserve.services.transport import grpc, hpack, values
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.streams import CLOSED, Stream
from actorserve.services.transport.tls import PeerIdentity
from actorserve.services.transport.values import Metadata, MetadataLike


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
    is_secure: bool
    max_receive_bytes: int
    max_send_bytes: int
    send_buffer: int
    inflating: trio.Lock  # held by the one call of the connection that inflates a message

    def blame(self) -> None:
        """Count a message that inflates beyond its limit as a fault of the client."""

    def flush(self) -> None:
        """Have what is queued written in the next tick."""


class ServerCall:
    """One call, without its messages. Made by the driver."""

    __slots__ = (
        "_head",
        "_held",
        "_metadata",
        "_readable",
        "_request_id",
        "_wire",
        "_writable",
        "about",
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
        self._head = grpc.HEAD if b"grpc-encoding" not in stream.fields else grpc.HEADS[None]
        self.token: Any = None  # what an interceptor found that the caller may do
        self.about: Any = None  # what the method has read that is asked for; for `translate`
        self._metadata: Metadata | None = None
        self._held: tuple[bytes, bytes] | None = None  # a unary answer (rule 1)
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
    def is_secure(self) -> bool:
        """Whether the connection speaks TLS."""
        return self._wire.is_secure

    @property
    def deadline(self) -> TrioDeadline | None:
        """When the call ends by itself, on trio's clock."""
        return None if self.expires is None else TrioDeadline(_timestamp=self.expires)

    @property
    def metadata(self) -> Metadata:
        """The request's metadata; values of -bin keys are bytes."""
        if self._metadata is None:
            self._metadata = values.decode_metadata(self.stream.metadata)
        return self._metadata

    @property
    def user_agent(self) -> str | None:
        """What the client calls itself."""
        value = self.stream.fields.get(b"user-agent")
        return None if value is None else value.decode("latin-1")

    @property
    def request_id(self) -> str:
        """The id that the client sent last (x-request-id, else request_id), or one made earlier, or nothing."""
        if self._request_id is None:
            self._request_id = self._sent_request_id().decode("latin-1")
        return self._request_id

    def _sent_request_id(self) -> bytes:
        found = dict(self.stream.metadata)
        return found.get(b"x-request-id") or found.get(b"request_id") or b""

    def ensure_request_id(self) -> str:
        """Give the request id; make one if there is none."""
        if not self.request_id:
            self._request_id = os.urandom(16).hex()
        return self.request_id

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
        self._wire.core.respond(self.stream, self._head, tail, *held)
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
            core.send_data(self.stream, *held)
        block = (b"" if self.headers_sent else grpc.HEAD) + extra
        block += grpc.TAIL if ok else grpc.status_block(status, text, details)
        id = self._sent_request_id() if ok else self.ensure_request_id().encode("latin-1")
        if id and b"x-request-id" not in extra:
            block += hpack.literal(b"x-request-id", id)
        core.send_trailers(self.stream, block)
        self.wake()
        self._wire.flush()

    def abort(self, code: int) -> None:
        """Reset the stream."""
        if self.status is None:
            self.status, self.status_message = Status.CANCELLED, "the call was reset"
        self._wire.core.reset(self.stream, code)
        self.wake()
        self._wire.flush()

    @property
    def answered(self) -> bool:
        """Whether OK can be said: a unary answer has its message."""
        return self._held is not None or self.handler.cardinality.server_streaming

    def wake_reader(self) -> None:
        """Something came."""
        if self._readable is not None:
            self._readable.set()

    def wake(self) -> None:
        """Something was taken, or the stream has ended: with it, whoever still reads has nothing to wait for."""
        if self._writable is not None:
            self._writable.set()
        if self.stream.state == CLOSED:
            self.wake_reader()

    def block_of(self, metadata: MetadataLike) -> bytes:
        """Metadata as header fields. RESOURCE_EXHAUSTED above the client's limit; ValueError, TypeError: see values."""
        values.check_size(metadata, self._wire.core.peer_max_header_list)
        return values.encode_metadata(metadata)

    # --- waiting ---------------------------------------------------------------------------------

    async def drained(self) -> None:
        """Wait until flow control has taken everything that was queued on this stream."""
        while self.stream.queued:
            await self._wait_writable()

    async def _wait_readable(self) -> None:
        self._readable = trio.Event()
        await self._readable.wait()

    async def _wait_writable(self) -> None:
        if self._writable is None or self._writable.is_set():  # two tasks may send
            self._writable = trio.Event()
        await self._writable.wait()
