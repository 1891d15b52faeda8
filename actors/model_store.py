"""The model store: sources that a model may be registered from, or the config file names, and opening them.

A source is a folder, an archive, or a model's file alone. What must not live here: how archives are unpacked
(archives.py), what a folder says of itself (model_folder.py), what that comes to (model_specs.py), downloads
(fetching.py), gRPC. Those who use the store find what belongs to it here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from actorserve import config
from actorserve.actors import archives, manifest
from actorserve.actors.messages import ModelSpec
from actorserve.actors.model_folder import FILE, Folder, Package, add_package, read_folder
from actorserve.actors.model_specs import FindDefaults, merge, no_defaults, parse, reading, spec_of, without
from actorserve.actors.unpacking import Unpacking, inner
from actorserve.config_defaults import FOR_TORCHSERVE
from actorserve.config_types import is_name
from actorserve.errors import BadInput, ConfigError, LoadFailed, NoSuchModel, Unsupported

__all__ = [
    "FILE",
    "FindDefaults",
    "Folder",
    "is_packed_file",
    "locate",
    "merge",
    "no_defaults",
    "of_config",
    "open_now",
    "open_source",
    "parse",
    "spec_of",
]


def locate(store: Path, url: str) -> Path:
    """The folder or file `url` of the store. BadInput, NoSuchModel or Unsupported say what is wrong with it."""
    if ".." in Path(url).parts:
        raise BadInput("url", f"Relative path is not allowed in url: {url}")
    try:
        root, path = store.resolve(), (store / url).resolve()
        exists = path.is_dir() or is_packed_file(path)
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a zero byte, or links in a circle
        raise BadInput("url", f"{url[:80]!r} is no name of a folder: {error}") from None
    if path == root or not path.is_relative_to(root):
        raise BadInput("url", f"{url!r} is not a folder inside the model store")
    if path.is_file() and not exists:
        raise BadInput("url", f"{url!r} cannot be used: it is neither a folder nor an archive")
    if not exists:
        raise NoSuchModel(f"{url} (no such folder or archive in the model store)")
    return path


def is_packed_file(path: Path) -> bool:
    """Whether it is an archive or a model's file that is there."""
    return archives.kind_of(path.name) is not archives.Kind.FOLDER and path.is_file()


async def open_source(path: Path, unpacking: Unpacking) -> Folder:
    """A source of the store, unpacked where it is packed. BadInput, Unsupported, LoadFailed.

    The caller releases its folder. Cancelling ends it, with nothing left.
    """
    try:
        if not is_packed_file(path) and not (inner(path) / manifest.PLACE).exists():
            return read_folder(path)
        return await unpacking.in_thread(partial(open_now, path, unpacking))
    except ConfigError as error:
        raise BadInput("url", f"{path.name!r} cannot be used: {error}") from None
    except BadInput as error:
        raise BadInput("url", f"{path.name!r} cannot be used: {error.text}") from None
    except OSError as error:
        raise LoadFailed(f"{path.name} cannot be read: {error.strerror}", permanent=False) from None


def open_now(path: Path, unpacking: Unpacking, check: Callable[[], None] = lambda: None) -> Folder:
    """As `open_source`, with `check` called often; blocks. ConfigError where a `model.toml` is wrong; OSError."""
    if not is_packed_file(path):
        folder = inner(path)
        if not (folder / manifest.PLACE).exists():
            return read_folder(path)
        return add_package(read_folder(folder, ""), unpacking, default_name=folder.name)
    folder = unpacking.unpack(path, check)
    try:
        if archives.kind_of(path.name) is archives.Kind.FILE:
            name = archives.stem_of(path.name)
            model = {**manifest.Manifest().model, "serializedFile": path.name}
            package = Package(manifest.Manifest({"model": {"serializedFile": path.name}}, model), {}, path.name)
            return Folder(folder, name if is_name(name) else "", {}, package=package)
        return add_package(read_folder(folder, ""), unpacking)
    except BaseException:
        unpacking.remove(folder)
        raise


def of_config(
    name: str,
    model: config.Model,
    *,
    folder: Path,
    unpacking: Unpacking,
    defaults: FindDefaults = no_defaults,
    store: Path | None = None,
) -> ModelSpec:
    """The ModelSpec of a model of the config file; ConfigError. `folder` is what a relative `source` means. Blocks.

    `store`: what is inside of it has the URL that RegisterModel would know it by.
    """
    if model.source is None:
        found = without(defaults(name, model.version), FOR_TORCHSERVE)
        if found:
            model = parse({**found, **model.model_dump(exclude_unset=True)})
        return spec_of(name, model, folder=folder, loaded_at_startup=True)
    with reading("source", model.source):
        source = (folder / model.source).resolve()
        if not source.is_dir() and not is_packed_file(source):
            raise ConfigError("source", f"there is no folder or archive {folder / model.source}")
    try:
        with reading("source", model.source):
            described = open_now(source, unpacking)
    except BadInput as error:
        raise ConfigError("source", f"{source} cannot be used: {error.text}") from None
    except (LoadFailed, Unsupported) as error:
        raise ConfigError("source", str(error)) from None
    try:
        return _of_source(name, model, described, folder=folder, defaults=defaults, store=store)
    except BaseException:
        unpacking.remove(described.path)
        raise


def _of_source(
    name: str, model: config.Model, described: Folder, *, folder: Path, defaults: FindDefaults, store: Path | None
) -> ModelSpec:
    assert model.source is not None  # noqa: S101  # narrows the type: the caller has looked
    if described.package is not None and model.isolation == "thread":
        raise ConfigError(
            "isolation", '"thread" is for code that is trusted: an archive or a model\'s file has "process"'
        )
    version = model.version if "version" in model.model_fields_set else described.content.get("version", model.version)
    closest = defaults(name, str(version))
    source = (folder / model.source).resolve()
    url = _url_of(source, model.source, store) if described.package is not None else ""
    return spec_of(name, model, folder=folder, url=url, described=described, defaults=closest, loaded_at_startup=True)


def _url_of(source: Path, written: Path, store: Path | None) -> str:
    root = None if store is None else store.resolve()
    return str(written if root is None or root not in source.parents else source.relative_to(root))
