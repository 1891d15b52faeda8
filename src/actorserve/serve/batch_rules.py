"""Who is in a batch of `serve.batch`, and when it begins, decided purely.

What lives here: the decorator's settings, a call that waits, and `choose`. What must not: queues (batch_queue.py), the
mailbox's batches (actors/batching.py).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actorserve.serve.config import check_number, check_whole
from actorserve.serve.exceptions import OptionError


@dataclass(slots=True)
class Settings:
    """What the decorator was told; the setters change it while calls run."""

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.01
    max_concurrent_batches: int = 1
    batch_size_fn: Callable[[list[Any]], int] | None = None

    def check(self) -> None:
        """OptionError names the one that is wrong."""
        check_whole("max_batch_size", self.max_batch_size, least=1, most=1 << 31)
        check_number("batch_wait_timeout_s", self.batch_wait_timeout_s)
        check_whole("max_concurrent_batches", self.max_concurrent_batches, least=1, most=65536)
        if self.batch_size_fn is not None and not callable(self.batch_size_fn):
            raise OptionError("batch_size_fn", f"{self.batch_size_fn!r} is no function")

    def weigh(self, members: Sequence[Member]) -> int:
        """What these calls weigh together: how many they are, or what the user's function says of their items."""
        if self.batch_size_fn is None:
            return len(members)
        return self.batch_size_fn([member.item for member in members])


@dataclass(eq=False, slots=True)
class Member:
    """One call that waits to be in a batch. Times in seconds of the loop's clock; the deadline is time.monotonic's."""

    item: Any
    arguments: dict[str, Any]
    arrival: float
    result: asyncio.Future[Any]
    model: str = ""
    deadline: float | None = None
    items: asyncio.Queue[Any] | None = None
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


def choose(waiting: Sequence[Member], now: float, settings: Settings) -> tuple[list[Member], float | None]:
    """Who is in the next batch: (its members, None), or (nobody, when to look again). Pure.

    Each model's calls make a batch of their own; the model of the oldest call that may go, goes first.
    """
    groups: dict[str, list[Member]] = {}
    for member in waiting:
        groups.setdefault(member.model, []).append(member)
    soonest: float | None = None
    for group in groups.values():
        taken = _fitting(group, settings)
        full = len(taken) < len(group) or settings.weigh(taken) >= settings.max_batch_size
        due = group[0].arrival + settings.batch_wait_timeout_s
        if full or due <= now:
            return taken, None
        soonest = due if soonest is None else min(soonest, due)
    return [], soonest


def _fitting(group: Sequence[Member], settings: Settings) -> list[Member]:
    """The first of a group that fit into one batch, in order; at least one."""
    if settings.batch_size_fn is None:
        return list(group[: settings.max_batch_size])
    taken = [group[0]]
    for member in group[1:]:
        if settings.weigh([*taken, member]) > settings.max_batch_size:
            break
        taken.append(member)
    return taken
