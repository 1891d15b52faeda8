"""The applications of a server: started, changed and ended while it runs.

    deploy: probe (what is it? what are its schemas?) -> ports of drivers -> replicas of every deployment start -> calls
    deploy again: deployments that have changed start as a further version, take over once READY, and the old ones drain
    delete: calls are taken no longer -> calls in hand end -> replicas drain, the ingress first

All that changes what runs is here, behind one lock: for the file (file_apps.py) and for scripts (sent_apps.py).
What must not live here: the user's code, which application a call means (services/applications.py), how replicas start
and end (app_replicas.py), where calls come in (app_places.py, app_ports.py), who may serve which schema (servicing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
import trio

from actorserve.actors.applications import Application, Source, probe_spec, same_source
from actorserve.actors.directory import Directory
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ModelSpec
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.probe import probe
from actorserve.actors.supervisor import Supervisor
from actorserve.app_places import AppPlaces
from actorserve.app_ports import Ports
from actorserve.app_replicas import Replicas
from actorserve.app_running import Probed, Running, is_update, with_schemas
from actorserve.config_servicer import Servicer
from actorserve.errors import NoSuchApplication
from actorserve.services.applications import AppRoutes, Board, Taken
from actorserve.services.servicers import ServicerSchema

log = structlog.get_logger("actorserve.applications")


class Apps:
    """See the module's docstring. `places`: the listeners that take calls for applications."""

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
        self.running: dict[str, Running] = {}
        self.places = AppPlaces(self.board, self.running)
        self.ports = Ports(self.board, directory.find)
        self._replicas = Replicas(supervisor)
        self._schemas: dict[str, Servicer] = {}  # that the ingresses answer, by their labels
        self._settings = settings
        self._directory = directory
        self._folder = folder
        self._grace_s = grace_s
        self._on_taken = on_taken
        self._lock = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the ports of drivers until cancelled."""
        await self.ports.run(task_status=task_status)

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
                    failed = self._replicas.failed(running.specs[running.ingress])
                    if not failed and not same_source(running.source, wanted, answers=True):
                        await self._deploy(running.source, running.said)
            except BaseException:
                self._schemas = before
                raise

    def forget(self, label: str) -> None:
        """A schema is not served any more. Replicas that know it go on."""
        self._schemas.pop(label, None)

    def _with_schemas(self, source: Source) -> Source:
        return with_schemas(source, self._schemas.values(), self._folder)

    def routes_on(self, listener: str, schema: ServicerSchema) -> AppRoutes:
        """What answers a schema's rpcs on a listener: whichever application a call means."""
        return self.places.routes_on(listener, schema)

    def models_of(self, service: str) -> list[str]:
        """The models that answer a service's calls."""
        return self.places.models_of(service)

    # --- deploy -----------------------------------------------------------------------------------

    async def deploy(self, source: Source, said: Mapping[str, Any] | None = None) -> Running:
        """Start an application, or change it. Returns once its calls are taken; its `wait_ready` waits for replicas.

        `said`: what the script says of it, for one whose code it has sent. LoadFailed: it cannot be imported. BadInput:
        an option is wrong. StartFailed: a driver's port cannot be had. What ran before then still runs.
        """
        async with self._lock:
            return await self._deploy(source, said)

    async def _deploy(self, source: Source, said: Mapping[str, Any] | None) -> Running:
        source = self._with_schemas(source)
        probed = await self._probed(source, said)
        wanted = Running(source, said, probed.application, probed.answers)
        before = self.running.get(source.name)
        if before is None:
            await self._start(wanted, probed.drivers)
        else:
            await self._change(before, wanted, probed.drivers)
        return wanted

    async def _probed(self, source: Source, said: Mapping[str, Any] | None) -> Probed:
        names = tuple(str(one["name"]) for one in said["deployments"]) if said else ()
        answer = await probe(probe_spec(source, names), self._settings)
        application = Application.of(source.name, answer.get("application") or said or {})
        drivers = {name: ServicerSchema.of(schema) for name, schema in answer["drivers"].items()}
        return Probed(application, drivers, {name: tuple(found) for name, found in answer["answers"].items()})

    async def _start(self, running: Running, drivers: Mapping[str, ServicerSchema]) -> None:
        running.ports = await self.ports.bind(running.application, drivers)
        self.running[running.source.name] = running
        try:
            for deployed in running.application.deployments:
                await self._replicas.spawn(running, deployed)
        except BaseException:
            self.ports.release(running.ports)
            running.ports = {}
            with trio.CancelScope(shield=True):
                await self._end(running, 0.0)
            raise
        self.ports.serve(running.ports)
        self._take(running)
        log.info("application served", application=running.source.name, ingress=running.ingress)

    def _take(self, running: Running) -> None:
        name, ingress = running.source.name, running.ingress
        model = running.application.model(ingress)
        self.board.taken[name] = Taken(name, ingress, lambda: self._directory.find(model))
        self._on_taken()

    # --- change -------------------------------------------------------------------------------------

    async def _change(self, running: Running, changed: Running, drivers: Mapping[str, ServicerSchema]) -> None:
        """Roll over what has changed. A deployment that does not start, or a port that cannot be had, leaves everything
        as it was.
        """
        changed.ports = await self.ports.bind(changed.application, drivers, running.ports)
        try:
            begun = await self._replicas.begin_changed(running, changed)
        except BaseException:
            self.ports.release(changed.ports)
            raise
        await self._replicas.take_over(begun)
        self.running[changed.source.name] = changed
        self._take(changed)
        self._hand_over_ports(running, changed)
        await self._replicas.stop_replaced(running, changed)
        _say_changed(running, changed, begun)

    def _hand_over_ports(self, running: Running, changed: Running) -> None:
        """Serve the new ports, and no longer the old ones; that of a driver that is as it was stays as it is."""
        for name, port in running.ports.items():
            new = changed.ports.get(name)
            if new is None or new.asked != port.asked or changed.specs[name].version != running.specs[name].version:
                self.ports.close(port, running.grace_of(name))
            else:
                self.ports.release({name: new})
                changed.ports[name] = port
        self.ports.serve({name: port for name, port in changed.ports.items() if port is not running.ports.get(name)})

    # --- delete -------------------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        """End an application; returns when it is gone. NoSuchApplication."""
        async with self._lock:
            await self._end(self._found(name), self._grace_s)
            log.info("application gone", application=name)

    async def _end(self, running: Running, grace_s: float) -> None:
        """The ingress first: what it still has to do needs the others."""
        self.board.taken.pop(running.source.name, None)
        self.running.pop(running.source.name, None)
        self._on_taken()
        for port in running.ports.values():
            port.server.drain()
        for name in reversed(list(running.specs)):
            await self._replicas.stop(running.specs[name], min(grace_s, running.grace_of(name)))
        for port in running.ports.values():
            self.ports.close(port, 0.0)

    # --- who is who ---------------------------------------------------------------------------------

    def _found(self, name: str) -> Running:
        running = self.running.get(name)
        if running is None:
            raise NoSuchApplication(name, sorted(self.running))
        return running

    def mailbox_of(self, application: str, deployment: str) -> Mailbox:
        """The mailbox of a deployment; empty: of the ingress. NoSuchApplication, NoSuchModel."""
        running = self._found(application)
        return self._directory.find(running.application.model(deployment or running.ingress))

    def find(self, name: str, version: str = "") -> Mailbox:
        """The mailbox that a worker's call means: "app:" is the ingress of an application. NoSuchModel."""
        application, colon, deployment = name.partition(":")
        if colon and not deployment and application in self.running:
            name = f"{name}{self.running[application].ingress}"
        return self._directory.find(name, version)


def _say_changed(running: Running, changed: Running, begun: list[ModelSpec]) -> None:
    before = running.specs
    log.info(
        "application changed",
        application=changed.source.name,
        rolled_over=[spec.name for spec in begun],
        in_place=[one.name for name, one in changed.specs.items() if is_update(before.get(name), one)],
        gone=[one.name for name, one in before.items() if name not in changed.specs],
    )
