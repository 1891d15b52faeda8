"""The applications of a server: started, changed and ended while it runs.

    deploy: probe (what is it? what are its schemas?) -> replicas of every deployment start -> calls are taken
    deploy again: deployments that have changed start as a further version, take over once READY, and the old ones drain
    delete: calls are taken no longer -> calls in hand end -> replicas drain, the ingress first

What must not live here: the user's code, which application a call means (services/applications.py), when replicas start
(actors/), listeners of the file (server.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
import trio

from actorserve import config_application
from actorserve.actors.applications import Application, Deployed, Source, probe_spec, same_replicas, spec_of
from actorserve.actors.directory import Directory
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Cardinality, ModelSpec, SetDefault, Spawn, State, Stop, Update
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.probe import probe
from actorserve.actors.reply import Reply
from actorserve.actors.supervisor import Supervisor
from actorserve.config_servicer import Servicer
from actorserve.errors import ActorserveError, BadInput, NoSuchApplication, NoSuchModel, StartFailed, WrongState
from actorserve.listening import address_of, open_address
from actorserve.proto import ray_serve_pb2
from actorserve.servicer_specs import spec_of as spec_of_servicer
from actorserve.services import status
from actorserve.services.applications import AppRoutes, Board, Pick, RayService, Taken, Translate
from actorserve.services.reflection import AlphaReflectionService, ReflectionService
from actorserve.services.schemas import Schema
from actorserve.services.servicers import ServicerSchema
from actorserve.services.transport.server import GrpcServer
from actorserve.servicing import Place

HOST_OF_DRIVERS = "127.0.0.1"
PREDICT = "/ray.serve.PredictAPIsService/Predict"

PREDICT_SCHEMA = ServicerSchema(
    ("ray.serve.PredictAPIsService",),
    {PREDICT: Cardinality.UNARY_UNARY},
    Schema(["ray.serve.PredictAPIsService"], [ray_serve_pb2.DESCRIPTOR.serialized_pb]),
)
"""Ray's own schema of 2.1."""

log = structlog.get_logger("actorserve.applications")


@dataclass(frozen=True, slots=True)
class AppPlace:
    """A listener that takes calls for applications: its place, and how it chooses and says what is wrong."""

    place: Place
    lenient: bool
    translate: Translate
    takes_servicers: bool = False


@dataclass(slots=True)
class Port:
    """A driver's own listener."""

    number: int
    server: GrpcServer
    scope: trio.CancelScope


@dataclass(slots=True)
class Running:
    """One application that runs."""

    source: Source
    application: Application
    specs: dict[str, ModelSpec] = field(default_factory=dict)
    ready: dict[str, Reply[None]] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    failure: str = ""

    @property
    def ingress(self) -> str:
        """The deployment that answers its callers."""
        return self.application.ingress


class Apps:
    """See the module's docstring. `places`: the listeners that take calls for applications, by name."""

    def __init__(
        self,
        settings: ActorSettings,
        supervisor: Supervisor,
        directory: Directory,
        *,
        folder: Path,
        grace_s: float,
    ) -> None:
        """`folder` is what relative paths mean. `grace_s`: how long calls in hand have at an application's end."""
        self.board = Board()
        self.known = trio.Event()  # once the schemas of the file that applications answer are known
        self.places: dict[str, AppPlace] = {}
        self.running: dict[str, Running] = {}
        self.functions: tuple[str, ...] = ()
        self.used_ports: set[int] = set()  # by the file's listeners
        self._function_paths: tuple[str, ...] = ()
        self._settings = settings
        self._supervisor = supervisor
        self._directory = directory
        self._folder = folder
        self._grace_s = grace_s
        self._lock = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._blobs: Path | None = None
        self._versions = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the ports of drivers until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            if self._blobs is not None:
                shutil.rmtree(self._blobs, ignore_errors=True)

    def drain(self) -> None:
        """The server ends: ports of drivers take no more."""
        self.board.draining = True
        for running in self.running.values():
            for port in running.ports.values():
                port.server.drain()

    def open_calls(self) -> int:
        """How many calls the ports of drivers have."""
        ports = (port for running in self.running.values() for port in running.ports.values())
        return sum(port.server.statistics().calls for port in ports)

    # --- schemas that applications answer ---------------------------------------------------------

    def take_schemas(self, servicers: Iterable[Servicer]) -> None:
        """Functions without a servicer: what replicas must know before they start."""
        for servicer in servicers:
            self.functions += servicer.functions
            self._function_paths += tuple(str((self._folder / one).resolve()) for one in servicer.path)

    async def add_schema(self, servicer: Servicer) -> None:
        """Route the rpcs of functions to applications. LoadFailed: they cannot be imported."""
        schema = ServicerSchema.of(await probe(spec_of_servicer(servicer, folder=self._folder), self._settings))
        able = [name for name, where in self.places.items() if where.takes_servicers]
        for name in servicer.listeners or able:
            self.route(self.places[name], schema)
        log.info("schema served by applications", services=list(schema.services))

    def route(self, where: AppPlace, schema: ServicerSchema) -> None:
        """Have a listener take the rpcs of a schema for applications."""
        routes = AppRoutes(schema, self.board.picking(lenient=where.lenient), where.translate, self.board.settled)
        where.place.server.add(routes)
        where.place.schemas.append(schema.described)

    # --- the applications of the file -------------------------------------------------------------

    async def begin(
        self,
        applications: Mapping[str, config_application.Application],
        loading: Mapping[str, Reply[None]],
    ) -> None:
        """Start those of the file, one after another. `loading`: each one's reply, set once it is READY."""
        for name, application in applications.items():
            try:
                running = await self.deploy(source_of(name, application, self._folder))
            except ActorserveError as error:
                log.error("application not served", application=name, why=str(error))  # noqa: TRY400  # the user's code
                loading[name].fail(error)
                continue
            assert self._nursery is not None  # noqa: S101  # run() has begun
            self._nursery.start_soon(_pass_on, running, loading[name])
        self.board.settled.set()

    # --- deploy -----------------------------------------------------------------------------------

    async def deploy(self, source: Source, said: Mapping[str, Any] | None = None) -> Running:
        """Start an application, or change it. Returns once its calls are taken; `wait_ready` waits for its replicas.

        `said`: what the script says of it, for one whose code it has sent. LoadFailed: it cannot be imported. BadInput:
        an option is wrong. StartFailed: a driver's port cannot be had. What ran before then still runs.
        """
        async with self._lock:
            source = replace(source, functions=self.functions, path=(*source.path, *self._function_paths))
            names = tuple(str(one["name"]) for one in said["deployments"]) if said else ()
            answer = await probe(probe_spec(source, names), self._settings)
            application = Application.of(source.name, answer.get("application") or said or {})
            drivers = {name: ServicerSchema.of(schema) for name, schema in answer["drivers"].items()}
            before = self.running.get(source.name)
            if before is not None:
                return await self._change(before, source, application, drivers)
            running = Running(source, application)
            self.running[source.name] = running
            try:
                for deployed in application.deployments:
                    await self._spawn(running, deployed)
                await self._open_ports(running, drivers)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._end(running, 0.0)
                raise
            self._take(running)
            log.info("application served", application=source.name, ingress=running.ingress)
            return running

    async def _spawn(self, running: Running, deployed: Deployed) -> None:
        self._versions += 1
        spec = spec_of(running.source, running.application, deployed, str(self._versions))
        running.ready[deployed.name] = await self._supervisor.carry_out(Spawn(spec))
        running.specs[deployed.name] = spec

    def _take(self, running: Running) -> None:
        name, ingress = running.source.name, running.ingress
        model = running.application.model(ingress)
        self.board.taken[name] = Taken(name, ingress, lambda: self._directory.find(model))

    # --- change -------------------------------------------------------------------------------------

    async def _change(
        self, running: Running, source: Source, application: Application, drivers: Mapping[str, ServicerSchema]
    ) -> Running:
        """Roll over what has changed. A deployment that does not start leaves everything as it was."""
        changed = Running(source, application)
        begun = await self._begin_changed(running, changed)
        for spec in begun:
            await self._supervisor.carry_out(SetDefault(spec.name, spec.version))
        self.running[source.name] = changed
        self._take(changed)
        for name in list(running.ports):
            if name not in drivers or _port(running, name) != _port(changed, name):
                self._close_port(running.ports.pop(name))
        changed.ports = running.ports
        await self._open_ports(changed, {name: one for name, one in drivers.items() if name not in changed.ports})
        for name, spec in running.specs.items():
            if name not in changed.specs or changed.specs[name].version != spec.version:
                await self._supervisor.carry_out(Stop(spec.name, spec.version, self._grace_of(running, name)))
        log.info("application changed", application=source.name, deployments=[spec.name for spec in begun])
        return changed

    async def _begin_changed(self, running: Running, changed: Running) -> list[ModelSpec]:
        """Start what is new or differs, and wait until it is READY; where one is not, none of it stays."""
        old = {one.name: one for one in running.application.deployments}
        begun: list[ModelSpec] = []
        try:
            for deployed in changed.application.deployments:
                name = deployed.name
                if name in old and _may_stay(running, old[name], changed, deployed):
                    changed.specs[name], changed.ready[name] = running.specs[name], running.ready[name]
                else:
                    await self._spawn(changed, deployed)
                    begun.append(changed.specs[name])
            await self.wait_ready(changed)
            await self._update_in_place(running, changed)
        except BaseException:
            with trio.CancelScope(shield=True):
                for spec in begun:
                    await self._stop(spec, 0.0)
            raise
        return begun

    async def _update_in_place(self, running: Running, changed: Running) -> None:
        """What needs no other replicas: how many there are, and their user_config. WrongState: their code refuses."""
        done: list[ModelSpec] = []
        for deployed in changed.application.deployments:
            before = changed.specs[deployed.name]
            if running.specs.get(deployed.name) is not before:
                continue
            wanted = replace(spec_of(changed.source, changed.application, deployed, before.version), url=before.url)
            wanted = replace(wanted, options={**before.options, "user_config": deployed.options.get("user_config")})
            if wanted == before:
                continue
            try:
                await (await self._supervisor.carry_out(Update(wanted))).wait()
            except ActorserveError:
                for spec in done:
                    await (await self._supervisor.carry_out(Update(spec))).wait()
                raise
            done.append(before)
            changed.specs[deployed.name] = wanted

    # --- delete -------------------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        """End an application; returns when it is gone. NoSuchApplication."""
        async with self._lock:
            running = self.running.get(name)
            if running is None:
                raise NoSuchApplication(name, sorted(self.running))
            await self._end(running, self._grace_s)
            log.info("application gone", application=name)

    async def _end(self, running: Running, grace_s: float) -> None:
        """The ingress first: what it still has to do needs the others."""
        self.board.taken.pop(running.source.name, None)
        self.running.pop(running.source.name, None)
        for port in running.ports.values():
            port.server.drain()
        for name in reversed(list(running.specs)):
            wait_s = min(grace_s, self._grace_of(running, name))
            await self._stop(running.specs[name], wait_s)
        for port in running.ports.values():
            self._close_port(port)

    async def _stop(self, spec: ModelSpec, grace_s: float) -> None:
        try:
            gone = await self._supervisor.carry_out(Stop(spec.name, spec.version, grace_s))
            await gone.wait()
        except NoSuchModel:
            return  # it never came to be

    @staticmethod
    def _grace_of(running: Running, name: str) -> float:
        for one in running.application.deployments:
            if one.name == name:
                return float(one.options["graceful_shutdown_timeout_s"])
        return 0.0

    # --- ports of drivers ---------------------------------------------------------------------------

    async def _open_ports(self, running: Running, drivers: Mapping[str, ServicerSchema]) -> None:
        for name, schema in drivers.items():
            number = _port(running, name)
            if number is None or number in self.used_ports:
                continue  # the file's own listener serves it
            model = running.application.model(name)
            server = self._driver_server(schema, lambda _stream, model=model: self._directory.find(model))  # type: ignore[misc]  # a default of a lambda
            try:
                opened = await open_address(f"driver {name}", f"{HOST_OF_DRIVERS}:{number}")
            except StartFailed as error:
                why = str(error).partition(": ")[2].partition(";")[0]
                raise StartFailed(f"application {running.source.name}: driver {name}: {why}") from None
            assert self._nursery is not None  # noqa: S101  # run() has begun
            scope = trio.CancelScope()
            running.ports[name] = Port(number or int(address_of(opened[0]).rpartition(":")[2]), server, scope)
            self._nursery.start_soon(_serve_port, server, opened, scope)

    def _driver_server(self, schema: ServicerSchema, pick: Pick) -> GrpcServer:
        schemas: list[Schema] = [schema.described]
        ray = RayService(self.board)
        reflection = (ReflectionService(schemas), AlphaReflectionService(schemas))
        schemas.append(Schema.of([ray, *reflection]))
        routes = AppRoutes(schema, pick, status.translate)
        return GrpcServer([routes, ray, *reflection], translate=status.translate)

    @staticmethod
    def _close_port(port: Port) -> None:
        port.server.drain()
        port.scope.cancel()

    # --- what a script asks (services/applications.py) --------------------------------------------------

    async def deploy_sent(self, request: Any) -> str:
        """Start what a script has sent; the name of its ingress, once it is READY."""
        try:
            said = json.loads(request.data)
        except ValueError as error:
            raise BadInput("data", f"no JSON: {error}") from None
        digest = hashlib.sha256(request.blob).hexdigest()
        source = Source(
            name=request.name,
            folder=Path(request.folder or "."),
            blob=str(await self._keep(digest, request.blob)),
            digest=digest,
            path=tuple(request.path),
        )
        try:
            running = await self.deploy(source, said)
        except StartFailed as error:
            raise WrongState(str(error)) from None
        await self.wait_ready(running)
        return running.ingress

    async def wait_ready(self, running: Running) -> None:
        """Wait until every deployment is READY; raise why one is not. The application stays, and shows as FAILED."""
        try:
            for reply in running.ready.values():
                await reply.wait()
        except ActorserveError as error:
            running.failure = str(error)
            raise

    async def _keep(self, digest: str, blob: bytes) -> Path:
        if self._blobs is None:
            self._blobs = Path(tempfile.mkdtemp(prefix="actorserve-applications-"))  # 0700
        path = self._blobs / digest
        await trio.Path(path).write_bytes(blob)
        return path

    def mailbox_of(self, application: str, deployment: str) -> Mailbox:
        """The mailbox of a deployment; empty: of the ingress. NoSuchApplication, NoSuchModel."""
        running = self.running.get(application)
        if running is None:
            raise NoSuchApplication(application, sorted(self.running))
        return self._directory.find(running.application.model(deployment or running.ingress))

    def find(self, name: str, version: str = "") -> Mailbox:
        """The mailbox that a worker's call means: "app:" is the ingress of an application. NoSuchModel."""
        application, colon, deployment = name.partition(":")
        if colon and not deployment and application in self.running:
            name = f"{name}{self.running[application].ingress}"
        return self._directory.find(name, version)

    def status_json(self) -> str:
        """How all applications are, for `serve.status()`."""
        return json.dumps({name: self._status_of(running) for name, running in self.running.items()})

    def _status_of(self, running: Running) -> dict[str, Any]:
        models = {(model.spec.name, model.spec.version): model for model in self._supervisor.observe().models}
        deployments: dict[str, Any] = {}
        for name, spec in running.specs.items():
            model = models.get((spec.name, spec.version))
            states = [] if model is None else [replica.state.value for replica in model.replicas]
            deployments[name] = {
                "state": "FAILED" if model is None else model.state.value,
                "replicas": {state: states.count(state) for state in states},
                "message": "" if model is None else next((one.reason for one in model.replicas if one.reason), ""),
            }
        return {
            "ingress": running.ingress,
            "deployments": deployments,
            "ports": {name: port.number for name, port in running.ports.items()},
            "failed": any(one["state"] == State.FAILED.value for one in deployments.values()),
        }


def _may_stay(running: Running, old: Deployed, changed: Running, new: Deployed) -> bool:
    """Whether a deployment's replicas can go on: their code, and where it comes from, are as they were."""
    if running.source.folder != changed.source.folder or running.source.path != changed.source.path:
        return False
    return running.application.legacy == changed.application.legacy and same_replicas(old, new)


def _port(running: Running, name: str) -> int | None:
    return next((one.port for one in running.application.deployments if one.name == name), None)


async def _serve_port(server: GrpcServer, opened: list[trio.SocketListener], scope: trio.CancelScope) -> None:
    with scope:
        await server.serve(opened)


async def _pass_on(running: Running, loading: Reply[None]) -> None:
    try:
        for reply in running.ready.values():
            await reply.wait()
        loading.set(None)
    except ActorserveError as error:
        running.failure = str(error)
        loading.fail(error)


def source_of(name: str, application: config_application.Application, folder: Path) -> Source:
    """An application of the file. `folder` is what relative paths mean."""
    return Source(
        name=name,
        folder=folder.resolve(),
        import_path=application.import_path,
        args=application.args,
        path=tuple(str((folder / one).resolve()) for one in application.path),
        overrides=application.deployments,
        env=application.env,
        pass_env=application.pass_env,
    )
