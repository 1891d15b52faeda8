"""How many replicas a model should have, decided purely: no trio, no clock, no log.

The rules:
1. A replica is meant to have `target_ongoing_requests` requests, waiting or in hand. Wanted are as many replicas as
   that takes, rounded up, within `min_replicas` and `max_replicas`.
2. More: once that many have been wanted all through `upscale_delay_s`. The least that was wanted in this time counts,
   so a peak that passes starts nothing.
3. Fewer: once fewer have been wanted all through `downscale_delay_s`. The most that was wanted in this time counts,
   so a lull that passes ends nothing, and the last replica goes only when nothing at all was asked.
4. From zero the first request starts one replica at once; rule 2 says whether it gets company.
5. What is outside the bounds (they have changed) comes back inside at once.
6. A FAILED replica keeps its place: nothing is started in its stead (design §4), and while one is FAILED the last
   that works stays. Where all are FAILED nothing is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration says. Delays in seconds."""

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0


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
    wanted = min(max(math.ceil(load.ongoing / policy.target_ongoing_requests), least), most)
    if wanted == replicas:
        return Decision(replicas)
    if not replicas:
        return Decision(1, reason=f"{load.ongoing:g} ongoing and no replica")
    return _hold(policy, load, _together(held, wanted, replicas, now), now)


def _bounds(policy: Policy, load: Load) -> tuple[int, int]:
    """The fewest and the most that may work, with what FAILED keeps its place (rule 6)."""
    most = max(policy.max_replicas - load.failed, min(1, policy.max_replicas))
    least = max(policy.min_replicas - load.failed, 1 if load.failed else 0)
    return min(least, most), most


def _together(held: Held | None, wanted: int, replicas: int, now: float) -> Held:
    """The wish, with the one held so far where both go the same way."""
    if held is not None and held.wanted > replicas and wanted > replicas:
        return Held(held.since, min(held.wanted, wanted))
    if held is not None and held.wanted < replicas and wanted < replicas:
        return Held(held.since, max(held.wanted, wanted))
    return Held(now, wanted)


def _hold(policy: Policy, load: Load, held: Held, now: float) -> Decision:
    """Do what has been wished for long enough; otherwise wait."""
    grows = held.wanted > load.replicas
    delay = policy.upscale_delay_s if grows else policy.downscale_delay_s
    lasted = now - held.since
    if lasted < delay:
        return Decision(load.replicas, held)
    key = "upscale_delay_s" if grows else "downscale_delay_s"
    return Decision(
        held.wanted,
        reason=(
            f"{load.ongoing:g} ongoing at {policy.target_ongoing_requests:g} a replica: "
            f"{'at least' if grows else 'at most'} {held.wanted} wanted for {lasted:.1f} s ({key} = {delay:g})"
        ),
    )
