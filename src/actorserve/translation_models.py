"""The `[model_defaults]` and `[models]` of a config.properties: its JSON of versions, its snapshot, its store. Purely.

What must not live here: which archives there are (torchserve_store.py), other tables (translation.py), reading files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actorserve.config_defaults import MOST_WORKERS
from actorserve.config_types import is_name
from actorserve.errors import ConfigError
from actorserve.properties import Values, wrong
from actorserve.translation_machine import MOST, Machine

VERSION_KEYS = {
    "batchSize": ("batch_size", 65_536),
    "maxBatchDelay": ("max_batch_delay_ms", 600_000),
    "responseTimeout": ("response_timeout_s", MOST),
    "startupTimeout": ("startup_timeout_s", MOST),
    "jobQueueSize": ("queue_size", 1_000_000),
}


@dataclass(frozen=True, slots=True)
class Archive:
    """A model of the store that is to be loaded: where it is, its name and its version, as given or as it says."""

    path: Path
    name: str
    version: str


def model_defaults(values: Values, machine: Machine) -> dict[str, Any]:
    """What holds for every model, and for those whose versions the JSON and the snapshot tell. ConfigError."""
    gpus = values.number("number_of_gpu", least=0, most=MOST)
    shown = machine.gpus if gpus is None else min(gpus, machine.gpus)
    every: dict[str, Any] = {"workers": {"min": _workers(values, shown, machine.cores)}, "threads": "auto"}
    if shown < machine.gpus:
        every["device"] = [f"cuda:{index}" for index in range(shown)] if shown else "cpu"
    for key, ours, most in (
        ("job_queue_size", "queue_size", 1_000_000),
        ("default_response_timeout", "response_timeout_s", MOST),
        ("default_startup_timeout", "startup_timeout_s", MOST),
    ):
        number = values.number(key, least=1, most=most)
        if number is not None:
            every[ours] = number
    if values.text("default_service_handler"):
        every["handler"] = values["default_service_handler"]
    envelope = values.text("service_envelope").lower()
    if envelope not in ("", "body", "json", "kserve", "kservev2"):
        raise wrong("service_envelope", envelope, "body, json, kserve or kservev2")
    if envelope:
        every["envelope"] = envelope
    if not values.flag("limit_max_image_pixels", default=True):
        every["limit_max_image_pixels"] = False
    tables = {"*": every}
    for key, found in (("models", values.versions("models")), ("model_snapshot", snapshot(values))):
        for (name, version), given in found.items():
            tables[f"{name}/{version}"] = _version(key, name, version, given)
    return tables


def _workers(values: Values, gpus: int, cores: int) -> int:
    """Workers of a model that is loaded at the start, where nothing says how many."""
    if values.flag("debug"):
        return 1
    given = values.number("default_workers_per_model", least=0, most=MOST_WORKERS)
    return min(given or gpus or cores, MOST_WORKERS)


def _version(key: str, name: str, version: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """One version's settings. Values of 0 and less count as not given, as in TorchServe."""
    if not is_name(name) or not is_name(version):
        raise ConfigError(key, f"{name}/{version} is no name and version of a model")
    table: dict[str, Any] = {}
    for theirs, (ours, most) in VERSION_KEYS.items():
        number = _positive(key, f"{name}/{version}.{theirs}", given.get(theirs), most)
        if number:
            table[ours] = number
    least, top = (
        _positive(key, f"{name}/{version}.{theirs}", given.get(theirs), MOST_WORKERS)
        for theirs in ("minWorkers", "maxWorkers")
    )
    if least and top and top < least:
        raise ConfigError(key, f"{name}/{version}: maxWorkers = {top} is less than minWorkers = {least}")
    if least or top:
        table["workers"] = {"min": least or 1} | ({"max": top} if top else {})
    return table


def _positive(key: str, where: str, value: Any, most: int) -> int:
    if value is None:
        return 0
    if type(value) is not int or value > most:
        raise ConfigError(key, f"{where} = {value!r:.40} is wrong: it must be a whole number, at most {most}")
    return max(value, 0)


def snapshot(values: Values) -> dict[tuple[str, str], dict[str, Any]]:
    """The snapshot's settings by (name, version), what it calls a default first. ConfigError."""
    found = values.versions("model_snapshot", within="models")
    for (name, version), given in found.items():
        if not given.get("marName") or not isinstance(given["marName"], str):
            raise ConfigError("model_snapshot", f"{name}/{version} has no marName")
    return dict(sorted(found.items(), key=lambda one: one[1].get("defaultVersion") is not True))


def default_versions(values: Values) -> dict[str, str]:
    """The versions that the JSON calls the default, by model; a snapshot's word counts more."""
    found = (*values.versions("models").items(), *snapshot(values).items())
    return {name: version for (name, version), given in found if given.get("defaultVersion") is True}


def models_of(archives: Sequence[Archive], notes: list[str], defaults: Mapping[str, str]) -> dict[str, Any]:
    """A table for each version; the first of a model is its default, as in TorchServe, unless `defaults` has another.

    The first one's table is called like the model. What is in an archive says the version; one that is there twice is
    left out, and the notes name it.
    """
    tables: dict[str, Any] = {}
    firsts: dict[tuple[str, str], Archive] = {}
    names = [archive.name for archive in archives]
    for archive in archives:
        first = firsts.setdefault((archive.name, archive.version), archive)
        if first is not archive:
            both = f"{archive.name} version {archive.version}"
            notes.append(f"load_models: {archive.path} is not loaded, since {first.path} is {both} too")
            continue
        key, table = archive.name, {"source": str(archive.path)}
        if key in tables:
            key = _free(f"{archive.name}-{archive.version}", {*names, *tables})
            table["name"] = archive.name
        several = any(one.name == archive.name and one.version != archive.version for one in archives)
        says = {"default": True} if several and defaults.get(archive.name) == archive.version else {}
        tables[key] = {**table, **says}
    return tables


def _free(key: str, taken: Collection[str]) -> str:
    while key in taken:
        key += "_"
    return key
