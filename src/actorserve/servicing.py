"""The servicers of a server: what answers for each schema, while the server runs.

    add: probe (what is its schema?) -> replicas start -> its routes, its reflection, its health are there
    remove: its routes go -> calls in hand end -> replicas drain
    a schema alone (`functions` without `servicer`): the ingresses of applications learn it -> its routes lead to them

What must not live here: the user's code, what a call is (services/servicers.py), where a call is routed
(servicer_places.py), which servicers the file has (file_servicers.py), when replicas start (actors/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import structlog
import trio

from actorserve.actors.directory import Directory
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ModelSpec, SetDefault, Spawn, Stop
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.probe import probe
from actorserve.actors.reply import Reply
from actorserve.actors.supervisor import Supervisor
from actorserve.config_servicer import Servicer
from actorserve.errors import ActorserveError, NoSuchModel
from actorserve.servicer_places import Places, Served
from actorserve.servicer_specs import VERSION, spec_of
from actorserve.services.servicers import Routes, ServicerSchema, asking
from actorserve.services.transport.server import HasMapping

log = structlog.get_logger("actorserve.servicers")


class Answering(Protocol):
    """The applications that answer schemas: apps.py."""

    async def know(self, servicer: Servicer) -> None:
        """Have them answer one more, or another of the same label. Raises one of our errors, and nothing is changed."""

    def forget(self, label: str) -> None:
        """They need not answer it any more."""

    def routes_on(self, listener: str, schema: ServicerSchema) -> HasMapping:
        """What leads the rpcs of a schema to them."""

    def models_of(self, service: str) -> Iterable[str]:
        """The models that answer a service."""


class Servicing:
    """See the module's docstring. `places`: the listeners that serve servicers; filled by the server."""

    def __init__(
        self,
        settings: ActorSettings,
        supervisor: Supervisor,
        directory: Directory,
        *,
        answering: Answering,
        folder: Path,
        grace_s: float = 30.0,
    ) -> None:
        """`folder` is what relative paths mean; `grace_s`: seconds for calls in hand of one that goes."""
        self.places = Places()
        self._answering = answering
        self._grace_s = grace_s
        self._settings = settings
        self._supervisor = supervisor
        self._directory = directory
        self._folder = folder
        self._turn = trio.Lock()  # of those that change what is served

    @property
    def served(self) -> Mapping[str, Served]:
        """Those that are served now, by their labels."""
        return self.places.served

    async def add(self, servicer: Servicer) -> Reply[None]:
        """Serve one more. Returns once its schema is known and its calls are taken; the reply is set when its replicas
        are READY.

        LoadFailed: its code cannot be imported, or has no schema. AlreadyRegistered: one is called so, or serves one
        of its methods on one of its listeners. Nothing is changed then.
        """
        spec = spec_of(servicer, folder=self._folder)
        schema = ServicerSchema.of(await probe(spec, self._settings))
        async with self._turn:
            places = self.places.free_for(servicer, schema)
            if servicer.servicer:
                ready = await self._supervisor.carry_out(Spawn(spec))
                served = self._by_model(servicer, spec, schema, places)
            else:
                await self._answering.know(servicer)
                ready, served = _done(), self._by_applications(servicer, schema, places)
            self.places.route(served)
            services = list(schema.services)
            log.info("servicer served", servicer=servicer.label, services=services, listeners=list(places))
        return ready

    def _by_model(self, servicer: Servicer, spec: ModelSpec, schema: ServicerSchema, places: Iterable[str]) -> Served:
        routes = Routes(schema, asking(_Finder(self._directory, spec)))
        return Served(servicer, spec, schema, dict.fromkeys(places, routes), lambda _service: (spec.name,))

    def _by_applications(self, servicer: Servicer, schema: ServicerSchema, places: Iterable[str]) -> Served:
        routes = {name: self._answering.routes_on(name, schema) for name in places}
        return Served(servicer, None, schema, routes, self._answering.models_of)

    async def remove(self, label: str) -> Reply[None]:
        """Serve one no longer: its methods are UNIMPLEMENTED at once, calls in hand end, its replicas drain.

        Returns once that has begun; the reply is set when they are gone. NoSuchModel: none is called so.
        """
        async with self._turn:
            served = self._found(label)
            self.places.unroute(served)
            if served.spec is None:
                self._answering.forget(label)
        return await self._end(served)

    def _found(self, label: str) -> Served:
        served = self.served.get(label)
        if served is None:
            raise NoSuchModel(label)
        return served

    async def _end(self, served: Served) -> Reply[None]:
        """Have the replicas drain, where it has some of its own."""
        if served.spec is None:
            return _done()
        return await self._supervisor.carry_out(Stop(served.spec.name, served.spec.version, self._grace_s))

    async def replace(self, servicer: Servicer) -> Reply[None]:
        """Serve another in the place of the one that is called so; new calls are its from the moment it is READY.

        Where it is no good (LoadFailed, StartupTimeout), the old one stays. The reply is set when the old is gone.
        """
        label = servicer.label
        old = self._found(label)
        version = VERSION if old.spec is None else str(int(old.spec.version) + 1)
        spec = spec_of(servicer, folder=self._folder, version=version)
        schema = ServicerSchema.of(await probe(spec, self._settings))
        places = self.places.of(servicer)
        if servicer.servicer:
            await self._replace_by_model(old, self._by_model(servicer, spec, schema, places), spec)
        else:
            await self._replace_by_applications(old, self._by_applications(servicer, schema, places))
        log.info("servicer replaced", servicer=label, services=list(schema.services))
        return await self._end(old)

    async def _replace_by_model(self, old: Served, new: Served, spec: ModelSpec) -> None:
        await (await self._supervisor.carry_out(Spawn(spec, unregister_on_failure=True))).wait()
        async with self._turn:
            try:
                self.places.switch(old, new)
            except ActorserveError:
                await self._supervisor.carry_out(Stop(spec.name, spec.version, 0.0))
                raise
            await self._supervisor.carry_out(SetDefault(spec.name, spec.version))
            if old.spec is None:
                self._answering.forget(old.servicer.label)

    async def _replace_by_applications(self, old: Served, new: Served) -> None:
        async with self._turn:
            self.places.switch(old, new)  # now it is known that it can be; callers have the old one meanwhile
            self.places.switch(new, old)
            await self._answering.know(new.servicer)
            self.places.switch(old, new)


class _Finder:
    """The mailbox of one version, looked for once it is asked for; NoSuchModel once it is gone."""

    def __init__(self, directory: Directory, spec: ModelSpec) -> None:
        self._directory = directory
        self._spec = spec
        self._found: Mailbox | None = None

    def __call__(self) -> Mailbox:
        if self._found is None:
            self._found = self._directory.find(self._spec.name, self._spec.version)
        return self._found


def _done() -> Reply[None]:
    """A reply to what needs no time."""
    reply: Reply[None] = Reply()
    reply.set(None)
    return reply
