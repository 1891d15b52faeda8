"""A file and `key=value` overrides as content: TOML is read, and merged, before anything is checked.

Files of the configuration are read here and nowhere else.
What must not live here: what a key means (config_tables.py), defaults (config.py).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actorserve.config_types import as_toml
from actorserve.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; ConfigError if there is none."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError("", f"there is no file {path}") from None
    except IsADirectoryError:
        raise ConfigError("", f"{path} is a folder, not a file") from None
    except OSError as error:
        raise ConfigError("", f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # its grammar, its encoding, a number of thousands of digits
        raise ConfigError("", f"{path} is not TOML: {error}") from None


def set_key(content: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value`; the value is TOML, or else text as it stands."""
    key, separator, text = override.partition("=")
    wrong = ConfigError("--set", f"{override!r} is not key=value, for example server.grace_s=5")
    if not separator or not key.strip():
        raise wrong
    try:
        given = tomllib.loads(f"{key} = {text}")
    except tomllib.TOMLDecodeError:
        try:
            given = tomllib.loads(f"{key} = {json.dumps(text, ensure_ascii=False)}")
        except tomllib.TOMLDecodeError:
            raise wrong from None
    _merge(content, given, key.strip())


def _merge(table: dict[str, Any], given: Mapping[str, Any], key: str) -> None:
    for name, value in given.items():
        if isinstance(value, dict) and name in table:
            if not isinstance(table[name], dict):
                raise ConfigError(key, f"cannot be set: {name} is {as_toml(table[name])} and not a table")
            _merge(table[name], value, key)
        else:
            table[name] = value
