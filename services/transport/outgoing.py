"""The sending half of a connection: one buffer, fair between streams, inside the peer's windows.

What lives here: what is queued, in which order it leaves, the peer's limits that sending obeys.
What must not: parsing, state changes other than END_STREAM sent, clocks, sockets, trio, gRPC.

Rules
1. `take()` gives what may leave now, at most about WRITE_BUDGET octets, so that no stream can fill the buffer. The
   driver calls it once a tick: one write however many streams have answered.
2. Streams with something queued take turns, one frame each (RFC 9113 §5.2 leaves the order to us). A stream blocked by
   its own window is parked until it opens; one blocked by the connection's window waits in `_starved`.
3. A stream that has nothing queued may write straight into the buffer, while that is below the budget and the windows
   allow: the usual unary answer costs one append.
4. What waits on all streams is counted in `buffered`: a stream that would take it above the bound is reset.
5. Frames that answer the peer's own frames (PING, SETTINGS, RST_STREAM) cannot wait for windows; more than
   CONTROL_LIMIT octets of them between two writes mean a peer that floods and does not read: ENHANCE_YOUR_CALM (§10.5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from actorserve.services.transport.frames import (
    DATA,
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADER,
    HEADERS,
    ConnectionFault,
    encode_headers,
)
from actorserve.services.transport.hpack import TABLE_SIZE_ZERO
from actorserve.services.transport.streams import AFTER_SENT_END, CLOSED, Stream

WRITE_BUDGET = 131_072
CONTROL_LIMIT = 65_536
PURGE_ABOVE = 4096
TINY = 64  # a DATA frame that a window made smaller than this is counted (patience.py)


class Outgoing(ABC):
    """What a connection has to send. `Connection` adds the receiving half."""

    __slots__ = (
        "_control",
        "_max_buffered",
        "_out",
        "_sendable",
        "_starved",
        "_table_zeroed",
        "buffered",
        "peer_initial_window",
        "peer_max_frame",
        "productive",
        "relieved",
        "send_window",
        "tiny",
    )

    def __init__(self, max_buffered: int) -> None:
        self.buffered = 0  # octets that wait on all streams, sent or received
        self.productive = False  # something of a stream was sent since this was last cleared
        self.tiny = 0  # DATA frames that a window made tiny
        self.send_window = DEFAULT_WINDOW
        self.peer_initial_window = DEFAULT_WINDOW
        self.peer_max_frame = DEFAULT_MAX_FRAME
        self.relieved: list[Stream] = []  # streams whose queue became shorter in the last take()
        self._out = bytearray()
        self._control = 0
        self._sendable: deque[Stream] = deque()
        self._starved: dict[int, Stream] = {}
        self._max_buffered = max_buffered
        self._table_zeroed = False

    @property
    def wants_write(self) -> bool:
        """Whether `take` would give something, now."""
        return bool(self._out or self._sendable)

    def take(self) -> bytearray:
        """Give the octets to write now and forget them; `relieved` names the streams that moved on."""
        queue = self._sendable
        self.relieved.clear()
        while queue and len(self._out) < WRITE_BUDGET:
            self._advance(queue.popleft())
        out, self._out = self._out, bytearray()
        self._control = 0
        return out

    # --- what the application sends -----------------------------------------------------

    def send_headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Queue the first header block of a stream; `end`: nothing follows it."""
        if stream.state == CLOSED:
            return
        if end:
            stream.tail = block
        else:
            stream.head = block
        self._queue(stream)

    def send_data(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """Queue DATA; `end`: it is the last, and no trailers follow."""
        if stream.state == CLOSED:
            return
        if not (stream.queued or end) and self._fits(stream, len(data)):
            self._emit_data(stream, data, 0)
            return
        stream.end_after_pending = end
        self._add_pending(stream, data)

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """Queue the last header block of a stream."""
        self.send_headers(stream, block, end=True)

    def respond(self, stream: Stream, head: bytes, data: bytes, tail: bytes) -> None:
        """Queue a whole answer: one append in the usual case (rule 3). `head` and `tail` are below a frame's size."""
        if stream.state == CLOSED:
            return
        size = len(data)
        if stream.queued or not self._fits(stream, size) or not self._table_zeroed:
            stream.head, stream.tail = head, tail
            self._add_pending(stream, data)
            return
        pack, stream_id = HEADER.pack, stream.id
        self.productive = True
        stream.send_window -= size
        self.send_window -= size
        self._out += b"".join(
            (
                pack(0, len(head), HEADERS, END_HEADERS, stream_id) if len(head) < 256 else _long(stream_id, head, 0),
                head,
                pack(size >> 8, size & 0xFF, DATA, 0, stream_id),
                data,
                pack(0, len(tail), HEADERS, END_HEADERS | END_STREAM, stream_id)
                if len(tail) < 256
                else _long(stream_id, tail, END_STREAM),
                tail,
            )
        )
        self._end_sent(stream)

    # --- the queue -----------------------------------------------------------------------

    def _fits(self, stream: Stream, size: int) -> bool:
        return (
            size <= stream.send_window
            and size <= self.send_window
            and size <= self.peer_max_frame
            and len(self._out) < WRITE_BUDGET
        )

    def _add_pending(self, stream: Stream, data: bytes) -> None:
        self.buffered += len(data)
        stream.pending += data
        self._queue(stream)
        if self.buffered > self._max_buffered and stream.pending:  # rule 4
            self.reset(stream, ENHANCE_YOUR_CALM)

    @abstractmethod
    def reset(self, stream: Stream, code: int) -> None:
        """End a stream now; the connection knows how."""

    def _queue(self, stream: Stream) -> None:
        if stream.queued:
            return
        stream.queued = True
        if self._sendable or len(self._out) >= WRITE_BUDGET:
            self._sendable.append(stream)
        else:
            self._advance(stream)

    def _advance(self, stream: Stream) -> None:
        """Move one stream on by at most one DATA frame; queue it again if it has more and may send."""
        if stream.state == CLOSED:
            return
        if stream.head is not None:
            self._emit_headers(stream, stream.head, end=False)
            stream.head = None
        pending = stream.pending
        if pending:
            size = min(len(pending), self.peer_max_frame, stream.send_window, self.send_window)
            if size <= 0:
                self._park(stream)
                return
            last = stream.end_after_pending and size == len(pending)
            self._emit_data(stream, pending[:size], END_STREAM if last else 0)
            del pending[:size]
            stream.sent += size
            self.buffered -= size
            if pending:
                self.tiny += size < TINY
                self.relieved.append(stream)
                self._sendable.append(stream)
                return
        elif stream.end_after_pending:
            self._emit_data(stream, b"", END_STREAM)
        stream.queued = False
        self.relieved.append(stream)
        if stream.tail is not None:
            self._emit_headers(stream, stream.tail, end=True)
        if stream.tail is not None or stream.end_after_pending:
            stream.end_after_pending = False
            stream.tail = None
            self._end_sent(stream)

    def _park(self, stream: Stream) -> None:
        """WINDOW_UPDATE or SETTINGS will queue it again."""
        if stream.send_window > 0:
            self._starved[stream.id] = stream
        else:
            stream.parked = True

    def _window_opened(self, stream: Stream) -> None:
        """Queue a parked stream again."""
        if stream.parked and stream.send_window > 0:
            stream.parked = False
            self._sendable.append(stream)

    def _connection_window_opened(self) -> None:
        if self.send_window > 0:
            self._sendable.extend(self._starved.values())
            self._starved.clear()

    def _unqueue(self, stream: Stream) -> None:
        """Drop what a closed stream still had to send."""
        stream.head = stream.tail = None
        self.buffered -= len(stream.pending)
        stream.pending.clear()
        stream.queued = stream.parked = stream.end_after_pending = False
        self._starved.pop(stream.id, None)
        if len(self._sendable) > PURGE_ABOVE:  # a peer that resets streams and never reads
            self._sendable = deque(one for one in self._sendable if one.state != CLOSED)

    # --- frames ------------------------------------------------------------------------------

    def _emit_headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        if not self._table_zeroed:
            self._table_zeroed = True
            block = TABLE_SIZE_ZERO + block
        self.productive = stream.answered = True
        self._out += encode_headers(stream.id, block, self.peer_max_frame, end=end)

    def _emit_data(self, stream: Stream, data: bytes | bytearray, flags: int) -> None:
        size = len(data)
        self.productive = True
        stream.send_window -= size
        self.send_window -= size
        self._out += HEADER.pack(size >> 8, size & 0xFF, DATA, flags, stream.id)
        self._out += data

    def _emit_control(self, frame: bytes) -> None:
        self._out += frame
        self._control += len(frame)
        if self._control > CONTROL_LIMIT:
            self._control = 0
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many frames that ask for an answer")

    def _end_sent(self, stream: Stream) -> None:
        """Move the state on after END_STREAM; `Connection` adds what follows."""
        stream.state = AFTER_SENT_END[stream.state]


def _long(stream_id: int, block: bytes, flags: int) -> bytes:
    """Give the header of a HEADERS frame of 256 octets and more."""
    return HEADER.pack(len(block) >> 8, len(block) & 0xFF, HEADERS, flags | END_HEADERS, stream_id)
