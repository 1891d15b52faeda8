"""One connection's tasks: one that reads and keeps time; server_writer.py has the one that writes, server_calls.py the
calls'.

What lives here: the trio side of a connection: reading in turns, timeouts, draining, closing.
What must not: bytes of HTTP/2, calls, how it is written, listeners.

Rules
1. All tasks live in the connection's nursery: when the connection is lost, every call on it is cancelled.
2. A connection on which nothing goes on is one task, which wakes when something may be due (watch.py): its wait ends
   then. Receiving can be cancelled and taken up again, over TLS too.
3. What we close, we close politely: GOAWAY, then the end of the stream, then a while for the peer to read both.
4. A turn does work for TURN at most (connection.py, rule 3), and other tasks run in between: trio gives every task its
   turn in each tick, so what one peer sends costs another no more than a turn a tick.
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
from actorserve.services.transport.server_calls import OnEnd, Translate
from actorserve.services.transport.server_writer import LOST, ServerWriter
from actorserve.services.transport.tls import PeerIdentity
from actorserve.services.transport.watch import Drain, End, Ping, Watch
from actorserve.services.transport.writing import close_now, forget_unsent, linger

READ_SIZE = 65_536
MOST_READ = 262_144  # what is asked for of a peer that has more to send than READ_SIZE
TURN = 64  # of cost: 64 small frames, or 16 calls, or some 4 KiB of header fields
_DRAIN_PING = b"draining"
_KEEPALIVE_PING = b"keepaliv"

log = structlog.get_logger(__name__)


class ServerConnection(ServerWriter):
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
        self._stream = stream
        self.reason = "peer"  # who or what ended the connection, for the statistics
        self.heard_at = trio.current_time()
        self._over = False  # nothing more is read
        self._read_size = READ_SIZE
        self._nap = trio.CancelScope()  # of reading, until the next look
        self._watch = Watch(self.core, limits, self.heard_at, place)
        self._attentive = True  # the next look is soon

    async def run(self) -> None:
        """Serve until the connection ends; close the stream."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self._live()
                self._closing = True
                await self._cancel_calls()
                await self._write_last()
                self._nursery.cancel_scope.cancel()
            if self.core.goaway_sent is not None:
                await linger(self._stream)
        finally:
            await close_now(self._stream)

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
        """Read until the end, looking now and then (rule 2)."""
        if not self._over and await self._greet():
            while not self._over:
                with trio.CancelScope(deadline=self._next_look()) as self._nap:
                    while await self._read_once():
                        pass
                    return
                if not self._over:
                    self._look()
                if not self._over and self.core.wants_write:
                    await self._write_own(self._limits.write_stall_timeout_s or float("inf"))

    async def _greet(self) -> bool:
        """Exchange SETTINGS (RFC 9113 §3.4). The client speaks first: its preface waits for nothing of ours."""
        core, limit = self.core, self._limits.handshake_timeout_s or float("inf")
        with trio.move_on_after(limit) as self._nap:
            while not core.settings_seen:
                if not await self._read_once():
                    return False
        if core.settings_seen:
            await self._write_own(limit)
        elif not self._over:
            self.end(End("handshake", frames.SETTINGS_TIMEOUT, "no SETTINGS in time"))
        return not self._over

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
            except LOST:
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
        if not self._attentive:
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

    # --- time -----------------------------------------------------------------------------------

    def end(self, end: End) -> None:
        """Say GOAWAY and close; calls in hand are cut."""
        log.info("connection ended", peer=self.peer, code=end.code, text=end.text)
        self.reason = end.reason
        self.core.goaway(end.code, text=end.text)
        self._stop()

    def _next_look(self) -> float:
        quiet = self._watch.is_quiet and not self._writing
        self._attentive = not quiet
        return self._watch.next_look(trio.current_time(), self.heard_at, quiet=quiet)

    def _attend(self, now: float) -> None:
        """Look soon, if the connection is quiet no longer."""
        if not self._watch.is_quiet:
            self._attentive = True
            self._nap.deadline = min(self._nap.deadline, now + self._watch.busy_pause)

    def _look(self) -> None:
        """Do what is due."""
        watch = self._watch
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
