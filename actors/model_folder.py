"""What a model's folder says of itself, read as data.

It may hold `model.toml`: the keys of `[models.NAME]`, and `name`; what was made for TorchServe has a manifest, and
perhaps a model-config.yaml. Code in the folder runs in workers only. What must not live here: which folder that is, and
how it was unpacked (model_store.py), what a manifest means (manifest.py), what wins over what (model_specs.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from actorserve import config
from actorserve.actors import manifest
from actorserve.actors.unpacking import Unpacking
from actorserve.errors import ConfigError, LoadFailed

log = structlog.get_logger("actorserve.model_store")
FILE = "model.toml"
MOST_FILE_BYTES = 1 << 20
FOR_OPERATORS = ("isolation", "pass_env", "default")
"""Keys that only the config file may set: what a folder says of itself cannot open the server to it."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A model's folder and what it says of itself, as keys of `[models.NAME]`.

    `fixed`: those that win over RegisterModel's fields. `package`: of what may have a handler of TorchServe.
    """

    path: Path
    name: str
    content: dict[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    package: Package | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """What was made for TorchServe, or is a model's file alone: its manifest, its model-config.yaml."""

    manifest: manifest.Manifest
    yaml: Mapping[str, Any]
    file: str = ""


def read_folder(path: Path, default_name: str | None = None) -> Folder:
    """A folder as it describes itself; ConfigError where its `model.toml` is wrong.

    `default_name` is its name where the file does not say one. Default: the folder's.
    """
    content: dict[str, Any] = {}
    if (path / FILE).exists():
        if (path / FILE).stat().st_size > MOST_FILE_BYTES:
            raise ConfigError("source", f"{path / FILE} is larger than {MOST_FILE_BYTES} bytes")
        try:
            content = config.read_toml(path / FILE)
        except ConfigError as error:
            raise ConfigError("source", error.text) from None
    # RegisterModel's, where the call names none; an entry of the config file is called as that file says
    name = content.pop("name", path.name if default_name is None else default_name)
    if not isinstance(name, str):
        raise ConfigError("name", f"{name!r} in {path / FILE} is not text")
    if "source" in content:
        raise ConfigError("source", f"does not belong into {path / FILE}: the folder is the source")
    for key in FOR_OPERATORS:
        if key in content:
            raise ConfigError(key, f"does not belong into {path / FILE}: only the config file may set it")
    return Folder(path, name, content)


def add_package(described: Folder, unpacking: Unpacking, default_name: str = "") -> Folder:
    """A folder with what its manifest and its model-config.yaml say; `model.toml` wins. BadInput, Unsupported."""
    folder = described.path
    packed = manifest.Manifest()
    if (folder / manifest.PLACE).exists():
        data = _read(folder / manifest.PLACE, manifest.MOST_MANIFEST_BYTES)
        packed = manifest.parse_manifest(data, lambda name: (folder / name).is_file())
    model, settings = packed.model, manifest.Settings()
    if model["configFile"] and (folder / model["configFile"]).is_file():
        data = _read(folder / model["configFile"], manifest.MOST_YAML_BYTES)
        settings = manifest.settle(manifest.parse_yaml(data, model["configFile"]), unpacking.devices)
    ignored = list(settings.ignored)
    said = {"handler": model["handler"], "version": model["modelVersion"]}
    if model["requirementsFile"] and unpacking.installs_requirements:
        said["requirements"] = model["requirementsFile"]
    elif model["requirementsFile"]:
        ignored.append("requirementsFile has no effect without server.install_archive_requirements")
    if ignored:
        log.warning("parts of an archive have no effect", model=model["modelName"] or folder.name, ignored=ignored)
    content = {key: value for key, value in said.items() if value} | dict(settings.content) | dict(settings.fixed)
    return Folder(
        folder,
        described.name or model["modelName"] or default_name,
        content | described.content,
        settings.fixed,
        Package(packed, settings.yaml),
    )


def _read(path: Path, most: int) -> bytes:
    """A file's bytes, one more than `most` at most. LoadFailed."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise LoadFailed(f"{path.name} cannot be read: {error.strerror}", permanent=False) from None
