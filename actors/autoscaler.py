"""The task that carries autoscaling out: it looks at each model that may scale, and tells the supervisor.

It looks every second, and at once when a model without replicas is asked. What was asked and answered between
two looks counts as one request ongoing, so a model in use is never taken for an idle one.
What must not live here: the decision (autoscaling.py), starting and draining replicas (staffing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import structlog
import trio

from actorserve.actors.autoscaling import Average, Held, Load, Policy, decide, turned_away
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ModelSpec

LOOK_EVERY_S = 1.0

log = structlog.get_logger("actorserve.autoscaler")


class Scaled(Protocol):
    """A model as it is seen from here."""

    spec: ModelSpec
    mailbox: Mailbox

    def load(self) -> Load:
        """What waits, what is in hand, how many replicas there are."""


def policy_of(spec: ModelSpec) -> Policy:
    """What a model's spec says of scaling."""
    return Policy(
        min_replicas=spec.workers_min,
        max_replicas=spec.workers_max,
        target_ongoing_requests=spec.target_ongoing_requests,
        upscale_delay_s=spec.upscale_delay_s,
        downscale_delay_s=spec.downscale_delay_s,
        downscale_to_zero_delay_s=spec.downscale_to_zero_delay_s,
        upscaling_factor=spec.upscaling_factor,
        downscaling_factor=spec.downscaling_factor,
        look_back_period_s=spec.look_back_period_s,
    )


M = TypeVar("M", bound=Scaled)


@dataclass(slots=True)
class Seen:
    """What is remembered of a model between two looks. `asked`, `refused`: how often it was, by then.

    `turned_away`: how many of those who were refused count as waiting.
    """

    held: Held | None = None
    asked: int = 0
    refused: int = 0
    turned_away: float = 0
    average: Average = field(default_factory=Average)


class Autoscaler(Generic[M]):
    """See the module's docstring. `models` gives those there are; `resize(model, replicas)` does what was decided."""

    def __init__(self, models: Callable[[], Iterable[M]], resize: Callable[[M, int], None]) -> None:
        self._models = models
        self._resize = resize
        self._woken = trio.Event()
        self._seen: dict[Mailbox, Seen] = {}

    def wake(self) -> None:
        """Look now: a model was added, its bounds have changed, or it has no replica and was asked."""
        self._woken.set()

    async def run(self) -> None:
        """Look until cancelled. Where nothing may scale it sleeps until it is woken."""
        while True:
            self._woken = trio.Event()
            scaled = [model for model in self._models() if may_scale(model.spec) and not model.mailbox.closed]
            for model in scaled:
                self._look(model)
            self._seen = {model.mailbox: self._seen[model.mailbox] for model in scaled}
            with trio.move_on_after(LOOK_EVERY_S if scaled else float("inf")):
                await self._woken.wait()

    def _look(self, model: M) -> None:
        load, policy, now = model.load(), policy_of(model.spec), trio.current_time()
        known = self._seen.get(model.mailbox)
        seen = self._seen[model.mailbox] = known or Seen(refused=model.mailbox.refused if load.replicas else 0)
        load = replace(load, ongoing=self._ongoing(model.mailbox, load, seen))
        average = seen.average.add(load.ongoing, now, policy.look_back_period_s)
        if load.replicas:  # from zero the first request counts at once
            load = replace(load, ongoing=average)
        decision = decide(policy, load, seen.held, now)
        seen.held = decision.held
        if decision.target != load.replicas:
            log.info(
                "model scales",
                model=model.spec.key,
                replicas=load.replicas,
                target=decision.target,
                reason=decision.reason,
            )
            self._resize(model, decision.target)

    def _ongoing(self, mailbox: Mailbox, load: Load, seen: Seen) -> float:
        """What is ongoing, with what was asked since the last look, answered or refused."""
        is_used = mailbox.asked != seen.asked
        refused = mailbox.refused - seen.refused
        idle = min(len(mailbox.idle) / load.replicas, 1) if load.replicas else 0
        seen.turned_away = turned_away(seen.turned_away, refused, idle=idle, most=mailbox.limit)
        seen.asked, seen.refused = mailbox.asked, mailbox.refused
        return max(load.ongoing + seen.turned_away, int(is_used))


def may_scale(spec: ModelSpec) -> bool:
    """Whether the number of replicas is not fixed."""
    return spec.workers_max > spec.workers_min
