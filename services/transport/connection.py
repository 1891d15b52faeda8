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
"""

from __future__ import annotations

from collections.abc import Callable

from actorserve.services.transport import frames as f
from actorserve.services.transport import hpack
from actorserve.services.transport import streams as s
from actorserve.services.transport.frames import ConnectionFault, StreamFault
from actorserve.services.transport.state import Settings, State

__all__ = ["Connection", "Settings"]


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
        self._decode = hpack.decoder(settings.max_header_list, hpack_library)
        self._pseudo = hpack.RESPONSE_PSEUDO if client else hpack.REQUEST_PSEUDO
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
        )

    def receive(self, data: bytes) -> list[s.Event]:
        """Take what was read; give what happened (rule 1)."""
        events: list[s.Event] = []
        if not self.broken:
            try:
                self._parse(data, events)
            except ConnectionFault as fault:
                self._break(fault, events)
        return events

    # --- bytes -> frames -------------------------------------------------------------------

    def _parse(self, data: bytes, events: list[s.Event]) -> None:
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
            payload = data[offset + f.HEADER_SIZE : stop]
            offset = stop
            if self._block_id and kind != f.CONTINUATION:
                raise ConnectionFault(f.PROTOCOL_ERROR, "a header block is interrupted")
            if not self.settings_seen and kind != f.SETTINGS:
                raise ConnectionFault(f.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            if kind < 10:
                try:
                    self._on[kind](flags, stream_id & f.MAX_STREAM_ID, payload, events)
                except StreamFault as fault:
                    self._fault(fault, events)
        if offset < end:
            self._buffer += data[offset:]

    def _skip_preface(self, data: bytes) -> int:
        left = self._preface_left
        size = min(len(left), len(data))
        if data[:size] != left[:size]:
            raise ConnectionFault(f.PROTOCOL_ERROR, "the connection does not begin with the HTTP/2 preface")
        self._preface_left = left[size:]
        return size

    def _break(self, fault: ConnectionFault, events: list[s.Event]) -> None:
        self.broken = True
        self.goaway(fault.code, text=fault.text)
        events.append(s.ConnectionBroken(fault.code, fault.text))

    def _fault(self, fault: StreamFault, events: list[s.Event]) -> None:
        self._emit_control(f.encode_rst_stream(fault.stream_id, fault.code))
        stream = self.streams.get(fault.stream_id)
        if stream is not None:
            self._close(stream, fault.code, by_us=True)
            events.append(s.StreamReset(stream, by_peer=False))

    # --- frames of a stream ------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        size = len(payload)
        s.receive(self._receive_window, size)
        stream = self.streams.get(stream_id)
        if stream is None or stream.state == s.HALF_REMOTE:
            self._discard(size)
            self._not_open(stream, stream_id, "DATA")
            return
        if flags & f.PADDED:
            payload = f.strip(flags & f.PADDED, payload)
        window = stream.receive_window
        window.available -= size
        if window.available < 0:
            self._discard(size)
            raise StreamFault(stream_id, f.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        stream.unread += size
        if size > len(payload):
            self.consumed(stream, size - len(payload))
        if stream.expected >= 0:
            stream.count(len(payload))
        if payload:
            stream.inbox.append(payload)
        if flags & f.END_STREAM:
            self._end_received(stream)
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
            self._headers_done(self._block_flags, stream_id, block, events)

    def _headers_done(self, flags: int, stream_id: int, block: bytes, events: list[s.Event]) -> None:
        stream = self.streams.get(stream_id)
        decoded = self._decode(block)
        if stream is None and (self.client or stream_id <= self._highest or not stream_id & 1):
            self._not_open(None, stream_id, "HEADERS")
            return
        if stream is None:
            stream = self._admit(stream_id)
            if stream is None:
                return
        elif stream.state == s.HALF_REMOTE:
            self._not_open(stream, stream_id, "HEADERS")
        first = not stream.fields
        try:
            fields, metadata = hpack.split(
                decoded, self._pseudo if first else hpack.NO_PSEUDO, self.settings.max_header_list
            )
            if first and not self.client:
                hpack.check_request(fields)
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
            if self.client and (status := fields.get(b":status", b"")) and status[:1] == b"1" and not end:
                return  # an interim answer (§8.1)
            if self.client and b":status" not in fields:
                raise StreamFault(stream.id, f.PROTOCOL_ERROR, "an answer without :status")
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
        refused = self.goaway_sent is not None or len(self.streams) >= self.settings.max_concurrent_streams
        if refused:
            self._remember(stream_id, by_us=True)
            self._emit_control(f.encode_rst_stream(stream_id, f.REFUSED_STREAM))
            return None
        return self._new_stream(stream_id)

    def _too_large(self, stream: s.Stream, flags: int, events: list[s.Event], error: hpack.ListTooLarge) -> None:
        if self.client or stream.fields:
            raise StreamFault(stream.id, f.ENHANCE_YOUR_CALM, str(error)) from error
        stream.fields = {b":path": b""}
        if flags & f.END_STREAM:
            self._end_received(stream)
        events.append(s.HeadersTooLarge(stream))

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        code = f.decode_long(payload, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "RST_STREAM")
            return
        self._close(stream, code, by_us=False)
        events.append(s.StreamReset(stream, by_peer=True))

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        increment = f.decode_long(payload, "WINDOW_UPDATE") & f.MAX_WINDOW
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
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "PRIORITY is not 5 octets long")

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
            return
        self.settings_seen = True
        for key, value in f.decode_settings(payload):
            self._apply(key, value)
        self._emit_control(f.SETTINGS_ACK)
        events.append(s.SettingsReceived())

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        raise ConnectionFault(f.PROTOCOL_ERROR, "PUSH_PROMISE is not allowed")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        if stream_id:
            raise ConnectionFault(f.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "PING is not 8 octets long")
        if flags & f.ACK:
            events.append(s.PingAcknowledged(payload))
        else:
            self._emit_control(f.encode(f.PING, f.ACK, 0, payload))

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes, events: list[s.Event]) -> None:
        if stream_id:
            raise ConnectionFault(f.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 octets")
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
