"""Python's garbage collector, at times that suit a server: at its own it holds every call up.

By itself Python looks for garbage when so many more objects were made than freed, at all that was made since. Where
connections come as fast as others go that is seldom, and each look is long: 5 to 70 ms with 2,000 connections. It finds
next to nothing: what a call and a connection leave is freed by counting references.

What lives here: `Timing`, which decides, and `collect_garbage`, which does it.
What must not: anything that makes garbage.

Rules
1. Young objects are looked at again and again; the pause between is as long as lets one look take about LOOK_S.
2. All objects are looked at when what is allocated has grown by half and GROWTH since the last time, or after ALL_S.
   Counting it takes as long as a look: it is done every COUNT_S.
3. This changes the whole process: only a server that has one to itself does it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import trio

LOOK_S = 0.0003
SHORTEST_S, LONGEST_S = 0.01, 0.1  # pauses
GROWTH = 100_000  # blocks of memory, as `sys.getallocatedblocks` counts them
ALL_S, COUNT_S = 900.0, 1.0
YOUNG = 1  # the generations up to this one


class Timing:
    """See the rules. Times in seconds, of any clock; memory in blocks."""

    def __init__(self, now: float, blocks: int) -> None:
        self.pause = SHORTEST_S
        self._counted_at = self._looked_at = now
        self._left = blocks  # the least since the last look at all objects

    def took(self, seconds: float) -> None:
        """A look at the young objects took so long: choose the next pause."""
        longer = 2.0 if seconds < LOOK_S / 2 else 0.5 if seconds > LOOK_S else 1.0
        self.pause = min(LONGEST_S, max(SHORTEST_S, self.pause * longer))

    def all_are_due(self, now: float, count: Callable[[], int]) -> bool:
        """Whether to look at all objects now; `count` gives the blocks that are allocated."""
        if now - self._counted_at < COUNT_S:
            return False
        self._counted_at = now
        blocks = count()
        self._left = min(self._left, blocks)
        return now - self._looked_at >= ALL_S or blocks >= 1.5 * self._left + GROWTH

    def looked_at_all(self, now: float, blocks: int) -> None:
        """Note that it was done, and what was left."""
        self._looked_at = now
        self._left = blocks


async def collect_garbage() -> None:
    """Do it until cancelled; then Python does it by itself again."""
    timing = Timing(trio.current_time(), sys.getallocatedblocks())
    gc.disable()
    try:
        while True:
            await trio.sleep(timing.pause)
            began = time.perf_counter()
            gc.collect(YOUNG)
            timing.took(time.perf_counter() - began)
            if timing.all_are_due(trio.current_time(), sys.getallocatedblocks):
                gc.collect()
                timing.looked_at_all(trio.current_time(), sys.getallocatedblocks())
    finally:
        gc.enable()
