"""Frames that are about the connection, and what every frame may be found guilty of.

What lives here: SETTINGS, PING, GOAWAY, PUSH_PROMISE, unknown frames; the counts of what costs us work (patience.py);
frames on streams that are not open. What must not: frames of streams (stream_frames.py), the order of frames and the
cutting of octets (connection.py), clocks, sockets, trio, gRPC.

Rules
1. A handler gets flags, stream id, payload, and the list to which it adds its events. It raises ConnectionFault or
   StreamFault; `Connection` makes GOAWAY or RST_STREAM of that.
2. Push is neither offered nor taken: PUSH_PROMISE is PROTOCOL_ERROR (RFC 9113 §8.4).
3. A frame on an idle stream is PROTOCOL_ERROR of the connection (§5.1). Other streams that are not open are told apart
   by what bounded memory can know: the ids that were reset last, the ranges of ids that were skipped last (state.py).
   Reset by us: ignored, but for the windows and the table. Reset by the peer: STREAM_CLOSED of the stream. HEADERS on
   an id that was skipped: PROTOCOL_ERROR of the connection, for ids only rise (§5.1.1). Anything else has ended, or was
   forgotten: STREAM_CLOSED of the connection.
"""

from __future__ import annotations

from actorserve.services.transport import frames as f
from actorserve.services.transport import patience
from actorserve.services.transport import streams as s
from actorserve.services.transport.frames import ConnectionFault, StreamFault
from actorserve.services.transport.state import Settings, State

SETTINGS_AT_ONCE = 16  # more of them in one frame count as so many frames


class ConnectionFrames(State):
    """Takes the frames of stream 0; base of `StreamFrames`."""

    __slots__ = ("_counters", "goaway_received", "settings_seen")

    def __init__(self, *, client: bool, settings: Settings) -> None:
        super().__init__(client=client, settings=settings)
        self.goaway_received = False
        self.settings_seen = False
        self._counters = patience.Counters(settings.patience, settings.min_ping_interval_s)

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
        self._counters.count(patience.SETTINGS, 1 + len(payload) // (SETTINGS_AT_ONCE * f.SETTING.size))
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

    def _idle_frame(self) -> None:
        """Count a frame without effect."""
        if self.productive:
            self.productive = False
            self._counters.forgive()
        self._counters.count(patience.IDLE)

    def _check_not_idle(self, stream_id: int, name: str) -> None:
        if not stream_id or stream_id > self._highest or not stream_id & 1:
            raise ConnectionFault(f.PROTOCOL_ERROR, f"{name} on idle stream {stream_id}")

    def _not_open(self, stream: s.Stream | None, stream_id: int, name: str) -> None:
        """Answer a frame that needs an open stream (rule 3)."""
        if stream is not None:
            raise StreamFault(stream_id, f.STREAM_CLOSED, f"{name} after END_STREAM")
        self._check_not_idle(stream_id, name)
        by_us = self._resets.get(stream_id)
        if by_us is None:
            if name == "HEADERS" and any(stream_id in skipped for skipped in self._skipped):
                raise ConnectionFault(f.PROTOCOL_ERROR, f"stream {stream_id} is not above all earlier ones")
            raise ConnectionFault(f.STREAM_CLOSED, f"{name} on closed stream {stream_id}")
        if not by_us:
            raise StreamFault(stream_id, f.STREAM_CLOSED, f"{name} after RST_STREAM")
        if name != "DATA":  # of which a window may be on its way
            self._idle_frame()
