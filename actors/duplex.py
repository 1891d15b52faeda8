"""The caller's end of a stateful sequence: items go to one replica, one reply comes back for each, in order.

A `Duplex` is what `ask(OpenSequence)` gives. It is bounded both ways: at most 16 items or 256 KiB wait for their
answers (an answer frees its item's place), and replies come within the credit of every stream (reply.py). It is
used inside one trio run. What must not live here: the worker's frames (sequences.py), and how many sequences a
model may have (the mailbox asks `Seats`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import trio

from actorserve.actors.reply import Chunks
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS
from actorserve.errors import ActorserveError, TooManySequences

NEVER = float("inf")


class Seats:
    """How many sequences of one model version are open or wait for a replica, and the limit."""

    __slots__ = ("limit", "name", "taken")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.taken = 0

    def open(self) -> Duplex:
        """A new sequence's caller's end; it gives its seat back when it ends. TooManySequences at the limit."""
        if self.taken >= self.limit:
            raise TooManySequences(self.name, self.limit)
        self.taken += 1
        return Duplex(self._leave)

    def _leave(self) -> None:
        self.taken -= 1


class Duplex(Chunks[bytes | ActorserveError]):
    """See the module's docstring. A reply is an answer's bytes, or the error of its item alone."""

    __slots__ = (
        "_ending",
        "_half_closed",
        "_leave",
        "_room",
        "_sizes",
        "_unanswered_bytes",
        "_untaken",
        "last_use",
        "on_end",
        "on_send",
    )

    def __init__(self, leave: Callable[[], None] = lambda: None) -> None:
        """`leave` is called once, when the sequence has ended or its caller has gone."""
        super().__init__()
        self._leave: Callable[[], None] | None = leave
        self._room: trio.Event | None = None
        self._sizes: deque[int] = deque()
        self._unanswered_bytes = 0
        self._untaken = 0
        self._ending: ActorserveError | None = None
        self._half_closed = False
        self.last_use = NEVER  # trio's clock; NEVER: no replica has it yet
        self.on_send: Callable[[Mapping[str, bytes]], None] | None = None
        self.on_end: Callable[[], None] | None = None

    # --- the caller ---------------------------------------------------------------------------

    @property
    def unanswered(self) -> int:
        """How many items have no reply yet."""
        return len(self._sizes)

    async def send(self, inputs: Mapping[str, bytes]) -> None:
        """Send one item; wait until a replica has the sequence and there is room for it.

        Raises what the sequence has ended with, or TooLarge for this item alone; then, and when cancelled, the item
        was not sent.
        """
        while not self._has_room():
            self._room = trio.Event()
            await self._room.wait()
        assert self.on_send is not None  # noqa: S101  # narrows the type: _has_room looks
        self.on_send(inputs)
        size = sum(map(len, inputs.values()))
        self._sizes.append(size)
        self._unanswered_bytes += size
        self.last_use = trio.current_time()

    def _has_room(self) -> bool:
        if self._ending is not None:
            raise self._ending
        if self._error is not None:
            raise self._error
        if self.on_send is None:
            return False
        return not self._sizes or (len(self._sizes) < CREDIT_CHUNKS and self._unanswered_bytes < CREDIT_BYTES)

    def end(self) -> None:
        """Say that no more items come (half-close): what was sent is still answered. Without effect once ended."""
        self._half_closed = True
        if self.on_end is not None:
            self.on_end()

    def taken(self, chunks: int, size: int) -> None:
        """Give credit back for replies that have been passed on. `size` in bytes."""
        self._untaken -= chunks
        self.last_use = trio.current_time()
        super().taken(chunks, size)

    # --- the answering side ---------------------------------------------------------------------

    def begin(self, on_send: Callable[[Mapping[str, bytes]], None], on_end: Callable[[], None]) -> None:
        """A replica has it: items may go."""
        self.on_send, self.on_end = on_send, on_end
        self.last_use = trio.current_time()
        if self._half_closed:
            on_end()
        self._wake_sender()

    def push(self, chunk: bytes | ActorserveError) -> None:
        """Add a reply; it answers the oldest item that has none."""
        if self._sizes:
            self._unanswered_bytes -= self._sizes.popleft()
        self._untaken += 1
        self.last_use = trio.current_time()
        super().push(chunk)
        self._wake_sender()

    def drain(self, ending: ActorserveError) -> None:
        """Take no more items; what was sent is answered, and then the sequence ends with `ending`."""
        if self._ending is None:
            self._ending = ending
            self.end()
            self._wake_sender()

    def is_idle(self, since: float) -> bool:
        """Whether its client has done nothing since a time of trio's clock, while the worker owed it nothing."""
        return self.last_use <= since and (not self._sizes or self._untaken > 0)

    def finish(self, trailers: Mapping[str, str | bytes]) -> None:
        """End well, or as `drain` said."""
        if self._ending is not None:
            self._error = self._ending
        super().finish(trailers)

    def _end(self) -> None:
        super()._end()
        self._depart()

    def abandon(self) -> None:
        """See `Chunks.abandon`."""
        super().abandon()
        self._depart()

    def _depart(self) -> None:
        self.on_send = self.on_end = None
        if self._leave is not None:
            self._leave()
            self._leave = None
        self._wake_sender()

    def _wake_sender(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
