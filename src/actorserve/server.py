"""The whole server as one async function: it wires the floors, starts them in order, stops them in reverse.

    listeners open -> forkserver and supervisor run -> models spawn -> ... -> drain
    drain: no new calls (GOAWAY) -> actors drain until the grace ends -> what is left is killed

What must not live here: signals and the command line (__main__.py), the screen (screen.py), policies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import structlog
import trio

from actorserve import config
from actorserve.actors.applying import Applying
from actorserve.actors.directory import Directory
from actorserve.actors.environment import shown
from actorserve.actors.forkservers import Forkservers, ProcessSpawner
from actorserve.actors.messages import ModelSpec, Spawn, State, Tree
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.registrar import Registrar
from actorserve.actors.registry import Registry
from actorserve.actors.registry_rules import Entry, relocate
from actorserve.actors.reply import Reply
from actorserve.actors.sources import Sources
from actorserve.actors.supervisor import Supervisor
from actorserve.actors.thread_worker import SpawnerByIsolation, ThreadSpawner
from actorserve.actors.worker_process import Spawner
from actorserve.apps import AppPlace, Apps
from actorserve.config_listener import Listener, Tls
from actorserve.config_servicer import Servicer
from actorserve.config_types import is_packed, split_address
from actorserve.configured import fetching_of, ledger_here, model_spec, model_specs, unpacking_of
from actorserve.errors import ActorserveError, ConfigError, StartFailed, StateFailed, Unavailable
from actorserve.listening import address_of, check_private, close_all, open_address, remove_file
from actorserve.log import AccessLog, wants_json
from actorserve.reloader import Reloader
from actorserve.reloading import text_of
from actorserve.servicer_specs import expected
from actorserve.services import compat, ray_compat, status
from actorserve.services.access import Access, Finds
from actorserve.services.applications import ApplicationsService, RayService, Translate
from actorserve.services.health import HealthBoard, HealthService
from actorserve.services.inference import InferenceService
from actorserve.services.key_file import Door, KeyFile
from actorserve.services.management import ManagementService
from actorserve.services.reflection import AlphaReflectionService, ReflectionService
from actorserve.services.schemas import Schema, names_of
from actorserve.services.servicers import refusing
from actorserve.services.tokens import read_tokens
from actorserve.services.transport.interceptors import Interceptor
from actorserve.services.transport.server import GrpcServer, Limits
from actorserve.services.transport.tls import Certificates, Files
from actorserve.servicing import Place, Servicing

log = structlog.get_logger("actorserve.server")
LAST_CALLS_S = 2.0


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener that is open: its name, its services, its addresses with the ports in use."""

    name: str
    services: tuple[str, ...]
    addresses: tuple[str, ...]


class Server:
    """One server. `run` serves until `stop()`; `spawner` replaces real workers in tests."""

    def __init__(
        self,
        settings: config.Config,
        *,
        spawner: Spawner | None = None,
        on_change: Callable[[], None] = lambda: None,
        extra_services: Iterable[Any] = (),
    ) -> None:
        ledger = ledger_here()
        self.unpacking = unpacking_of(settings, ledger)
        try:
            specs = model_specs(settings, ledger, self.unpacking)
        except BaseException:
            self.unpacking.close()
            raise
        settings = self.settings = settings.of_models(specs)
        self.specs = tuple(specs.values())
        self.directory = Directory()
        self.spawner = spawner
        if spawner is not None and settings.servicers:
            raise ConfigError("servicers", "their code runs in worker processes, and there are none here")
        if spawner is not None and settings.applications:
            raise ConfigError("applications", "their code runs in worker processes, and there are none here")
        folder = settings.folder
        cache_dir = settings.server.cache_dir.expanduser()
        self.forkservers: Forkservers | None = None
        if spawner is None:
            seen = shown(os.environ, settings.server.hide_env)
            self.forkservers = Forkservers(cache_dir, environment=seen, inherits=settings.server.inherit_env)
            spawner = SpawnerByIsolation(ProcessSpawner(self.forkservers), ThreadSpawner())
        actor_settings = ActorSettings(
            spawner=spawner,
            cache_dir=cache_dir,
            path=(str(folder),),
            gather_limit=max(listener.max_send_bytes for listener in settings.listeners.values()),
            find=lambda name, version: self.apps.find(name, version),  # noqa: PLW0108  # it is made below
        )
        self.supervisor = Supervisor(
            actor_settings,
            self.directory,
            stable_after_s=settings.server.stable_after_s,
            grace_s=settings.server.grace_s,
            on_change=self._changed,
            ledger=ledger,
            on_gone=self._release,
        )
        state_dir = settings.server.state_dir
        self.registry = Registry(None if state_dir is None else folder / state_dir)
        self.fetching = fetching_of(settings)
        store = folder / settings.server.model_store
        self.sources = Sources(store, folder, self.fetching, self.unpacking)
        self.registrar = Registrar(self.registry, self.supervisor, on_refused=self._release, on_kept=self.sources.keep)
        self._begun = False
        self._spawned = trio.Event()
        self._ledger = ledger
        self._reloader: Reloader | None = None
        self._on_change = on_change
        self.health = HealthBoard(self.supervisor.observe, self._expected())
        self.apps = Apps(
            actor_settings,
            self.supervisor,
            self.directory,
            folder=folder,
            grace_s=settings.server.grace_s,
            on_taken=self.health.look_again,
        )
        self.servicing = Servicing(
            actor_settings,
            self.supervisor,
            self.directory,
            answering=self.apps,
            folder=folder,
            grace_s=settings.server.grace_s,
            on_failed=self.health.forget,
        )
        self.access = AccessLog(sys.stderr, as_json=wants_json(settings.log, sys.stderr))
        self.keys: dict[Path, KeyFile] = {}
        further = tuple(extra_services)
        self.grpc = {name: self._grpc(name, listener, further) for name, listener in settings.listeners.items()}
        self.bound: tuple[Bound, ...] = ()
        self.loading: dict[str, Reply[None]] = {}
        self._listeners: dict[str, list[trio.SocketListener]] = {}
        self._stop = trio.Event()

    def _grpc(self, name: str, listener: Listener, further: Sequence[Any]) -> GrpcServer:
        services: list[Any] = []
        as_torchserve = listener.compatibility == "torchserve"
        table = compat if as_torchserve else status
        told: Translate = table.translate
        unknown = None
        if listener.compatibility == "ray":
            told, unknown = ray_compat.translating(listener.request_timeout_s), ray_compat.UNKNOWN
        schemas: list[Schema] = []
        follows: dict[str, Callable[[], Iterable[str]]] = {}
        if "inference" in listener.services:
            services.append(
                InferenceService(
                    self.directory, self.supervisor, in_band=table.status_bytes, as_torchserve=as_torchserve
                )
            )
        if "management" in listener.services:
            server = self.settings.server
            services.append(
                ManagementService(
                    self.directory,
                    self.supervisor,
                    self.registrar,
                    as_torchserve=as_torchserve,
                    sources=self.sources,
                    grace_s=self._unregister_grace_s,
                    model_api=server.model_api,
                    registered_workers=server.registered_workers,
                    defaults=self._defaults_of,
                )
            )
        if "ray" in listener.services:
            services.append(RayService(self.apps.board))
        if "applications" in listener.services:
            services.append(ApplicationsService(self.apps))
        self._add_standard(listener, services, further, schemas, follows)
        limits = Limits(**{field.name: getattr(listener, field.name) for field in fields(Limits)})
        on_end = self.access.add if self.settings.log.access and self.settings.log.level in ("debug", "info") else None
        grpc = GrpcServer(
            [*services, *further],
            limits=limits,
            translate=told,
            on_end=on_end,
            interceptors=self._interceptors(listener),
            certificates=None if listener.tls is None else self._certificates(name, listener.tls),
        )
        place = Place(grpc, schemas, follows, None if unknown is None else refusing(unknown))
        grpc.otherwise(place.unknown)
        if "servicers" in listener.services:
            self.servicing.places[name] = place
        lenient = listener.compatibility == "ray"
        self.apps.places[name] = AppPlace(place, lenient, told)
        if "predict" in listener.services:
            self.apps.take_predict(name)
        return grpc

    @property
    def _unregister_grace_s(self) -> float:
        server = self.settings.server
        return server.grace_s if server.unregister_grace_s is None else server.unregister_grace_s

    def _defaults_of(self, name: str, version: str) -> Mapping[str, Any]:
        """What `model_defaults` says of a model, as it was reloaded last."""
        settings = self.settings if self._reloader is None else self._reloader.settings
        return settings.defaults_of(name, version)

    def _interceptors(self, listener: Listener) -> list[Interceptor]:
        if listener.key_file is not None:
            keys = Door(self._key_file(self.settings.folder / listener.key_file), listener.services)
            return [Access(keys, exempt=listener.auth_exempt)]
        if listener.tokens_file is None:
            return []
        return [Access(self._tokens(listener), exempt=listener.auth_exempt)]

    def _tokens(self, listener: Listener) -> Finds:
        """What a listener's file of tokens says now; ConfigError."""
        assert listener.tokens_file is not None  # noqa: S101  # narrows the type: the caller has looked
        tokens = read_tokens(self.settings.folder / listener.tokens_file)
        return compat.CaseSensitive(tokens) if listener.compatibility == "torchserve" else tokens

    def _key_file(self, path: Path) -> KeyFile:
        """One for all listeners that name it."""
        server = self.settings.server
        expiration_s, overlap_s = server.token_expiration_min * 60, server.token_overlap_min * 60
        made = KeyFile(path, expiration_s=expiration_s, overlap_s=overlap_s)
        return self.keys.setdefault(path.resolve(), made)

    def _certificates(self, name: str, tls: Tls) -> Certificates:
        try:
            return Certificates(self._files(tls))
        except StartFailed as error:
            raise StartFailed(f"listeners.{name}.{error}") from None

    def _files(self, tls: Tls) -> Files:
        folder = self.settings.folder
        client_ca = None if tls.client_ca is None else folder / tls.client_ca
        return Files(folder / tls.certificate, folder / tls.key, client_ca)

    def _add_standard(
        self,
        listener: Listener,
        services: list[Any],
        further: Sequence[Any],
        schemas: list[Schema],
        follows: dict[str, Callable[[], Iterable[str]]],
    ) -> None:
        """Add health and reflection, which speak of all that the listener has, themselves included."""
        names: list[str] = []
        if "health" in listener.services:
            services.append(HealthService(self.health, names, follows))
        if "reflection" in listener.services:
            services += [ReflectionService(schemas), AlphaReflectionService(schemas)]
            schemas += [Schema.of(services), *(Schema.of([one]) for one in further)]
        names += [name for service in (*services, *further) for name in names_of(service)]

    async def _release(self, spec: ModelSpec) -> None:
        """A model is gone. One that goes with the server comes back with the next: its file stays."""
        if self._stop.is_set():
            await self.unpacking.release(spec.model_dir)
            return
        tree = self.observe()
        used = [model.spec.url for model in (*tree.models, *tree.leaving)]
        await self.sources.give_back(spec.url, spec.model_dir, used)

    def _expected(self) -> list[str]:
        """The keys of what starts with the server and has workers."""
        models = (spec.key for spec in self.specs if spec.workers_begun)
        return [*models, *expected(self.settings.servicers)]

    def _changed(self) -> None:
        self.health.refresh()
        self._on_change()

    async def add_servicer(self, servicer: Servicer) -> Reply[None]:
        """Serve one more, while the server runs: see `Servicing.add`, as for the two below."""
        return await self.servicing.add(servicer)

    async def replace_servicer(self, servicer: Servicer) -> Reply[None]:
        """Serve it instead of the one that has its name."""
        return await self.servicing.replace(servicer)

    async def remove_servicer(self, label: str) -> Reply[None]:
        """Serve the one of this name no longer."""
        return await self.servicing.remove(label)

    def stop(self) -> None:
        """Begin the drain. Idempotent."""
        self._stop.set()

    def observe(self) -> Tree:
        """The tree of models and workers now."""
        return self.supervisor.observe()

    # --- the life of the server --------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped, then drain. Started once calls are taken; models load after that.

        `open` before, or only in-memory connections come in. Cancelling kills everything at once.
        """
        try:
            await self._begin()
            await self._run(task_status)
        finally:
            await self.registry.close()
            self.unpacking.close()
            for keys in self.keys.values():
                keys.remove()
            self.fetching.close()
            for bound in self.bound:
                for address in bound.addresses:
                    remove_file(address)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as back:
            back.start_soon(self.access.run)
            self._write_keys()  # where no listener was opened
            for keys in self.keys.values():
                back.start_soon(keys.run)
            if self.forkservers is not None:
                await back.start(self.forkservers.run)
            await back.start(self.supervisor.run)
            await back.start(self.registrar.run)
            async with trio.open_nursery() as front:
                names = [spec.name for spec in self.specs]
                for spec in self.specs:  # before a call can ask for one
                    key = spec.key if names.count(spec.name) > 1 else spec.name
                    self.loading[key] = await self._spawn(spec)
                self._begin_servicers(front)
                await front.start(self.apps.run)
                self._begin_applications(front)
                self._spawned.set()
                for name, opened in self._listeners.items():
                    await front.start(self.grpc[name].serve, opened)
                task_status.started()
                await self._stop.wait()
                await self._drain()
                front.cancel_scope.cancel()
            back.cancel_scope.cancel()

    async def wait_begun(self) -> None:
        """Wait until every model has been told to start: from then on the server can be reloaded."""
        await self._spawned.wait()

    def _begin_servicers(self, nursery: trio.Nursery) -> None:
        """Those of the file; a task in `nursery`."""
        servicers = self.settings.servicers
        if servicers:
            replies: dict[str, Reply[None]] = {servicer.label: Reply() for servicer in servicers}
            self.loading |= replies
            self.servicing.expect()
            nursery.start_soon(self.servicing.begin, servicers, replies)

    def _begin_applications(self, nursery: trio.Nursery) -> None:
        """Those of the file; a task in `nursery`."""
        self.apps.ports.used = {
            split_address(address)[1] for bound in self.bound for address in bound.addresses if ":" in address
        }
        replies: dict[str, Reply[None]] = {name: Reply() for name in self.settings.applications}
        self.loading |= replies
        nursery.start_soon(self._start_applications, replies)

    async def _start_applications(self, replies: dict[str, Reply[None]]) -> None:
        await self.servicing.wait_known()  # so that they begin with what they answer
        await self.apps.begin(self.settings.applications, replies)

    async def reload(self, new: config.Config) -> None:
        """Take up another configuration; returns when it is done. ConfigError, StateFailed: nothing was changed."""
        await self.wait_begun()
        if self._stop.is_set():
            return
        assert self._reloader is not None  # noqa: S101  # narrows the type: _begin has set it
        await self._reloader.reload(new)

    async def _spawn(self, spec: ModelSpec) -> Reply[None]:
        """Have a model start. What is refused is seen where its loading is waited for; there may be many models."""
        try:
            return await self.supervisor.carry_out(Spawn(spec))
        except ActorserveError as error:
            log.warning("model not started", model=spec.key, why=str(error))
            refused: Reply[None] = Reply()
            refused.fail(error)
            return refused

    async def _begin(self) -> None:
        """Take hold of the state, and know what to run. StartFailed. Idempotent."""
        if self._begun:
            return
        self._begun = True
        await self.registry.open()
        entries = {
            entry: Entry(spec, text_of(self.settings, entry, spec.version), self.settings.models[entry].default)
            for entry, spec in zip(self.settings.models, self.specs, strict=True)
        }
        self._reloader = Reloader(
            self.settings,
            entries,
            make_spec=lambda entry, settings: model_spec(entry, settings, self._ledger, self.unpacking),
            read_tokens=self._tokens,
            registry=self.registry,
            applying=Applying(self.registry, self.registrar, self.supervisor, grace_s=self._unregister_grace_s),
            unpacking=self.unpacking,
            servers=self.grpc,
            health=self.health,
            servicing=self.servicing,
            apps=self.apps,
        )
        try:
            found = await self.registrar.begin(entries)
        except StateFailed as error:
            raise StartFailed(f"server.state_dir: {error}") from None
        await self.sources.tidy([spec.url for spec in found], [spec.url for spec in self.registrar.dropped])
        self.specs = tuple([await self._unpacked(spec) for spec in found])
        self.health.expect(self._expected())

    async def _unpacked(self, spec: ModelSpec) -> ModelSpec:
        """A model of the API with its archive unpacked anew. One that is gone or broken is FAILED when it starts."""
        if spec.loaded_at_startup or not is_packed(spec.url):
            return spec
        try:
            source = await self.sources.reopen(spec)
        except ActorserveError as error:
            log.warning("the archive of a registered model cannot be used", model=spec.key, why=str(error))
            return spec
        return relocate(spec, source.path)

    async def _drain(self) -> None:
        grace_s = self.settings.server.grace_s
        log.info("draining", grace_s=grace_s)
        self.health.drain()
        self.apps.drain()
        for server in self.grpc.values():
            server.drain()
        await self.supervisor.drain(grace_s)
        with trio.move_on_after(LAST_CALLS_S):
            while self.apps.open_calls() or any(server.statistics().calls for server in self.grpc.values()):
                await trio.sleep(0.01)
        log.info("drained")

    async def open(self) -> None:
        """Take hold of the state and open every listener, or nothing. StartFailed: one cannot be had."""
        try:
            await self._begin()
            await self._open_listeners()
        except BaseException:
            self.unpacking.close()
            for keys in self.keys.values():
                keys.remove()
            await self.registry.close()
            raise

    async def _open_listeners(self) -> None:
        opened: dict[str, list[trio.SocketListener]] = {}
        bound: list[Bound] = []
        try:
            for name, listener in self.settings.listeners.items():
                opened[name] = []
                for address in listener.addresses:
                    if "applications" in listener.services:
                        check_private(name, address)
                    opened[name] += await open_address(name, address, reuse_port=listener.reuse_port)
                addresses = tuple(address_of(one) for one in opened[name])
                bound.append(Bound(name, listener.services, addresses))
            self._write_keys()  # not before the ports are ours: another server's keys stay as they are
        except BaseException:
            for listeners in opened.values():
                close_all(listeners)
            raise
        self.bound = tuple(bound)
        self._listeners = opened

    def _write_keys(self) -> None:
        """Write the keys of every `key_file`. StartFailed. Idempotent."""
        for keys in self.keys.values():
            keys.begin()

    async def wait_loaded(self) -> list[tuple[str, ActorserveError]]:
        """Wait until every configured model is READY, FAILED or taken away meanwhile; gives the failures."""
        failures: list[tuple[str, ActorserveError]] = []
        for name, reply in self.loading.items():
            try:
                await reply.wait()
            except ActorserveError as error:
                failures.append((name, error))
        names = {one for model in self.observe().models for one in (model.spec.name, model.spec.key)}
        return [(name, error) for name, error in failures if name in names or not isinstance(error, Unavailable)]

    @property
    def servicers(self) -> frozenset[str]:
        """The names of the servicers of the file."""
        return frozenset(servicer.label for servicer in self.settings.servicers)

    @property
    def to_load(self) -> int:
        """How many of the file's models, servicers and applications are loaded when the server starts."""
        return len(self.specs) + len(self.settings.servicers) + len(self.settings.applications)

    def is_serving(self) -> bool:
        """Whether one of what runs is READY or may yet be, or nothing is configured.

        A reload may have taken those of the start away; a servicer that cannot even be imported has no model.
        """
        models = self.observe().models
        if not models:
            settings = self.settings if self._reloader is None else self._reloader.settings
            return not (settings.servicers or settings.applications)
        return any(model.state is not State.FAILED for model in models)
