"""What a server is made of, by its configuration: every part is made and joined to the others, and none runs yet.

What must not live here: what a listener serves (listener_services.py), in which order parts start and end (server.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from actorserve import config
from actorserve.actors.device import Ledger
from actorserve.actors.directory import Directory
from actorserve.actors.environment import shown
from actorserve.actors.fetching import Fetching
from actorserve.actors.forkservers import Forkservers, ProcessSpawner
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ModelSpec
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.registrar import Registrar
from actorserve.actors.registry import Registry
from actorserve.actors.sources import Sources
from actorserve.actors.supervisor import Supervisor
from actorserve.actors.thread_worker import SpawnerByIsolation, ThreadSpawner
from actorserve.actors.unpacking import Unpacking
from actorserve.actors.worker_process import Spawner
from actorserve.admission import Admission
from actorserve.apps import Apps
from actorserve.configured import expected_keys, fetching_of, ledger_here, model_specs, unpacking_of
from actorserve.errors import ConfigError
from actorserve.file_apps import FileApps
from actorserve.file_servicers import FileServicers
from actorserve.log import AccessLog, wants_json
from actorserve.sent_apps import SentApps
from actorserve.services.health import HealthBoard
from actorserve.servicing import Servicing


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the parts ask of the server; not before it is made.

    `changed`: the tree has. `release`: a model is gone. `find`: the mailbox that a worker's call means; NoSuchModel.
    """

    changed: Callable[[], None]
    release: Callable[[ModelSpec], Awaitable[None]]
    find: Callable[[str, str], Mailbox]


@dataclass(frozen=True, slots=True)
class Parts:
    """See the module's docstring.

    `settings` and `specs`: those of the file, as they were at the start. `forkservers`: None where nothing is forked.
    """

    settings: config.Config
    specs: tuple[ModelSpec, ...]
    ledger: Ledger
    unpacking: Unpacking
    directory: Directory
    forkservers: Forkservers | None
    supervisor: Supervisor
    registry: Registry
    fetching: Fetching
    sources: Sources
    registrar: Registrar
    health: HealthBoard
    apps: Apps
    file_apps: FileApps
    sent_apps: SentApps
    servicing: Servicing
    file_servicers: FileServicers
    access: AccessLog
    admission: Admission

    @property
    def unregister_grace_s(self) -> float:
        """How long calls in hand have where a model is unregistered."""
        server = self.settings.server
        return server.grace_s if server.unregister_grace_s is None else server.unregister_grace_s


def _check_spawner(settings: config.Config, spawner: Spawner | None) -> None:
    """ConfigError where code is configured that a test's `spawner` cannot run."""
    for key in ("servicers", "applications"):
        if spawner is not None and getattr(settings, key):
            raise ConfigError(key, "their code runs in worker processes, and there are none here")


def make_parts(settings: config.Config, spawner: Spawner | None, hooks: Hooks) -> Parts:
    """Make them. `spawner` replaces real workers. ConfigError names the key that is wrong. Blocks, as `model_specs`."""
    ledger = ledger_here()
    unpacking = unpacking_of(settings, ledger)
    try:
        specs = model_specs(settings, ledger, unpacking)
    except BaseException:
        unpacking.close()
        raise
    settings = settings.of_models(specs)
    _check_spawner(settings, spawner)
    return _joined(settings, spawner, hooks, specs=tuple(specs.values()), ledger=ledger, unpacking=unpacking)


def _joined(
    settings: config.Config,
    spawner: Spawner | None,
    hooks: Hooks,
    *,
    specs: tuple[ModelSpec, ...],
    ledger: Ledger,
    unpacking: Unpacking,
) -> Parts:
    folder, server = settings.folder, settings.server
    forkservers, spawner = _workers(server, spawner)
    actors = _actor_settings(settings, spawner, hooks)
    directory = Directory()
    supervisor = _supervisor(server, actors, directory, hooks, ledger)
    registry = Registry(None if server.state_dir is None else folder / server.state_dir)
    fetching = fetching_of(settings)
    sources = Sources(folder / server.model_store, folder, fetching, unpacking)
    health = HealthBoard(supervisor.observe, expected_keys(specs, settings))
    apps = Apps(actors, supervisor, directory, folder=folder, grace_s=server.grace_s, on_taken=health.look_again)
    servicing = Servicing(actors, supervisor, directory, answering=apps, folder=folder, grace_s=server.grace_s)
    return Parts(
        settings=settings,
        specs=specs,
        ledger=ledger,
        unpacking=unpacking,
        directory=directory,
        forkservers=forkservers,
        supervisor=supervisor,
        registry=registry,
        fetching=fetching,
        sources=sources,
        registrar=Registrar(registry, supervisor, on_refused=hooks.release, on_kept=sources.keep),
        health=health,
        apps=apps,
        file_apps=FileApps(apps, folder),
        sent_apps=SentApps(apps, supervisor),
        servicing=servicing,
        file_servicers=FileServicers(servicing, on_failed=health.forget),
        access=AccessLog(sys.stderr, as_json=wants_json(settings.log, sys.stderr)),
        admission=Admission(folder, server),
    )


def _workers(server: config.Server, spawner: Spawner | None) -> tuple[Forkservers | None, Spawner]:
    """What makes workers: processes and threads, or what a test has instead."""
    if spawner is not None:
        return None, spawner
    environment = shown(os.environ, server.hide_env)
    forkservers = Forkservers(server.cache_dir.expanduser(), environment=environment, inherits=server.inherit_env)
    return forkservers, SpawnerByIsolation(ProcessSpawner(forkservers), ThreadSpawner())


def _actor_settings(settings: config.Config, spawner: Spawner, hooks: Hooks) -> ActorSettings:
    return ActorSettings(
        spawner=spawner,
        cache_dir=settings.server.cache_dir.expanduser(),
        path=(str(settings.folder),),
        gather_limit=max(listener.max_send_bytes for listener in settings.listeners.values()),
        find=hooks.find,
    )


def _supervisor(
    server: config.Server, actors: ActorSettings, directory: Directory, hooks: Hooks, ledger: Ledger
) -> Supervisor:
    return Supervisor(
        actors,
        directory,
        stable_after_s=server.stable_after_s,
        grace_s=server.grace_s,
        on_change=hooks.changed,
        ledger=ledger,
        on_gone=hooks.release,
    )
