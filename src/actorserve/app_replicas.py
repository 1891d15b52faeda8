"""The replicas of applications: started, updated in place and ended, a model for each deployment.

    an application that changes: what is new or differs starts as a further version -> READY -> the rest is updated in
    place -> calls go to the new ones -> the old ones drain; where one does not start, or refuses, nothing has changed

What must not live here: what can stay (app_running.py), how a replica comes about (actors/), ports, which application
runs (apps.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from actorserve.actors.applications import Deployed, spec_of
from actorserve.actors.messages import ModelSpec, SetDefault, Spawn, State, Stop, Update
from actorserve.actors.supervisor import Supervisor
from actorserve.app_running import Running, may_stay, updated
from actorserve.errors import ActorserveError, NoSuchModel

ALIVE = (State.LOADING, State.READY, State.RESTARTING)


class Replicas:
    """See the module's docstring. Who asks sees to it that one application changes at a time."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._versions = 0

    async def spawn(self, running: Running, deployed: Deployed, before: ModelSpec | None = None) -> None:
        """Start the replicas of a deployment: as many as `before`, which they replace, has now."""
        self._versions += 1
        spec = spec_of(running.source, running.application, deployed, str(self._versions))
        workers = None if before is None else self._alive(before)
        running.ready[deployed.name] = await self._supervisor.carry_out(Spawn(spec, workers=workers))
        running.specs[deployed.name] = spec

    def _alive(self, spec: ModelSpec) -> int | None:
        """How many replicas it has that answer, or will. None: none."""
        models = self._supervisor.observe().models
        replicas = [one for model in models if model.spec.key == spec.key for one in model.replicas]
        return sum(one.state in ALIVE for one in replicas) or None

    def failed(self, spec: ModelSpec) -> bool:
        """Whether a deployment has been given up."""
        models = self._supervisor.observe().models
        return any(model.spec.key == spec.key and model.state is State.FAILED for model in models)

    async def stop(self, spec: ModelSpec, grace_s: float) -> None:
        """End the replicas of a deployment; returns when they are gone."""
        try:
            gone = await self._supervisor.carry_out(Stop(spec.name, spec.version, grace_s))
            await gone.wait()
        except NoSuchModel:
            return  # it never came to be

    # --- of an application that changes --------------------------------------------------------------

    async def begin_changed(self, running: Running, changed: Running) -> list[ModelSpec]:
        """Start what is new or differs, and wait until it is READY; where one is not, none of it stays."""
        begun: list[ModelSpec] = []
        try:
            for deployed in changed.application.deployments:
                name = deployed.name
                if may_stay(running, changed, deployed) and not self.failed(running.specs[name]):
                    changed.specs[name], changed.ready[name] = running.specs[name], running.ready[name]
                else:
                    await self.spawn(changed, deployed, running.specs.get(name))
                    begun.append(changed.specs[name])
            await changed.wait_ready()
            await self._update_in_place(running, changed)
        except BaseException:
            with trio.CancelScope(shield=True):
                for spec in begun:
                    await self.stop(spec, 0.0)
            raise
        return begun

    async def _update_in_place(self, running: Running, changed: Running) -> None:
        """Update those that stay, all or none. WrongState: their code refuses."""
        done: list[ModelSpec] = []
        for deployed in changed.application.deployments:
            before = changed.specs[deployed.name]
            if running.specs.get(deployed.name) is not before:
                continue
            wanted = updated(before, changed, deployed)
            if wanted == before:
                continue
            try:
                await self._update(wanted)
            except ActorserveError:
                for spec in done:
                    await self._update(spec)
                raise
            done.append(before)
            changed.specs[deployed.name] = wanted

    async def _update(self, spec: ModelSpec) -> None:
        await (await self._supervisor.carry_out(Update(spec))).wait()

    async def take_over(self, begun: Iterable[ModelSpec]) -> None:
        """Have calls go to versions that `begin_changed` has started."""
        for spec in begun:
            await self._supervisor.carry_out(SetDefault(spec.name, spec.version))

    async def stop_replaced(self, running: Running, changed: Running) -> None:
        """Begin the end of what has been replaced, and of deployments that are no more."""
        for name, spec in running.specs.items():
            if name not in changed.specs or changed.specs[name].version != spec.version:
                await self._supervisor.carry_out(Stop(spec.name, spec.version, running.grace_of(name)))
