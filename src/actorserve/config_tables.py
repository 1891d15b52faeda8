"""The whole file: which tables it has and what must hold across them; the documentation is made from `tables`.

What must not live here: a table's own keys (config_server.py, config_model.py and their like), the words of errors
(config_errors.py), reading (config_file.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator

from actorserve import config_defaults, config_versions
from actorserve.config_application import Application
from actorserve.config_defaults import EVERY, Defaults, Workers
from actorserve.config_listener import Listener, Tls
from actorserve.config_model import Model
from actorserve.config_server import Log, Server
from actorserve.config_servicer import Replicas, Servicer, check_servicers
from actorserve.config_types import NAME_RULE, Table, is_name
from actorserve.errors import ConfigError

NOT_OF_THE_FILE = frozenset({"folder", "optional"})


class Config(Table):
    """The whole file."""

    server: Server = Field(default_factory=Server)
    log: Log = Field(default_factory=Log)
    listeners: dict[str, Listener] = Field(default_factory=dict)
    models: dict[str, Model] = Field(default_factory=dict)
    model_defaults: dict[str, Defaults] = Field(default_factory=dict)
    servicers: tuple[Servicer, ...] = Field(default=(), strict=False)
    applications: dict[str, Application] = Field(default_factory=dict)
    folder: Path = Field(default_factory=Path.cwd, exclude=True)
    optional: frozenset[str] = Field(default=frozenset(), exclude=True)
    """Models that nobody has named: one that is broken is left out, with a warning."""

    @model_validator(mode="after")
    def _servicers_have_a_place(self) -> Config:
        check_servicers(self.servicers, self.listeners)
        return self

    @field_validator("models", "listeners", "applications")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not is_name(name):
                raise ValueError(f"the name {name[:80]!r} {NAME_RULE}")
        return value

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: dict[str, Model]) -> dict[str, Model]:
        known = {  # where a source may say the version, it is checked once that is opened
            entry: (model.name or entry, model.version)
            for entry, model in value.items()
            if model.source is None or "version" in model.model_fields_set
        }
        defaults = {entry: model.name or entry for entry, model in value.items() if model.default}
        if wrong := config_versions.twice(known) or config_versions.two_defaults(defaults):
            raise ValueError(wrong)
        return value

    @field_validator("model_defaults")
    @classmethod
    def _for_names(cls, value: dict[str, Defaults]) -> dict[str, Defaults]:
        for key in value:
            name, slash, version = key.partition("/")
            if key != EVERY and not (is_name(name) and (not slash or is_name(version))):
                raise ValueError(f'{key!r} is neither "{EVERY}" nor "name" nor "name/version"')
        return value

    def name_of(self, entry: str) -> str:
        """The name of an entry's model."""
        return self.models[entry].name or entry

    def of_models(self, entries: Collection[str]) -> Config:
        """The same without the other entries."""
        return self.model_copy(update={"models": {key: self.models[key] for key in self.models if key in entries}})

    def defaults_of(self, name: str, version: str) -> dict[str, Any]:
        """What `model_defaults` says of a model."""
        return config_defaults.find(self.model_defaults, name, version)


def check_distinct(versions: Mapping[str, tuple[str, str]]) -> None:
    """ConfigError where two entries, by their keys, are the same (name, version)."""
    if wrong := config_versions.twice(versions):
        raise ConfigError("models", wrong)


def tables() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every table with its heading, in the order of the file: what the documentation is made from."""
    yield "[server]", Server
    yield "[log]", Log
    yield "[listeners.NAME]", Listener
    yield "tls", Tls
    yield "[models.NAME]", Model
    yield "workers", Workers
    yield "[model_defaults.NAME]", Defaults
    yield "[[servicers]]", Servicer
    yield "replicas", Replicas
    yield "[applications.NAME]", Application


def table_at(location: Sequence[int | str]) -> type[BaseModel]:
    """The table at a place in the file."""
    model: type[BaseModel] = Config
    tables: dict[str, type[BaseModel]] = {
        "server": Server,
        "log": Log,
        "listeners": Listener,
        "models": Model,
        "model_defaults": Defaults,
        "workers": Workers,
        "tls": Tls,
        "servicers": Servicer,
        "replicas": Replicas,
        "applications": Application,
    }
    for depth, part in enumerate(location):
        if depth != 1:  # the second part is a name that the user gave
            model = tables.get(str(part), model)
    return model


def known_keys(location: Sequence[int | str]) -> list[str]:
    """The keys of the table at a place in the file."""
    return [name for name in table_at(location).model_fields if name not in NOT_OF_THE_FILE]
