"""What TorchServe's `load_models` finds in the model store: archives, with the names that they give themselves.

Only manifests are read, as data; nothing is unpacked here. What must not live here: what the finds mean
(translation.py), what may be in an archive (actors/archives.py).
"""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from actorserve.actors import archives, manifest
from actorserve.actors.archives import Kind, Refused, kind_of
from actorserve.actors.unpacking import inner
from actorserve.config_types import is_name
from actorserve.errors import ActorserveError, BadInput, ConfigError
from actorserve.translation import EVERY, Archive

VERSION = "1.0"
SUFFIXES = (".mar", ".tar.gz", ".tgz")
"""What `load_models=all` takes, beside folders."""


def find(store: Path, wanted: Sequence[tuple[str, str]]) -> tuple[list[Archive], tuple[str, ...]]:
    """The archives that are wanted, as (name or "", file), and what was left out of all that there is, and why.

    ConfigError names the file that was asked for and cannot be had. Blocks.
    """
    try:
        if not store.is_dir():
            raise ConfigError("model_store", f"there is no folder {store}")
        if [file for _, file in wanted] == [EVERY]:
            return _everything(store)
        return [_named(store, name, file) for name, file in wanted], ()
    except OSError as error:
        raise ConfigError("model_store", f"{store!s:.200} cannot be read: {error.strerror}") from None


def _named(store: Path, name: str, file: str) -> Archive:
    try:
        path = store / file
        if not path.exists():
            path = store / Path(file).name
        if not path.exists():
            raise ConfigError("load_models", f"there is no {file} in the model store {store}")
        return look(path, name)
    except ConfigError:
        raise
    except ActorserveError as error:
        raise ConfigError("load_models", f"{file} cannot be used: {_text(error)}") from None
    except OSError as error:
        raise ConfigError("load_models", f"{file:.200} cannot be used: {error.strerror}") from None


def _everything(store: Path) -> tuple[list[Archive], tuple[str, ...]]:
    found, notes = [], []
    for path in sorted(store.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or path.name.lower().endswith(SUFFIXES)):
            continue
        try:
            found.append(look(path))
        except ActorserveError as error:
            notes.append(f"load_models: {path.name} is left out: {_text(error)}")
    return found, tuple(notes)


def _text(error: ActorserveError) -> str:
    return error.text if isinstance(error, BadInput) else str(error)


def look(path: Path, name: str = "") -> Archive:
    """An archive by its manifest; `name` wins over its own, and the file's is the last. BadInput, LoadFailed."""
    with archives.told(path):
        if kind_of(path.name) is not Kind.FOLDER and not path.is_file():
            raise Refused("it is no plain file")  # a pipe would be waited for
        data = _manifest_of(path)
    model = manifest.Manifest().model if data is None else manifest.parse_manifest(data, lambda _: True).model
    name = name or model["modelName"] or re.sub(r"\W|^_", "_", archives.stem_of(path.name))
    version = model["modelVersion"] or VERSION
    if not is_name(name) or not is_name(version):
        raise BadInput("url", f"{name}/{version} is no name and version of a model")
    return Archive(path, name, version)


def _manifest_of(path: Path) -> bytes | None:
    """A manifest's bytes, None where there is none. Refused, and what `archives.told` translates."""
    kind = kind_of(path.name)
    if kind is Kind.FOLDER and path.is_dir():
        file = inner(path) / manifest.PLACE
        return _some(file.open("rb")) if file.exists() else None
    if kind is Kind.ZIP:
        return _of_zip(path)
    if kind is Kind.TAR:
        return _of_tar(path)
    if kind is Kind.FILE:
        return None
    raise Refused("it is neither an archive nor a folder")


def _some(file: IO[bytes]) -> bytes:
    with file:
        return file.read(manifest.MOST_MANIFEST_BYTES + 1)


def _of_zip(path: Path) -> bytes | None:
    with path.open("rb") as file, archives.opened_zip(file, archives.Limits()) as opened:
        names = sorted(filter(_is_manifest, opened.namelist()), key=len)
        return _some(opened.open(names[0])) if names else None


def _of_tar(path: Path) -> bytes | None:
    with gzip.open(path) as unzipped:
        limited = archives.Counted(unzipped, archives.Limits(), path.stat().st_size)
        with tarfile.open(fileobj=limited, mode="r|", tarinfo=archives.Header) as opened:  # type: ignore[call-overload]  # it reads only
            for member in opened:
                content = opened.extractfile(member) if _is_manifest(member.name) else None
                if content is not None:
                    return _some(content)
    return None


def _is_manifest(name: str) -> bool:
    """Whether a member is the manifest: at the archive's root, or in its one folder."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join(parts[-2:]) == manifest.PLACE and len(parts) <= 3
