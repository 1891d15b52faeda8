"""The model store: sources that a model may be registered from, and what a source says of itself.

A folder may hold `model.toml`: the keys of `[models.NAME]`, and `name`; what was made for TorchServe has a
manifest. Both are read as data; code in the folder runs in workers only. What must not live here: how archives
are unpacked (archives.py), what a manifest means (manifest.py), downloads (fetching.py), gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog
from pydantic import ValidationError

from actorserve import config
from actorserve.actors import archives, manifest
from actorserve.actors.messages import Environment, ModelSpec, Restart
from actorserve.actors.unpacking import Unpacking, inner
from actorserve.config_defaults import FOR_TORCHSERVE
from actorserve.config_types import is_name
from actorserve.errors import BadInput, ConfigError, LoadFailed, NoSuchModel, Unsupported

log = structlog.get_logger("actorserve.model_store")
FILE = "model.toml"
MOST_FILE_BYTES = 1 << 20
FOR_OPERATORS = ("isolation", "pass_env", "default")
"""Keys that only the config file may set: what a folder says of itself cannot open the server to it."""


FindDefaults = Callable[[str, str], Mapping[str, Any]]
"""What `[model_defaults]` says of a model by its name and version."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


def no_defaults(_name: str, _version: str) -> Mapping[str, Any]:
    """A FindDefaults where nothing is said."""
    return NOTHING


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


def merge(described: Folder, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that count: `given` wins over what the folder says, and that over `defaults`. What runs TorchServe's
    handlers takes their place.

    Its defaults are TorchServe's: one request a batch, 100 ms (0.12.0: RegisterModelRequest.java).
    """
    for_torchserve = {key: value for key, value in defaults.items() if key in FOR_TORCHSERVE}
    content = {**_without(defaults, FOR_TORCHSERVE), **described.content, **given}
    package, handler, given_options = described.package, content.get("handler"), content.get("options", {})
    if package is None or not handler or not isinstance(handler, str):
        return content
    if not isinstance(given_options, dict):
        return {**content, "handler": manifest.LOADER}  # what is wrong is told by `parse`
    if manifest.is_native(handler):
        named = {"file": package.file} if package.file else {}
        return {**content, "options": {**named, **given_options}}
    content = {"batch_size": 1, "max_batch_delay_ms": 100.0, **content}
    options = manifest.options(package.manifest, package.yaml, handler=handler, batch_size=content["batch_size"])
    options |= for_torchserve
    further = given_options.get("torchserve", {})
    options |= further if isinstance(further, dict) else {}
    return {**content, "handler": manifest.LOADER, "options": {**given_options, "torchserve": options}}


def _without(content: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


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
        found = _without(defaults(name, model.version), FOR_TORCHSERVE)
        if found:
            model = parse({**found, **model.model_dump(exclude_unset=True)})
        return spec_of(name, model, folder=folder, loaded_at_startup=True)
    with _reading("source", model.source):
        source = (folder / model.source).resolve()
        if not source.is_dir() and not is_packed_file(source):
            raise ConfigError("source", f"there is no folder or archive {folder / model.source}")
    try:
        with _reading("source", model.source):
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


@contextmanager
def _reading(key: str, written: object) -> Iterator[None]:
    """What the file system says against a path, as the ConfigError of its key. RuntimeError: links in a circle."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(key, f"{written!s:.200} cannot be used: {why}") from None


def _url_of(source: Path, written: Path, store: Path | None) -> str:
    root = None if store is None else store.resolve()
    return str(written if root is None or root not in source.parents else source.relative_to(root))


def spec_of(
    name: str,
    model: config.Model,
    *,
    folder: Path,
    url: str = "",
    described: Folder | None = None,
    defaults: Mapping[str, Any] = NOTHING,
    loaded_at_startup: bool = False,
) -> ModelSpec:
    """A model's ModelSpec. `folder` is what a relative path in `model` means; `described`: its `source`, opened, and
    `defaults`: what holds where neither says anything.
    """
    given = model.model_fields_set
    model_dir = folder
    if described is not None:
        model_dir = described.path
        model = _with_its_folder(model, described, defaults)
    if not model.handler:
        raise ConfigError("handler", f"is missing, and {model_dir / FILE} does not name one")
    return ModelSpec(
        name=name,
        version=model.version,
        handler=model.handler,
        model_dir=model_dir,
        url=url or model.handler,
        options=model.options,
        workers_min=model.workers.min,
        workers_max=model.workers.max if model.workers.max is not None else model.workers.min,
        workers_initial=model.workers.initial,
        target_ongoing_requests=model.target_ongoing_requests,
        upscale_delay_s=model.upscale_delay_s,
        downscale_delay_s=model.downscale_delay_s,
        downscale_to_zero_delay_s=model.downscale_to_zero_delay_s,
        upscaling_factor=model.upscaling_factor,
        downscaling_factor=model.downscaling_factor,
        look_back_period_s=model.look_back_period_s,
        devices=(model.device,) if isinstance(model.device, str) else model.device,
        threads=model.threads if isinstance(model.threads, int) else 0,
        batch_size=model.batch_size,
        max_batch_delay_s=model.max_batch_delay_ms / 1000,
        weight=model.weight,
        max_batch_weight=model.max_batch_weight,
        tenant_key=model.tenant_key,
        queue_size=model.queue_size,
        job_tickets=model.job_tickets,
        startup_timeout_s=model.startup_timeout_s,
        response_timeout_s=model.response_timeout_s,
        max_sequences=model.max_sequences,
        sequence_idle_timeout_s=model.sequence_idle_timeout_s,
        max_restarts=model.max_restarts,
        restart=Restart(model.restart),
        max_worker_memory_mb=model.max_worker_memory_mb,
        max_requests_per_worker=model.max_requests_per_worker,
        loaded_at_startup=loaded_at_startup,
        environment=_environment(
            model, {key: folder if key in given else model_dir for key in ("path", "requirements")}
        ),
    )


def _with_its_folder(model: config.Model, described: Folder, defaults: Mapping[str, Any]) -> config.Model:
    """The model with what its own folder says where the config does not."""
    if not described.content and described.package is None and not defaults:
        return model
    given = model.model_dump(exclude_unset=True, exclude={"source"})
    try:
        return parse(merge(described, given, defaults))
    except ConfigError as error:
        raise ConfigError(error.key, f"{error.text} (in {described.path / FILE})") from None


def _environment(model: config.Model, bases: Mapping[str, Path]) -> Environment:
    """Where a model's code runs. `bases`: what a relative path means, by the key that says it."""
    listed, base = model.requirements, bases["requirements"]
    with _reading("path", ", ".join(map(str, model.path))):
        path = tuple(str((bases["path"] / folder).resolve()) for folder in model.path)
    with _reading("requirements", listed):
        file = str((base / listed).resolve()) if listed and isinstance(listed, str) else ""
    return Environment(
        path=path,
        env=model.env,
        pass_env=model.pass_env,
        requirements=() if isinstance(listed, str) else listed,
        requirements_file=file,
        base=str(base.resolve()),
        install_timeout_s=model.install_timeout_s,
        in_thread=model.isolation == "thread",
    )


def parse(content: dict[str, Any]) -> config.Model:
    """The table of one model; ConfigError names the key."""
    try:
        return config.Model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(*config.first_error(error, ("models", "NAME"))) from None
