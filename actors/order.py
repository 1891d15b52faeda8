"""Who is next among the requests of one tenant, decided purely: no trio, no clock, no replies.

The order is `arrival - priority x 1 s`, ties by number of arrival (contracts §3); with one priority that is exact
FIFO. A priority is fixed when a request is queued, so it never overtakes what came more than 9 s before it.

Priorities are ten and the head start is constant, so a deque for each priority, in order of arrival, keeps the same
order as one heap, with the oldest, the newest and the next in O(1). What leaves from the middle stays behind as
garbage, never more than what lives: each leaving costs O(1) on average.

A `Line` is also a whole lane of a mailbox without tenants; turns.py holds the other kind, with the same interface.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, Generic, TypeVar

HEAD_START_S = 1.0
NEVER = float("inf")


class Queued:
    """What a lane holds. Times in seconds of one clock. `lane`: where it waits, None once it does not.

    `number` is the order of arrival where the clock cannot tell; `charge` what its tenant has paid for it. What most
    do not have stands here once, since a slot costs time to fill; `Claimed` has its own.
    """

    __slots__ = ("arrival", "deadline", "lane", "number")

    arrival: float
    deadline: float
    number: int
    lane: Any
    priority: int = 0
    tenant: Hashable = ""
    weight: int = 1
    charge: int = 0


Q = TypeVar("Q", bound=Queued)


def rank(entry: Queued) -> tuple[float, int]:
    """The order inside a line: smallest first."""
    return entry.arrival - entry.priority * HEAD_START_S, entry.number


def number(entry: Queued) -> int:
    """The order of arrival."""
    return entry.number


class Line(Generic[Q]):
    """See the module's docstring. `count` and `weight` of what waits; no weight is kept where none is limited.

    `deficit`: what its tenant may still take in its turn (turns.py).
    """

    __slots__ = ("_owner", "_plain", "_ranked", "count", "deficit", "garbage", "max_weight", "weight")

    def __init__(self, max_weight: int = 0, owner: object = None) -> None:
        """`max_weight` of a batch; 0: no limit. `owner`: the lane that this line is a part of; None: it is one."""
        self.max_weight = max_weight
        self.count = 0
        self.weight = 0
        self.garbage = 0
        self.deficit = 0
        self._owner = self if owner is None else owner
        self._plain: deque[Q] = deque()  # priority 0
        self._ranked: dict[int, deque[Q]] = {}  # every other priority that is in use

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Q]:
        """Everything that waits, in order of arrival."""
        return iter(
            sorted((entry for level in self._levels() for entry in level if entry.lane is not None), key=number)
        )

    def _levels(self) -> Iterable[deque[Q]]:
        return (self._plain, *self._ranked.values())

    def _level(self, priority: int) -> deque[Q]:
        return self._ranked.setdefault(priority, deque()) if priority else self._plain

    # --- who comes --------------------------------------------------------------------------

    def push(self, entry: Q) -> None:
        """Let the newest in."""
        if entry.priority:
            self._level(entry.priority).append(entry)
        else:
            self._plain.append(entry)
        entry.lane = self._owner
        self.count += 1
        if self.max_weight:
            self.weight += entry.weight

    def restore(self, entry: Q) -> None:
        """Give one that was taken its old place again: in front, unless older ones came back before it."""
        level = self._level(entry.priority)
        older: list[Q] = []
        while level and level[0].number < entry.number:
            older.append(level.popleft())
        level.appendleft(entry)
        level.extendleft(reversed(older))
        entry.lane = self._owner
        self.count += 1
        if self.max_weight:
            self.weight += entry.weight

    # --- who leaves -------------------------------------------------------------------------

    def head(self) -> Q | None:
        """Who is next."""
        return min((level[0] for level in self._sweep()), key=rank, default=None)

    def oldest_arrival(self) -> float:
        """When the one that has waited longest came; infinity where nobody waits."""
        return min((level[0].arrival for level in self._sweep()), default=NEVER)

    def _sweep(self) -> Iterator[deque[Q]]:
        """The deques that hold somebody, each with a living head."""
        for level in self._levels():
            while level and level[0].lane is None:
                level.popleft()
                self.garbage -= 1
            if level:
                yield level

    def take(self, count: int, now: float) -> tuple[list[Q], list[Q]]:
        """Take a batch of up to `count`: what goes into it, and what was found expired on the way."""
        if self.max_weight or self._ranked:
            return self._take_ranked(count, now)
        taken: list[Q] = []
        expired: list[Q] = []
        plain = self._plain
        while plain and len(taken) < count:
            entry = plain.popleft()
            if entry.lane is None:
                self.garbage -= 1
                continue
            entry.lane = None
            if entry.deadline > now:
                taken.append(entry)
            else:
                expired.append(entry)
        self.count -= len(taken) + len(expired)
        if self.garbage > self.count:
            self._tidy()
        return taken, expired

    def _take_ranked(self, count: int, now: float) -> tuple[list[Q], list[Q]]:
        """The same where priorities or weights count."""
        taken: list[Q] = []
        expired: list[Q] = []
        room = self.max_weight
        while len(taken) < count and (entry := self.head()) is not None:
            if entry.deadline <= now:
                expired.append(entry)
            elif self.max_weight and entry.weight > room:
                break
            else:
                taken.append(entry)
                room -= entry.weight
            self.pop(entry)
        if not self.count:
            self._forget()
        return taken, expired

    def pop(self, head: Q) -> None:
        """Let the head out."""
        self._level(head.priority).popleft()
        self._leave(head)
        if self.garbage > self.count:
            self._tidy()

    def newest(self) -> Q:
        """The one that came last; there must be one."""
        for level in self._levels():
            while level and level[-1].lane is None:
                level.pop()
                self.garbage -= 1
        return max((level[-1] for level in self._levels() if level), key=number)

    def discard(self, entry: Q) -> None:
        """Let one out from anywhere."""
        self._leave(entry)
        self.garbage += 1
        if self.garbage > self.count:
            self._tidy()

    def _tidy(self) -> None:
        """Let go of those that have left: they hold what their callers sent."""
        live = list(self)
        self._forget()
        for other in live:
            self._level(other.priority).append(other)

    def _leave(self, entry: Q) -> None:
        entry.lane = None
        self.count -= 1
        if self.max_weight:
            self.weight -= entry.weight

    def clear(self) -> list[Q]:
        """Let everybody out, in order of arrival."""
        everyone = list(self)
        for entry in everyone:
            self._leave(entry)
        self._forget()
        return everyone

    def _forget(self) -> None:
        self._plain.clear()
        self._ranked.clear()
        self.garbage = 0
