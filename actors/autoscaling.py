"""How many replicas a model should have, decided purely: no trio, no clock, no log.

The rules (the formula and the names are Ray Serve's):
1. A replica is meant to have `target_ongoing_requests` requests, waiting or in hand. Wanted are as many replicas as
   that takes, replicas x ongoing / (target_ongoing_requests x replicas), rounded up, within `min_replicas` and
   `max_replicas`. A factor other than 1 goes that part of the way there, and by one replica at the least.
2. Ongoing is the average over `look_back_period_s`; 0: what there is now.
3. More: once more have been wanted all through `upscale_delay_s`. Without an average the least that was wanted in this
   time counts, so a peak that passes starts nothing; with one, what is wanted when the delay has passed.
4. Fewer: once fewer have been wanted all through `downscale_delay_s`; without an average the most in this time counts.
5. The last replica goes by itself, once nothing has been ongoing all through `downscale_to_zero_delay_s`.
6. From zero the first request starts replicas at once, `upscaling_factor` of them; for more, rule 3 holds.
7. What is outside the bounds (they have changed) comes back inside at once.
8. A FAILED replica keeps its place: nothing is started in its stead (design §4), and while one is FAILED the last
   that works stays. Where all are FAILED nothing is done.
9. Where none waits (job tickets) one that is refused counts as one that waits would, up to what a queue would hold.
   At each look a quarter of them is forgotten where every worker is idle; where only some are, that part of it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

ROUNDING = 1e-9
"""An average that is a whole number but for floating point is that number."""
FORGOTTEN, FEWEST = 0.25, 0.5
"""What is forgotten at a look of those who were refused, and the fewest that still count."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration says. Times in seconds. `downscale_to_zero_delay_s`: None is `downscale_delay_s`."""

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    look_back_period_s: float = 0.0

    def delay_of(self, wanted: int, replicas: int) -> tuple[str, float]:
        """The key and the length of the delay of a change."""
        if wanted > replicas:
            return "upscale_delay_s", self.upscale_delay_s
        if not wanted and self.downscale_to_zero_delay_s is not None:
            return "downscale_to_zero_delay_s", self.downscale_to_zero_delay_s
        return "downscale_delay_s", self.downscale_delay_s


@dataclass(frozen=True, slots=True)
class Load:
    """What a model has now. `ongoing`: requests waiting or in hand; `replicas`: those that answer, or will."""

    ongoing: float
    replicas: int
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A wish that has held since a time (seconds): at least, or at most, so many replicas."""

    since: float
    wanted: int


@dataclass(frozen=True, slots=True)
class Decision:
    """So many replicas there should be now; `held` is for the next call. `reason`: empty where nothing changes."""

    target: int
    held: Held | None = None
    reason: str = ""


class Average:
    """What was ongoing, averaged over the time that one looks back. What a look finds counts since the look before."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._spans: deque[tuple[float, float, float]] = deque()  # from, to, ongoing

    def add(self, ongoing: float, now: float, look_back_s: float) -> float:
        """Take what one look found at `now` (seconds, any clock that never goes back); the average up to then."""
        last, self._last = self._last, now
        if not look_back_s:
            self._spans.clear()
            return ongoing
        self._spans.append((now if last is None else last, now, ongoing))
        begin = now - look_back_s
        while self._spans[0][1] <= begin and len(self._spans) > 1:
            self._spans.popleft()
        spans = [(end - max(start, begin), value) for start, end, value in self._spans]
        total = sum(length for length, _ in spans)
        return sum(length * value for length, value in spans) / total if total else ongoing


def turned_away(counted: float, refused: int, *, idle: float, most: int) -> float:
    """How many count as waiting that were refused (rule 9): so many did at the last look, `refused` have come since.

    `idle`: the part of the workers that are.
    """
    kept = counted * (1 - FORGOTTEN * idle)
    return min((kept if kept >= FEWEST else 0) + refused, most)


def decide(policy: Policy, load: Load, held: Held | None, now: float) -> Decision:
    """Decide at `now` (seconds, any clock). `held`: what the last decision gave, None at first."""
    replicas = load.replicas
    if load.failed and not replicas:
        return Decision(0)
    least, most = _bounds(policy, load)
    if replicas < least:
        return Decision(least, reason=f"{replicas} of min = {policy.min_replicas}")
    if replicas > most:
        return Decision(most, reason=f"{replicas}, more than max = {policy.max_replicas}")
    wanted = min(max(desired(policy, load.ongoing, replicas), least), most)
    if wanted == replicas:
        return Decision(replicas)
    if not replicas:
        return Decision(wanted, reason=f"{load.ongoing:g} ongoing and no replica")
    return _hold(policy, load, _together(policy, held, wanted, replicas, now), now)


def desired(policy: Policy, ongoing: float, replicas: int) -> int:
    """How many replicas the load wants (rules 1, 5 and 6), whatever the bounds."""
    if not ongoing:
        return 0 if replicas <= 1 else max(_toward(policy, 0.0, replicas), 1)
    if not replicas:
        return math.ceil(policy.upscaling_factor - ROUNDING)
    return max(_toward(policy, ongoing / policy.target_ongoing_requests, replicas), 1)


def _toward(policy: Policy, exact: float, replicas: int) -> int:
    """As many as a factor makes of what is exactly wanted; one fewer at the least where fewer are."""
    factor = policy.upscaling_factor if exact > replicas else policy.downscaling_factor
    whole = math.ceil(exact - ROUNDING)
    if factor == 1 or whole == replicas:
        return whole
    part = math.ceil(replicas + (exact - replicas) * factor - ROUNDING)
    return min(part, replicas - 1) if whole < replicas else part


def _bounds(policy: Policy, load: Load) -> tuple[int, int]:
    """The fewest and the most that may work, with what FAILED keeps its place (rule 8)."""
    most = max(policy.max_replicas - load.failed, min(1, policy.max_replicas))
    least = max(policy.min_replicas - load.failed, 1 if load.failed else 0)
    return min(least, most), most


def _together(policy: Policy, held: Held | None, wanted: int, replicas: int, now: float) -> Held:
    """The wish, with the one held so far where both go the same way."""
    if held is None or held.wanted == replicas or (held.wanted > replicas) != (wanted > replicas):
        return Held(now, wanted)
    if policy.look_back_period_s:
        return Held(held.since, wanted)
    return Held(held.since, min(held.wanted, wanted) if wanted > replicas else max(held.wanted, wanted))


def _hold(policy: Policy, load: Load, held: Held, now: float) -> Decision:
    """Do what has been wished for long enough; otherwise wait."""
    key, delay = policy.delay_of(held.wanted, load.replicas)
    lasted = now - held.since
    if lasted < delay:
        return Decision(load.replicas, held)
    bound = "" if policy.look_back_period_s else "at least " if held.wanted > load.replicas else "at most "
    return Decision(
        held.wanted,
        reason=(
            f"{load.ongoing:g} ongoing at {policy.target_ongoing_requests:g} a replica: "
            f"{bound}{held.wanted} wanted for {lasted:.1f} s ({key} = {delay:g})"
        ),
    )
