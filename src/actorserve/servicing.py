"""The servicers of a server: what answers for each schema, where it is routed, while the server runs.

    add: probe (what is its schema?) -> replicas start -> its routes, its reflection, its health are there
    remove: its routes go -> calls in hand end -> replicas drain
    a schema alone (`functions` without `servicer`): the ingresses of applications learn it -> its routes lead to them

A call that comes before the schemas of the file are known waits for them, within its deadline.
What must not live here: the user's code, what a call is (services/servicers.py), when replicas start (actors/).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog
import trio
from grpclib.const import Handler

from actorserve.actors.directory import Directory
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ModelSpec, SetDefault, Spawn, Stop
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.probe import probe
from actorserve.actors.reply import Reply
from actorserve.actors.supervisor import Supervisor
from actorserve.config_servicer import Servicer
from actorserve.errors import ActorserveError, AlreadyRegistered, BadInput, NoSuchModel, WrongState
from actorserve.servicer_specs import VERSION, key_of, spec_of
from actorserve.services.schemas import Schema
from actorserve.services.servicers import Routes, ServicerSchema, asking, waiting
from actorserve.services.transport.server import GrpcServer, HasMapping

log = structlog.get_logger("actorserve.servicers")


@dataclass
class Place:
    """One listener that serves servicers: where routes go, and what its reflection and its health read.

    `follows`: services by name -> what names the models that each is as well as. `unknown`: what answers the methods
    that nobody has; None: the transport.
    """

    server: GrpcServer
    schemas: list[Schema]
    follows: dict[str, Callable[[], Iterable[str]]]
    unknown: Handler | None = None


@dataclass(frozen=True)
class Served:
    """One servicer that is served: its model, None where applications answer; its schema; its routes by listener."""

    servicer: Servicer
    spec: ModelSpec | None
    schema: ServicerSchema
    routes: Mapping[str, HasMapping]


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
    """See the module's docstring. `places`: the listeners that serve servicers, by name; filled by the server."""

    def __init__(
        self,
        settings: ActorSettings,
        supervisor: Supervisor,
        directory: Directory,
        *,
        answering: Answering,
        folder: Path,
        grace_s: float = 30.0,
        on_failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`folder` is what relative paths mean; `grace_s`: seconds for calls in hand of one that goes.

        `on_failed`: the key of one of the file that will never start.
        """
        self._on_failed = on_failed
        self._answering = answering
        self._grace_s = grace_s
        self.places: dict[str, Place] = {}
        self.served: dict[str, Served] = {}
        self._settings = settings
        self._supervisor = supervisor
        self._directory = directory
        self._folder = folder
        self._expecting = False
        self._settled = trio.Event()
        self._turn = trio.Lock()  # of those that change what is served

    # --- the servicers of the file ----------------------------------------------------------------

    def expect(self) -> None:
        """Some are on their way: calls of methods that nobody knows wait until `begin` knows them."""
        self._expecting = True
        for place in self.places.values():
            place.server.otherwise(waiting(self._settled, place.server.find, place.unknown))

    async def begin(self, servicers: Iterable[Servicer], loading: Mapping[str, Reply[None]]) -> None:
        """Add those of the file, side by side; return once their schemas are known.

        `loading`: each one's reply, by its label, set once it is READY. What fails is told there and in the log; the
        others are served.
        """
        ready: dict[str, Reply[None]] = {}
        async with trio.open_nursery() as nursery:
            for servicer in servicers:
                nursery.start_soon(self._begin_one, servicer, loading[servicer.label], ready)
        self._settled.set()
        for place in self.places.values():
            place.server.otherwise(place.unknown)
        async with trio.open_nursery() as nursery:
            for label, reply in ready.items():
                nursery.start_soon(_pass_on, reply, loading[label])

    async def wait_known(self) -> None:
        """Wait until the schemas of the file are known, as far as they can be, where there are any to come."""
        if self._expecting:
            await self._settled.wait()

    async def _begin_one(self, servicer: Servicer, loading: Reply[None], ready: dict[str, Reply[None]]) -> None:
        try:
            ready[servicer.label] = await self.add(servicer)
        except ActorserveError as error:
            log.error("servicer not served", servicer=servicer.label, why=str(error))  # noqa: TRY400  # the user's code
            self._on_failed(key_of(servicer))
            loading.fail(error)

    async def apply(self, running: Iterable[str], wanted: Sequence[Servicer], known: trio.Event) -> None:
        """Make the servicers of the file, `running` by their names, those that it has now. Returns when they are.

        One that cannot be is told in the log; the next time it is tried again. What it was to replace stays.
        `known` is set once the schemas that applications answer are as the file says.
        """
        names = {servicer.label for servicer in wanted}
        for label in running:
            if label not in names and label in self.served:
                await self._try(label, self.remove, label)
        async with trio.open_nursery() as nursery:
            for servicer in wanted:
                if servicer.servicer:
                    nursery.start_soon(self._make, servicer)
            for servicer in wanted:
                if not servicer.servicer:
                    await self._make(servicer)
            known.set()

    async def _make(self, servicer: Servicer) -> None:
        served = self.served.get(servicer.label)
        if served is None:
            await self._try(servicer.label, self.add, servicer)
        elif served.servicer != servicer:
            await self._try(servicer.label, self.replace, servicer)

    @staticmethod
    async def _try(label: str, change: Callable[[Any], Awaitable[object]], what: object) -> None:
        try:
            await change(what)
        except ActorserveError as error:
            log.error("servicer not changed", servicer=label, why=str(error))  # noqa: TRY400  # the user's code

    # --- while the server runs ----------------------------------------------------------------------

    async def add(self, servicer: Servicer) -> Reply[None]:
        """Serve one more. Returns once its schema is known and its calls are taken; the reply is set when its replicas
        are READY.

        LoadFailed: its code cannot be imported, or has no schema. AlreadyRegistered: one is called so, or serves one
        of its methods on one of its listeners. Nothing is changed then.
        """
        spec = spec_of(servicer, folder=self._folder)
        schema = ServicerSchema.of(await probe(spec, self._settings))
        async with self._turn:
            places = self._free_places(servicer, schema)
            if servicer.servicer:
                ready = await self._supervisor.carry_out(Spawn(spec))
                served = self._by_model(servicer, spec, schema, places)
            else:
                await self._answering.know(servicer)
                ready, served = _done(), self._by_applications(servicer, schema, places)
            self.served[servicer.label] = served
            self._route(served)
            services = list(schema.services)
            log.info("servicer served", servicer=servicer.label, services=services, listeners=list(places))
        return ready

    def _by_model(self, servicer: Servicer, spec: ModelSpec, schema: ServicerSchema, places: Iterable[str]) -> Served:
        routes = Routes(schema, asking(self._mailbox_of(spec)))
        return Served(servicer, spec, schema, dict.fromkeys(places, routes))

    def _by_applications(self, servicer: Servicer, schema: ServicerSchema, places: Iterable[str]) -> Served:
        return Served(servicer, None, schema, {name: self._answering.routes_on(name, schema) for name in places})

    def _free_places(self, servicer: Servicer, schema: ServicerSchema) -> tuple[str, ...]:
        """The listeners for a new one. AlreadyRegistered; BadInput where there is no such listener."""
        if servicer.label in self.served:
            raise AlreadyRegistered(f"a servicer {servicer.label!r} is served already")
        places = self._places_of(servicer)
        self._check_free(servicer.label, schema, places)
        return places

    def _places_of(self, servicer: Servicer) -> tuple[str, ...]:
        places = tuple(servicer.listeners or self.places)
        for name in places:
            if name not in self.places:
                raise BadInput("listeners", f'no listener {name!r} has "servicers" among its services')
        return places

    def _check_free(self, label: str, schema: ServicerSchema, places: Iterable[str]) -> None:
        for name in places:
            for path in schema.methods:
                if self.places[name].server.find(path) is not None:
                    raise AlreadyRegistered(f"servicer {label!r}: {path} is served on listener {name!r} already")

    def _mailbox_of(self, spec: ModelSpec) -> _Finder:
        return _Finder(self._directory, spec)

    async def remove(self, label: str) -> Reply[None]:
        """Serve one no longer: its methods are UNIMPLEMENTED at once, calls in hand end, its replicas drain.

        Returns once that has begun; the reply is set when they are gone. NoSuchModel: none is called so.
        """
        async with self._turn:
            served = self.served.pop(label, None)
            if served is None:
                raise NoSuchModel(label)
            self._unroute(served)
            if served.spec is None:
                self._answering.forget(label)
                return _done()
        return await self._supervisor.carry_out(Stop(served.spec.name, served.spec.version, self._grace_s))

    async def replace(self, servicer: Servicer) -> Reply[None]:
        """Serve another in the place of the one that is called so; new calls are its from the moment it is READY.

        Where it is no good (LoadFailed, StartupTimeout), the old one stays. The reply is set when the old is gone.
        """
        label = servicer.label
        old = self.served.get(label)
        if old is None:
            raise NoSuchModel(label)
        version = VERSION if old.spec is None else str(int(old.spec.version) + 1)
        spec = spec_of(servicer, folder=self._folder, version=version)
        schema = ServicerSchema.of(await probe(spec, self._settings))
        places = self._places_of(servicer)
        if servicer.servicer:
            await self._replace_by_model(old, self._by_model(servicer, spec, schema, places), spec)
        else:
            await self._replace_by_applications(old, self._by_applications(servicer, schema, places))
        log.info("servicer replaced", servicer=label, services=list(schema.services))
        if old.spec is None:
            return _done()
        return await self._supervisor.carry_out(Stop(old.spec.name, old.spec.version, self._grace_s))

    async def _replace_by_model(self, old: Served, new: Served, spec: ModelSpec) -> None:
        await (await self._supervisor.carry_out(Spawn(spec, unregister_on_failure=True))).wait()
        async with self._turn:
            try:
                self._switch(old, new)
            except ActorserveError:
                await self._supervisor.carry_out(Stop(spec.name, spec.version, 0.0))
                raise
            await self._supervisor.carry_out(SetDefault(spec.name, spec.version))
            if old.spec is None:
                self._answering.forget(old.servicer.label)

    async def _replace_by_applications(self, old: Served, new: Served) -> None:
        async with self._turn:
            self._switch(old, new)  # now it is known that it can be; callers have the old one meanwhile
            self._switch(new, old)
            await self._answering.know(new.servicer)
            self._switch(old, new)

    def _switch(self, old: Served, new: Served) -> None:
        """Route to the new one, in one step; the old one stays where that cannot be."""
        label = new.servicer.label
        if self.served.get(label) is not old:
            raise WrongState(f"servicer {label!r} was changed by somebody else meanwhile")
        self._unroute(old)
        try:
            self._check_free(label, new.schema, new.routes)
        except AlreadyRegistered:
            self._route(old)
            raise
        self.served[label] = new
        self._route(new)

    # --- routes ---------------------------------------------------------------------------------------

    def _route(self, served: Served) -> None:
        for name, routes in served.routes.items():
            place = self.places[name]
            place.server.add(routes)
            place.schemas.append(served.schema.described)
            for service in served.schema.services:
                place.follows[service] = self._followed(served, service)

    def _followed(self, served: Served, service: str) -> Callable[[], Iterable[str]]:
        """What names the models that a service is as well as."""
        if served.spec is None:
            return lambda: self._answering.models_of(service)
        names = (served.spec.name,)
        return lambda: names

    def _unroute(self, served: Served) -> None:
        for name, routes in served.routes.items():
            place = self.places[name]
            place.server.remove(routes)
            place.schemas.remove(served.schema.described)
            for service in served.schema.services:
                place.follows.pop(service, None)


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


async def _pass_on(ready: Reply[None], loading: Reply[None]) -> None:
    try:
        await ready.wait()
        loading.set(None)
    except ActorserveError as error:
        loading.fail(error)
