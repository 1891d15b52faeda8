"""A rollout: new replicas of one model version load beside the old ones, and take over together.

    old   READY -------------- answer ---------------+- finish what they have in hand, then end
    new     LOADING - READY, held by the gate -------+- answer what is queued, and what comes
                      until every one of them is     |
                      READY, or one has FAILED       `- the gate opens: one step, nothing in between

The mailbox stays, with what is queued. Held replicas take nothing from it, so a model never answers with two kinds
of replicas, and what the old handler can do counts until the new one is there. If one of the new cannot be had, none
takes over. What must not live here: starting children, and who the model's are (rolling.py).
"""

from __future__ import annotations

from dataclasses import replace

import trio

from actorserve.actors.child import Child
from actorserve.actors.messages import ModelSpec, State
from actorserve.actors.waiters import Signal
from actorserve.errors import ActorserveError, LoadFailed

IN_PLACE: dict[str, object] = {
    "workers_min": 0,
    "workers_max": 0,
    "workers_initial": None,
    "target_ongoing_requests": 0.0,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.0,
    "downscale_to_zero_delay_s": None,
    "upscaling_factor": 0.0,
    "downscaling_factor": 0.0,
    "look_back_period_s": 0.0,
    "queue_size": 0,
    "job_tickets": False,
    "max_batch_delay_s": 0.0,
    "max_sequences": 0,
    "weight": "",
    "tenant_key": "",
    "url": "",
    "loaded_at_startup": False,
}
"""What no worker knows of, so that none has to be started anew for it; with a value to compare the rest by."""


def needs_workers(old: ModelSpec, new: ModelSpec) -> bool:
    """Whether a change is more than what the server sees to by itself."""
    return replace(old, **IN_PLACE) != replace(new, **IN_PLACE)  # type: ignore[arg-type]  # by name


def count_for(spec: ModelSpec, alive: int) -> int:
    """How many replicas a model is to have that has so many now."""
    return min(max(alive, spec.workers_min), spec.workers_max)


class Rollout:
    """See the module's docstring. `children`: the new ones by index; `news` is set when the state of one changes."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.children: dict[int, Child] = {}
        self.gate = trio.Event()
        self.news = Signal()
        self._why: ActorserveError | None = None

    def abort(self, why: ActorserveError) -> None:
        """Give it up: `wait_ready` raises `why`, unless it has returned. Idempotent."""
        if self._why is None:
            self._why = why
            self.news.set()

    async def wait_ready(self) -> None:
        """Wait until every child is READY at once. Raises why one was given up, or the whole. For one task."""
        while True:
            if self._why is not None:
                raise self._why
            children = self.children.values()
            if all(child.state is State.READY for child in children):
                return
            for child in children:
                if not child.is_alive:
                    await child.ready.wait()  # raises, where it never was READY
                    raise LoadFailed(child.reason or f"worker {child.spec.name} has gone")
            await self.news.wait()

    async def dismiss(self, grace_s: float) -> None:
        """End every new replica. Those that are READY may close what they hold, within the grace."""
        for child in self.children.values():
            child.drain()
        self.gate.set()
        with trio.move_on_after(grace_s):
            for child in self.children.values():
                await child.gone.wait()
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            await child.gone.wait()
