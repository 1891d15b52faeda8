"""Length-prefixed messages, read and written (gRPC's PROTOCOL-HTTP2, Length-Prefixed-Message).

What lives here: `MessageReader`, which takes messages out of a stream's inbox, and the framing of what is sent.
What must not: frames, windows, header blocks, clocks, sockets, trio. Failures are `grpclib.GRPCError`.

Rules
1. A message is a flag octet (compressed: 0 or 1), four octets of length, and the message. Its size is checked when the
   prefix is known, before the message is held; the inflated size while it is inflated.
2. Flag 1 without an encoding other than identity is INTERNAL, as is flag 1 with one that is unknown here: a server
   refuses that one earlier, by the request's headers.
3. A reader that has failed fails again with the same error: what follows a broken message is never held.
4. A message is sent compressed if its sender says so. If the sender says nothing it is compressed where its stream has
   an encoding and that makes it smaller.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Awaitable, Callable

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve.services.transport import compression
from actorserve.services.transport.compression import Inflater
from actorserve.services.transport.pieces import Pieces

PREFIX = struct.Struct(">BL")
PREFIX_SIZE = 5


class MessageReader:
    """Takes messages out of a stream's inbox, chunk by chunk."""

    __slots__ = (
        "_at",
        "_failure",
        "_flag",
        "_inflater",
        "_limit",
        "_need",
        "_partial",
        "compressed",
        "encoding",
        "more",
        "taken",
        "turn",
    )

    def __init__(self, limit: int, encoding: bytes | None = None) -> None:
        self.encoding = encoding  # grpc-encoding of the peer; None: it sent none
        self.compressed = False  # how the last message came
        self.more = False  # after None: not for want of DATA; ask again after a pause
        self.taken = 0  # octets taken and not yet reported; the driver resets it
        self.turn = compression.TURN  # octets that one `next_message` inflates; 0: ask again later
        self._limit = limit
        self._need = PREFIX_SIZE  # octets of the prefix or of the message that have not come
        self._flag = -1  # -1: the prefix is not known yet
        self._partial = Pieces()
        self._at = 0  # octets of the inbox's first chunk that were taken
        self._inflater: Inflater | None = None
        self._failure: GRPCError | None = None

    @property
    def held(self) -> int:
        """Octets kept of a message that is not whole yet."""
        return self._partial.held + (0 if self._inflater is None else self._inflater.held)

    @property
    def between_messages(self) -> bool:
        """Whether nothing of a message was taken."""
        return self._flag < 0 and not self._partial.size

    def next_message(self, inbox: deque[bytes]) -> bytes | None:
        """Take one message, or all there is of it and give None.

        Raises:
            GRPCError: the message is too large, or not what its flag says.
        """
        if inbox and self._flag < 0 and not self._partial.size and self._failure is None:
            chunk, start = inbox[0], self._at + PREFIX_SIZE
            if len(chunk) >= start:
                flag, size = PREFIX.unpack_from(chunk, self._at)
                end = start + size
                if not flag and end <= len(chunk) and size <= self._limit:  # all of it in one chunk, as usual
                    self._move_to(end, inbox)
                    self.compressed = False
                    return chunk[start:end]
        if self._failure is not None:
            raise self._failure
        try:
            return self._assemble(inbox)
        except GRPCError as error:
            self._failure = error
            raise

    def _assemble(self, inbox: deque[bytes]) -> bytes | None:
        if self._flag < 0:
            if not self._fill(inbox):
                return None
            self._begin(*PREFIX.unpack(self._partial.join()))
        inflater = self._inflater
        if not (self._fill(inbox) if inflater is None else self._inflate(inflater, inbox)):
            return None
        whole = self._partial.join() if inflater is None else inflater.finish()
        self.compressed = self._flag == 1
        self._need, self._flag, self._inflater = PREFIX_SIZE, -1, None
        return whole

    def _begin(self, flag: int, size: int) -> None:
        """Take note of a prefix (rules 1 and 2)."""
        if size > self._limit:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED,
                f"received message of {size} bytes is larger than the limit of {self._limit} bytes",
            )
        if flag > 1:
            raise GRPCError(Status.INTERNAL, f"message flag {flag} is neither 0 nor 1")
        if flag:
            encoding = self.encoding
            if encoding is None or encoding == compression.IDENTITY:
                raise GRPCError(Status.INTERNAL, "message is flagged as compressed, but no grpc-encoding was sent")
            if not compression.known(encoding):
                name = encoding.decode("latin-1")
                raise GRPCError(Status.INTERNAL, f"grpc-encoding {name!r} is not supported; {compression.NAMES} are")
            self._inflater = Inflater(encoding, size, self._limit)
        self._flag, self._need = flag, size

    def _fill(self, inbox: deque[bytes]) -> bool:
        while self._need and inbox:
            self._partial.put(self._cut(inbox))
        return not self._need

    def _inflate(self, inflater: Inflater, inbox: deque[bytes]) -> bool:
        budget = self.turn
        while budget > 0 and (inflater.pending or (self._need and inbox)):
            piece = b"" if inflater.pending else self._cut(inbox)
            budget -= len(piece) + inflater.feed(piece, budget)  # pieces may inflate to nothing
        self.more = inflater.pending or bool(self._need and inbox)
        return not self._need and not inflater.pending

    def _cut(self, inbox: deque[bytes]) -> bytes:
        """Take what is needed of the next chunk."""
        piece = inbox[0][self._at : self._at + self._need]
        self._need -= len(piece)
        self._move_to(self._at + len(piece), inbox)
        return piece

    def _move_to(self, end: int, inbox: deque[bytes]) -> None:
        """Go on at `end` of the first chunk, or with the next one."""
        self.taken += end - self._at
        if end == len(inbox[0]):
            inbox.popleft()
            end = 0
        self._at = end

    def skip(self, inbox: deque[bytes]) -> None:
        """Drop what has come: nobody will read it."""
        self.taken += sum(map(len, inbox)) - self._at
        self._at = 0
        inbox.clear()


def frame_message(body: bytes, limit: int) -> tuple[bytes, bytes]:
    """Give the message as it is, its prefix before it: two pieces. RESOURCE_EXHAUSTED above the limit."""
    size = len(body)
    if size > limit:
        raise GRPCError(
            Status.RESOURCE_EXHAUSTED,
            f"message to send of {size} bytes is larger than the limit of {limit} bytes",
        )
    return PREFIX.pack(0, size), body


async def frame_compressed(
    body: bytes, limit: int, encoding: bytes, pause: Callable[[], Awaitable[None]], *, always: bool
) -> tuple[bytes, bytes]:
    """Give prefix and message, compressed (rule 4); `pause` is awaited between the turns of a large one."""
    plain = frame_message(body, limit)
    packed = bytearray()
    for turn, piece in enumerate(compression.pieces(body, encoding)):
        if turn:
            await pause()
        packed += piece
    if not always and len(packed) >= len(body):
        return plain
    return PREFIX.pack(1, len(packed)), bytes(packed)
