"""Frames of streams: DATA, HEADERS and CONTINUATION, RST_STREAM, WINDOW_UPDATE, PRIORITY; what opens a stream.

What lives here: what each of them does to the state (state.py), and which event it is.
What must not: the order of frames and the cutting of octets (connection.py), how a header block is read
(header_blocks.py), clocks, sockets, trio, gRPC.

Rules
1. A handler gets flags, stream id, payload, and the list to which it adds its events. It raises ConnectionFault or
   StreamFault; `Connection` makes GOAWAY or RST_STREAM of that.
2. The server takes odd, rising stream ids (RFC 9113 §5.1.1). Above max_concurrent_streams, or after the last GOAWAY:
   REFUSED_STREAM, so that the client may try elsewhere (§8.7). What is refused is decoded and not looked at.
3. DATA counts against both windows, whatever becomes of it; what nobody will read is given back at once (§6.9).
4. PRIORITY is ignored (§5.3.2).
"""

from __future__ import annotations

from actorserve.services.transport import frames as f
from actorserve.services.transport import hpack, patience
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection_frames import ConnectionFrames
from actorserve.services.transport.frames import ConnectionFault, StreamFault
from actorserve.services.transport.header_blocks import HeaderBlocks
from actorserve.services.transport.state import REMEMBERED_SKIPS, Settings


class StreamFrames(ConnectionFrames):
    """Takes the frames of all streams; base of `Connection`."""

    __slots__ = ("_blocks",)

    def __init__(self, *, client: bool, settings: Settings, hpack_library: str) -> None:
        super().__init__(client=client, settings=settings)
        self._blocks = HeaderBlocks(client=client, limit=settings.max_header_list, library=hpack_library)

    @property
    def block_since(self) -> float | None:
        """When a header block began that is not whole yet."""
        return self._blocks.since

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
            self._blocks.begin(flags, stream_id, payload, self._now)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        self._blocks.add(stream_id, payload)
        if flags & f.END_HEADERS:
            begun_with, block = self._blocks.finish()
            self._headers_done(begun_with, stream_id, block, events)

    def _headers_done(self, flags: int, stream_id: int, block: bytes, events: list[s.Event]) -> None:
        stream = self.streams.get(stream_id)
        first = stream is None or not stream.fields
        decoded = self._blocks.decode(block, first=first)
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
            fields, metadata = self._blocks.read(block, decoded, first=first)
            if first and self.client and hpack.check_answer(fields, end=bool(flags & f.END_STREAM)):
                self._idle_frame()
                return
        except hpack.Malformed as error:
            raise StreamFault(stream_id, f.PROTOCOL_ERROR, str(error)) from error
        except hpack.ListTooLarge as error:
            self._too_large(stream, flags, events, error)
            return
        self._take_fields(stream, fields, metadata, flags, events)

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
        """Server: open the peer's stream, or refuse it (rule 2)."""
        expected = self._highest + 1 | 1
        if stream_id > expected:
            self._skipped = (*self._skipped, range(expected, stream_id, 2))[-REMEMBERED_SKIPS:]
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
