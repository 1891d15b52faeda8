"""The applications of a server: started, changed and ended while it runs.

    deploy: probe (what is it? what are its schemas?) -> ports of drivers -> replicas of every deployment start -> calls
    deploy again: deployments that have changed start as a further version, take over once READY, and the old ones drain
    delete: calls are taken no longer -> calls in hand end -> replicas drain, the ingress first

The applications of the file are those that `want` has said last; what a script has sent is its own.
What must not live here: the user's code, which application a call means (services/applications.py), when replicas start
(actors/), listeners (server.py, app_ports.py), who may serve which schema where (servicing.py).
Over 250 lines: all that changes what runs is here, behind one lock.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from actorserve import config_application
from actorserve.actors.applications import (
    Application,
    Deployed,
    Source,
    probe_spec,
    same_replicas,
    same_source,
    spec_of,
)
from actorserve.actors.directory import Directory
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Cardinality, ModelSpec, SetDefault, Spawn, State, Stop, Update
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.probe import probe
from actorserve.actors.reply import Reply
from actorserve.actors.supervisor import Supervisor
from actorserve.app_ports import Port, Ports
from actorserve.config_servicer import Servicer
from actorserve.errors import ActorserveError, BadInput, NoSuchApplication, NoSuchModel, StartFailed, WrongState
from actorserve.proto import ray_serve_pb2
from actorserve.services.applications import AppRoutes, Board, Taken, Translate
from actorserve.services.schemas import Schema
from actorserve.services.servicers import ServicerSchema
from actorserve.servicing import Place

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


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe says of an application: its graph, the schemas of its drivers, and the services of which each
    deployment has a method.
    """

    application: Application
    drivers: Mapping[str, ServicerSchema]
    answers: Mapping[str, tuple[str, ...]]


@dataclass(slots=True)
class Running:
    """One application that runs."""

    source: Source
    said: Mapping[str, Any] | None
    application: Application
    answers: Mapping[str, tuple[str, ...]]
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
        on_taken: Callable[[], None] = lambda: None,
    ) -> None:
        """`folder` is what relative paths mean. `grace_s`: how long calls in hand have at an application's end.

        `on_taken` is called when other applications take calls.
        """
        self.board = Board()
        self.places: dict[str, AppPlace] = {}
        self.running: dict[str, Running] = {}
        self.ports = Ports(self.board, directory.find)
        self._schemas: dict[str, Servicer] = {}  # that the ingresses answer, by their labels
        self._wanted: dict[str, config_application.Application] = {}
        self._applied: dict[str, config_application.Application] = {}  # of the file, those that run as it says
        self._applying = trio.Lock()
        self._settings = settings
        self._supervisor = supervisor
        self._directory = directory
        self._folder = folder
        self._grace_s = grace_s
        self._on_taken = on_taken
        self._lock = trio.Lock()
        self._blobs: Path | None = None
        self._versions = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the ports of drivers until cancelled."""
        try:
            await self.ports.run(task_status=task_status)
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

    async def know(self, servicer: Servicer) -> None:
        """Have every ingress answer a schema, too: those that run roll over, those to come begin with it.

        Raises as `deploy` where one cannot; then none is asked to.
        """
        async with self._lock:
            before = dict(self._schemas)
            self._schemas[servicer.label] = servicer
            try:
                for running in list(self.running.values()):
                    wanted = self._with_schemas(running.source)
                    failed = self._failed(running.specs[running.ingress])
                    if not failed and not same_source(running.source, wanted, answers=True):
                        await self._deploy(running.source, running.said)
            except BaseException:
                self._schemas = before
                raise

    def forget(self, label: str) -> None:
        """A schema is not served any more. Replicas that know it go on."""
        self._schemas.pop(label, None)

    def _with_schemas(self, source: Source) -> Source:
        functions = dict.fromkeys(one for servicer in self._schemas.values() for one in servicer.functions)
        folders = dict.fromkeys(
            str((self._folder / one).resolve()) for servicer in self._schemas.values() for one in servicer.path
        )
        return replace(source, functions=tuple(functions), functions_path=tuple(folders))

    def routes_on(self, listener: str, schema: ServicerSchema) -> AppRoutes:
        """What answers a schema's rpcs on a listener: whichever application a call means."""
        where = self.places[listener]
        return AppRoutes(schema, self.board.picking(lenient=where.lenient), where.translate, self.board.settled)

    def models_of(self, service: str) -> list[str]:
        """The models that answer a service's calls: those ingresses that have a method of it."""
        return [
            one.application.model(one.ingress)
            for one in self.running.values()
            if one.source.name in self.board.taken and service in one.answers.get(one.ingress, ())
        ]

    def take_predict(self, listener: str) -> None:
        """Have a listener take the calls of Ray's own schema."""
        place = self.places[listener].place
        place.server.add(self.routes_on(listener, PREDICT_SCHEMA))
        place.schemas.append(PREDICT_SCHEMA.described)
        for service in PREDICT_SCHEMA.services:
            place.follows[service] = lambda service=service: self.models_of(service)  # type: ignore[misc]  # a default

    # --- the applications of the file -------------------------------------------------------------

    async def begin(
        self,
        applications: Mapping[str, config_application.Application],
        loading: Mapping[str, Reply[None]],
    ) -> None:
        """Start those of the file, one after another, and wait until they are READY. `loading`: each one's reply."""
        async with trio.open_nursery() as nursery, self._applying:
            for name, application in applications.items():
                try:
                    running = await self.deploy(source_of(name, application, self._folder))
                except ActorserveError as error:
                    log.error("application not served", application=name, why=str(error))  # noqa: TRY400  # the user's code
                    loading[name].fail(error)
                    continue
                self._applied[name] = application
                nursery.start_soon(self._settle, name, running, loading[name])
            self.board.settled.set()

    async def _settle(self, name: str, running: Running, loading: Reply[None]) -> None:
        try:
            await self.wait_ready(running)
            loading.set(None)
        except ActorserveError as error:
            self._applied.pop(name, None)
            loading.fail(error)

    def want(self, applications: Mapping[str, config_application.Application]) -> None:
        """The file says so now; `apply` does it."""
        self._wanted = dict(applications)

    async def apply(self) -> None:
        """Make those of the file that run those that it wants. Returns when they are, or cannot be.

        One that cannot be is told in the log, and tried again the next time; what it was to change goes on.
        """
        await self.board.settled.wait()
        async with self._applying:
            wanted = self._wanted
            for name in [name for name in self._applied if name not in wanted]:
                del self._applied[name]
                await self._try(name, partial(self.delete, name))
            async with trio.open_nursery() as nursery:
                for name, application in wanted.items():
                    if self._applied.get(name) != application:
                        nursery.start_soon(self._try, name, partial(self._apply_one, name, application))

    async def _apply_one(self, name: str, application: config_application.Application) -> None:
        running = await self.deploy(source_of(name, application, self._folder))
        await self.wait_ready(running)
        self._applied[name] = application

    @staticmethod
    async def _try(name: str, change: Callable[[], Awaitable[None]]) -> None:
        try:
            await change()
        except ActorserveError as error:
            log.error("application not changed", application=name, why=str(error))  # noqa: TRY400  # the user's code

    # --- deploy -----------------------------------------------------------------------------------

    async def deploy(self, source: Source, said: Mapping[str, Any] | None = None) -> Running:
        """Start an application, or change it. Returns once its calls are taken; `wait_ready` waits for its replicas.

        `said`: what the script says of it, for one whose code it has sent. LoadFailed: it cannot be imported. BadInput:
        an option is wrong. StartFailed: a driver's port cannot be had. What ran before then still runs.
        """
        async with self._lock:
            return await self._deploy(source, said)

    async def _deploy(self, source: Source, said: Mapping[str, Any] | None) -> Running:
        source = self._with_schemas(source)
        probed = await self._probed(source, said)
        application = probed.application
        before = self.running.get(source.name)
        if before is not None:
            return await self._change(before, source, said, probed)
        running = Running(source, said, application, probed.answers)
        running.ports = await self.ports.bind(application, probed.drivers)
        self.running[source.name] = running
        try:
            for deployed in application.deployments:
                await self._spawn(running, deployed)
        except BaseException:
            self.ports.release(running.ports)
            running.ports = {}
            with trio.CancelScope(shield=True):
                await self._end(running, 0.0)
            raise
        self.ports.serve(running.ports)
        self._take(running)
        log.info("application served", application=source.name, ingress=running.ingress)
        return running

    async def _probed(self, source: Source, said: Mapping[str, Any] | None) -> Probed:
        names = tuple(str(one["name"]) for one in said["deployments"]) if said else ()
        answer = await probe(probe_spec(source, names), self._settings)
        application = Application.of(source.name, answer.get("application") or said or {})
        drivers = {name: ServicerSchema.of(schema) for name, schema in answer["drivers"].items()}
        return Probed(application, drivers, {name: tuple(found) for name, found in answer["answers"].items()})

    async def _spawn(self, running: Running, deployed: Deployed, before: ModelSpec | None = None) -> None:
        """Start the replicas of a deployment: as many as `before`, which they replace, has now."""
        self._versions += 1
        spec = spec_of(running.source, running.application, deployed, str(self._versions))
        workers = None if before is None else self._alive(before)
        running.ready[deployed.name] = await self._supervisor.carry_out(Spawn(spec, workers=workers))
        running.specs[deployed.name] = spec

    def _alive(self, spec: ModelSpec) -> int | None:
        """How many replicas it has that answer, or will. None: none."""
        states = (State.LOADING, State.READY, State.RESTARTING)
        replicas = [
            one for model in self._supervisor.observe().models if model.spec.key == spec.key for one in model.replicas
        ]
        return sum(one.state in states for one in replicas) or None

    def _take(self, running: Running) -> None:
        name, ingress = running.source.name, running.ingress
        model = running.application.model(ingress)
        self.board.taken[name] = Taken(name, ingress, lambda: self._directory.find(model))
        self._on_taken()

    # --- change -------------------------------------------------------------------------------------

    async def _change(
        self, running: Running, source: Source, said: Mapping[str, Any] | None, probed: Probed
    ) -> Running:
        """Roll over what has changed. A deployment that does not start, or a port that cannot be had, leaves everything
        as it was.
        """
        changed = Running(source, said, probed.application, probed.answers)
        changed.ports = await self.ports.bind(probed.application, probed.drivers, running.ports)
        try:
            begun = await self._begin_changed(running, changed)
        except BaseException:
            self.ports.release(changed.ports)
            raise
        for spec in begun:
            await self._supervisor.carry_out(SetDefault(spec.name, spec.version))
        self.running[source.name] = changed
        self._take(changed)
        self._hand_over_ports(running, changed)
        for name, spec in running.specs.items():
            if name not in changed.specs or changed.specs[name].version != spec.version:
                await self._supervisor.carry_out(Stop(spec.name, spec.version, self._grace_of(running, name)))
        log.info(
            "application changed",
            application=source.name,
            rolled_over=[spec.name for spec in begun],
            in_place=[one.name for name, one in changed.specs.items() if _is_update(running.specs.get(name), one)],
            gone=[one.name for name, one in running.specs.items() if name not in changed.specs],
        )
        return changed

    def _hand_over_ports(self, running: Running, changed: Running) -> None:
        """Serve the new ports, and no longer the old ones; that of a driver that is as it was stays as it is."""
        for name, port in running.ports.items():
            new = changed.ports.get(name)
            if new is None or new.asked != port.asked or changed.specs[name].version != running.specs[name].version:
                self.ports.close(port, self._grace_of(running, name))
            else:
                self.ports.release({name: new})
                changed.ports[name] = port
        self.ports.serve({name: port for name, port in changed.ports.items() if port is not running.ports.get(name)})

    async def _begin_changed(self, running: Running, changed: Running) -> list[ModelSpec]:
        """Start what is new or differs, and wait until it is READY; where one is not, none of it stays."""
        old = {one.name: one for one in running.application.deployments}
        begun: list[ModelSpec] = []
        try:
            for deployed in changed.application.deployments:
                name = deployed.name
                if name in old and self._may_stay(running, old[name], changed, deployed):
                    changed.specs[name], changed.ready[name] = running.specs[name], running.ready[name]
                else:
                    await self._spawn(changed, deployed, running.specs.get(name))
                    begun.append(changed.specs[name])
            await self.wait_ready(changed)
            await self._update_in_place(running, changed)
        except BaseException:
            with trio.CancelScope(shield=True):
                for spec in begun:
                    await self._stop(spec, 0.0)
            raise
        return begun

    def _may_stay(self, running: Running, old: Deployed, changed: Running, new: Deployed) -> bool:
        """Whether a deployment's replicas can go on: their code, and where it comes from, are as they were."""
        answers = new.name == changed.ingress
        if answers and old.name != running.ingress:
            return False
        if not same_source(running.source, changed.source, answers=answers):
            return False
        if running.application.legacy != changed.application.legacy or not same_replicas(old, new):
            return False
        return not self._failed(running.specs[old.name])

    def _failed(self, spec: ModelSpec) -> bool:
        """Whether a deployment has been given up."""
        models = self._supervisor.observe().models
        return any(model.spec.key == spec.key and model.state is State.FAILED for model in models)

    async def _update_in_place(self, running: Running, changed: Running) -> None:
        """What needs no other replicas: how many there are, and their user_config. WrongState: their code refuses."""
        done: list[ModelSpec] = []
        for deployed in changed.application.deployments:
            before = changed.specs[deployed.name]
            if running.specs.get(deployed.name) is not before:
                continue
            wanted = replace(
                spec_of(changed.source, changed.application, deployed, before.version),
                url=before.url,
                environment=before.environment,
                options={**before.options, "user_config": deployed.options.get("user_config")},
            )
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
        self._on_taken()
        for port in running.ports.values():
            port.server.drain()
        for name in reversed(list(running.specs)):
            wait_s = min(grace_s, self._grace_of(running, name))
            await self._stop(running.specs[name], wait_s)
        for port in running.ports.values():
            self.ports.close(port, 0.0)

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


def _is_update(before: ModelSpec | None, now: ModelSpec) -> bool:
    """Whether a deployment was changed without other replicas."""
    return before is not None and before.version == now.version and before != now


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
