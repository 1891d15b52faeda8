"""What a full mailbox does, decided purely: who gives way, and when to come back. No trio, no clock.

What must not live here: the refusing (mailbox.py), the details that a client gets (services/status.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import exp

SHORTEST_RETRY_S = 0.1
LONGEST_RETRY_S = 60.0
MEMORY_S = 10.0


def who_gives_way(waiting: Mapping[Hashable, int], newcomer: Hashable, limit: int) -> Hashable | None:
    """Whose newest request leaves a full mailbox for a newcomer; None: the newcomer is refused.

    A share is `limit` / tenants, the newcomer among them. It gets a place if it stays within its share with it; then
    somebody is above, and who has most gives way. So a place is never taken to and fro (contracts §3).
    """
    mine = waiting.get(newcomer, 0)
    tenants = len(waiting) + (not mine)
    if (mine + 1) * tenants > limit:
        return None
    return max(waiting, key=waiting.__getitem__)


class DrainRate:
    """How fast a mailbox is drained while it does not get empty: items a second, what is older than 10 s fading.

    What goes straight through an idle server says nothing about its speed and is not counted.
    """

    __slots__ = ("_items", "_seconds", "_since", "saturated")

    def __init__(self) -> None:
        self._items = 0.0
        self._seconds = 0.0
        self._since = 0.0  # the last take, or the first to come after the mailbox was empty
        self.saturated = False  # whether something has waited ever since the last take

    def begin(self, now: float) -> None:
        """Somebody has come into an empty mailbox."""
        self._since = now
        self.saturated = False

    def took(self, count: int, left: int, now: float) -> None:
        """So many were taken, so many are left."""
        if self.saturated:
            passed = now - self._since
            fading = exp(-passed / MEMORY_S)
            self._items = self._items * fading + count
            self._seconds = self._seconds * fading + passed
        self._since = now
        self.saturated = left > 0

    def retry_after(self, waiting: int, now: float) -> float:
        """Seconds until what waits will have been taken, 0.1 to 60.

        At the measured rate, in which the time since the last take counts; where nothing was measured yet, as long
        as nothing has been taken by now.
        """
        passed = now - self._since
        seconds = passed
        fading = exp(-passed / MEMORY_S)
        if items := self._items * fading:
            seconds = waiting * (self._seconds * fading + passed) / items
        return min(max(seconds, SHORTEST_RETRY_S), LONGEST_RETRY_S)
