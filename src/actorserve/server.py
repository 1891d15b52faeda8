"""The whole server as one async function: its parts start in order, and stop in reverse.

    listeners open -> forkserver and supervisor run -> models spawn -> ... -> drain
    drain: no new calls (GOAWAY) -> actors drain until the grace ends -> what is left is killed

What must not live here: what the parts are (parts.py), what a listener serves (listener_services.py), what starts with
the server (starting.py); signals and the command line (__main__.py), the screen (screen.py), policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
import trio

from actorserve import config
from actorserve.actors.applying import Applying
from actorserve.actors.messages import ModelSpec, State, Tree
from actorserve.actors.registry_rules import Entry
from actorserve.actors.reply import Reply
from actorserve.actors.worker_process import Spawner
from actorserve.config_servicer import Servicer
from actorserve.config_types import split_address
from actorserve.configured import expected_keys, model_spec
from actorserve.errors import ActorserveError
from actorserve.listener_services import serve_on
from actorserve.listening import Bound, Opened, bound_of, close_opened, open_all, remove_file
from actorserve.parts import Hooks, make_parts
from actorserve.reloader import Reloader
from actorserve.starting import Starting, entries_of, to_run

log = structlog.get_logger("actorserve.server")
LAST_CALLS_S = 2.0


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
        hooks = Hooks(
            changed=self._changed,
            release=self._release,
            find=lambda name, version: self.apps.find(name, version),  # noqa: PLW0108  # it is made below
        )
        self._parts = parts = make_parts(settings, spawner, hooks)
        self.settings, self.specs, self.spawner = parts.settings, parts.specs, spawner
        self.unpacking, self.registry, self.registrar = parts.unpacking, parts.registry, parts.registrar
        self.directory, self.supervisor, self.forkservers = parts.directory, parts.supervisor, parts.forkservers
        self.health, self.apps, self.servicing = parts.health, parts.apps, parts.servicing
        self._on_change = on_change
        self._reloader: Reloader | None = None
        further = tuple(extra_services)
        self.grpc = {
            name: serve_on(name, listener, parts, further=further, defaults=self._defaults_of)
            for name, listener in self.settings.listeners.items()
        }
        self._starting = Starting(parts)
        self.loading = self._starting.loading
        self.bound: tuple[Bound, ...] = ()
        self._listeners: Opened = {}
        self._begun = False
        self._spawned = trio.Event()
        self._stop = trio.Event()

    # --- what the parts ask ------------------------------------------------------------------------

    @property
    def _running(self) -> config.Config:
        """The configuration as it was reloaded last."""
        return self.settings if self._reloader is None else self._reloader.settings

    def _defaults_of(self, name: str, version: str) -> Mapping[str, Any]:
        """What `model_defaults` says of a model."""
        return self._running.defaults_of(name, version)

    def _changed(self) -> None:
        self.health.refresh()
        self._on_change()

    async def _release(self, spec: ModelSpec) -> None:
        """A model is gone. One that goes with the server comes back with the next: its file stays."""
        if self._stop.is_set():
            await self.unpacking.release(spec.model_dir)
            return
        tree = self.observe()
        used = [model.spec.url for model in (*tree.models, *tree.leaving)]
        await self._parts.sources.give_back(spec.url, spec.model_dir, used)

    # --- the life of the server --------------------------------------------------------------------

    async def open(self) -> None:
        """Take hold of the state and open every listener, or nothing. StartFailed: one cannot be had."""
        try:
            await self._begin()
            await self._open_listeners()
        except BaseException:
            self.unpacking.close()
            self._parts.admission.end()
            await self.registry.close()
            raise

    async def _open_listeners(self) -> None:
        listeners = self.settings.listeners
        opened = await open_all(listeners)
        try:
            self._parts.admission.begin()  # not before the ports are ours: another server's keys stay as they are
        except BaseException:
            close_opened(opened)
            raise
        self.bound = bound_of(listeners, opened)
        self._listeners = opened

    async def _begin(self) -> None:
        """Take hold of the state, and know what to run. StartFailed. Idempotent."""
        if self._begun:
            return
        self._begun = True
        await self.registry.open()
        entries = entries_of(self.settings, self.specs)
        self._reloader = self._make_reloader(entries)
        self.specs = await to_run(self._parts, entries)
        self.health.expect(expected_keys(self.specs, self.settings))

    def _make_reloader(self, entries: Mapping[str, Entry]) -> Reloader:
        parts = self._parts
        return Reloader(
            self.settings,
            entries,
            make_spec=lambda entry, settings: model_spec(entry, settings, parts.ledger, self.unpacking),
            read_tokens=parts.admission.tokens,
            registry=self.registry,
            applying=Applying(self.registry, self.registrar, self.supervisor, grace_s=parts.unregister_grace_s),
            unpacking=self.unpacking,
            servers=self.grpc,
            health=self.health,
            servicers=parts.file_servicers,
            applications=parts.file_apps,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped, then drain. Started once calls are taken; models load after that.

        `open` before, or only in-memory connections come in. Cancelling kills everything at once.
        """
        try:
            await self._begin()
            await self._run(task_status)
        finally:
            self._parts.sent_apps.close()
            await self.registry.close()
            self.unpacking.close()
            self._parts.admission.end()
            self._parts.fetching.close()
            for bound in self.bound:
                for address in bound.addresses:
                    remove_file(address)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as back:
            back.start_soon(self._parts.access.run)
            self._parts.admission.begin()  # where no listener was opened
            back.start_soon(self._parts.admission.run)
            if self.forkservers is not None:
                await back.start(self.forkservers.run)
            await back.start(self.supervisor.run)
            await back.start(self.registrar.run)
            async with trio.open_nursery() as front:
                await self._starting.begin(self.specs, front, self._ports())  # before a call can ask for a model
                self._spawned.set()
                for name, opened in self._listeners.items():
                    await front.start(self.grpc[name].serve, opened)
                task_status.started()
                await self._stop.wait()
                await self._drain()
                front.cancel_scope.cancel()
            back.cancel_scope.cancel()

    def _ports(self) -> set[int]:
        """Those that the listeners have."""
        addresses = (address for bound in self.bound for address in bound.addresses)
        return {split_address(address)[1] for address in addresses if ":" in address}

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

    def stop(self) -> None:
        """Begin the drain. Idempotent."""
        self._stop.set()

    # --- while it runs -----------------------------------------------------------------------------

    async def wait_begun(self) -> None:
        """Wait until every model has been told to start: from then on the server can be reloaded."""
        await self._spawned.wait()

    async def wait_loaded(self) -> list[tuple[str, ActorserveError]]:
        """Wait until every configured model is READY, FAILED or taken away meanwhile; gives the failures."""
        return await self._starting.wait_loaded()

    async def reload(self, new: config.Config) -> None:
        """Take up another configuration; returns when it is done. ConfigError, StateFailed: nothing was changed."""
        await self.wait_begun()
        if self._stop.is_set():
            return
        assert self._reloader is not None  # noqa: S101  # narrows the type: _begin has set it
        await self._reloader.reload(new)

    async def add_servicer(self, servicer: Servicer) -> Reply[None]:
        """Serve one more, while the server runs: see `Servicing.add`, as for the two below."""
        return await self.servicing.add(servicer)

    async def replace_servicer(self, servicer: Servicer) -> Reply[None]:
        """Serve it instead of the one that has its name."""
        return await self.servicing.replace(servicer)

    async def remove_servicer(self, label: str) -> Reply[None]:
        """Serve the one of this name no longer."""
        return await self.servicing.remove(label)

    def observe(self) -> Tree:
        """The tree of models and workers now."""
        return self.supervisor.observe()

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
            return not (self._running.servicers or self._running.applications)
        return any(model.state is not State.FAILED for model in models)
