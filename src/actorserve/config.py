"""The configuration: a config.toml, or its content, becomes a `Config`; a ConfigError names the key that is wrong.

Its tables and the rest have rooms of their own, `config_*.py`; what others need of them is named here. A key enters
with its feature; an unknown key is an error that names the nearest known one. `docs/configuration.md` is generated from
the tables (`just docs`). Nothing in these rooms starts, opens or imports what the configuration names.
What must not live here: keys (config_tables.py and below), the words of errors (config_errors.py), TOML
(config_file.py).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actorserve.config_defaults import Defaults, Workers
from actorserve.config_errors import first_error
from actorserve.config_file import read_toml, set_key
from actorserve.config_model import Model
from actorserve.config_server import Log, Server
from actorserve.config_tables import NOT_OF_THE_FILE, Config, check_distinct, tables
from actorserve.errors import ConfigError

__all__ = [
    "DEFAULT_LISTENERS",
    "NOT_OF_THE_FILE",
    "STATE",
    "Config",
    "Defaults",
    "Log",
    "Model",
    "Server",
    "Workers",
    "check_distinct",
    "complete",
    "default_content",
    "first_error",
    "load",
    "parse",
    "read_toml",
    "set_key",
    "tables",
]

DEFAULT_LISTENERS: dict[str, dict[str, Any]] = {
    "inference": {"address": "127.0.0.1:7070", "services": ["inference", "health", "reflection"]},
    "management": {"address": "127.0.0.1:7071", "services": ["management"]},
}
STATE = "state"
"""The `server.state_dir` of a file that names none."""


def default_content() -> dict[str, Any]:
    """What is served without a file: the digits."""
    return {"models": {"digits": {"handler": "actorserve.handlers.digits:Digits"}}}


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a file (None: the packaged digits) and apply `key=value` overrides; ConfigError names the key."""
    return complete(default_content() if path is None else read_toml(path), path, overrides)


def complete(
    content: dict[str, Any], path: Path | None, overrides: Sequence[str] = (), optional: Collection[str] = ()
) -> Config:
    """As `load`, of a file's content, which is changed."""
    if overrides and not content.get("listeners"):  # so that one key of a default listener can be set alone
        content["listeners"] = copy.deepcopy(DEFAULT_LISTENERS)
    if path is not None and isinstance(content.setdefault("server", {}), dict):
        content["server"].setdefault("state_dir", STATE)
    for override in overrides:
        set_key(content, override)
    return parse(content, folder=Path.cwd() if path is None else path.resolve().parent, optional=optional)


def parse(content: Mapping[str, Any], *, folder: Path, optional: Collection[str] = ()) -> Config:
    """Validate a file's content. No listeners at all: 127.0.0.1:7070 and 127.0.0.1:7071.

    `optional`: models that may be left out where they are broken.
    """
    for key in NOT_OF_THE_FILE & content.keys():
        raise ConfigError(key, "unknown key")
    filled = {"listeners": DEFAULT_LISTENERS, **content, "folder": folder, "optional": frozenset(optional)}
    if not filled["listeners"]:
        filled["listeners"] = DEFAULT_LISTENERS
    try:
        return Config.model_validate(filled)
    except ValidationError as error:
        raise ConfigError(*first_error(error)) from None
