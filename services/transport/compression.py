"""Message compression: identity, deflate and gzip (gRPC's compression.md, RFC 1950, RFC 1952).

What lives here: the names of the encodings, `Inflater`, `pieces`.
What must not: length prefixes, headers, clocks, sockets, trio.

Rules
1. Every message has its own context: nothing is kept from one to the next (PROTOCOL-HTTP2, Compressed-Flag).
2. Inflating stops one octet above the limit: a bomb is never held, only the limit is.
3. Both directions work in turns of at most `TURN` octets, so that a large message does not hold the event loop: the
   caller pauses between them.
4. deflate is zlib's format (RFC 1950), not the bare one. What follows the end of the compressed data is an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError

TURN = 65_536
STATE = 40_960  # octets that zlib keeps for one message being inflated
LEVEL = 1  # processors are scarcer than bandwidth where models run: level 6 takes twice as long for a seventh less
IDENTITY = b"identity"
_WINDOW_BITS = {b"deflate": zlib.MAX_WBITS, b"gzip": zlib.MAX_WBITS | 16}
SUPPORTED = (IDENTITY, *_WINDOW_BITS)
ACCEPTED = b",".join(SUPPORTED)  # the value of grpc-accept-encoding
NAMES = "identity, deflate and gzip"


def known(encoding: bytes | None) -> bool:
    """Whether messages may come in this encoding; None stands for identity."""
    return encoding is None or encoding in SUPPORTED


def encoding_of(name: str | None) -> bytes | None:
    """Give the encoding that a program asks for: None for identity. ValueError for an unknown one."""
    encoding = IDENTITY if name is None else name.encode()
    if encoding not in SUPPORTED:
        raise ValueError(f"compression {name!r} is unknown; there are {NAMES}")
    return None if encoding == IDENTITY else encoding


def accepts(header: bytes | None, encoding: bytes) -> bool:
    """Whether a peer that sent this grpc-accept-encoding takes the encoding."""
    return header is not None and encoding in {part.strip(b" \t") for part in header.split(b",")}


class Bomb(GRPCError):
    """A message that inflates to more than the limit: RESOURCE_EXHAUSTED."""


class Inflater:
    """Inflates one message, within a limit."""

    __slots__ = ("_decompress", "_encoding", "_limit", "_out", "_size", "pending")

    def __init__(self, encoding: bytes, size: int, limit: int) -> None:
        self._decompress: Any = None  # made with the first octet: it takes STATE octets
        self._encoding = encoding
        self._size = size  # of the compressed message, for the error's text
        self._limit = limit
        self._out = bytearray()
        self.pending = False  # what was fed is not used up: feed b"" to go on

    @property
    def held(self) -> int:
        """Octets inflated so far, and what inflating takes itself."""
        return len(self._out) + (0 if self._decompress is None else STATE)

    def feed(self, data: bytes, most: int) -> int:
        """Inflate at most about `most` octets; give how many it were.

        Raises:
            GRPCError: RESOURCE_EXHAUSTED above the limit, INTERNAL for data that is not in the encoding.
        """
        if self._decompress is None:
            self._decompress = zlib.decompressobj(_WINDOW_BITS[self._encoding])
        decompress, out = self._decompress, self._out
        if decompress.eof:
            raise self._broken("something follows its end")
        room = min(most, self._limit + 1 - len(out))
        try:
            part = decompress.decompress(decompress.unconsumed_tail + data, room)
        except zlib.error as error:
            raise self._broken(str(error)) from None
        out += part
        if len(out) > self._limit:
            out.clear()  # the error's traceback keeps it
            del part
            raise Bomb(
                Status.RESOURCE_EXHAUSTED,
                f"received message of {self._size} bytes inflates to more than the limit of {self._limit} bytes",
            )
        self.pending = not decompress.eof and (bool(decompress.unconsumed_tail) or len(part) == room)
        return len(part)

    def finish(self) -> bytes:
        """Give the whole message."""
        if self._decompress is None or not self._decompress.eof or self._decompress.unused_data:
            raise self._broken("it does not end where its encoding ends")
        return bytes(self._out)

    def _broken(self, text: str) -> GRPCError:
        return GRPCError(Status.INTERNAL, f"received message is not valid {self._encoding.decode()}: {text}")


def pieces(body: bytes, encoding: bytes) -> Iterator[bytes]:
    """Give the compressed form in pieces, one a turn (rule 3)."""
    compress = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    view = memoryview(body)
    for start in range(0, len(body) - TURN, TURN):
        yield compress.compress(view[start : start + TURN])
    yield compress.compress(view[max(0, (len(body) - 1) // TURN) * TURN :]) + compress.flush()
