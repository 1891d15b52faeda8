"""The digest of an application's source: what tells whether an import path still leads to the same code.

It is made of the files of the modules that are loaded and that somebody wrote for this application: not of the standard
library, not of installed packages (but for the one that the import path names), not of actorserve.
What must not live here: importing the application (application.py), what a changed digest means (applications.py).
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from actorserve.serve.graph import CallRef, HandleRef, InputRef

INSTALLED = frozenset({"site-packages", "dist-packages"})
OURS = "actorserve"


def digest_of(module: str) -> str:
    """The digest of the source that is loaded now. `module`: the one that the import path names."""
    found = hashlib.sha256()
    for name, path in sorted(own_files(module, list(sys.modules.items()))):
        found.update(f"{name}\0{_digest_of_file(path)}\0".encode())
    return found.hexdigest()


def _digest_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # it has gone since it was imported; its name still counts


def own_files(module: str, loaded: Iterable[tuple[str, ModuleType]]) -> Iterator[tuple[str, Path]]:
    """Those of the modules that count, each with its source file."""
    standard = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")}
    package = module.partition(".")[0]
    for name, one in loaded:
        top, file = name.partition(".")[0], getattr(one, "__file__", None)
        if not isinstance(file, str) or top in (OURS, "__main__", "__mp_main__"):
            continue
        path = Path(file)
        if top == package or not (INSTALLED.intersection(path.parts) or standard.intersection(path.parents)):
            yield name, path


def digest_of_arguments(value: Any) -> str:
    """The digest of what a deployment is bound to, where it is plain data; of anything else only its type counts."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case HandleRef() | CallRef() | InputRef():
            return [type(value).__name__, *(_plain(getattr(value, name)) for name in type(value).__dataclass_fields__)]
        case dict():
            return [[_plain(key), _plain(one)] for key, one in value.items()]
        case list() | tuple():
            return [type(value).__name__, *map(_plain, value)]
        case bytes():
            return ["bytes", value.hex()]
    return f"{type(value).__module__}.{type(value).__qualname__}"
