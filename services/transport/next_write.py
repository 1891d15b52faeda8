"""What leaves with the next write: frames that are built, and pieces of messages that are passed on between them.

What lives here: the buffer, the frames that we send, the peer's windows and limits as sending uses them up.
What must not: which stream is next (outgoing.py), parsing, clocks, sockets, trio, gRPC.

Rules
1. A piece of LARGE octets and more is not copied; it leaves as a part of its own, behind the frames before it.
2. A DATA frame is of MAX_DATA at most, whatever the peer would take.
3. Frames that answer the peer's own frames (PING, SETTINGS, RST_STREAM) cannot wait for windows; more than
   CONTROL_LIMIT octets of them between two writes mean a peer that floods and does not read: ENHANCE_YOUR_CALM (§10.5).
"""

from __future__ import annotations

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
from actorserve.services.transport.pieces import LARGE, Octets
from actorserve.services.transport.streams import Stream

MAX_DATA = 131_072
CONTROL_LIMIT = 65_536


class NextWrite:
    """Frames that have not left; base of `Outgoing`."""

    __slots__ = (
        "_control",
        "_out",
        "_parted",
        "_parts",
        "_table_zeroed",
        "data_frame",
        "peer_initial_window",
        "peer_max_frame",
        "productive",
        "send_window",
    )

    def __init__(self) -> None:
        self.productive = False  # something of a stream was sent since this was last cleared
        self.send_window = DEFAULT_WINDOW
        self.peer_initial_window = DEFAULT_WINDOW
        self.peer_max_frame = DEFAULT_MAX_FRAME
        self.data_frame = DEFAULT_MAX_FRAME  # octets of a DATA frame that we send, at most (rule 2)
        self._parts: list[Octets] = []  # what leaves before `_out`
        self._parted = 0  # octets in it
        self._out = bytearray()
        self._control = 0
        self._table_zeroed = False

    def _take_built(self) -> list[Octets]:
        """Give what is built, none or more parts, and forget it."""
        parts, self._parts, self._parted = self._parts, [], 0
        if self._out:
            parts.append(self._out)
            self._out = bytearray()
        self._control = 0
        return parts

    def _emit_answer(self, stream_id: int, head: bytes, tail: bytes, pieces: tuple[bytes, ...], size: int) -> None:
        """Add a whole answer whose DATA is of `size` octets, in one append. Blocks are below a frame's size."""
        pack = HEADER.pack
        self._out += b"".join(
            (
                pack(0, len(head), HEADERS, END_HEADERS, stream_id) if len(head) < 256 else _long(stream_id, head, 0),
                head,
                pack(size >> 8, size & 0xFF, DATA, 0, stream_id),
                *pieces,
                pack(0, len(tail), HEADERS, END_HEADERS | END_STREAM, stream_id)
                if len(tail) < 256
                else _long(stream_id, tail, END_STREAM),
                tail,
            )
        )

    def _emit_headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        if not self._table_zeroed:
            self._table_zeroed = True
            block = TABLE_SIZE_ZERO + block
        self.productive = stream.answered = True
        self._out += encode_headers(stream.id, block, self.peer_max_frame, end=end)

    def _emit_data_header(self, stream: Stream, size: int, flags: int) -> None:
        """Begin a DATA frame; its payload is for the caller to add."""
        self.productive = True
        stream.send_window -= size
        self.send_window -= size
        self._out += HEADER.pack(size >> 8, size & 0xFF, DATA, flags, stream.id)

    def _put(self, piece: Octets) -> None:
        """Add to a DATA frame's payload (rule 1)."""
        if len(piece) < LARGE:
            self._out += piece
            return
        self._parts += (self._out, piece)
        self._parted += len(self._out) + len(piece)
        self._out = bytearray()

    def _emit_control(self, frame: bytes) -> None:
        """Add a frame that answers one of the peer's (rule 3)."""
        self._out += frame
        self._control += len(frame)
        if self._control > CONTROL_LIMIT:
            self._control = 0
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many frames that ask for an answer")


def _long(stream_id: int, block: bytes, flags: int) -> bytes:
    """Give the header of a HEADERS frame of 256 octets and more."""
    return HEADER.pack(len(block) >> 8, len(block) & 0xFF, HEADERS, flags | END_HEADERS, stream_id)
