"""It carries out the steps that a new config.toml asks for, by the registrar: committed as intent, done, committed.

    new entry       spawned
    changed entry   rolled out (rollout.py); where its version has changed too: the new one is spawned, becomes READY,
                    is the default if the old one was, and the old one drains
    removed entry   drained

Whether an old version still goes is for the last `plan` to say: a change leaves that to a later one of its model.
Models go side by side. A change that fails is logged and taken back: what served goes on, and the next reload tries
again. A new entry that fails is FAILED, as at a start.
What must not live here: the rules of steps (reload_rules.py), reading the file (reloader.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial

import structlog
import trio

from actorserve.actors import registry as jobs
from actorserve.actors.messages import Replace, SetDefault, Spawn, Stop
from actorserve.actors.registrar import Answer, Registrar, Said
from actorserve.actors.registry import Registry
from actorserve.actors.registry_rules import Entry, default_of
from actorserve.actors.reload_rules import Apply, Forget, Remove, Retire, Step, steps
from actorserve.actors.supervisor import Supervisor
from actorserve.errors import ActorserveError, NoSuchModel

log = structlog.get_logger("actorserve.reload")


class Applying:
    """See the module's docstring."""

    def __init__(self, registry: Registry, registrar: Registrar, supervisor: Supervisor, *, grace_s: float) -> None:
        self._registry = registry
        self._registrar = registrar
        self._supervisor = supervisor
        self._grace_s = grace_s
        self._planning = trio.Lock()  # while it is decided what goes, nothing goes
        self._latest: dict[str, list[Step]] = {}  # the steps of the last plan that had some, by the model's name

    async def plan(self, entries: Mapping[str, Entry]) -> list[Step]:
        """The steps from the rows as they are now to all of config.toml's entries. StateFailed."""
        async with self._planning:
            found = steps(await self._registry.run(jobs.rows_of), entries)
            self._latest |= {step.name: [other for other in found if other.name == step.name] for step in found}
        return found

    async def carry_out(self, step: Step, begun: trio.Event) -> None:
        """Do one step; `begun` is set when it is durable and under way, or over. Cancelled, what has begun goes on."""
        try:
            match step:
                case Apply():
                    await self._apply(step, begun)
                case Remove(name=name, version=version):
                    await self._remove(name, version, begun)
                case Retire(name=name, heir=heir):
                    begun.set()
                    await self._registrar.wait_settled(name, heir)
                    if self._is_there(name, heir):
                        await self._retire(step, step.versions, heir)
                case Forget(name=name, version=version):
                    await self._registry.run(partial(jobs.forget, name=name, version=version))
        except ActorserveError as error:
            log.error("configuration not applied", model=step.model, why=str(error))  # noqa: TRY400  # one line
        else:
            log.info("configuration applied", model=step.model, change=_name(step))
        finally:
            begun.set()

    async def _apply(self, step: Apply, begun: trio.Event) -> None:
        spec, said = step.entry.spec, Said(step.entry.text)
        await self._registrar.wait_settled(spec.name, spec.version)
        if self._is_there(spec.name, spec.version):
            answer = self._registrar.ask(Replace(spec), said)
        else:
            answer = self._registrar.ask(Spawn(spec, unregister_on_failure=bool(step.replaces)), said)
        await answer.accepted.wait()
        begun.set()
        try:
            await answer.done.wait()
        except ActorserveError as error:
            for version in step.replaces:
                self._supervisor.note_failed_rollout(spec.name, version, f"version {spec.version}: {error}")
            raise
        await self._retire(step, step.replaces, spec.version)

    def _is_there(self, name: str, version: str) -> bool:
        models = self._supervisor.observe().models
        return any((model.spec.name, model.spec.version) == (name, version) for model in models)

    async def _retire(self, step: Apply | Retire, versions: Iterable[str], heir: str) -> None:
        """Unregister versions for the heir's sake, unless a later plan has seen to them."""
        for version in versions:
            with suppress(NoSuchModel):  # it has gone meanwhile
                async with self._planning:
                    if not any(one is step for one in self._latest[step.name]):
                        return
                    answer = await self._begin_unregister(step.name, version, heir)
                    await answer.accepted.wait()
                await answer.done.wait()

    async def _remove(self, name: str, version: str, begun: trio.Event) -> None:
        answer = await self._begin_unregister(name, version, None)
        await answer.accepted.wait()
        begun.set()
        await answer.done.wait()

    async def _begin_unregister(self, name: str, version: str, heir: str | None) -> Answer:
        """Have a version leave; if it is the default, `heir` is from now on, or whichever a restart would choose."""
        models = [model for model in self._supervisor.observe().models if model.spec.name == name]
        others = [model.spec.version for model in models if model.spec.version != version]
        if others and any(model.is_default and model.spec.version == version for model in models):
            rows = [row for row in await self._registry.run(partial(jobs.rows_of, name=name)) if row.version != version]
            wanted = heir or default_of(rows, None)
            await self._registrar.ask(SetDefault(name, wanted if wanted in others else others[0])).done.wait()
        return self._registrar.ask(Stop(name, version, self._grace_s), Said(None))


def _name(step: Step) -> str:
    """A step in words."""
    match step:
        case Apply(is_new=True, replaces=()):
            return "registered"
        case Apply(replaces=()):
            return "changed"
        case Apply(replaces=old):
            return f"in the place of version {', '.join(old)}"
        case Remove():
            return "unregistered"
        case Retire(versions=old):
            return f"in the place of version {', '.join(old)}"
        case _:
            return "is the API's from now on"
