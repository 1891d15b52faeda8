"""When a call that no server has begun is repeated (gRPC's A6, transparent retries, with a bound and a backoff).

What lives here: `Retry`, the policy.
What must not: clocks, tasks, what a call is.

Rules
1. Only what is safe is repeated: `NotBegun` says so. Once a server has answered anything, the call is its own.
2. The first repetition of a refused call goes out at once, others after a delay that grows, with jitter.
3. A delay that would pass the deadline is not begun: the caller gets the error now.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and after which delays. `attempts` counts the first one: 1 means never again."""

    attempts: int = 5
    initial_s: float = 0.05
    max_s: float = 2.0
    multiplier: float = 2.0
    jitter: float = 0.2  # of the delay, to either side
    buffer_bytes: int = 1_048_576  # what a call may have sent and still be repeated

    def delay(self, attempt: int) -> float:
        """Give the seconds to wait after the attempt of this number, counted from 1."""
        wait = min(self.initial_s * self.multiplier ** (attempt - 1), self.max_s)
        return wait * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311  spreads load, guards no secret
