"""Bytes in any split become frames in order. Pure; both ends use it.

Nothing large is copied that need not be: the reader hands out the room where the rest of a large frame belongs
(`FrameReader.room`), and gives a view of it where what reads the payload copies values out. ADR 7.

What must not live here: what a payload says (wire_items.py, wire_endings.py and their like), sockets, clocks, trio.
"""

from __future__ import annotations

from actorserve.actors.wire_frames import (
    HEADER_BYTES,
    LARGE,
    MAX_FRAME_BYTES,
    Frame,
    Kind,
    WireError,
    make,
    unpack_header,
)

_FIRST_ROOM = 4 << 20  # of a frame that says it is larger no more is held than twice what has come
_KINDS = frozenset(int(kind) for kind in Kind)
_COPIED_OUT = frozenset(
    map(
        int,
        (
            *(Kind.BATCH, Kind.OPEN, Kind.OPEN_SEQUENCE, Kind.ITEM, Kind.DESCRIBE, Kind.RESULT),
            *(Kind.OPEN_CALL, Kind.ENDED, Kind.CALL, Kind.REPLY_ENDED),
        ),
    )
)


class FrameReader:
    """Bytes in any split become frames in order.

    Bytes come by `feed`, or, while `room` is not None, into it: then `filled` says how many. Both may take turns.

    What came whole before nonsense is still given (it may say that a batch has begun): `broken` is true then, and
    the next `feed` raises.
    """

    __slots__ = ("_buffer", "_filled", "_large", "broken", "room")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._large = (0, 0, 0)  # kind, id and length of the frame that has a room
        self._filled = 0  # how much of it has come
        self.room: memoryview | None = None
        """Where the next bytes of a large frame belong, while there is one whose header has come."""
        self.broken = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Add what was received; return the frames that are now whole."""
        first: list[Frame] = []
        while self.room is not None and data:
            size = min(len(data), len(self.room))
            self.room[:size] = data[:size]
            first += self.filled(size)
            data = data[size:]
        source: bytes | bytearray = self._buffer
        if not source and isinstance(data, bytes):
            source = data  # the usual case: nothing is left over, so nothing is copied twice
        else:
            self._buffer += data
        frames, start = self._whole(source, first)
        if source is self._buffer:
            del source[:start]
        elif start < len(source):
            self._buffer += source[start:]
        if self._buffer and not self.broken:
            self._make_room()
        return frames

    def _whole(self, source: bytes | bytearray, frames: list[Frame]) -> tuple[list[Frame], int]:
        """Add the frames that are whole, and say where they end."""
        start, end = 0, len(source)
        while end - start >= HEADER_BYTES:
            kind, id, length = unpack_header(source, start)
            if kind not in _KINDS or length > MAX_FRAME_BYTES:
                self.broken = True
                if frames:
                    break
                if kind not in _KINDS:
                    raise WireError(f"unknown frame kind {kind}")
                raise WireError(f"frame of {length} bytes, the limit is {MAX_FRAME_BYTES}")
            stop = start + HEADER_BYTES + length
            if stop > end:
                break
            if isinstance(source, bytes):
                payload = source[start + HEADER_BYTES : stop]
            else:
                with memoryview(source) as view:  # a slice of a bytearray would be copied twice
                    payload = bytes(view[start + HEADER_BYTES : stop])
            frames.append(make(Frame, (kind, id, payload)))
            start = stop
        return frames, start

    def _make_room(self) -> None:
        """Give the frame that has begun a buffer of its own, if it is large."""
        rest = self._buffer
        if len(rest) < HEADER_BYTES:
            return
        self._large = unpack_header(rest)
        length = self._large[2]
        if length < LARGE:
            return
        self._filled = len(rest) - HEADER_BYTES
        own = bytearray(min(length, max(_FIRST_ROOM, 2 * self._filled)))
        own[: self._filled] = rest[HEADER_BYTES:]
        self._buffer = bytearray()
        self.room = memoryview(own)[self._filled :]

    def filled(self, size: int) -> list[Frame]:
        """So many bytes were received into `room`; return the frame if it is whole now."""
        assert self.room is not None  # noqa: S101  # narrows the type: there was room
        self._filled += size
        own, self.room = self.room.obj, self.room[size:]
        if self.room:
            return []
        kind, id, length = self._large
        whole = memoryview(own)
        if self._filled < length:
            larger = bytearray(min(length, 2 * self._filled))
            larger[: self._filled] = whole
            self.room = memoryview(larger)[self._filled :]
            return []
        self.room, self._filled = None, 0
        return [make(Frame, (kind, id, whole if kind in _COPIED_OUT else bytes(whole)))]
