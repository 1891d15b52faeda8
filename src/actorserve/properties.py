"""TorchServe's config.properties as data: its keys, the flags and variables that win over them, its kinds of values.

Purely. What each key means here stands in properties_keys.py, the configuration it comes to in translation.py.
Rules of pytorch/serve 0.12.0: ConfigManager.java, ts/arg_parser.py. A wrong value is a ConfigError that names
TorchServe's key. What must not live here: files, what config.toml may say (config_tables.py).
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actorserve.errors import ConfigError
from actorserve.properties_keys import KNOWN

PREFIX = "TS_"
VARIABLE = re.compile(r"\$\$([^$]{2,})\$\$")


@dataclass(frozen=True, slots=True)
class Flags:
    """What TorchServe's command line says. `further`: flags without effect, by their names."""

    model_store: str | None = None
    models: tuple[str, ...] = ()
    no_config_snapshots: bool = False
    disable_token_auth: bool = False
    enable_model_api: bool = False
    further: tuple[str, ...] = ()

    def properties(self) -> dict[str, str]:
        """The flags as keys of the file."""
        given = {
            "model_store": self.model_store,
            "load_models": ",".join(self.models),
            "disable_token_authorization": "true" if self.disable_token_auth else "",
            "enable_model_api": "true" if self.enable_model_api else "",
        }
        return {key: value for key, value in given.items() if value}


def parse(data: bytes) -> dict[str, str]:
    """A file's keys and values, as Java reads them: Latin-1 with escapes. ConfigError."""
    import javaproperties  # noqa: PLC0415  # for TorchServe's files alone

    try:
        found = dict(javaproperties.load(io.BytesIO(data)))
    except ValueError as error:
        raise ConfigError("", f"it is no file of properties: {error}") from None
    for key, value in found.items():
        if not _is_text(key + value):
            raise ConfigError(ascii(key)[1:-1], "holds a zero byte, or half of a character")
    return found


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def settle(file: Mapping[str, str], flags: Flags, environment: Mapping[str, str]) -> Values:
    """What holds: the environment, where the file lets it, over the flags, and these over the file. ConfigError."""
    found = {key: _resolved(key, value, environment) for key, value in file.items()}
    found |= flags.properties()
    if Values(found).flag("enable_envvars_config"):
        with_urls = Values(found).flag("use_env_allowed_urls")
        for key in KNOWN:
            value = environment.get(PREFIX + key.upper())
            if value is not None and (key != "allowed_urls" or with_urls):
                found[key] = value
    return Values(found)


def _resolved(key: str, value: str, environment: Mapping[str, str]) -> str:
    """The value with each $$NAME$$ replaced by that variable."""

    def variable(match: re.Match[str]) -> str:
        if match[1] not in environment:
            raise ConfigError(key, f"the environment variable {match[1]} is not set")
        return environment[match[1]]

    return VARIABLE.sub(variable, value)


class Values(Mapping[str, str]):
    """The keys that hold, with a reader for each kind of value. An empty value is as none."""

    def __init__(self, content: Mapping[str, str]) -> None:
        self._content = {key: value.strip() for key, value in content.items()}

    def __getitem__(self, key: str) -> str:
        return self._content[key]

    def __iter__(self) -> Any:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def text(self, key: str, default: str = "") -> str:
        """A text."""
        return self._content.get(key) or default

    def flag(self, key: str, *, default: bool = False) -> bool:
        """`true` or `false`, in any case. ConfigError."""
        value = self.text(key).lower()
        if value not in ("", "true", "false"):
            raise wrong(key, self[key], "true or false")
        return value == "true" if value else default

    def number(self, key: str, *, least: int, most: int) -> int | None:
        """A whole number within bounds; None where there is none. ConfigError."""
        value = self.text(key)
        if not value:
            return None
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            raise wrong(key, value, "a whole number")
        if not least <= int(value) <= most:
            raise wrong(key, value, f"at least {least}" if int(value) < least else f"at most {most}")
        return int(value)

    def patterns(self, key: str, *, separator: str | None = None) -> list[str]:
        """Regular expressions, one or, with a separator, many. ConfigError."""
        value = self.text(key)
        parts = [part.strip() for part in value.split(separator)] if separator else [value]
        for part in parts:
            try:
                re.compile(part)
            except (re.error, RecursionError, OverflowError) as error:
                raise wrong(key, part, f"a regular expression: {error}") from None
        return [part for part in parts if part]

    def versions(self, key: str, within: str = "") -> dict[tuple[str, str], dict[str, Any]]:
        """JSON of `{name: {version: {...}}}`, or that as its member `within`, by (name, version). ConfigError."""
        value = self.text(key)
        if not value:
            return {}
        try:
            content = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ConfigError(key, f"is not JSON: {error}") from None
        if within:
            content = content.get(within) if isinstance(content, dict) else None
        tables = content.items() if isinstance(content, dict) else [("", None)]
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for name, versions in tables:
            for version, given in versions.items() if isinstance(versions, dict) else [("", None)]:
                if not isinstance(given, dict):
                    raise ConfigError(key, 'is wrong: it must be JSON like {"name": {"1.0": {"minWorkers": 1}}}')
                found[name, version] = given
        return found


def wrong(key: str, value: str, right: str) -> ConfigError:
    """A wrong value, cut where it is long, and what would be right."""
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return ConfigError(key, f'"{shown}" is wrong: it must be {right}')


def nearest(key: str) -> str:
    """The key of TorchServe's that one which it does not know is like; "" where there is none."""
    return next(iter(difflib.get_close_matches(key.lower(), sorted(KNOWN), n=1)), "")
