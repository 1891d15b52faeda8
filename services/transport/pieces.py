"""Octets on their way, in pieces: a large message is passed on as it is, not copied from buffer to buffer.

What lives here: `Pieces`, what waits to be sent on a stream, or of a message that is not whole yet.
What must not: frames, windows, messages, limits.

Rules
1. A piece of LARGE octets and more is kept as it came; smaller ones are put together, up to about FULL octets each, so
   that many small ones cost little more than their octets.
2. A piece that has left in part is held whole until all of it has: `held` counts that, `size` what is left.
"""

from __future__ import annotations

from collections.abc import Callable

Octets = bytes | bytearray | memoryview

LARGE = 4096
FULL = 16_384


class Pieces:
    """A queue of octets: in by `put`, out by `move` or `join`."""

    __slots__ = ("_pieces", "held", "size")

    def __init__(self) -> None:
        self.size = 0  # octets that are left
        self.held = 0  # octets of memory that they take (rule 2)
        self._pieces: list[Octets] = []

    def put(self, data: bytes) -> None:
        """Add octets at the end (rule 1)."""
        size = len(data)
        self.size += size
        self.held += size
        pieces = self._pieces
        if size >= LARGE:
            pieces.append(data)
        elif pieces and pieces[-1].__class__ is bytearray and len(pieces[-1]) < FULL:
            pieces[-1] += data
        elif size:
            pieces.append(bytearray(data))

    def move(self, size: int, put: Callable[[Octets], None]) -> int:
        """Put the first `size` octets, which must be there, elsewhere; give how many fewer are held here."""
        pieces, freed = self._pieces, 0
        self.size -= size
        while size:
            piece = pieces[0]
            if len(piece) > size:
                view = memoryview(piece)
                put(view[:size])
                pieces[0] = view[size:]
                break
            size -= len(piece)
            if piece.__class__ is memoryview:
                freed += len(piece.obj)  # type: ignore[arg-type]
                piece = bytes(piece)  # or this last part would hold all of it, uncounted
            else:
                freed += len(piece)
            put(piece)
            del pieces[0]
        self.held -= freed
        return freed

    def join(self) -> bytes:
        """Take all of it."""
        whole = b"".join(self._pieces)
        self.clear()
        return whole

    def clear(self) -> None:
        """Forget all of it."""
        self.size = self.held = 0
        self._pieces.clear()
