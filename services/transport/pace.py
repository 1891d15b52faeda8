"""How many connections are taken, or told to go, in a while: thousands at once would hold up everybody's calls.

What lives here: `Pace`, a place in time for each of many, and `PacedListener`, which takes connections so.
What must not: what a connection is.

Rules
1. The first BURST go at once; then `rate` go in a second, evenly. A pause makes room for the next burst.
2. Who waits for a place keeps its turn: places are given in the order of asking. Leaving early wastes one place.
3. What is not taken yet waits in the kernel's queue, where it costs this process nothing.
"""

from __future__ import annotations

from typing import Any

import trio

BURST = 64


class Pace:
    """See the rules. `rate` 0: without bound."""

    def __init__(self, rate: float) -> None:
        self._step = 1 / rate if rate else 0.0
        self._next = float("-inf")  # when the next place would be, were there no burst

    def place(self, now: float) -> float:
        """Take a place; give when it is: now, or later."""
        if not self._step:
            return now
        self._next = max(self._next, now - BURST * self._step) + self._step
        return max(now, self._next)

    async def turn(self) -> None:
        """Take a place and wait for it. A checkpoint only where it waits; cancelled, the place is lost."""
        now = trio.current_time()
        place = self.place(now)
        if place > now:
            await trio.sleep_until(place)


def at_once(now: float) -> float:
    """Give the place of whom nothing paces."""
    return now


class PacedListener(trio.abc.Listener[Any]):
    """A listener that takes connections at a pace, which several may share."""

    def __init__(self, listener: trio.abc.Listener[Any], pace: Pace) -> None:
        self._listener = listener
        self._pace = pace

    async def accept(self) -> Any:
        """Take the next connection, when one has come and its turn is here. Raises what the listener raises."""
        stream = await self._listener.accept()
        try:
            await self._pace.turn()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def aclose(self) -> None:
        """Close the listener."""
        await self._listener.aclose()
