"""How many work for a model, and by which settings, changed while it runs: Scale and Update.

What must not live here: starting a worker (staffing.py), what autoscaling decides (autoscaling.py), changes that need
other workers (rolling.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import structlog
import trio

from actorserve.actors.child import Child
from actorserve.actors.messages import ModelSpec, Scale, State
from actorserve.actors.model import Model
from actorserve.actors.reply import Reply
from actorserve.actors.rollout import count_for
from actorserve.actors.roster import Roster
from actorserve.actors.staffing import Staffing
from actorserve.errors import ActorserveError, HandlerRaised, WrongState

log = structlog.get_logger("actorserve.supervisor")


class Scaling:
    """See the module's docstring. `wake` has autoscaling look anew."""

    def __init__(
        self,
        roster: Roster,
        staffing: Staffing,
        *,
        grace_s: float,
        wake: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._roster = roster
        self._staffing = staffing
        self._grace_s = grace_s
        self._wake = wake
        self._on_change = on_change

    def scale(self, message: Scale, reply: Reply[None]) -> None:
        """Set the bounds, for a rollout that is under way too. NoSuchModel."""
        model = self._roster.find(message.name, message.version)
        for one in (model, model.rollout):
            if one is not None:
                one.spec = replace(one.spec, workers_min=message.workers_min, workers_max=message.workers_max)
        self.keep_bounds(model, self._grace_s if message.grace_s is None else message.grace_s, reply)

    def keep_bounds(self, model: Model, grace_s: float, reply: Reply[None]) -> None:
        """Have as many replicas as the spec says. The reply is given when the new ones are READY."""
        least, most = model.spec.workers_min, model.spec.workers_max
        model.forget_failed()
        started = self._staffing.grow(model, least)
        self._wake()
        alive = sorted(index for index, child in model.children.items() if child.is_alive)
        alive.sort(key=lambda index: model.children[index].state is not State.READY)  # those that work stay
        leaving = [model.children[index] for index in alive[most:]]
        for child in leaving:
            child.drain()
        model.refresh()
        self._on_change()
        log.info("model scaled", model=model.spec.key, workers=count_for(model.spec, len(alive)))
        self._staffing.start_soon(self._answer_when_scaled, model, started, leaving, grace_s, reply)

    async def _answer_when_scaled(
        self, model: Model, started: Iterable[Child], leaving: Iterable[Child], grace_s: float, reply: Reply[None]
    ) -> None:
        with trio.move_on_after(grace_s):
            for child in leaving:
                await child.gone.wait()
        for child in leaving:
            child.kill()
        while True:
            try:
                for child in started:
                    await child.ready.wait()
            except ActorserveError as error:
                if model.mailbox.closed or not child.is_leaving:
                    reply.fail(error)
                    return
                started = model.staff()  # another change has followed, or a rollout has taken over
            else:
                reply.set(None)
                return

    async def update(self, model: Model, spec: ModelSpec, reply: Reply[None]) -> None:
        """Tell every worker, one after another; one whose code refuses has all of them keep the old configuration."""
        old, told = model.spec, spec.options.get("user_config")
        _respecify(model, spec)
        if told != old.options.get("user_config"):
            done: list[Child] = []
            for child in model.staff():
                try:
                    await child.control({"do": "reconfigure", "user_config": told})
                except HandlerRaised as error:
                    _respecify(model, old)
                    for other in done:
                        with contextlib.suppress(HandlerRaised):
                            await other.control({"do": "reconfigure", "user_config": old.options.get("user_config")})
                    reply.fail(WrongState(f"{spec.name}: reconfigure raised {error}"))
                    return
                done.append(child)
        try:
            self.scale(Scale(spec.name, spec.version, spec.workers_min, spec.workers_max), reply)
        except ActorserveError as error:  # it has gone meanwhile
            reply.fail(error)


def _respecify(model: Model, spec: ModelSpec) -> None:
    model.spec = spec
    for child in model.children.values():
        child.spec = replace(child.spec, model=spec)
