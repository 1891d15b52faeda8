"""One connection's tasks: a reader, a writer, and one task a call.

What lives here: the trio side of a connection: timeouts, cancellation, draining, what an exception becomes.
What must not: bytes of HTTP/2, listeners.
Over 300 lines, because the reader, the writer, the watch and the endings of calls share what little state there is.

Rules
1. All tasks live in the connection's nursery: when the connection is lost, every call on it is cancelled.
2. Only the writer writes; a `flush` in this tick is one write in the next, however many calls have asked.
3. A call ends once: by its trailers, by its deadline (DEADLINE_EXCEEDED), by RST_STREAM, or with the connection.
4. Cancelled is never caught; an exception of a service method never leaves its call.
5. What we close, we close politely: GOAWAY, then the end of the stream, then a while for the peer to read both.
6. Frames are taken TURN at a time, and other tasks run in between: no peer holds the loop with one large read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import trio
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError

from actorserve.services.transport import frames, grpc
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.interceptors import Proceed
from actorserve.services.transport.limits import Limits
from actorserve.services.transport.server_stream import ServerStream
from actorserve.services.transport.tls import PeerIdentity
from actorserve.services.transport.watch import Drain, End, Ping, Watch

LINGER_S = 1.0
READ_SIZE = 65_536
LINGER_READS = 64
TURN = 128
_DRAIN_PING = b"draining"
_KEEPALIVE_PING = b"keepaliv"
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)

log = structlog.get_logger(__name__)

Translate = Callable[[Exception], GRPCError | None]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call that has ended."""

    method: str
    peer: str
    status: int
    message: str
    seconds: float
    request_id: str


OnEnd = Callable[[CallRecord], None]


class ServerConnection:
    """Drives one `Connection` over one trio stream."""

    def __init__(  # noqa: PLR0917  made by the server alone
        self,
        stream: trio.abc.Stream,
        peer: str,
        handlers: Mapping[bytes, tuple[str, Handler]],
        limits: Limits,
        translate: Translate,
        on_end: OnEnd | None,
        invoke: Proceed | None = None,
        identity: PeerIdentity | None = None,
    ) -> None:
        self.core = Connection(client=False, settings=limits.settings())
        self.peer = peer
        self.identity = identity
        self._invoke = invoke  # the interceptors, if there are any
        self.max_receive_bytes = limits.max_receive_bytes
        self.max_send_bytes = limits.max_send_bytes
        self.send_buffer = limits.send_buffer
        self.calls: set[ServerStream] = set()
        self._stream = stream
        self._handlers = handlers
        self._limits = limits
        self._translate = translate
        self._on_end = on_end
        self._draining = False
        self._closing = False
        self.reason = "peer"  # who or what ended the connection, for the statistics
        self.heard_at = trio.current_time()
        self._reading = trio.CancelScope()
        self._nap = trio.CancelScope()
        self._writes = 0
        self._writing = False
        self._idle: trio.Event | None = None  # set: the writer waits for it
        self._written = trio.Event()
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Serve until the connection ends; close the stream."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._write)
                self._nursery.start_soon(self._watch)
                with self._reading:
                    await self._read()
                self._closing = True
                for call in self.calls:
                    call.scope.cancel()
                self.flush()
                with trio.move_on_after(LINGER_S):
                    await self._written.wait()
                self._nursery.cancel_scope.cancel()
            if self.core.goaway_sent is not None:
                await self._linger()
        finally:
            await trio.aclose_forcefully(self._stream)

    def flush(self) -> None:
        """Wake the writer (rule 2)."""
        idle = self._idle
        if idle is not None:
            self._idle = None
            idle.set()

    @property
    def draining(self) -> bool:
        """Whether GOAWAY was said and calls may still be open."""
        return self._draining

    def drain(self, reason: str = "drain") -> None:
        """Take no more calls; end when the present ones have ended (RFC 9113 §6.8)."""
        if not self._draining:
            self._draining = True
            self.reason = reason
            self.core.goaway(frames.NO_ERROR, last_stream_id=frames.MAX_STREAM_ID)
            self.core.ping(_DRAIN_PING)
            self.flush()

    # --- reading and writing ---------------------------------------------------------------------

    async def _read(self) -> None:
        with trio.move_on_after(self._limits.handshake_timeout_s or float("inf")) as handshake:
            while not self.core.settings_seen:
                if not await self._read_once():
                    return
        if handshake.cancelled_caught:
            self.end(End("handshake", frames.SETTINGS_TIMEOUT, "no SETTINGS in time"))
            return
        while await self._read_once():
            pass

    async def _read_once(self) -> bool:
        try:
            data = await self._stream.receive_some(READ_SIZE)
        except _LOST:
            data = b""
        if not data:
            self._nursery.cancel_scope.cancel()
            return False
        core = self.core
        now = self.heard_at = trio.current_time()
        events = core.receive(bytes(data), now, TURN)
        while True:
            self._dispatch(events)
            if core.wants_write:
                self.flush()
            if not core.more:
                break
            await trio.lowlevel.checkpoint()  # rule 6
            events = core.receive(b"", now, TURN)
        if core.block_since is not None:
            self._nap.deadline = min(self._nap.deadline, now + self._limits.handshake_timeout_s)
        return not core.broken

    def _dispatch(self, events: list[s.Event]) -> None:
        for event in events:
            kind = event.__class__
            if kind is s.RequestReceived:
                self._start(event.stream)  # type: ignore[attr-defined]
            elif kind is s.DataReceived:
                call = event.stream.owner  # type: ignore[attr-defined]
                if call is not None:
                    call.wake_reader()
            else:
                self._handle(event)

    def _handle(self, event: s.Event) -> None:
        match event:
            case s.StreamReset(stream=stream) if stream.owner is not None:
                stream.owner.scope.cancel()
            case s.TrailersReceived(stream=stream) if stream.owner is not None:
                stream.owner.wake_reader()
            case s.HeadersTooLarge(stream=stream):
                self._refuse(
                    stream, grpc.Refusal(431, Status.RESOURCE_EXHAUSTED, "the request's headers are too large")
                )
            case s.PingAcknowledged(payload=payload) if payload == _DRAIN_PING and self._draining:
                self.core.goaway(frames.NO_ERROR)
            case s.ConnectionBroken(code=code, text=text):
                self.reason = "fault"
                log.info("connection closed for a fault of the peer", peer=self.peer, code=code, text=text)
            case _:
                pass

    async def _write(self) -> None:
        core = self.core
        try:
            while True:
                if not core.wants_write:
                    if self._closing or (self._draining and not self.calls and not core.streams):
                        break
                    self._idle = idle = trio.Event()
                    await idle.wait()
                    continue
                data = core.take()
                for stream in core.relieved:
                    if stream.owner is not None:
                        stream.owner.wake_writer()
                if data:
                    self._writing = True
                    await self._stream.send_all(data)
                    self._writing = False
                    self._writes += 1
            if self._draining and not self._closing:
                if core.goaway_sent == frames.MAX_STREAM_ID:
                    core.goaway(frames.NO_ERROR)
                    await self._stream.send_all(core.take())
                self._nursery.cancel_scope.cancel()
        except _LOST:
            self._nursery.cancel_scope.cancel()
        self._written.set()

    async def _linger(self) -> None:
        """Let the peer read our last frames before the socket goes (rule 5)."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            with trio.move_on_after(LINGER_S):
                try:
                    await self._stream.send_eof()
                    for _ in range(LINGER_READS):
                        if not await self._stream.receive_some(READ_SIZE):
                            break
                except _LOST:
                    pass

    # --- time -----------------------------------------------------------------------------------

    def end(self, end: End) -> None:
        """Say GOAWAY and close; calls in hand are cut."""
        log.info("connection ended", peer=self.peer, code=end.code, text=end.text)
        self.reason = end.reason
        self.core.goaway(end.code, text=end.text)
        self._reading.cancel()

    async def _watch(self) -> None:
        watch = Watch(self.core, self._limits, trio.current_time())
        while True:
            with trio.CancelScope(deadline=trio.current_time() + watch.pause) as self._nap:
                await trio.sleep_forever()
            now = trio.current_time()
            if watch.write_stalled(now, self._writes, writing=self._writing):
                self.reason = "stall"
                log.info("connection ended", peer=self.peer, text="the peer does not read")
                self._nursery.cancel_scope.cancel()  # GOAWAY would not get through either
                return
            for stream in watch.stalled(now):
                if not self.core.broken:
                    self._dispatch(self.core.stall(stream))
            match watch.due(now, self.heard_at):
                case Ping():
                    self.core.ping(_KEEPALIVE_PING)
                case Drain(reason=reason):
                    self.drain(reason)
                case End() as end:
                    self.end(end)
            if self.core.broken:
                self._reading.cancel()
            if self.core.wants_write:
                self.flush()

    # --- calls ---------------------------------------------------------------------------------

    def _start(self, stream: s.Stream) -> None:
        if stream.state == s.CLOSED:  # reset within the same turn: nothing was begun, nothing is to be cancelled
            return
        fields = stream.fields
        if len(self.calls) >= 2 * self._limits.max_concurrent_streams:  # resets outrun what they cancel (§10.5)
            self.core.reset(stream, frames.ENHANCE_YOUR_CALM)
            return
        try:
            timeout = grpc.check_call(fields)
            found = self._handlers.get(fields[b":path"])
            if found is None:
                path = fields[b":path"].decode("latin-1")
                raise grpc.Refusal(200, Status.UNIMPLEMENTED, f"unknown method {path}")
        except grpc.Refusal as refusal:
            self._refuse(stream, refusal)
            return
        limit = self._limits.request_timeout_s
        if limit and (timeout is None or limit < timeout):
            timeout = limit
        expires = None if timeout is None else trio.current_time() + timeout
        stream.owner = call = ServerStream(self, stream, found[1], found[0], expires)
        self.calls.add(call)
        self._nursery.start_soon(self._run, call, name=call.method)

    def _refuse(self, stream: s.Stream, refusal: grpc.Refusal) -> None:
        self.core.send_headers(stream, grpc.refusal_block(refusal), end=True)
        if self._on_end is not None:
            path = stream.fields.get(b":path", b"").decode("latin-1")
            self._on_end(CallRecord(path, self.peer, refusal.status.value, refusal.text, 0.0, ""))

    async def _run(self, call: ServerStream) -> None:
        began = trio.current_time() if self._on_end is not None else 0.0
        try:
            try:
                with call.scope:
                    if self._invoke is None:
                        await call.handler.func(call)
                    else:
                        await self._invoke(call)
                    if call.status is None:
                        self._finish(call)
                    if call.stream.queued:
                        await call.drained()
            except Exception as error:  # noqa: BLE001  rule 4
                self._fail(call, error)
            if call.scope.cancelled_caught:
                self._cut(call)
        finally:
            self.calls.discard(call)
            call.stream.owner = None  # no cycle is left for the collector
            if self._draining:
                self.flush()
            if self._on_end is not None:
                self._record(call, self._on_end, trio.current_time() - began)

    def _finish(self, call: ServerStream) -> None:
        if call.answered:
            call.finish()
        else:
            log.error("service method returned without a message", method=call.method)
            call.end(Status.INTERNAL, "the method gave no answer", None, b"")

    def _fail(self, call: ServerStream, error: Exception) -> None:
        """Turn what a service method raised into trailers."""
        if call.status is not None or call.stream.state == s.CLOSED:
            return
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        known = error if isinstance(error, GRPCError) else self._translate(error)
        if known is None:
            request_id = call.ensure_request_id()
            log.error("service method failed", method=call.method, request_id=request_id, exc_info=error)
            known = GRPCError(Status.INTERNAL, "internal error")
        call.end(known.status, known.message, known.details, b"")

    def _cut(self, call: ServerStream) -> None:
        """End a call whose scope was cancelled (rule 3)."""
        status, text = Status.CANCELLED, "the call was cancelled"
        if call.expires is not None and trio.current_time() >= call.expires:
            status, text = Status.DEADLINE_EXCEEDED, "the deadline passed"
        if call.stream.state == s.CLOSED:
            code = call.stream.reset_code
            if code not in {None, frames.NO_ERROR, frames.CANCEL}:
                call.status, _ = grpc.from_reset(code)
                call.status_message = f"the stream was reset with {grpc.code_name(code)}"
            elif call.status is None or code == frames.CANCEL:
                call.status, call.status_message = Status.CANCELLED, "the client went away"
        elif call.status is None:
            call.end(status, text, None, b"")
        else:  # the trailers are queued behind DATA that the client does not take
            call.abort(frames.CANCEL)
            call.status, call.status_message = status, f"{text} before the client took the answer"

    def _record(self, call: ServerStream, on_end: OnEnd, seconds: float) -> None:
        status = Status.CANCELLED if call.status is None else call.status
        text = call.status_message if call.status is not None else "the connection was lost"
        on_end(CallRecord(call.method, self.peer, status.value, text, seconds, call.request_id))
