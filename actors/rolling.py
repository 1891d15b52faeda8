"""Replace, carried out: a model version gets other workers, or only other rules; rollout.py says what a rollout is.

What must not live here: starting a worker (staffing.py), which models there are (roster.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import structlog

from actorserve.actors.child import Child
from actorserve.actors.messages import ModelSpec, Replace
from actorserve.actors.model import Model
from actorserve.actors.reply import Reply
from actorserve.actors.rollout import Rollout, count_for, needs_workers
from actorserve.actors.roster import Roster
from actorserve.actors.scaling import Scaling
from actorserve.actors.staffing import Staffing, answer_when_ready
from actorserve.errors import ActorserveError, WrongState

log = structlog.get_logger("actorserve.supervisor")


class Rolling:
    """See the module's docstring. `on_gone` is awaited when nobody runs by a spec any more."""

    def __init__(
        self,
        roster: Roster,
        staffing: Staffing,
        scaling: Scaling,
        *,
        grace_s: float,
        wake: Callable[[], None],
        on_change: Callable[[], None],
        on_gone: Callable[[ModelSpec], Awaitable[None]] | None,
    ) -> None:
        self._roster = roster
        self._staffing = staffing
        self._scaling = scaling
        self._grace_s = grace_s
        self._wake = wake
        self._on_change = on_change
        self._on_gone = on_gone

    def replace(self, message: Replace, reply: Reply[None]) -> None:
        """Begin; what is under way is given up. NoSuchModel, LoadFailed."""
        model = self._roster.find(message.model.name, message.model.version)
        spec = self._roster.settled(message.model)
        model.drop_rollout(WrongState(f"another change of model {spec.name} version {spec.version} came"))
        model.rollout_failure = ""
        if not needs_workers(model.spec, spec):
            model.change(spec)
            log.info("model changed, its workers stay", model=spec.key)
            self._scaling.keep_bounds(model, self._grace_s, reply)
            return
        model.rollout = rollout = Rollout(spec)
        for _ in range(count_for(spec, model.alive) if model.alive else spec.workers_min):
            child = self._staffing.hire(model, spec, rollout)
            rollout.children[child.spec.index] = child
        log.info("rollout begun", model=spec.key, handler=spec.handler, workers=len(rollout.children))
        if model.alive or rollout.children:
            model.refresh()
            self._on_change()
            self._staffing.start_soon(self._roll_out, model, rollout, reply)
        else:  # no worker is there, nor asked for
            children = list(rollout.children.values())
            self._take_over(model, rollout)
            self._staffing.start_soon(answer_when_ready, children, reply)

    async def _roll_out(self, model: Model, rollout: Rollout, reply: Reply[None]) -> None:
        try:
            await rollout.wait_ready()
        except ActorserveError as error:
            log.warning("rollout failed, what was there goes on", model=rollout.spec.key, why=str(error))
            if model.rollout is rollout:
                model.rollout_failure = str(error)
                model.drop_rollout(error)
            model.refresh()
            self._on_change()
            reply.fail(error)
            await rollout.dismiss(self._grace_s)
            await self._let_go(model, rollout.spec)
        else:
            self._take_over(model, rollout)
            reply.set(None)

    def _take_over(self, model: Model, rollout: Rollout) -> None:
        """Put the new replicas in the place of the old in one step: nothing else runs meanwhile."""
        old, old_spec, alive = list(model.children.values()), model.spec, model.alive
        model.forget_failed()
        model.children.update(rollout.children)
        model.rollout = None
        model.rollouts += 1
        model.change(rollout.spec)
        for child in old:
            if child.is_alive:
                child.retire()
        rollout.gate.set()
        self._staffing.resize(model, count_for(rollout.spec, alive) if alive else rollout.spec.workers_min)
        self._wake()
        log.info("rollout done", model=rollout.spec.key, workers=model.alive)
        self._staffing.start_soon(self._let_go_after, model, old, old_spec)

    async def _let_go_after(self, model: Model, children: Iterable[Child], spec: ModelSpec) -> None:
        for child in children:
            await child.gone.wait()
        await self._let_go(model, spec)

    async def _let_go(self, model: Model, spec: ModelSpec) -> None:
        """Nobody runs by this spec any more."""
        if self._on_gone is not None and spec.model_dir != model.spec.model_dir:
            await self._on_gone(spec)
