"""Who goes into the next batch, decided purely: no trio, no clock, no mailbox.

Rules (contracts §3, design §5):
1. A batch goes out when it is full, or when the oldest that waits has waited `max_delay_s` since it arrived.
   Full: `batch_size` items wait, or the weight of a batch does.
2. The delay holds only while the replica is idle; a busy one takes nothing but a full batch, ahead of
   time (prefetch of one), and only where no other replica is idle.
3. The second batch waits in the worker; a third never leaves the mailbox.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFETCH = 1


@dataclass(frozen=True, slots=True)
class Take:
    """Take up to so many now, those who are next; weight may close the batch sooner."""

    count: int


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Look again at this time, or when more has come."""

    time: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again when something has changed."""


Decision = Take | WaitUntil | Wait
WAIT = Wait()


def decide(
    *,
    now: float,
    waiting: int,
    oldest_arrival: float,
    in_hand: int,
    others_idle: bool,
    batch_size: int,
    max_delay_s: float,
    weight: int = 0,
    max_weight: int = 0,
) -> Decision:
    """Decide for one replica. Times in seconds of one clock; `in_hand`: batches it has not answered.

    `weight`: of all that waits; `max_weight` of a batch, 0 where none is limited.
    """
    if not waiting or in_hand > PREFETCH:
        return WAIT
    full = is_full(waiting, batch_size, weight, max_weight)
    if in_hand:
        return Take(min(waiting, batch_size)) if full and not others_idle else WAIT
    due = oldest_arrival + max_delay_s
    if full or now >= due:
        return Take(min(waiting, batch_size))
    return WaitUntil(due)


def is_full(waiting: int, batch_size: int, weight: int, max_weight: int) -> bool:
    """Whether what waits fills a batch, by count or by weight (`max_weight` 0: no limit)."""
    return waiting >= batch_size or 0 < max_weight <= weight


def stream_share(*, waiting: int, room: int, idle_others: int) -> int:
    """How many waiting streams a replica takes: its share where others are idle, never above its room."""
    share = -(-waiting // (1 + idle_others))
    return max(0, min(share, room))
