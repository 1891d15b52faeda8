"""Where an answer goes: `Reply` is set exactly once, `ReplyStream` is a bounded stream of chunks.

The caller may abandon either; what arrives later is dropped. Both are used inside one trio run:
they are not safe across threads. What must not live here: who asks, who answers, and how.

Back-pressure of a stream is by credit (contracts §2): the answering side may have 16 chunks or 256 KiB
outstanding; the caller gives credit back by `taken`, once it has passed the bytes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import trio

from actorserve.actors.messages import Metadata
from actorserve.errors import ActorserveError

T = TypeVar("T")
C = TypeVar("C")


class Reply(Generic[T]):
    """One answer or one error, set exactly once, awaited by any number of tasks."""

    __slots__ = ("_error", "_event", "_value", "abandoned", "is_set", "on_abandon")

    def __init__(self) -> None:
        self._event: trio.Event | None = None
        self._value: T | None = None
        self._error: Exception | None = None
        self.is_set = False
        self.abandoned = False
        self.on_abandon: Callable[[], None] | None = None

    def set(self, value: T) -> None:
        """Answer. Dropped if the reply was abandoned; a second answer is a bug."""
        self._end()
        self._value = value

    def fail(self, error: Exception) -> None:
        """End with an error instead of an answer."""
        self._end()
        self._error = error

    def _end(self) -> None:
        if self.is_set:
            raise RuntimeError("this reply has been answered already")
        self.is_set = True
        self.on_abandon = None
        if self._event is not None:
            self._event.set()

    async def wait(self) -> T:
        """Wait for the answer, or raise the error that it was failed with.

        Cancelling leaves the reply as it is; call `abandon` where nobody else waits.
        """
        if not self.is_set:
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # else the error's traceback would hold what holds the error
        return self._value  # type: ignore[return-value]  # set: the value is a T, which may be None

    def abandon(self) -> None:
        """Say that nobody waits any more. Idempotent; without effect once answered."""
        if self.is_set or self.abandoned:
            return
        self.abandoned = True
        tell, self.on_abandon = self.on_abandon, None  # which may hold who holds this
        if tell is not None:
            tell()


class Chunks(Generic[C]):
    """Chunks, then an end or an error: what `ReplyStream` and a sequence's `Duplex` share."""

    __slots__ = ("_chunks", "_error", "_event", "abandoned", "is_set", "on_abandon", "on_taken", "trailers")

    def __init__(self) -> None:
        self._chunks: deque[C] = deque()
        self._event: trio.Event | None = None
        self._error: Exception | None = None
        self.trailers: Metadata = {}
        self.is_set = False
        self.abandoned = False
        self.on_abandon: Callable[[], None] | None = None
        self.on_taken: Callable[[int, int], None] | None = None

    @property
    def buffered(self) -> int:
        """How many chunks the caller has not received."""
        return len(self._chunks)

    def push(self, chunk: C) -> None:
        """Add a chunk. The answering side keeps to its credit; this never waits."""
        if self.is_set:
            raise RuntimeError("this stream has ended already")
        if not self.abandoned:
            self._chunks.append(chunk)
            self._wake()

    def finish(self, trailers: Metadata) -> None:
        """End well: what was pushed is still delivered."""
        self.trailers = trailers
        self._end()

    def fail(self, error: Exception) -> None:
        """End with an error, raised after what was pushed has been delivered."""
        self._error = error
        self._end()

    def _end(self) -> None:
        if self.is_set:
            raise RuntimeError("this stream has ended already")
        self.is_set = True
        self.on_abandon = None
        self.on_taken = None
        self._wake()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    async def receive(self) -> list[C]:
        """Wait for chunks and take all that are there; an empty list is the end.

        Raises the error that the stream was failed with. One task at a time.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.is_set:
                return []
            self._event = trio.Event()
            await self._event.wait()
        chunks = list(self._chunks)
        self._chunks.clear()
        return chunks

    def taken(self, chunks: int, size: int) -> None:
        """Give credit back for chunks that have been passed on. `size` in bytes."""
        if self.on_taken is not None:
            self.on_taken(chunks, size)

    def abandon(self) -> None:
        """Say that nobody reads any more: what is buffered is dropped. Idempotent."""
        if self.abandoned:
            return
        self.abandoned = True
        self._chunks.clear()
        tell, self.on_abandon, self.on_taken = self.on_abandon, None, None  # as in `Reply.abandon`
        if not self.is_set and tell is not None:
            tell()


class ReplyStream(Chunks[bytes]):
    """A bounded stream of answers to one question."""

    __slots__ = ()


def fail_quietly(reply: Reply[Any] | Chunks[Any], error: ActorserveError) -> None:
    """End a reply with an error unless it has ended."""
    if not reply.is_set:
        reply.fail(error)
