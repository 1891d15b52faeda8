"""What starts with the server: models, servicers, applications; how far each is, and which of them failed.

    entries of the file + the registry -> what is to run (`to_run`)
    models are told to start -> servicers, whose schemas applications answer -> applications -> READY, FAILED or gone

What must not live here: when that is (server.py), what changes later (reloader.py, services/management.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import structlog
import trio

from actorserve import config
from actorserve.actors.messages import ModelSpec, Spawn
from actorserve.actors.registry_rules import Entry, relocate
from actorserve.actors.reply import Reply
from actorserve.actors.sources import Sources
from actorserve.config_types import is_packed
from actorserve.errors import ActorserveError, StartFailed, StateFailed, Unavailable
from actorserve.parts import Parts
from actorserve.reloading import text_of

log = structlog.get_logger("actorserve.server")


def entries_of(settings: config.Config, specs: Iterable[ModelSpec]) -> dict[str, Entry]:
    """The entries of the file, each with what it comes to."""
    return {
        entry: Entry(spec, text_of(settings, entry, spec.version), settings.models[entry].default)
        for entry, spec in zip(settings.models, specs, strict=True)
    }


async def to_run(parts: Parts, entries: Mapping[str, Entry]) -> tuple[ModelSpec, ...]:
    """What is to run, by the file and by what the management API has changed. StartFailed."""
    try:
        found = await parts.registrar.begin(entries)
    except StateFailed as error:
        raise StartFailed(f"server.state_dir: {error}") from None
    await parts.sources.tidy([spec.url for spec in found], [spec.url for spec in parts.registrar.dropped])
    return tuple([await _unpacked(spec, parts.sources) for spec in found])


async def _unpacked(spec: ModelSpec, sources: Sources) -> ModelSpec:
    """A model of the API with its archive unpacked anew. One that is gone or broken is FAILED when it starts."""
    if spec.loaded_at_startup or not is_packed(spec.url):
        return spec
    try:
        source = await sources.reopen(spec)
    except ActorserveError as error:
        log.warning("the archive of a registered model cannot be used", model=spec.key, why=str(error))
        return spec
    return relocate(spec, source.path)


class Starting:
    """See the module's docstring. `loading`: a reply for each, by its name, set once it is READY."""

    def __init__(self, parts: Parts) -> None:
        self.loading: dict[str, Reply[None]] = {}
        self._parts = parts

    async def begin(self, specs: Iterable[ModelSpec], nursery: trio.Nursery, ports: Collection[int]) -> None:
        """Have all of it start; returns once every model has been told to. Tasks in `nursery`: user code loads there.

        `ports`: those that the listeners have.
        """
        await self._begin_models(list(specs))
        self._begin_servicers(nursery)
        await nursery.start(self._parts.apps.run)
        self._begin_applications(nursery, ports)

    async def _begin_models(self, specs: list[ModelSpec]) -> None:
        names = [spec.name for spec in specs]
        for spec in specs:
            key = spec.key if names.count(spec.name) > 1 else spec.name
            self.loading[key] = await self._spawn(spec)

    async def _spawn(self, spec: ModelSpec) -> Reply[None]:
        """Have a model start. What is refused is seen where its loading is waited for; there may be many models."""
        try:
            return await self._parts.supervisor.carry_out(Spawn(spec))
        except ActorserveError as error:
            log.warning("model not started", model=spec.key, why=str(error))
            refused: Reply[None] = Reply()
            refused.fail(error)
            return refused

    def _begin_servicers(self, nursery: trio.Nursery) -> None:
        servicers = self._parts.settings.servicers
        if servicers:
            replies: dict[str, Reply[None]] = {servicer.label: Reply() for servicer in servicers}
            self.loading |= replies
            self._parts.file_servicers.expect()
            nursery.start_soon(self._parts.file_servicers.begin, servicers, replies)

    def _begin_applications(self, nursery: trio.Nursery, ports: Collection[int]) -> None:
        self._parts.apps.ports.used = set(ports)
        replies: dict[str, Reply[None]] = {name: Reply() for name in self._parts.settings.applications}
        self.loading |= replies
        nursery.start_soon(self._start_applications, replies)

    async def _start_applications(self, replies: dict[str, Reply[None]]) -> None:
        await self._parts.file_servicers.wait_known()  # so that they begin with what they answer
        await self._parts.file_apps.begin(self._parts.settings.applications, replies)

    async def wait_loaded(self) -> list[tuple[str, ActorserveError]]:
        """Wait until every one is READY, FAILED or taken away meanwhile; gives the failures."""
        failures: list[tuple[str, ActorserveError]] = []
        for name, reply in self.loading.items():
            try:
                await reply.wait()
            except ActorserveError as error:
                failures.append((name, error))
        models = self._parts.supervisor.observe().models
        names = {one for model in models for one in (model.spec.name, model.spec.key)}
        return [(name, error) for name, error in failures if name in names or not isinstance(error, Unavailable)]
