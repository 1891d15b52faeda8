"""One HTTP/2 connection, either role: bytes in, events out; calls in, bytes out (RFC 9113).

What lives here: the parser: which frame may come when, and what it does to the state (state.py).
What must not: clocks, sockets, trio, anyio, gRPC. The driver owns time and tasks.
Over 300 lines, because every frame type stands here once, and a reader wants them in one place.

Rules
1. `receive` never raises for what a peer did. A stream fault is RST_STREAM and an event, a connection fault is GOAWAY
   and ConnectionBroken, after which everything received is ignored (§5.4).
2. SETTINGS is the first frame of either side (§3.4); between the parts of a header block nothing else may come (§6.10),
   and neither its octets nor its CONTINUATION frames are without limit.
3. The server takes odd, rising stream ids (§5.1.1). Above max_concurrent_streams, or after the last GOAWAY:
   REFUSED_STREAM, so that the client may try elsewhere (§8.7). Every header block is decoded, wanted or not: the table
   of the connection depends on it (§4.3).
4. A frame on an idle stream is PROTOCOL_ERROR of the connection. On a closed one it is ignored if we reset that stream,
   STREAM_CLOSED of the stream if the peer did, STREAM_CLOSED of the connection otherwise (§5.1).
5. Push is neither offered nor taken: PUSH_PROMISE is PROTOCOL_ERROR (§8.4); PRIORITY is ignored (§5.3.2).
6. `receive` is told the time (any clock, in seconds) and how many frames it may take: one large read of small frames
   must not hold the loop. `more` says that whole frames are left: call again, with nothing.
7. What costs us work and helps nobody is counted (patience.py); above the bound: ENHANCE_YOUR_CALM (§10.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from actorserve.services.transport import frames as f
from actorserve.services.transport import hpack, patience
from actorserve.services.transport import streams as s
from actorserve.services.transport.frames import ConnectionFault, StreamFault
from actorserve.services.transport.state import Settings, State

__all__ = ["Connection", "Settings"]

UNBOUNDED = -1
KNOWN_MAX = 16  # header blocks that a connection remembers
KNOWN_SIZE = 1024  # and how long they may be

Known = tuple[hpack.Fields, hpack.Pairs]


class Connection(State):
    """The protocol of one connection, without I/O."""

    def __init__(
        self, *, client: bool, settings: Settings | None = None, hpack_library: str = hpack.DEFAULT_LIBRARY
    ) -> None:
        super().__init__(client=client, settings=settings or Settings())
        settings = self.settings
        self.broken = False
        self.goaway_received = False
        self.settings_seen = False
        self.more = False  # whole frames may be left for the next call
        self.unfinished_since: float | None = None  # when a frame began that is not whole yet
        self.block_since: float | None = None  # when a header block began that is not whole yet
        self._counters = patience.Counters(settings.patience, settings.min_ping_interval_s)
        self._known: dict[tuple[bytes, bool], Known] = {}  # hpack.py, rule 4
        self._decode = hpack.decoder(settings.max_header_list, hpack_library)
        self._buffer = bytearray()
        self._preface_left = b"" if client else f.PREFACE
        self._block = bytearray()  # a header block in parts
        self._block_id = 0
        self._block_flags = 0
        self._block_parts = 0
        self._on: tuple[Callable[[int, int, bytes, list[s.Event]], None], ...] = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
            self._on_unknown,
        )

    def receive(self, data: bytes, now: float | None = None, frames: int = UNBOUNDED) -> list[s.Event]:
        """Take what was read; give what happened (rules 0 and 1). Without `now` every call counts anew."""
        events: list[s.Event] = []
        if self.broken:
            self.more = False
            return events
        if now is not None:
            self._now = now
        if self._counters.tick(now):
            self.tiny = 0
        try:
            self._parse(data, events, frames)
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

    # --- bytes -> frames -------------------------------------------------------------------

    def _parse(self, data: bytes, events: list[s.Event], frames: int) -> None:
        self.more = False
        if self._buffer:
            self._buffer += data
            data = bytes(self._buffer)
            self._buffer.clear()
        offset = self._skip_preface(data) if self._preface_left else 0
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
            if not frames:
                self.more = True
                break
            frames -= 1
            payload = data[offset + f.HEADER_SIZE : stop]
            offset = stop
            if self._block_id or not self.settings_seen:
                self._check_order(kind)
            try:
                self._on[min(kind, f.CONTINUATION + 1)](flags, stream_id & f.MAX_STREAM_ID, payload, events)
            except StreamFault as fault:
                self._fault(fault, events)
        self._keep(data, offset)

    def _keep(self, data: bytes, offset: int) -> None:
        """Keep what is not a whole frame yet, or one too many for this call."""
        if offset == len(data):
            self.unfinished_since = None
            return
        self._buffer += data[offset:]
        if offset or self.unfinished_since is None:
            self.unfinished_since = self._now

    def _check_order(self, kind: int) -> None:
        if self._block_id and kind != f.CONTINUATION:
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
        self._buffer.clear()
        self._block.clear()
        self.goaway(fault.code, text=fault.text)
        events.append(s.ConnectionBroken(fault.code, fault.text))

    def _fault(self, fault: StreamFault, events: list[s.Event]) -> None:
        stream = self.streams.get(fault.stream_id)
        if stream is not None:
            self._close(stream, fault.code, by_us=True)
            events.append(s.StreamReset(stream, by_peer=False))
        self._emit_control(f.encode_rst_stream(fault.stream_id, fault.code))
        self._counters.count(patience.FAULTS)

    def _idle_frame(self) -> None:
        """Count a frame without effect."""
        if self.productive:
            self.productive = False
            self._counters.forgive()
        self._counters.count(patience.IDLE)

    # --- frames of a stream ------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        size = len(payload)
        s.receive(self._receive_window, size)
        stream = self.streams.get(stream_id)
        if stream is None or stream.state == s.HALF_REMOTE:
            self._discard(size)
            self._not_open(stream, stream_id, "DATA" if size else "empty DATA")
            return
        if flags & f.PADDED:
            payload = f.strip(flags & f.PADDED, payload)
        window = stream.receive_window
        window.available -= size
        if window.available < 0:
            self._discard(size)
            raise StreamFault(stream_id, f.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        if self.client and not stream.fields:
            self._discard(size)
            raise StreamFault(stream_id, f.PROTOCOL_ERROR, "DATA before the answer's headers")
        stream.received += size
        stream.unread += size
        if size > len(payload):
            self.consumed(stream, size - len(payload))
        if stream.expected >= 0:
            stream.count(len(payload))
        if payload:
            stream.put(payload)
        if flags & f.END_STREAM:
            self._end_received(stream)
        elif not payload:
            self._idle_frame()
        events.append(s.DataReceived(stream))

    def _on_headers(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        if not stream_id:
            raise ConnectionFault(f.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & (f.PADDED | f.HAS_PRIORITY):
            payload = f.strip(flags, payload)
        if flags & f.END_HEADERS:
            self._headers_done(flags, stream_id, payload, events)
        else:
            self._block += payload
            self._block_id, self._block_flags, self._block_parts = stream_id, flags, 1
            self.block_since = self._now

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        if not self._block_id or stream_id != self._block_id:
            raise ConnectionFault(f.PROTOCOL_ERROR, "CONTINUATION without its HEADERS")
        self._block += payload
        self._block_parts += 1
        limit = self.settings.max_header_list * hpack.HARD_LIMIT_FACTOR
        if len(self._block) > limit or self._block_parts > 4 + limit // 1024:
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "header block without end")
        if flags & f.END_HEADERS:
            block = bytes(self._block)
            self._block.clear()
            self._block_id = 0
            self.block_since = None
            self._headers_done(self._block_flags, stream_id, block, events)

    def _headers_done(self, flags: int, stream_id: int, block: bytes, events: list[s.Event]) -> None:
        stream = self.streams.get(stream_id)
        first = stream is None or not stream.fields
        known, decoded, pure = self._decoded(block, first=first)
        if stream is None:
            if self.client or stream_id <= self._highest or not stream_id & 1:
                self._not_open(None, stream_id, "HEADERS")
                return
            stream = self._admit(stream_id)
            if stream is None:
                return
        elif stream.state == s.HALF_REMOTE:
            self._not_open(stream, stream_id, "HEADERS")
        try:
            fields, metadata = known or self._split(decoded, first=first)
            if first and self.client and hpack.check_answer(fields, end=bool(flags & f.END_STREAM)):
                self._idle_frame()
                return
        except hpack.Malformed as error:
            raise StreamFault(stream_id, f.PROTOCOL_ERROR, str(error)) from error
        except hpack.ListTooLarge as error:
            self._too_large(stream, flags, events, error)
            return
        if known is None and pure:
            self._known[block, first] = fields, metadata
        self._take_fields(stream, fields, metadata, flags, events)

    def _decoded(self, block: bytes, *, first: bool) -> tuple[Known | None, Sequence[Any], bool]:
        """Give what is known of a block (hpack.py, rule 4), or its fields and whether they may be remembered."""
        known = self._known.get((block, first))
        if known is not None:
            return known, (), True
        pure = hpack.walk(block)
        if not pure or len(self._known) >= KNOWN_MAX:
            self._known.clear()
        return None, self._decode(block), pure and len(block) <= KNOWN_SIZE

    def _split(self, decoded: Sequence[Any], *, first: bool) -> tuple[hpack.Fields, hpack.Pairs]:
        pseudo = hpack.NO_PSEUDO if not first else hpack.RESPONSE_PSEUDO if self.client else hpack.REQUEST_PSEUDO
        fields, metadata = hpack.split(decoded, pseudo, self.settings.max_header_list, ascii_only=not self.client)
        if first and not self.client:
            hpack.check_request(fields)
        return fields, metadata

    def _take_fields(
        self, stream: s.Stream, fields: hpack.Fields, metadata: hpack.Pairs, flags: int, events: list[s.Event]
    ) -> None:
        end = flags & f.END_STREAM
        event: s.StreamEvent
        if not stream.fields:
            stream.fields, stream.metadata = fields, metadata
            event = s.ResponseReceived(stream) if self.client else s.RequestReceived(stream)
            length = fields.get(b"content-length")
            if length is not None:
                if not length.isdigit() or len(length) > 18:
                    raise StreamFault(stream.id, f.PROTOCOL_ERROR, "content-length is not a number")
                stream.expected = int(length)
        elif not end:
            raise StreamFault(stream.id, f.PROTOCOL_ERROR, "trailers without END_STREAM")
        else:
            stream.trailer_fields, stream.trailer_metadata = fields, metadata
            event = s.TrailersReceived(stream)
        if end:
            self._end_received(stream)
        events.append(event)

    def _admit(self, stream_id: int) -> s.Stream | None:
        """Server: open the peer's stream, or refuse it (rule 3)."""
        self._highest = stream_id
        full = len(self.streams) >= self.settings.max_concurrent_streams
        if full or self.goaway_sent is not None:
            self._remember(stream_id, by_us=True)
            self._emit_control(f.encode_rst_stream(stream_id, f.REFUSED_STREAM))
            self._counters.count(patience.RESETS)
            return None
        return self._new_stream(stream_id)

    def _too_large(self, stream: s.Stream, flags: int, events: list[s.Event], error: hpack.ListTooLarge) -> None:
        if self.client or stream.fields:
            raise StreamFault(stream.id, f.ENHANCE_YOUR_CALM, str(error)) from error
        stream.fields = {b":path": b""}
        if flags & f.END_STREAM:
            self._end_received(stream)
        events.append(s.HeadersTooLarge(stream))
        self._counters.count(patience.FAULTS)

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        code = f.decode_long(payload, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "RST_STREAM")
            self._idle_frame()
            return
        quick = not (self.client or stream.answered) and self._now - stream.opened_at < patience.QUICK_S
        self._close(stream, code, by_us=False)
        events.append(s.StreamReset(stream, by_peer=True))
        if quick:
            self._counters.count(patience.RESETS)

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        increment = f.decode_long(payload, "WINDOW_UPDATE") & f.MAX_WINDOW
        self._idle_frame()
        self._counters.check_tiny(self.tiny)
        if not stream_id:
            if not increment:
                raise ConnectionFault(f.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.send_window += increment
            if self.send_window > f.MAX_WINDOW:
                raise ConnectionFault(f.FLOW_CONTROL_ERROR, "send window above 2^31-1")
            self._connection_window_opened()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "WINDOW_UPDATE")
            return
        if not increment:
            raise StreamFault(stream_id, f.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        stream.widen(increment)
        self._window_opened(stream)

    def _on_priority(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        if not stream_id:
            raise ConnectionFault(f.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            fault = "PRIORITY is not 5 octets long"
            if stream_id in self.streams:
                raise StreamFault(stream_id, f.FRAME_SIZE_ERROR, fault)
            raise ConnectionFault(f.FRAME_SIZE_ERROR, fault)  # a stream that is idle or closed cannot be reset
        self._idle_frame()

    # --- frames of the connection ------------------------------------------------------------

    def _on_settings(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        if stream_id:
            raise ConnectionFault(f.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & f.ACK:
            if payload:
                raise ConnectionFault(f.FRAME_SIZE_ERROR, "SETTINGS with ACK and a payload")
            if not self.settings_seen:
                raise ConnectionFault(f.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settings_took_effect()
            self._idle_frame()
            return
        self.settings_seen = True
        self._counters.count(patience.SETTINGS)
        for key, value in dict(f.decode_settings(payload)).items():  # the last of each counts (§6.5.3)
            self._apply(key, value)
        self._emit_control(f.SETTINGS_ACK)
        events.append(s.SettingsReceived())

    def _on_unknown(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        self._idle_frame()

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        raise ConnectionFault(f.PROTOCOL_ERROR, "PUSH_PROMISE is not allowed")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        if stream_id:
            raise ConnectionFault(f.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "PING is not 8 octets long")
        if flags & f.ACK:
            self._idle_frame()
            events.append(s.PingAcknowledged(payload))
            return
        if self.productive:
            self.productive = False
            self._counters.forgive()
        if not self.client:
            self._counters.ping(self._now)
        self._emit_control(f.encode(f.PING, f.ACK, 0, payload))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        if stream_id:
            raise ConnectionFault(f.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 octets")
        self._idle_frame()
        last, code = f.TWO_LONGS.unpack_from(payload)
        self.goaway_received = True
        events.append(s.GoawayReceived(last & f.MAX_STREAM_ID, code, payload[8:].decode(errors="replace")))

    # --- faults -----------------------------------------------------------------------------------

    def _check_not_idle(self, stream_id: int, name: str) -> None:
        if not stream_id or stream_id > self._highest or not stream_id & 1:
            raise ConnectionFault(f.PROTOCOL_ERROR, f"{name} on idle stream {stream_id}")

    def _not_open(self, stream: s.Stream | None, stream_id: int, name: str) -> None:
        """Answer a frame that needs an open stream (rule 4)."""
        if stream is not None:
            raise StreamFault(stream_id, f.STREAM_CLOSED, f"{name} after END_STREAM")
        self._check_not_idle(stream_id, name)
        by_us = self._resets.get(stream_id)
        if by_us is None:
            raise ConnectionFault(f.STREAM_CLOSED, f"{name} on closed stream {stream_id}")
        if not by_us:
            raise StreamFault(stream_id, f.STREAM_CLOSED, f"{name} after RST_STREAM")
        if name != "DATA":  # of which a window may be on its way
            self._idle_frame()
