"""It carries out the steps that a new config.toml asks for, by the registrar: committed as intent, done, committed.

    new entry       spawned
    changed entry   rolled out (rollout.py); where its version has changed too: the new one is spawned, becomes READY,
                    is the default if the old one was, and the old one drains
    removed entry   drained
    default         what the file says of it counts at once; of a version that is new or rolled out, once it is READY

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

from actorserve.actors import registry_jobs as jobs
from actorserve.actors import registry_said
from actorserve.actors.asked import Answer, Said
from actorserve.actors.messages import ModelView, SetDefault, Spawn, State, Stop
from actorserve.actors.registrar import Registrar
from actorserve.actors.registry import Registry
from actorserve.actors.registry_rules import Entry, default_of
from actorserve.actors.reload_rules import Apply, Forget, Mark, Remove, Retire, Step, steps
from actorserve.actors.supervisor import Supervisor
from actorserve.errors import ActorserveError, LoadFailed, NoSuchModel

log = structlog.get_logger("actorserve.reload")


class Applying:
    """See the module's docstring."""

    def __init__(self, registry: Registry, registrar: Registrar, supervisor: Supervisor, *, grace_s: float) -> None:
        self._registry = registry
        self._registrar = registrar
        self._supervisor = supervisor
        self._grace_s = grace_s
        self._deciding = trio.Lock()  # while it is decided what goes and what is the default, neither changes
        self._latest: list[Step] = []  # of the last plan
        self._under_way: dict[tuple[str, str], trio.Event] = {}  # set once the version is loaded, or is not

    async def plan(self, entries: Mapping[str, Entry]) -> list[Step]:
        """The steps from the rows as they are now to all of config.toml's entries. StateFailed."""
        async with self._deciding:
            self._latest = steps(await self._registry.run(jobs.rows_of), entries)
        return self._latest

    async def carry_out(self, step: Step, begun: trio.Event) -> None:
        """Do one step; `begun` is set when it is durable and under way, or over. Cancelled, what has begun goes on."""
        try:
            match step:
                case Apply():
                    await self._apply(step, begun)
                case Remove():
                    await self._remove(step, begun)
                case Mark():
                    begun.set()
                    await self._wait_loaded(step.name, step.row.version)
                    await self._mark(step, step)
                case Retire(name=name, heir=heir):
                    begun.set()
                    await self._wait_loaded(name, heir)
                    if self._is_there(name, heir):
                        await self._retire(step, step.versions, heir)
                case Forget(name=name, version=version):
                    async with self._deciding:
                        await self._registrar.say(name, partial(registry_said.forget, name=name, version=version))
        except ActorserveError as error:
            log.error("configuration not applied", model=step.model, why=str(error))  # noqa: TRY400  # one line
        else:
            log.info("configuration applied", model=step.model, change=_name(step))
        finally:
            begun.set()

    async def _apply(self, step: Apply, begun: trio.Event) -> None:
        spec, said = step.entry.spec, Said(step.entry.text, step.called)
        answer = self._registrar.ask(Spawn(spec, unregister_on_failure=bool(step.replaces)), said)
        await answer.accepted.wait()
        over = self._under_way[spec.name, spec.version] = trio.Event()
        begun.set()
        try:
            await answer.done.wait()
        except ActorserveError as error:
            for version in step.replaces:
                self._supervisor.note_failed_rollout(spec.name, version, f"version {spec.version}: {error}")
            raise
        finally:
            over.set()
            if self._under_way.get((spec.name, spec.version)) is over:
                del self._under_way[spec.name, spec.version]
        if step.mark is not None:
            await self._mark(step, step.mark)
        await self._retire(step, step.replaces, spec.version)

    def _is_there(self, name: str, version: str) -> bool:
        return any(model.spec.version == version for model in self._models(name))

    def _is_latest(self, step: Step) -> bool:
        return any(one is step for one in self._latest)

    async def _wait_loaded(self, name: str, version: str) -> None:
        """Wait until no change that loads this version is under way."""
        await self._registrar.wait_settled(name, version)
        while (over := self._under_way.get((name, version))) is not None:
            await over.wait()

    async def _retire(self, step: Apply | Remove | Retire, versions: Iterable[str], heir: str | None) -> None:
        """Unregister versions for the heir's sake, unless a later plan has seen to them."""
        for version in versions:
            with suppress(NoSuchModel):  # it has gone meanwhile
                async with self._deciding:
                    if not self._is_latest(step):
                        return
                    answer = await self._begin_unregister(step.name, version, heir)
                await answer.done.wait()

    async def _mark(self, step: Apply | Mark, mark: Mark) -> None:
        """Write what the file says, unless a later plan has seen to it; LoadFailed where its default could not be
        loaded, while another version serves.
        """
        job = partial(registry_said.mark, row=mark.row, says=mark.says, counts=mark.counts)
        async with self._deciding:
            if not self._is_latest(step):
                return
            failed = {model.spec.version: model.state is State.FAILED for model in self._models(mark.name)}
            if mark.says and mark.counts and failed.get(mark.row.version) and not all(failed.values()):
                raise LoadFailed("it is FAILED, and so not the default version", permanent=False)
            await self._registrar.say(mark.name, job)

    def _models(self, name: str) -> list[ModelView]:
        return [model for model in self._supervisor.observe().models if model.spec.name == name]

    async def _remove(self, step: Remove, begun: trio.Event) -> None:
        """Have a version leave; where none that stays has been loaded yet, once that is so."""
        stay = self._beside(step)
        if stay and all((step.name, version) in self._under_way for version in stay):
            begun.set()
            for version in stay:
                await self._wait_loaded(step.name, version)
            if not any(self._is_there(step.name, version) for version in stay):
                return
            await self._retire(step, (step.version,), None)
        else:
            async with self._deciding:
                answer = await self._begin_unregister(step.name, step.version, None)
            begun.set()
            await answer.done.wait()

    def _beside(self, step: Remove) -> list[str]:
        """The versions of its model that do not go with it."""
        going = {one.version for one in self._latest if isinstance(one, Remove) and one.name == step.name}
        return [model.spec.version for model in self._models(step.name) if model.spec.version not in going]

    async def _begin_unregister(self, name: str, version: str, heir: str | None) -> Answer:
        """Have a version leave; if it is the default, `heir` is from now on, or whichever a restart would choose.

        The caller has the lock.
        """
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
        case Apply(is_new=True, replaces=()):
            return "registered"
        case Apply(replaces=()):
            return "changed"
        case Apply(replaces=old) | Retire(versions=old):
            return f"in the place of version {', '.join(old)}"
        case Mark():
            return {True: "the default version", False: "no default by the file", None: "another entry's"}[step.says]
        case Remove():
            return "unregistered"
        case _:
            return "is the API's from now on"
