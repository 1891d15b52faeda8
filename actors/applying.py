"""It carries out the steps that a new config.toml asks for, by the registrar: committed as intent, done, committed.

    new entry       spawned
    changed entry   rolled out (rollout.py); where its version has changed too: the new one is spawned, becomes READY,
                    is the default if the old one was, and the old one drains
    removed entry   drained
    default         what the file says of it counts at once; of a version that is new or rolled out, once it is READY

Models go side by side. A change that fails is logged and taken back: what served goes on, and the next reload tries
again. A new entry that fails is FAILED, as at a start.
What must not live here: which steps (reload_rules.py), reading the file (reloader.py).
"""

from __future__ import annotations

from functools import partial

import structlog
import trio

from actorserve.actors import registry as jobs
from actorserve.actors import registry_said
from actorserve.actors.messages import ModelView, Replace, SetDefault, Spawn, State, Stop
from actorserve.actors.registrar import Answer, Registrar, Said
from actorserve.actors.registry import Registry
from actorserve.actors.registry_rules import default_of
from actorserve.actors.reload_rules import Apply, Forget, Mark, Remove, Step
from actorserve.actors.supervisor import Supervisor
from actorserve.errors import ActorserveError, LoadFailed

log = structlog.get_logger("actorserve.reload")


class Applying:
    """See the module's docstring."""

    def __init__(self, registry: Registry, registrar: Registrar, supervisor: Supervisor, *, grace_s: float) -> None:
        self._registry = registry
        self._registrar = registrar
        self._supervisor = supervisor
        self._grace_s = grace_s
        self._one_default = trio.Lock()  # a version that leaves is not made the default again meanwhile

    async def carry_out(self, step: Step, begun: trio.Event) -> None:
        """Do one step; `begun` is set when it is durable and under way, or over. Cancelled, what has begun goes on."""
        try:
            match step:
                case Apply():
                    await self._apply(step, begun)
                case Remove(name=name, version=version):
                    await self._remove(name, version, begun)
                case Mark():
                    await self._registrar.wait_settled(step.row.name, step.row.version)
                    await self._mark(step)
                case Forget(name=name, version=version):
                    async with self._one_default:
                        await self._registrar.say(name, partial(registry_said.forget, name=name, version=version))
        except ActorserveError as error:
            log.error("configuration not applied", model=step.model, why=str(error))  # noqa: TRY400  # one line
        else:
            log.info("configuration applied", model=step.model, change=_name(step))
        finally:
            begun.set()

    async def _apply(self, step: Apply, begun: trio.Event) -> None:
        spec, said = step.entry.spec, Said(step.entry.text, step.called)
        await self._registrar.wait_settled(spec.name, spec.version)
        if any(model.spec.key == spec.key for model in self._supervisor.observe().models):
            answer = self._registrar.ask(Replace(spec), said)
        else:
            answer = self._registrar.ask(Spawn(spec, unregister_on_failure=step.replaces is not None), said)
        await answer.accepted.wait()
        begun.set()
        try:
            await answer.done.wait()
        except ActorserveError as error:
            if step.replaces is not None:
                self._supervisor.note_failed_rollout(spec.name, step.replaces, f"version {spec.version}: {error}")
            raise
        if step.mark is not None:
            await self._mark(step.mark)
        if step.replaces is not None:
            await self._unregister(spec.name, step.replaces, heir=spec.version)

    async def _mark(self, step: Mark) -> None:
        """Write what the file says; LoadFailed where its default could not be loaded, while another version serves."""
        name, version = step.row.name, step.row.version
        failed = {model.spec.version: model.state is State.FAILED for model in self._models(name)}
        if step.says and step.counts and failed.get(version) and not all(failed.values()):
            raise LoadFailed("it is FAILED, and so not the default version", permanent=False)
        job = partial(registry_said.mark, row=step.row, says=step.says, counts=step.counts)
        async with self._one_default:
            await self._registrar.say(name, job)

    def _models(self, name: str) -> list[ModelView]:
        return [model for model in self._supervisor.observe().models if model.spec.name == name]

    async def _remove(self, name: str, version: str, begun: trio.Event) -> None:
        answer = await self._begin_unregister(name, version, None)
        begun.set()
        await answer.done.wait()

    async def _unregister(self, name: str, version: str, heir: str) -> None:
        await (await self._begin_unregister(name, version, heir)).done.wait()

    async def _begin_unregister(self, name: str, version: str, heir: str | None) -> Answer:
        """Have a version leave; if it is the default, `heir` is from now on, or whichever a restart would choose."""
        async with self._one_default:
            models = self._models(name)
            others = [model.spec.version for model in models if model.spec.version != version]
            if others and any(model.is_default and model.spec.version == version for model in models):
                rows = await self._registry.run(partial(jobs.rows_of, name=name))
                wanted = heir or default_of((row for row in rows if row.version != version), None)
                await self._registrar.ask(SetDefault(name, wanted if wanted in others else others[0])).done.wait()
            answer = self._registrar.ask(Stop(name, version, self._grace_s), Said(None))
            await answer.accepted.wait()
        return answer


def _name(step: Step) -> str:
    """A step in words."""
    match step:
        case Apply(is_new=True, replaces=None):
            return "registered"
        case Apply(replaces=None):
            return "changed"
        case Apply(replaces=old):
            return f"in the place of version {old}"
        case Mark():
            return {True: "the default version", False: "no default by the file", None: "another entry's"}[step.says]
        case Remove():
            return "unregistered"
        case _:
            return "is the API's from now on"
