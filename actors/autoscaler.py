"""The task that carries autoscaling out: it looks at each model that may scale, and tells the supervisor.

It looks every second, and at once when a model without replicas is asked. What was asked and answered between
two looks counts as one request ongoing, so a model in use is never taken for an idle one.
What must not live here: the decision (autoscaling.py), starting and draining replicas (supervisor.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import structlog
import trio

from actorserve.actors.autoscaling import Average, Held, Load, Policy, decide
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
    """What is remembered of a model between two looks. `asked`: how often it was asked by then."""

    held: Held | None = None
    asked: int = 0
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
        seen = self._seen.setdefault(model.mailbox, Seen())
        load, policy, now = model.load(), policy_of(model.spec), trio.current_time()
        if model.mailbox.asked != seen.asked:
            load = replace(load, ongoing=max(load.ongoing, 1))
        average = seen.average.add(load.ongoing, now, policy.look_back_period_s)
        if load.replicas:  # from zero the first request counts at once
            load = replace(load, ongoing=average)
        decision = decide(policy, load, seen.held, now)
        seen.held, seen.asked = decision.held, model.mailbox.asked
        if decision.target != load.replicas:
            log.info(
                "model scales",
                model=model.spec.key,
                replicas=load.replicas,
                target=decision.target,
                reason=decision.reason,
            )
            self._resize(model, decision.target)


def may_scale(spec: ModelSpec) -> bool:
    """Whether the number of replicas is not fixed."""
    return spec.workers_max > spec.workers_min
