"""When a worker is worn: it has grown above its limit of memory, or has had its number of requests.

What must not live here: who takes its place, and when (succession.py), how memory is read (memory.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from actorserve.actors.messages import ModelSpec

WEIGH_EVERY_S = 5.0
MEGABYTE = 1 << 20
Measure = Callable[[int | None], Awaitable[int | None]]


class Wear:
    """One worker's. `why` is empty until it is worn; `on_worn` is called then, once."""

    def __init__(self, model: ModelSpec, measure: Measure, on_worn: Callable[[], None]) -> None:
        """`measure`: bytes of memory that the process of a pid holds by itself, None where it has gone."""
        self.why = ""
        self._memory_mb = model.max_worker_memory_mb
        self._requests = model.max_requests_per_worker
        self._measure = measure
        self._on_worn = on_worn

    async def weigh(self, pid: int | None) -> None:
        """Find out that the worker has grown; returns when it is worn, at once where there is no limit."""
        while self._memory_mb and not self.why:
            await trio.sleep(WEIGH_EVERY_S)
            self._wear(await self.excess(pid))

    async def excess(self, pid: int | None) -> str:
        """By how much the worker is above its limit of memory, in words; empty where it is not."""
        held = await self._measure(pid) if self._memory_mb else None
        if held is None or held <= self._memory_mb * MEGABYTE:
            return ""
        return f"it holds {held / MEGABYTE:.0f} MB of its own, more than max_worker_memory_mb = {self._memory_mb}"

    def count(self, given: int) -> None:
        """Find out that the worker has been given all its requests."""
        if self._requests and given >= self._requests:
            self._wear(f"it has had its max_requests_per_worker = {self._requests}")

    def _wear(self, why: str) -> None:
        if why and not self.why:
            self.why = why
            self._on_worn()
