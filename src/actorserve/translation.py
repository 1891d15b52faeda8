"""What a config.properties comes to: the content of a config.toml, with what is to be said about it. Purely.

TorchServe's defaults hold: both listeners answer as it does, tokens are on, RegisterModel is off, workers see the
environment. Three things differ for safety or speed: `allowed_urls` is empty unless it is given, weights and archives
are checked as everywhere here, and CPU workers share the cores out. docs/torchserve-configuration.md has the table.
What must not live here: reading files, kinds of values (properties.py), the model store (torchserve_store.py), what
listeners and models come to (translation_listeners.py, translation_models.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actorserve.config_defaults import MOST_WORKERS
from actorserve.config_types import is_name
from actorserve.errors import ConfigError
from actorserve.properties import Flags, Values, nearest, wrong
from actorserve.properties_keys import FLAGS_WITHOUT_EFFECT, KNOWN, TRANSLATED, WITHOUT_EFFECT
from actorserve.translation_listeners import LISTENERS, listener, useless_tls
from actorserve.translation_machine import Machine, path_of
from actorserve.translation_models import Archive, default_versions, model_defaults, models_of, snapshot

__all__ = ["EVERY", "Archive", "Machine", "Translation", "models_of", "store_of", "to_load", "translate"]

STATE = "state"
MOST_S = 86_400
NO_MODELS = ("", "none", "n/a", "standalone")
EVERY = "all"


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
    return path_of(values, "model_store", machine)


def to_load(values: Values) -> list[tuple[str, str]]:
    """What is loaded at the start, as (name, file); a name is "" where the archive says it. [("", "all")]: everything.

    ConfigError.
    """
    if values.text("model_snapshot"):
        return [(name, str(given.get("marName", ""))) for (name, _), given in snapshot(values).items()]
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
        "listeners": {name: listener(values, machine, name, notes) for name in LISTENERS},
        "model_defaults": model_defaults(values, machine),
        "models": models_of(archives, notes, default_versions(values)),
    }
    ignored = {key: why for key, why in WITHOUT_EFFECT.items() if key in values}
    ignored |= {key: "TorchServe does not know it either" for key in values if key not in TRANSLATED | ignored.keys()}
    ignored |= {flag: FLAGS_WITHOUT_EFFECT[flag] for flag in flags.further}
    ignored |= useless_tls(values)
    near = {key: known for key in values if key not in KNOWN and (known := nearest(key))}
    return Translation({key: table for key, table in content.items() if table}, ignored, tuple(notes), near=near)


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
