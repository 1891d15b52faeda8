"""What a connection knows: its settings and the peer's, its streams by id, the windows of what is received.

What lives here: state and the calls of a driver that change it: open, consume, reset, release, PING, GOAWAY.
What must not: parsing frames (connection_frames.py and up), clocks, sockets, trio, gRPC.

Rules
1. A receive window counts from our settings; until the peer has acknowledged them it may use the default (§6.5.3), so
   the larger of the two is granted until then.
2. What nobody will read is given back to the connection's window at once (§6.9).
3. A server that ends a stream before its client has, resets it with NO_ERROR (§8.1).
4. Ids of streams that were reset are remembered a while, with who did it: frames on them may still be on their way.
   So are ranges of ids that a client skipped, which closes them (§5.1.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from actorserve.services.transport import frames as f
from actorserve.services.transport import streams as s
from actorserve.services.transport.frames import ConnectionFault, StreamFault
from actorserve.services.transport.next_write import MAX_DATA
from actorserve.services.transport.outgoing import Outgoing
from actorserve.services.transport.patience import Patience

REMEMBERED_RESETS = 1024
REMEMBERED_SKIPS = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """What we tell the peer, and what we bear from it (patience.py). Sizes in octets, 0 seconds: no bound."""

    stream_window: int = 1_048_576
    connection_window: int = 4_194_304
    max_concurrent_streams: int = 256
    max_header_list: int = 16_384
    max_frame: int = f.DEFAULT_MAX_FRAME
    max_buffered: int = 268_435_456
    min_ping_interval_s: float = 0.0
    patience: Patience = field(default_factory=Patience)


class State(Outgoing):
    """A connection without its parser. Slots, here and in its relatives: an idle connection is to cost little."""

    __slots__ = (
        "_highest",
        "_initial_receive",
        "_next_id",
        "_now",
        "_receive_window",
        "_resets",
        "_settings_acked",
        "_skipped",
        "client",
        "goaway_sent",
        "peer_max_header_list",
        "peer_max_streams",
        "settings",
        "streams",
    )

    def __init__(self, *, client: bool, settings: Settings) -> None:
        super().__init__(settings.max_buffered)
        self.client = client
        self.settings = settings
        self.streams: dict[int, s.Stream] = {}
        self.peer_max_streams = f.MAX_STREAM_ID
        self.peer_max_header_list = f.MAX_WINDOW  # unless the peer says less; advisory (§6.5.2)
        self.goaway_sent: int | None = None  # last stream id told in the last GOAWAY
        self._next_id = 1
        self._highest = 0  # highest id that the peer (server) or we (client) opened
        self._resets: dict[int, bool] = {}  # id -> by us?
        self._skipped: tuple[range, ...] = ()  # ids that the client passed over
        self._receive_window = s.ReceiveWindow(f.DEFAULT_WINDOW, settings.connection_window)
        self._initial_receive = max(settings.stream_window, f.DEFAULT_WINDOW)
        self._settings_acked = False
        self._now = 0.0  # as the driver said with the last octets
        self._open(settings)

    def _open(self, settings: Settings) -> None:
        pairs = [
            (f.INITIAL_WINDOW_SIZE, settings.stream_window),
            (f.MAX_HEADER_LIST_SIZE, settings.max_header_list),
            (f.MAX_FRAME_SIZE, settings.max_frame),
        ]
        if self.client:
            self._out += f.PREFACE
            pairs.append((f.ENABLE_PUSH, 0))
        else:
            pairs.append((f.MAX_CONCURRENT_STREAMS, settings.max_concurrent_streams))
        self._out += f.encode_settings(pairs)
        extra = settings.connection_window - f.DEFAULT_WINDOW
        if extra > 0:
            self._receive_window.available += extra
            self._out += f.encode_window_update(0, extra)

    @property
    def highest(self) -> int:
        """The highest stream id that was opened."""
        return self._highest

    # --- what the driver asks ------------------------------------------------------------

    def open_stream(self, block: bytes, owner: object = None) -> s.Stream:
        """Client: open a stream with this request header block."""
        stream = self._new_stream(self._next_id)
        self._highest = stream.id
        self._next_id += 2
        stream.owner = owner
        self.send_headers(stream, block)
        return stream

    def consumed(self, stream: s.Stream, size: int) -> None:
        """Give `size` octets of flow control back: the application has taken them from the inbox."""
        stream.unread -= size
        increment = self._receive_window.give_back(size)
        if increment:
            self._out += f.encode_window_update(0, increment)
        if not stream.ended:
            increment = stream.receive_window.give_back(size)
            if increment:
                self._out += f.encode_window_update(stream.id, increment)

    def hold(self, stream: s.Stream, size: int) -> bool:
        """Say how much of a message that is not whole yet is kept; False where that is too much for the connection."""
        self.buffered += size - stream.held
        stream.held = size
        return self.buffered <= self._max_buffered

    def reset(self, stream: s.Stream, code: int) -> None:
        """End a stream now."""
        if stream.state != s.CLOSED:
            self._out += f.encode_rst_stream(stream.id, code)
            self._close(stream, code, by_us=True)

    def release(self, stream: s.Stream) -> None:
        """Client: nobody will read or write this stream any more."""
        self.reset(stream, f.CANCEL)
        self._abandon(stream)

    def ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life; payload is 8 octets."""
        self._out += f.encode(f.PING, 0, 0, payload)

    def goaway(self, code: int, *, last_stream_id: int | None = None, text: str = "") -> None:
        """Tell the peer that no stream above the last id will be served; by default the highest one seen."""
        self.goaway_sent = (0 if self.client else self._highest) if last_stream_id is None else last_stream_id
        self._out += f.encode_goaway(self.goaway_sent, code, text)

    # --- settings ----------------------------------------------------------------------------

    def _apply(self, key: int, value: int) -> None:
        if key == f.INITIAL_WINDOW_SIZE:
            change = value - self.peer_initial_window
            self.peer_initial_window = value
            for stream in self.streams.values():
                stream.send_window += change
                if stream.send_window > f.MAX_WINDOW:
                    raise ConnectionFault(f.FLOW_CONTROL_ERROR, "send window above 2^31-1")
                self._window_opened(stream)
        elif key == f.MAX_FRAME_SIZE:
            self.peer_max_frame = value
            self.data_frame = min(value, MAX_DATA)
        elif key == f.MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        elif key == f.MAX_HEADER_LIST_SIZE:
            self.peer_max_header_list = value
        elif key == f.ENABLE_PUSH and value and self.client:
            raise ConnectionFault(f.PROTOCOL_ERROR, "a server cannot enable push")

    def _settings_took_effect(self) -> None:
        if self._settings_acked:
            return
        self._settings_acked = True
        change = self.settings.stream_window - self._initial_receive  # below 0 only for windows under the default
        self._initial_receive += change
        for stream in self.streams.values():
            stream.receive_window.available += change

    # --- streams -------------------------------------------------------------------------------

    def _new_stream(self, stream_id: int) -> s.Stream:
        window = s.ReceiveWindow(self._initial_receive, self.settings.stream_window)
        stream = self.streams[stream_id] = s.Stream(stream_id, self.peer_initial_window, window)
        stream.opened_at = self._now
        return stream

    def _end_received(self, stream: s.Stream) -> None:
        if stream.expected > 0:
            raise StreamFault(stream.id, f.PROTOCOL_ERROR, "less DATA than content-length")
        stream.state = s.AFTER_RECEIVED_END[stream.state]
        if stream.state == s.CLOSED:
            del self.streams[stream.id]

    def _end_sent(self, stream: s.Stream) -> None:
        super()._end_sent(stream)
        if stream.state == s.CLOSED:
            del self.streams[stream.id]
            if not self.client:  # a client may read on; it calls `release`
                self._abandon(stream)
        elif not self.client:
            self.reset(stream, f.NO_ERROR)

    def _close(self, stream: s.Stream, code: int, *, by_us: bool) -> None:
        stream.state = s.CLOSED
        stream.reset_code = code
        self._unqueue(stream)
        self.streams.pop(stream.id, None)
        self._remember(stream.id, by_us=by_us)
        if not self.client:
            self._abandon(stream)

    def _abandon(self, stream: s.Stream) -> None:
        """Give back what nobody will read (rule 5)."""
        stream.inbox.clear()
        if stream.held:
            self.hold(stream, 0)
        if stream.unread:
            self._discard(stream.unread)
            stream.unread = 0

    def _discard(self, size: int) -> None:
        increment = self._receive_window.give_back(size)
        if increment:
            self._out += f.encode_window_update(0, increment)

    def _remember(self, stream_id: int, *, by_us: bool) -> None:
        self._resets[stream_id] = by_us
        if len(self._resets) > REMEMBERED_RESETS:
            del self._resets[next(iter(self._resets))]
