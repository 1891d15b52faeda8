"""The header blocks that one connection receives: put together, decoded, remembered, checked.

What lives here: `HeaderBlocks`: HEADERS and CONTINUATION become one block, a block becomes fields and metadata.
What must not: what they mean to a stream (stream_frames.py), octets of HPACK (hpack.py), clocks, sockets, trio.

Rules
1. Between the parts of a block nothing else may come (RFC 9113 §6.10); neither its octets nor its parts go on for ever.
2. Every block is decoded, wanted or not, and in order: the table of the connection depends on it (§4.3).
3. A block that left the table alone is remembered with what was made of it, until the table changes (hpack.py, rule 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actorserve.services.transport import hpack
from actorserve.services.transport.frames import ENHANCE_YOUR_CALM, PROTOCOL_ERROR, ConnectionFault

KNOWN_MAX = 16  # header blocks that a connection remembers
KNOWN_SIZE = 1024  # and how long they may be
PARTS = 4  # of a block, and one more for each KiB of what a block may be

Known = tuple[hpack.Fields, hpack.Pairs]
Decoded = tuple[Known | None, Sequence[Any], bool]


class HeaderBlocks:
    """Reads the header blocks of one connection. `open_id`: the stream whose block is not whole yet, or 0."""

    __slots__ = ("_client", "_decode", "_flags", "_known", "_limit", "_parts", "open_id", "since", "waiting")

    def __init__(self, *, client: bool, limit: int, library: str) -> None:
        """`limit`: of a header list, in octets as §6.5.2 counts them."""
        self.open_id = 0
        self.since: float | None = None  # when the block that is not whole began
        self.waiting = bytearray()  # its parts
        self._client = client
        self._limit = limit
        self._known: dict[tuple[bytes, bool], Known] = {}
        self._decode = hpack.decoder(limit, library)
        self._flags = 0
        self._parts = 0

    def begin(self, flags: int, stream_id: int, part: bytes, now: float) -> None:
        """Keep the part that HEADERS without END_HEADERS brought."""
        self.waiting += part
        self.open_id, self._flags, self._parts, self.since = stream_id, flags, 1, now

    def add(self, stream_id: int, part: bytes) -> None:
        """Keep what CONTINUATION brought; ConnectionFault by rule 1."""
        if not self.open_id or stream_id != self.open_id:
            raise ConnectionFault(PROTOCOL_ERROR, "CONTINUATION without its HEADERS")
        self.waiting += part
        self._parts += 1
        limit = self._limit * hpack.HARD_LIMIT_FACTOR
        if len(self.waiting) > limit or self._parts > PARTS + limit // 1024:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "header block without end")

    def finish(self) -> tuple[int, bytes]:
        """Give the flags of the HEADERS and the whole block."""
        block = bytes(self.waiting)
        self.clear()
        return self._flags, block

    def clear(self) -> None:
        """Forget the parts."""
        self.waiting.clear()
        self.open_id = 0
        self.since = None

    def decode(self, block: bytes, *, first: bool) -> Decoded:
        """Give what is known of a block, or else its list and whether it may be remembered (rules 2 and 3).

        `first`: it opens a stream or an answer; else it is trailers. ConnectionFault: it is no block.
        """
        known = self._known.get((block, first))
        if known is not None:
            return known, (), True
        pure = hpack.walk(block)
        if not pure or len(self._known) >= KNOWN_MAX:
            self._known.clear()
        return None, self._decode(block), pure and len(block) <= KNOWN_SIZE

    def read(self, block: bytes, decoded: Decoded, *, first: bool) -> Known:
        """Check a list and split it. Raises Malformed and ListTooLarge, which are faults of the stream."""
        known, pairs, keep = decoded
        if known is not None:
            return known
        pseudo = hpack.NO_PSEUDO if not first else hpack.RESPONSE_PSEUDO if self._client else hpack.REQUEST_PSEUDO
        known = hpack.split(pairs, pseudo, self._limit, ascii_only=not self._client)
        if first and not self._client:
            hpack.check_request(known[0])
        if keep:
            self._known[block, first] = known
        return known
