"""The sending half of a connection: what is queued, fair between streams, inside the peer's windows.

What lives here: what is queued, and in which order it leaves.
What must not: how it leaves (next_write.py), parsing, state changes other than END_STREAM sent, clocks, sockets, trio,
gRPC.

Rules
1. `take_parts()` gives what may leave now, at most about WRITE_BUDGET octets, so that no stream can fill the buffer.
   The driver calls it once a tick: one write however many streams have answered. Large pieces of messages are given as
   they are, between the parts that were built here.
2. Streams with something queued take turns, one frame each (RFC 9113 §5.2 leaves the order to us). A stream blocked by
   its own window is parked until it opens; one blocked by the connection's window waits in `_starved`.
3. A stream that has nothing queued may write straight into the buffer, while that is below the budget and the windows
   allow: the usual unary answer costs one append.
4. What is held for all streams is counted in `buffered`: a stream that would take it above the bound is reset.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable

from actorserve.services.transport.frames import END_STREAM, ENHANCE_YOUR_CALM
from actorserve.services.transport.next_write import NextWrite
from actorserve.services.transport.pieces import Octets
from actorserve.services.transport.streams import AFTER_SENT_END, CLOSED, Stream

WRITE_BUDGET = 262_144
PURGE_ABOVE = 4096
TINY = 64  # a DATA frame that a window made smaller than this is counted (patience.py)


class Outgoing(NextWrite, ABC):
    """What a connection has to send. `Connection` adds the receiving half."""

    __slots__ = (
        "_max_buffered",
        "_sendable",
        "_starved",
        "buffered",
        "relieved",
        "tiny",
    )

    def __init__(self, max_buffered: int) -> None:
        super().__init__()
        self.buffered = 0  # octets that wait on all streams, sent or received
        self.tiny = 0  # DATA frames that a window made tiny
        self.relieved: list[Stream] = []  # streams whose queue became shorter in the last take()
        self._sendable: deque[Stream] = deque()
        self._starved: dict[int, Stream] = {}
        self._max_buffered = max_buffered

    @property
    def wants_write(self) -> bool:
        """Whether `take` would give something, now."""
        return bool(self._out or self._sendable or self._parts)

    def take(self) -> bytes:
        """Give what `take_parts` does, in one piece."""
        return b"".join(self.take_parts())

    def take_parts(self) -> list[Octets]:
        """Give the octets to write now, none or more parts; forget them; `relieved` names the streams that moved on."""
        queue = self._sendable
        self.relieved.clear()
        while queue and len(self._out) + self._parted < WRITE_BUDGET:
            self._advance(queue.popleft())
        return self._take_built()

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

    def send_data(self, stream: Stream, *pieces: bytes, end: bool = False) -> None:
        """Queue DATA, given in pieces; `end`: it is the last, and no trailers follow."""
        if stream.state == CLOSED:
            return
        size = sum(map(len, pieces))
        if not (stream.queued or end) and self._fits(stream, size):
            self._emit_data_header(stream, size, 0)
            for piece in pieces:
                self._out += piece
            return
        stream.end_after_pending = end
        self._add_pending(stream, pieces)

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """Queue the last header block of a stream."""
        self.send_headers(stream, block, end=True)

    def respond(self, stream: Stream, head: bytes, tail: bytes, *pieces: bytes) -> None:
        """Queue a whole answer: one append in the usual case (rule 3). `head` and `tail` are below a frame's size."""
        if stream.state == CLOSED:
            return
        size = sum(map(len, pieces))
        if stream.queued or not self._fits(stream, size) or not self._table_zeroed:
            stream.head, stream.tail = head, tail
            self._add_pending(stream, pieces)
            return
        self.productive = True
        stream.send_window -= size
        self.send_window -= size
        self._emit_answer(stream.id, head, tail, pieces, size)
        self._end_sent(stream)

    # --- the queue -----------------------------------------------------------------------

    def _fits(self, stream: Stream, size: int) -> bool:
        return (
            size <= stream.send_window
            and size <= self.send_window
            and size <= self.data_frame
            and len(self._out) + self._parted < WRITE_BUDGET
        )

    def _add_pending(self, stream: Stream, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.buffered += len(piece)
            stream.pending.put(piece)
        self._queue(stream)
        if self.buffered > self._max_buffered and stream.pending.size:  # rule 4
            self.reset(stream, ENHANCE_YOUR_CALM)

    @abstractmethod
    def reset(self, stream: Stream, code: int) -> None:
        """End a stream now; the connection knows how."""

    def _queue(self, stream: Stream) -> None:
        if stream.queued:
            return
        stream.queued = True
        if self._sendable or len(self._out) + self._parted >= WRITE_BUDGET:
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
        if pending.size:
            size = min(pending.size, self.data_frame, stream.send_window, self.send_window)
            if size <= 0:
                self._park(stream)
                return
            last = stream.end_after_pending and size == pending.size
            self._emit_data_header(stream, size, END_STREAM if last else 0)
            self.buffered -= pending.move(size, self._put)
            stream.sent += size
            if pending.size:
                self.tiny += size < TINY
                self.relieved.append(stream)
                self._sendable.append(stream)
                return
        elif stream.end_after_pending:
            self._emit_data_header(stream, 0, END_STREAM)
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
        self.buffered -= stream.pending.held
        stream.pending.clear()
        stream.queued = stream.parked = stream.end_after_pending = False
        self._starved.pop(stream.id, None)
        if len(self._sendable) > PURGE_ABOVE:  # a peer that resets streams and never reads
            self._sendable = deque(one for one in self._sendable if one.state != CLOSED)

    def _end_sent(self, stream: Stream) -> None:
        """Move the state on after END_STREAM; `Connection` adds what follows."""
        stream.state = AFTER_SENT_END[stream.state]
