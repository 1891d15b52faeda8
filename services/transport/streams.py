"""One stream: its state, its windows, what waits in it; and the events that the connection tells.

What lives here: the state table, `Stream`, `ReceiveWindow`, the event classes.
What must not: frames as bytes, HPACK, gRPC, clocks, sockets, trio.

Rules
1. States are those of RFC 9113 §5.1 without the reserved ones (nobody pushes). Idle is not stored: an id above the
   highest seen is idle. Closed streams leave the connection's map; only ids that were reset are remembered a while.

       state          | END_STREAM received | END_STREAM sent   | RST_STREAM, either way
       ---------------+---------------------+-------------------+-----------------------
       OPEN           | HALF_REMOTE         | HALF_LOCAL        | CLOSED
       HALF_REMOTE    | (fault)             | CLOSED            | CLOSED
       HALF_LOCAL     | CLOSED              | (own bug)         | CLOSED

   HEADERS and DATA are received in OPEN and HALF_LOCAL, sent in OPEN and HALF_REMOTE; elsewhere: STREAM_CLOSED.
2. A window is what its sender may still send. A send window may be negative after a SETTINGS change (§6.9.2); above
   2^31-1 it is FLOW_CONTROL_ERROR (§6.9.1).
3. A receive window grows only by what the application has consumed, and only in steps of half the window: memory is
   bounded by the windows, and a slow service slows its client.
4. What a stream has to send leaves in this order: head (a header block), pending (DATA), tail (trailers).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from actorserve.services.transport.frames import FLOW_CONTROL_ERROR, ConnectionFault, StreamFault
from actorserve.services.transport.hpack import Fields, Pairs
from actorserve.services.transport.pieces import Pieces

OPEN, HALF_REMOTE, HALF_LOCAL, CLOSED = range(4)
AFTER_RECEIVED_END = (HALF_REMOTE, HALF_REMOTE, CLOSED, CLOSED)
AFTER_SENT_END = (HALF_LOCAL, CLOSED, HALF_LOCAL, CLOSED)
MAX_CHUNKS = 512
_ENDED = frozenset({HALF_REMOTE, CLOSED})


class ReceiveWindow:
    """What the peer may still send, and what was consumed but not yet given back (rule 3)."""

    __slots__ = ("available", "consumed", "step")

    def __init__(self, available: int, size: int) -> None:
        self.available = available
        self.consumed = 0
        self.step = max(size // 2, 1)

    def give_back(self, size: int) -> int:
        """Count `size` octets as consumed; give the increment to send now, or 0."""
        consumed = self.consumed + size
        if consumed < self.step:
            self.consumed = consumed
            return 0
        self.consumed = 0
        self.available += consumed
        return consumed


class Stream:
    """One HTTP/2 stream. Only the connection changes it; `owner` is the driver's."""

    __slots__ = (
        "answered",
        "end_after_pending",
        "expected",
        "fields",
        "head",
        "held",
        "id",
        "inbox",
        "metadata",
        "opened_at",
        "owner",
        "parked",
        "pending",
        "queued",
        "receive_window",
        "received",
        "reset_code",
        "send_window",
        "sent",
        "state",
        "tail",
        "trailer_fields",
        "trailer_metadata",
        "unread",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: ReceiveWindow) -> None:
        self.id = stream_id
        self.state = OPEN
        self.send_window = send_window
        self.receive_window = receive_window
        self.fields: Fields = {}  # of the first header list received
        self.metadata: Pairs = []
        self.trailer_fields: Fields | None = None
        self.trailer_metadata: Pairs = []
        self.inbox: deque[bytes] = deque()  # DATA received and not consumed
        self.unread = 0  # octets in inbox
        self.expected = -1  # octets that content-length still announces; -1: not announced
        self.head: bytes | None = None
        self.pending = Pieces()  # DATA to send
        self.tail: bytes | None = None
        self.end_after_pending = False
        self.queued = False  # something waits to be sent
        self.parked = False  # and its own window is what it waits for
        self.sent = 0  # octets of DATA that left after having waited
        self.received = 0  # octets of DATA
        self.held = 0  # octets of a message that is not whole yet, as the driver says
        self.answered = False  # response headers have left
        self.opened_at = 0.0
        self.reset_code: int | None = None
        self.owner: Any = None

    @property
    def ended(self) -> bool:
        """Whether the peer will send nothing more."""
        return self.state in _ENDED

    def count(self, size: int) -> None:
        """Check DATA against content-length (RFC 9113 §8.1.1)."""
        self.expected -= size
        if self.expected < 0:
            raise StreamFault(self.id, 1, "more DATA than content-length")

    def put(self, chunk: bytes) -> None:
        """Add DATA to the inbox; many small chunks become one, or they would cost many times their octets.

        The first chunk stays: its reader may have read some of it.
        """
        inbox = self.inbox
        inbox.append(chunk)
        if len(inbox) > MAX_CHUNKS:
            first = inbox.popleft()
            rest = b"".join(inbox)
            inbox.clear()
            inbox.extend((first, rest))

    def widen(self, increment: int) -> None:
        """Add to the send window (rule 2); `increment` is negative when SETTINGS shrink it."""
        self.send_window += increment
        if self.send_window > 2**31 - 1:
            raise StreamFault(self.id, FLOW_CONTROL_ERROR, "send window above 2^31-1")


def receive(window: ReceiveWindow, size: int) -> None:
    """Count DATA against the connection's window; too much ends the connection (§6.9.1)."""
    window.available -= size
    if window.available < 0:
        raise ConnectionFault(FLOW_CONTROL_ERROR, "more DATA than the connection's window")


# --- events --------------------------------------------------------------------------------


class Event:
    """Base of what `Connection.receive` gives."""

    __slots__ = ()


class StreamEvent(Event):
    """Base of events of one stream."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream) -> None:
        self.stream = stream


class RequestReceived(StreamEvent):
    """A peer opened a stream: `stream.fields` and `stream.metadata` hold its header list."""

    __slots__ = ()


class ResponseReceived(StreamEvent):
    """The first header list of the answer is in `stream.fields` and `stream.metadata`."""

    __slots__ = ()


class DataReceived(StreamEvent):
    """Something was added to `stream.inbox`, or the peer has ended the stream, or both."""

    __slots__ = ()


class TrailersReceived(StreamEvent):
    """The stream's last header list came."""

    __slots__ = ()


class StreamReset(StreamEvent):
    """The stream ended early: `stream.reset_code` says why; `by_peer` who."""

    __slots__ = ("by_peer",)

    def __init__(self, stream: Stream, *, by_peer: bool) -> None:
        super().__init__(stream)
        self.by_peer = by_peer


class HeadersTooLarge(StreamEvent):
    """A request's header list is above the limit; the driver answers 431. Its fields are not kept."""

    __slots__ = ()


class SettingsReceived(Event):
    """The peer's settings were applied and acknowledged."""

    __slots__ = ()


class PingAcknowledged(Event):
    """Our PING with this payload came back."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload


class GoawayReceived(Event):
    """The peer opens and takes no more streams; those above `last_stream_id` were not processed."""

    __slots__ = ("code", "last_stream_id", "text")

    def __init__(self, last_stream_id: int, code: int, text: str) -> None:
        self.last_stream_id = last_stream_id
        self.code = code
        self.text = text


class ConnectionBroken(Event):
    """The peer broke the protocol; GOAWAY is queued; nothing more is read."""

    __slots__ = ("code", "text")

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text
