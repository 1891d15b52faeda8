"""One HTTP/2 connection, either role: bytes in, events out; calls in, bytes out (RFC 9113).

What lives here: octets become frames, in the order that is allowed, so many at a time; a fault becomes GOAWAY or
RST_STREAM. Below it, each a layer: stream_frames.py and connection_frames.py (what a frame does), state.py (what is
known), outgoing.py and next_write.py (what is sent). What must not: clocks, sockets, trio, anyio, gRPC. The driver owns
time and tasks.

Rules
1. `receive` never raises for what a peer did. A stream fault is RST_STREAM and an event, a connection fault is GOAWAY
   and ConnectionBroken, after which everything received is ignored (§5.4).
2. SETTINGS is the first frame of either side (§3.4); between the parts of a header block nothing else may come (§6.10).
3. `receive` is told the time (any clock, in seconds) and how much it may do, its budget: one large read must not hold
   the loop. A frame is paid for by what it costs us (COSTS): most cost 1; one that opens or ends a stream moves tasks
   of the driver; header lists and settings are looked at octet by octet. The last frame may overdraw the budget. `more`
   says that whole frames are left: call again, with nothing.
4. What costs us work and helps nobody is counted (patience.py); above the bound: ENHANCE_YOUR_CALM (§10.5).
"""

from __future__ import annotations

from collections.abc import Callable

from actorserve.services.transport import frames as f
from actorserve.services.transport import hpack, patience
from actorserve.services.transport import streams as s
from actorserve.services.transport.frames import ConnectionFault, StreamFault
from actorserve.services.transport.state import Settings
from actorserve.services.transport.stream_frames import StreamFrames

__all__ = ["Connection", "Settings"]

UNBOUNDED = 1 << 60
# What a frame costs (rule 3), by its type, the last for unknown ones: how much at least, and shifted so far to the
# right, its size adds to that. DATA is passed on, not looked at.
_PASSED, _READ = 24, 6
COSTS = (1, 3, 1, 2, 1, 1, 1, 1, 1, 1, 1)
SHIFTS = (_PASSED, _READ, _PASSED, _PASSED, _READ, _PASSED, _PASSED, _PASSED, _PASSED, _READ, _PASSED)


class Connection(StreamFrames):
    """The protocol of one connection, without I/O."""

    __slots__ = (
        "_at",
        "_buffer",
        "_preface_left",
        "broken",
        "more",
        "unfinished_since",
    )

    def __init__(
        self, *, client: bool, settings: Settings | None = None, hpack_library: str = hpack.DEFAULT_LIBRARY
    ) -> None:
        super().__init__(client=client, settings=settings or Settings(), hpack_library=hpack_library)
        self.broken = False
        self.more = False  # whole frames may be left for the next call
        self.unfinished_since: float | None = None  # when a frame began that is not whole yet
        self._buffer = b""  # what was received and not taken yet, from `_at` on
        self._at = 0
        self._preface_left = b"" if client else f.PREFACE

    def receive(self, data: bytes, now: float | None = None, budget: int = UNBOUNDED) -> list[s.Event]:
        """Take what was read; give what happened (rules 1 and 3). Without `now` every call counts anew."""
        events: list[s.Event] = []
        if self.broken:
            self.more = False
            return events
        if now is not None:
            self._now = now
        if self._counters.tick(now):
            self.tiny = 0
        try:
            self._parse(data, events, budget)
        except ConnectionFault as fault:
            self._break(fault, events)
        return events

    def stall(self, stream: s.Stream) -> list[s.Event]:
        """The driver found that the peer holds this stream up: reset it, and count that."""
        events: list[s.Event] = []
        try:
            self._fault(StreamFault(stream.id, f.ENHANCE_YOUR_CALM, "no progress"), events)
        except ConnectionFault as fault:
            self._break(fault, events)
        return events

    def blame(self) -> list[s.Event]:
        """The driver found that a call was meant to cost more than it says: count that like a stream's fault."""
        events: list[s.Event] = []
        try:
            self._counters.count(patience.FAULTS)
        except ConnectionFault as fault:
            self._break(fault, events)
        return events

    # --- bytes -> frames -------------------------------------------------------------------

    def _parse(self, data: bytes, events: list[s.Event], budget: int) -> None:
        self.more = False
        if self._buffer:
            if data:
                data, self._at = self._buffer[self._at :] + data, 0
            else:
                data = self._buffer
        offset = self._skip_preface(data) if self._preface_left else self._at
        end = len(data)
        unpack, max_frame = f.HEADER.unpack_from, self.settings.max_frame
        while end - offset >= f.HEADER_SIZE:
            high, low, kind, flags, stream_id = unpack(data, offset)
            size = high << 8 | low
            if size > max_frame:
                raise ConnectionFault(f.FRAME_SIZE_ERROR, f"frame of {size} octets")
            stop = offset + f.HEADER_SIZE + size
            if stop > end:
                break
            if budget <= 0:
                self.more = True
                break
            kind = min(kind, f.CONTINUATION + 1)
            budget -= COSTS[kind] + (size >> SHIFTS[kind])
            payload = data[offset + f.HEADER_SIZE : stop]
            offset = stop
            if self._blocks.open_id or not self.settings_seen:
                self._check_order(kind)
            try:
                TAKES[kind](self, flags, stream_id & f.MAX_STREAM_ID, payload, events)
            except StreamFault as fault:
                self._fault(fault, events)
        self._keep(data, offset)

    def _keep(self, data: bytes, offset: int) -> None:
        """Keep what is not a whole frame yet, or one too many for this call."""
        if offset == len(data):
            self.unfinished_since = None
            self._buffer, self._at = b"", 0
            return
        if self.more:
            self.unfinished_since = None  # what is behind whole frames waits for us, not for the peer
        elif offset > self._at or self.unfinished_since is None:
            self.unfinished_since = self._now
        self._buffer, self._at = (data, offset) if self.more else (data[offset:], 0)

    def _check_order(self, kind: int) -> None:
        if self._blocks.open_id and kind != f.CONTINUATION:
            raise ConnectionFault(f.PROTOCOL_ERROR, "a header block is interrupted")
        if not self.settings_seen and kind != f.SETTINGS:
            raise ConnectionFault(f.PROTOCOL_ERROR, "the first frame is not SETTINGS")

    def _skip_preface(self, data: bytes) -> int:
        left = self._preface_left
        size = min(len(left), len(data))
        if data[:size] != left[:size]:
            raise ConnectionFault(f.PROTOCOL_ERROR, "the connection does not begin with the HTTP/2 preface")
        self._preface_left = left[size:]
        return size

    def _break(self, fault: ConnectionFault, events: list[s.Event]) -> None:
        self.broken = True
        self.more = False
        self._buffer, self._at = b"", 0
        self._blocks.clear()
        self.goaway(fault.code, text=fault.text)
        events.append(s.ConnectionBroken(fault.code, fault.text))

    def _fault(self, fault: StreamFault, events: list[s.Event]) -> None:
        stream = self.streams.get(fault.stream_id)
        if stream is not None:
            self._close(stream, fault.code, by_us=True)
            events.append(s.StreamReset(stream, by_peer=False))
        self._emit_control(f.encode_rst_stream(fault.stream_id, fault.code))
        self._counters.count(patience.FAULTS)


TAKES: tuple[Callable[[Connection, int, int, bytes, list[s.Event]], None], ...] = (
    Connection._on_data,  # noqa: SLF001  # its own; bound methods would cost each connection a kilobyte
    Connection._on_headers,  # noqa: SLF001
    Connection._on_priority,  # noqa: SLF001
    Connection._on_rst_stream,  # noqa: SLF001
    Connection._on_settings,  # noqa: SLF001
    Connection._on_push_promise,  # noqa: SLF001
    Connection._on_ping,  # noqa: SLF001
    Connection._on_goaway,  # noqa: SLF001
    Connection._on_window_update,  # noqa: SLF001
    Connection._on_continuation,  # noqa: SLF001
    Connection._on_unknown,  # noqa: SLF001
)
"""What takes a frame, by its type; the last takes those that are not known."""
