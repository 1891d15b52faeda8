"""What the configuration's entries come to: specs, devices, and what unpacks and fetches for them.

    [models.ENTRY] + its source + the machine's devices -> ModelSpec

Archives are unpacked on the way, so these block. What must not live here: what runs (server.py), keys (config_*.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from actorserve import config
from actorserve.actors import archives, fetching, model_store
from actorserve.actors.device import Ledger, find_gpus, free_memory
from actorserve.actors.messages import ModelSpec
from actorserve.actors.unpacking import Unpacking
from actorserve.actors.urls import AllowList
from actorserve.errors import ConfigError
from actorserve.reloader import say_left_out
from actorserve.servicer_specs import expected


def ledger_here() -> Ledger:
    """A ledger of this machine's devices, as far as this process may use them."""
    return Ledger(find_gpus(os.environ), free=free_memory, cores=len(os.sched_getaffinity(0)))


def unpacking_of(settings: config.Config, ledger: Ledger) -> Unpacking:
    """Where archives are unpacked, by the configuration. The caller closes it."""
    server = settings.server
    return Unpacking(
        server.cache_dir.expanduser(),
        archives.Limits(
            archive_bytes=server.max_archive_bytes,
            unpacked_bytes=server.max_unpacked_bytes,
            files=server.max_archive_files,
            ratio=server.max_archive_ratio,
        ),
        installs_requirements=server.install_archive_requirements,
        devices=ledger.known,
    )


def fetching_of(settings: config.Config) -> fetching.Fetching:
    """What fetches files from URLs, by the configuration."""
    server = settings.server
    limits = fetching.Limits(
        bytes_=server.max_archive_bytes,
        timeout_s=server.download_timeout_s,
        stall_s=server.download_stall_timeout_s,
        at_once=server.max_downloads,
    )
    return fetching.Fetching(settings.folder / server.model_store, AllowList(server.allowed_urls), limits)


def model_spec(entry: str, settings: config.Config, ledger: Ledger, unpacking: Unpacking) -> ModelSpec:
    """What an entry comes to; ConfigError names its key. Threads are not settled. Blocks, as `model_specs`."""
    try:
        spec = model_store.of_config(
            settings.name_of(entry),
            settings.models[entry],
            folder=settings.folder,
            unpacking=unpacking,
            defaults=settings.defaults_of,
            store=settings.folder / settings.server.model_store,
        )
    except ConfigError as error:
        raise ConfigError(".".join(filter(None, ("models", entry, error.key))), error.text) from None
    try:
        ledger.resolve(spec.devices)
    except ConfigError as error:
        unpacking.remove(spec.model_dir)
        raise ConfigError(f"models.{entry}.{error.key}", error.text) from None
    return spec


def model_specs(
    settings: config.Config,
    ledger: Ledger,
    unpacking: Unpacking,
    on_left_out: Callable[[str, ConfigError], None] = lambda _, error: say_left_out(error),
) -> dict[str, ModelSpec]:
    """What to run, an entry of the file each; ConfigError names the entry whose source, device or key is wrong.

    One that is wrong and `optional` is left out; `on_left_out` has its entry and why. Archives are unpacked: this may
    block for long, before anything is served.
    """
    specs: dict[str, ModelSpec] = {}
    for entry in settings.models:
        try:
            specs[entry] = model_spec(entry, settings, ledger, unpacking)
            config.check_distinct({key: (spec.name, spec.version) for key, spec in specs.items()})
        except ConfigError as error:
            if entry not in settings.optional:
                raise
            on_left_out(entry, error)
            if (known := specs.pop(entry, None)) is not None:
                unpacking.remove(known.model_dir)
    return {
        entry: ledger.settle_threads(spec, (other for other in specs.values() if other is not spec))
        for entry, spec in specs.items()
    }


def expected_keys(specs: Iterable[ModelSpec], settings: config.Config) -> list[str]:
    """The keys of what starts with the server and has workers: models, and the servicers of the file."""
    return [*(spec.key for spec in specs if spec.workers_begun), *expected(settings.servicers)]
