"""Reads what TorchServe's operators have: config.properties, its flags, TS_ variables; gives a configuration.

What the values mean is decided in translation.py. `convert` writes it as a config.toml. What must not live here:
the command line (__main__.py), starting and stopping in the background (background.py).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actorserve import config, torchserve_store
from actorserve.actors.device import find_gpus
from actorserve.config import Config
from actorserve.errors import ConfigError
from actorserve.properties import Flags, Values, parse, settle
from actorserve.properties_keys import FLAGS_WITHOUT_EFFECT
from actorserve.translation import EVERY, Machine, Translation, models_of, store_of, to_load, translate

FILE = "config.properties"
ENV_FILE = "TS_CONFIG_FILE"


def is_properties(path: Path, *, is_found: bool) -> bool:
    """Whether a file is TorchServe's, by its name; snapshots end in .cfg. One that was found where TorchServe looks may
    have any name but a config.toml's.
    """
    return path.suffix.lower() in (".properties", ".cfg") or (is_found and path.suffix.lower() != ".toml")


def find_file(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Where TorchServe looks: TS_CONFIG_FILE, the one that is given, config.properties in the working folder."""
    if environment.get(ENV_FILE):
        return Path(environment[ENV_FILE])
    if given is not None:
        return given
    return Path(FILE) if Path(FILE).is_file() else None


def read(path: Path | None, flags: Flags) -> Translation:
    """A file, or the flags alone, as a translation. ConfigError."""
    data = b"" if path is None else read_bytes(path)
    try:
        values = settle(parse(data), flags, os.environ)
    except ConfigError as error:
        raise error if error.key else ConfigError("", f"{path}: {error.text}") from None
    machine = Machine(Path.cwd(), len(find_gpus(os.environ)), len(os.sched_getaffinity(0)))
    wanted = to_load(values)
    archives, left_out = torchserve_store.find(store_of(values, machine), wanted)
    found = translate(values, flags, machine, archives)
    optional = _optional(wanted, found.content.get("models", ()))
    return replace(found, notes=(*found.notes, *left_out), optional=optional)


def _optional(wanted: Sequence[tuple[str, str]], entries: Iterable[str]) -> frozenset[str]:
    return frozenset(entries) if wanted == [("", EVERY)] else frozenset()


def read_bytes(path: Path) -> bytes:
    """A file's bytes; ConfigError if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("", f"there is no file {path}") from None
    except OSError as error:
        raise ConfigError("", f"{path} cannot be read: {error.strerror}") from None


def load(path: Path | None, flags: Flags, overrides: Sequence[str] = ()) -> tuple[Config, Translation]:
    """The configuration of config.properties, with `key=value` overrides of config.toml's keys. ConfigError."""
    translation = read(path, flags)
    content = copy.deepcopy(translation.content)
    for override in overrides:
        config.set_key(content, override)
    return config.parse(content, folder=folder_of(path), optional=translation.optional), translation


def folder_of(path: Path | None) -> Path:
    """The folder of the configuration: where its state is kept."""
    return Path.cwd() if path is None else path.resolve().parent


def add_flags(content: dict[str, Any], flags: Flags) -> Translation:
    """A config.toml's content with what TorchServe's flags add to it. ConfigError where one makes no sense there."""
    if flags.disable_token_auth:
        raise ConfigError("--disable-token-auth", "is for config.properties; leave out tokens_file and key_file here")
    added = copy.deepcopy(content)
    server = added.setdefault("server", {})
    if not isinstance(server, dict):
        return Translation(added)  # told by config.parse
    if flags.model_store is not None:
        server["model_store"] = str(Path.cwd() / flags.model_store)
    if flags.enable_model_api:
        server["model_api"] = True
    if flags.no_config_snapshots:
        server["state_dir"] = ""
    notes, optional = _add_models(added, flags) if flags.models else ((), frozenset())
    return Translation(added, {flag: FLAGS_WITHOUT_EFFECT[flag] for flag in flags.further}, notes, optional)


def _add_models(content: dict[str, Any], flags: Flags) -> tuple[tuple[str, ...], frozenset[str]]:
    if flags.model_store is None:
        raise ConfigError("--models", "needs --model-store beside a config.toml")
    values = Values(flags.properties())
    wanted = to_load(values)
    archives, left_out = torchserve_store.find(Path.cwd() / flags.model_store, wanted)
    notes = list(left_out)
    found, models = models_of(archives, notes, {}), content.setdefault("models", {})
    if not isinstance(models, dict):
        return (), frozenset()  # told by config.parse
    named = {entry: table.get("name") for entry, table in models.items() if isinstance(table, dict)}
    for archive in archives:
        if archive.name in models or archive.name in named.values():
            raise ConfigError("--models", f"{archive.name} is in the file too")
    for entry in found.keys() & models.keys():
        raise ConfigError("--models", f"an entry {entry} is in the file too")
    models.update(found)
    return tuple(notes), _optional(wanted, found)


def to_toml(translation: Translation, title: str) -> str:
    """A translation as a config.toml, with a comment for each key that has no effect."""
    import tomlkit  # noqa: PLC0415  # for `convert` alone

    document = tomlkit.document()
    document.add(tomlkit.comment(f"Made from {title} by `python -m actorserve convert`."))
    for key, why in translation.ignored.items():
        near = f"; did you mean {translation.near[key]}?" if key in translation.near else "."
        document.add(tomlkit.comment(_line(f"{key} has no effect: {why}{near}")))
    for note in translation.notes:
        document.add(tomlkit.comment(_line(note)))
    for name, table in translation.content.items():
        document.add(tomlkit.nl())
        document.add(name, tomlkit.item(table))
    return tomlkit.dumps(document)


def without(translation: Translation, broken: Mapping[str, ConfigError]) -> Translation:
    """A translation without models that are broken, by their keys; the notes name each file and say why."""
    models = dict(translation.content.get("models", {}))
    notes = []
    for entry, error in broken.items():
        key = error.key.removeprefix(f"models.{entry}").removeprefix(".")
        file = Path(models.pop(entry)["source"]).name
        notes.append(f"load_models: {file} is left out: {ConfigError(key, error.text)}")
    content = {key: table for key, table in translation.content.items() if key != "models"}
    content |= {"models": models} if models else {}
    return replace(translation, content=content, notes=(*translation.notes, *notes), optional=frozenset(models))


def _line(text: str) -> str:
    """A text that fits behind a "#"."""
    return "".join(character if character.isprintable() else " " for character in text)
