"""What a config.properties comes to: the content of a config.toml, with what is to be said about it. Purely.

TorchServe's defaults hold: both listeners answer as it does, tokens are on, RegisterModel is off, workers see the
environment. Three things differ for safety or speed: `allowed_urls` is empty unless it is given, weights and archives
are checked as everywhere here, and CPU workers share the cores out. docs/torchserve-configuration.md has the table.
What must not live here: reading files, kinds of values (properties.py), the model store (torchserve_store.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actorserve.config_types import is_loopback, is_name
from actorserve.errors import ConfigError
from actorserve.properties import Flags, Values, nearest, wrong
from actorserve.properties_keys import FLAGS_WITHOUT_EFFECT, KNOWN, TRANSLATED, WITHOUT_EFFECT

STATE = "state"
KEY_FILE = "key_file.json"
MOST_BYTES = 1 << 30
MOST_WORKERS = 1024
MOST_S = 86_400
MOST = 2**31 - 1
"""Java's largest int: what stands for "no limit" in such files."""
NO_MODELS = ("", "none", "n/a", "standalone")
EVERY = "all"
LISTENERS: dict[str, tuple[list[str], int]] = {
    "inference": (["inference", "health", "reflection"], 7070),
    "management": (["management"], 7071),
}
"""The services of each, and TorchServe's port."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a translation needs to know: the working folder, which relative paths are below, and what computes."""

    folder: Path
    gpus: int
    cores: int


@dataclass(frozen=True, slots=True)
class Archive:
    """A model of the store that is to be loaded: where it is, its name and its version, as given or as it says."""

    path: Path
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Translation:
    """`content` is a config.toml's. `ignored`: keys and flags without effect, and why; `notes`: what else to say.

    `optional`: keys of models that are there because all that is in the store is to be loaded. `near`: what a key that
    TorchServe does not know is like.
    """

    content: dict[str, Any]
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    near: Mapping[str, str] = field(default_factory=dict)

    def ignored_in_words(self) -> tuple[str, ...]:
        """Keys and flags without effect, each with the name that may have been meant."""
        return tuple(f"{key} (did you mean {self.near[key]}?)" if key in self.near else key for key in self.ignored)


def store_of(values: Values, machine: Machine) -> Path:
    """The model store's folder. ConfigError."""
    store = values.text("model_store")
    if not store:
        raise ConfigError("model_store", "is missing: name the folder of the archives, here or with --model-store")
    return _path(values, "model_store", machine)


def _path(values: Values, key: str, machine: Machine) -> Path:
    """A key's path: below the working folder, with the home folder for "~". ConfigError."""
    try:
        return machine.folder / Path(values[key]).expanduser()
    except RuntimeError as error:
        raise wrong(key, values[key], f"a path: {error}") from None


def to_load(values: Values) -> list[tuple[str, str]]:
    """What is loaded at the start, as (name, file); a name is "" where the archive says it. [("", "all")]: everything.

    ConfigError.
    """
    if values.text("model_snapshot"):
        return [(name, str(given.get("marName", ""))) for (name, _), given in _snapshot(values).items()]
    value = values.text("load_models")
    if value.lower() in NO_MODELS:
        return []
    if value.lower() == EVERY:
        return [("", EVERY)]
    found = []
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, separator, file = part.partition("=")
        name, file = (name.strip(), file.strip()) if separator else ("", part)
        if not file or (separator and not is_name(name)):
            raise wrong("load_models", part, '"all", or like "a.mar,name=b.mar"')
        if "://" in file:
            raise ConfigError("load_models", f"{file} is a URL: put the archive into the model store, or register it")
        found.append((name, file))
    return found


def translate(values: Values, flags: Flags, machine: Machine, archives: Sequence[Archive]) -> Translation:
    """The configuration that these values mean. ConfigError names TorchServe's key that is wrong."""
    notes: list[str] = []
    content = {
        "server": _server(values, flags, machine),
        "listeners": {name: _listener(values, machine, name, notes) for name in LISTENERS},
        "model_defaults": _defaults(values, machine),
        "models": models_of(archives, notes, _default_versions(values)),
    }
    ignored = {key: why for key, why in WITHOUT_EFFECT.items() if key in values}
    ignored |= {key: "TorchServe does not know it either" for key in values if key not in TRANSLATED | ignored.keys()}
    ignored |= {flag: FLAGS_WITHOUT_EFFECT[flag] for flag in flags.further}
    ignored |= _useless_tls(values)
    near = {key: known for key in values if key not in KNOWN and (known := nearest(key))}
    return Translation({key: table for key, table in content.items() if table}, ignored, tuple(notes), near=near)


# --- [server] -----------------------------------------------------------------------------------


def _server(values: Values, flags: Flags, machine: Machine) -> dict[str, Any]:
    timeout_s = values.number("unregister_model_timeout", least=0, most=MOST_S)
    table: dict[str, Any] = {
        "state_dir": "" if flags.no_config_snapshots else STATE,
        "model_store": str(store_of(values, machine)),
        "model_api": values.flag("enable_model_api"),
        "unregister_grace_s": 120 if timeout_s is None else timeout_s,
        "registered_workers": values.number("default_workers_per_model", least=0, most=MOST_WORKERS) or 0,
        "inherit_env": True,
    }
    if values.flag("install_py_dep_per_model"):
        table["install_archive_requirements"] = True
    minutes = values.number("token_expiration_min", least=0, most=525_600)
    further = {
        "hide_env": values.patterns("blacklist_env_vars"),
        "allowed_urls": values.patterns("allowed_urls", separator=","),
        "token_expiration_min": minutes,
    }
    return table | {key: value for key, value in further.items() if value not in (None, [])}


# --- [listeners] --------------------------------------------------------------------------------


def _listener(values: Values, machine: Machine, name: str, notes: list[str]) -> dict[str, Any]:
    services, port = LISTENERS[name]
    given_port = values.number(f"grpc_{name}_port", least=0, most=65_535)
    host = values.text(f"grpc_{name}_address", "127.0.0.1")
    if "://" in host or "/" in host:
        raise wrong(f"grpc_{name}_address", host, "a host's name or address, without a port")
    table: dict[str, Any] = {
        "address": f"{f'[{host}]' if ':' in host else host}:{port if given_port is None else given_port}",
        "services": services,
        "compatibility": "torchserve",
    }
    tokens = not values.flag("disable_token_authorization")
    if tokens:
        table["key_file"] = str(machine.folder / KEY_FILE)
    tls = _tls(values, machine)
    if tls:
        table["tls"] = tls
    lacking = " and without ".join(word for word, has in (("TLS", tls), ("tokens", tokens)) if not has)
    if lacking and not is_loopback(host):
        table["insecure"] = True
        notes.append(f"grpc_{name}_address: {host} is open to the network without {lacking}")
    return table | _sizes(values, notes if name == "inference" else []) | _ages(values, name)


def _tls(values: Values, machine: Machine) -> dict[str, str]:
    if not values.flag("enable_grpc_ssl"):
        return {}
    for key in ("certificate_file", "private_key_file"):
        if not values.text(key):
            raise ConfigError(key, "is missing: enable_grpc_ssl needs certificate_file and private_key_file")
    files = {"certificate": "certificate_file", "key": "private_key_file"}
    return {ours: str(_path(values, key, machine)) for ours, key in files.items()}


def _useless_tls(values: Values) -> dict[str, str]:
    """Keys of TLS where gRPC has none."""
    if values.flag("enable_grpc_ssl"):
        return {}
    keys = [key for key in ("certificate_file", "private_key_file") if values.text(key)]
    return dict.fromkeys(keys, "gRPC has TLS only with enable_grpc_ssl=true, and there is no REST API here")


def _sizes(values: Values, notes: list[str]) -> dict[str, int]:
    found = {}
    for key, ours in (("max_request_size", "max_receive_bytes"), ("max_response_size", "max_send_bytes")):
        size = values.number(key, least=1, most=MOST)
        if size is not None:
            found[ours] = min(size, MOST_BYTES)
            if size > MOST_BYTES:
                notes.append(f"{key}: {size} counts as {MOST_BYTES}, the most that there is")
    return found


def _ages(values: Values, name: str) -> dict[str, float]:
    found = {}
    for key, ours in (("age", "max_connection_age_s"), ("age_grace", "max_connection_age_grace_s")):
        age_ms = values.number(f"grpc_{name}_max_connection_{key}_ms", least=0, most=2**53)
        if age_ms is not None:
            found[ours] = age_ms / 1000
    return found


# --- [model_defaults], [models] -----------------------------------------------------------------


def _defaults(values: Values, machine: Machine) -> dict[str, Any]:
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
    for key, found in (("models", values.versions("models")), ("model_snapshot", _snapshot(values))):
        for (name, version), given in found.items():
            tables[f"{name}/{version}"] = _version(key, name, version, given)
    return tables


def _workers(values: Values, gpus: int, cores: int) -> int:
    """Workers of a model that is loaded at the start, where nothing says how many."""
    if values.flag("debug"):
        return 1
    given = values.number("default_workers_per_model", least=0, most=MOST_WORKERS)
    return min(given or gpus or cores, MOST_WORKERS)


VERSION_KEYS = {
    "batchSize": ("batch_size", 65_536),
    "maxBatchDelay": ("max_batch_delay_ms", 600_000),
    "responseTimeout": ("response_timeout_s", MOST),
    "startupTimeout": ("startup_timeout_s", MOST),
    "jobQueueSize": ("queue_size", 1_000_000),
}


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


def _snapshot(values: Values) -> dict[tuple[str, str], dict[str, Any]]:
    found = values.versions("model_snapshot", within="models")
    for (name, version), given in found.items():
        if not given.get("marName") or not isinstance(given["marName"], str):
            raise ConfigError("model_snapshot", f"{name}/{version} has no marName")
    return dict(sorted(found.items(), key=lambda one: one[1].get("defaultVersion") is not True))


def _default_versions(values: Values) -> dict[str, str]:
    """The versions that the JSON calls the default, by model; a snapshot's word counts more."""
    found = (*values.versions("models").items(), *_snapshot(values).items())
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
