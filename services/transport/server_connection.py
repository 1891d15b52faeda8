"""One connection's tasks: one that reads and keeps time, one that writes; the calls' are server_calls.py's.

What lives here: the trio side of a connection: reading in turns, writing once a tick, timeouts, draining, closing.
What must not: bytes of HTTP/2, calls, listeners.

Rules
1. All tasks live in the connection's nursery: when the connection is lost, every call on it is cancelled.
2. Only the writer writes; a `flush` in this tick is one write in the next, however many calls have asked. It comes into
   being with the first `flush` after the greeting. The first write, and the last of a connection that has no writer,
   are the reader's: one that never makes a call is one task.
3. What we close, we close politely: GOAWAY, then the end of the stream, then a while for the peer to read both.
4. A turn does work for TURN at most (connection.py, rule 3), and other tasks run in between: trio gives every task its
   turn in each tick, so what one peer sends costs another no more than a turn a tick.
5. The reader's wait ends when a look is due (watch.py). Receiving can be cancelled and taken up again, over TLS too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
import trio
from grpclib.const import Handler, Status

from actorserve.services.transport import frames, grpc
from actorserve.services.transport import streams as s
from actorserve.services.transport.interceptors import Proceed
from actorserve.services.transport.limits import Limits
from actorserve.services.transport.pace import at_once
from actorserve.services.transport.pieces import Octets
from actorserve.services.transport.server_calls import OnEnd, ServerCalls, Translate
from actorserve.services.transport.tls import PeerIdentity
from actorserve.services.transport.watch import Drain, End, Ping, Watch
from actorserve.services.transport.writing import close_now, forget_unsent, send_parts

LINGER_S = 1.0
READ_SIZE = 65_536
MOST_READ = 262_144  # what is asked for of a peer that has more to send than READ_SIZE
LINGER_READS = 64
TURN = 64  # of cost: 64 small frames, or 16 calls, or some 4 KiB of header fields
_DRAIN_PING = b"draining"
_KEEPALIVE_PING = b"keepaliv"
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)

log = structlog.get_logger(__name__)


class ServerConnection(ServerCalls):
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
        place: Callable[[float], float] = at_once,
    ) -> None:
        """`place` is for when this connection is to be told to go (pace.py)."""
        super().__init__(peer, handlers, limits, translate, on_end, invoke, identity)
        self.is_secure = isinstance(stream, trio.SSLStream)
        self.reason = "peer"  # who or what ended the connection, for the statistics
        self.heard_at = trio.current_time()
        self._stream = stream
        self._place = place
        self._over = False  # nothing more is read
        self._closing = False
        self._lost = False  # nothing can be written any more
        self._read_size = READ_SIZE
        self._nap = trio.CancelScope()  # of reading, until the next look
        self._watched = True  # closely: there is no need to look before the next time
        self._busy_pause = 0.0
        self._sent = 0  # octets that the peer's side took
        self._writing = False
        self._by_reader = True  # what is to be written now is the reader's to write (rule 2)
        self._idle: trio.Event | None = None  # set: the writer waits for it
        self._written: trio.Event | None = None  # set: there is a writer, which has ended where it is set

    async def run(self) -> None:
        """Serve until the connection ends; close the stream."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self._live()
                self._closing = True
                await self._cancel_calls()
                if not self._lost:
                    with trio.move_on_after(LINGER_S):
                        await self._write_last()
                self._nursery.cancel_scope.cancel()
            if self.core.goaway_sent is not None:
                await self._linger()
        finally:
            await close_now(self._stream)

    def flush(self) -> None:
        """Wake the writer (rule 2)."""
        idle = self._idle
        if idle is not None:
            self._idle = None
            idle.set()
        elif self._written is None and not self._by_reader:
            self._written = trio.Event()
            self._nursery.start_soon(self._write, self._written)

    @property
    def draining(self) -> bool:
        """Whether GOAWAY was said and calls may still be open."""
        return self._draining

    def drain(self, reason: str = "drain") -> None:
        """Take no more calls; end when the present ones have ended (RFC 9113 §6.8)."""
        if not self._draining:
            self._draining = True
            self.reason = reason
            if self.calls or self.core.streams:
                self.core.goaway(frames.NO_ERROR, last_stream_id=frames.MAX_STREAM_ID)
                self.core.ping(_DRAIN_PING)
                self.flush()
                self._attend(trio.current_time())
            else:  # a call that is on its way is told that it was not begun
                self.core.goaway(frames.NO_ERROR)
                self._stop()

    def _stop(self) -> None:
        """Read no more."""
        self._over = True
        self._nap.cancel()

    # --- reading and writing ---------------------------------------------------------------------

    async def _live(self) -> None:
        """Read until the end, looking now and then (rule 5)."""
        if not self._over and await self._greet():
            watch = Watch(self.core, self._limits, trio.current_time(), self._place)
            self._busy_pause = watch.busy_pause
            while not self._over:
                with trio.CancelScope(deadline=self._next_look(watch)) as self._nap:
                    while await self._read_once():
                        pass
                    return
                if not self._over:
                    self._look(watch)

    async def _greet(self) -> bool:
        """Exchange SETTINGS (RFC 9113 §3.4). The client speaks first: its preface waits for nothing of ours."""
        core = self.core
        with trio.move_on_after(self._limits.handshake_timeout_s or float("inf")) as self._nap:
            while not core.settings_seen:
                if not await self._read_once():
                    return False
            await self._write_here()  # no call has run yet
            self._by_reader = False
            if core.wants_write:
                self.flush()
            return not self._over
        if not self._over:
            self._lost = core.settings_seen  # it takes nothing that we write
            self.end(End("handshake", frames.SETTINGS_TIMEOUT, "no SETTINGS in time"))
        return False

    async def _read_once(self) -> bool:
        """Do one turn's work (rule 4); False at the end."""
        core = self.core
        if core.more:
            await trio.lowlevel.checkpoint()
            now = trio.current_time()
            events = core.receive(b"", now, TURN)
        else:
            try:
                data = await self._stream.receive_some(self._read_size)
            except _LOST:
                data = b""
            if not data:
                self._lost = True
                return False
            now = self.heard_at = trio.current_time()
            events = core.receive(bytes(data), now, TURN)
            self._read_size = MOST_READ if len(data) == self._read_size and not core.more else READ_SIZE
        self._dispatch(events)
        if core.wants_write:
            self.flush()
        if core.block_since is not None:
            self._nap.deadline = min(self._nap.deadline, now + self._limits.handshake_timeout_s)
        if not self._watched:
            self._attend(now)
        return not core.broken

    def blame(self) -> None:
        """Count a message that inflates beyond its limit as a fault of the client."""
        self._dispatch(self.core.blame())
        if self.core.broken:
            self._stop()

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

    async def _write(self, ended: trio.Event) -> None:
        core = self.core
        try:
            while True:
                if not core.wants_write:
                    if self._closing or (self._draining and not self.calls and not core.streams):
                        break
                    self._idle = idle = trio.Event()
                    await idle.wait()
                    continue
                parts = core.take_parts()
                for stream in core.relieved:
                    if stream.owner is not None:
                        stream.owner.wake()
                if parts:
                    await self._send(parts)
            if self._draining and not self._closing:
                if core.goaway_sent == frames.MAX_STREAM_ID:
                    core.goaway(frames.NO_ERROR)
                    await self._send(core.take_parts())
                self._nursery.cancel_scope.cancel()
        except _LOST:
            self._lose()
        ended.set()

    async def _write_here(self) -> None:
        """Write what `take_parts` gives, in the reader's task (rule 2)."""
        try:
            await self._send(self.core.take_parts())
        except _LOST:
            self._lose()

    async def _write_last(self) -> None:
        """Write what was said at the end."""
        if self._written is None and not self.calls:
            self._by_reader = True
            while self.core.wants_write and not self._lost:
                await self._write_here()
        else:
            self._by_reader = False
            self.flush()
            if self._written is not None:
                await self._written.wait()

    async def _send(self, parts: list[Octets]) -> None:
        """Write, where the watch sees how long it takes."""
        self._writing = True
        await send_parts(self._stream, parts, self._progressed)
        self._writing = False

    def _progressed(self, octets: int) -> None:
        self._sent += octets

    def _lose(self) -> None:
        """Nothing gets through any more: end the connection and its calls, without a word."""
        self._lost = True
        self._stop()

    async def _linger(self) -> None:
        """Let the peer read our last frames before the socket goes (rule 3)."""
        bare = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        if isinstance(bare, trio.abc.HalfCloseableStream):
            with trio.move_on_after(LINGER_S):
                try:
                    await bare.send_eof()
                    for _ in range(LINGER_READS):
                        if not await bare.receive_some(READ_SIZE):
                            break
                except _LOST:
                    pass

    # --- time -----------------------------------------------------------------------------------

    def end(self, end: End) -> None:
        """Say GOAWAY and close; calls in hand are cut."""
        log.info("connection ended", peer=self.peer, code=end.code, text=end.text)
        self.reason = end.reason
        self.core.goaway(end.code, text=end.text)
        self._stop()

    def _next_look(self, watch: Watch) -> float:
        self._watched = not (watch.is_quiet and not self._writing)
        return watch.next_look(trio.current_time(), self.heard_at, quiet=not self._watched)

    def _attend(self, now: float) -> None:
        """Look soon, at a connection that is quiet no longer."""
        core = self.core
        if core.streams or core.wants_write or core.unfinished_since is not None:
            self._watched = True
            self._nap.deadline = min(self._nap.deadline, now + self._busy_pause)

    def _look(self, watch: Watch) -> None:
        """Do what is due."""
        now = trio.current_time()
        if watch.write_stalled(now, self._sent, writing=self._writing):
            self.reason = "stall"
            log.info("connection ended", peer=self.peer, text="the peer does not read")
            forget_unsent(self._stream)
            self._lose()  # GOAWAY would not get through either
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
            self._stop()
        if self.core.wants_write:
            self.flush()
