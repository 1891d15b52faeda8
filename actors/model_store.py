"""The model store: folders that a model may be registered from, and what a folder says of itself.

A folder may hold `model.toml`: the keys of `[models.NAME]`, and `name`. It is read as data; code in the
folder runs in workers only. What must not live here: archives and downloads (not there yet), gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actorserve import config
from actorserve.actors.messages import Environment, ModelSpec, Restart
from actorserve.errors import BadInput, ConfigError, NoSuchModel, Unsupported

FILE = "model.toml"
FOR_OPERATORS = ("isolation", "pass_env")
"""Keys that only the config file may set: what a folder says of itself cannot open the server to it."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A model's folder and what its `model.toml` says."""

    path: Path
    name: str
    content: dict[str, Any]


def read_folder(path: Path) -> Folder:
    """A folder as it describes itself; ConfigError where its `model.toml` is wrong."""
    content: dict[str, Any] = {}
    if (path / FILE).exists():
        try:
            content = config.read_toml(path / FILE)
        except ConfigError as error:
            raise ConfigError("source", error.text) from None
    name = content.pop("name", path.name)
    if not isinstance(name, str):
        raise ConfigError("name", f"{name!r} in {path / FILE} is not text")
    if "source" in content:
        raise ConfigError("source", f"does not belong into {path / FILE}: the folder is the source")
    for key in FOR_OPERATORS:
        if key in content:
            raise ConfigError(key, f"does not belong into {path / FILE}: only the config file may set it")
    return Folder(path, name, content)


def find(store: Path, url: str) -> Folder:
    """The folder `url` of the store. BadInput, NoSuchModel or Unsupported say what is wrong with it."""
    if "://" in url:
        raise Unsupported(f"url {url!r}: models are not fetched yet; put a folder into the model store")
    if ".." in Path(url).parts:
        raise BadInput("url", f"Relative path is not allowed in url: {url}")
    if url.lower().endswith((".mar", ".tar.gz", ".zip")):
        raise Unsupported(f"url {url!r}: archives are not served yet; unpack it into a folder of the model store")
    try:
        root, path = store.resolve(), (store / url).resolve()
        exists = path.is_dir()
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        raise BadInput("url", f"{url[:80]!r} is no name of a folder: {error}") from None
    if path == root or not path.is_relative_to(root):
        raise BadInput("url", f"{url!r} is not a folder inside the model store")
    if not exists:
        raise NoSuchModel(f"{url} (no such folder in the model store)")
    try:
        return read_folder(path)
    except ConfigError as error:
        raise BadInput("url", f"{url!r} cannot be used: {error}") from None


def spec_of(
    name: str, model: config.Model, *, folder: Path, url: str = "", loaded_at_startup: bool = False
) -> ModelSpec:
    """A model's ModelSpec. `folder` is what the model's relative `source` means."""
    given = model.model_fields_set
    model, model_dir = _with_its_folder(model, folder)
    return ModelSpec(
        name=name,
        version=model.version,
        handler=model.handler,
        model_dir=model_dir,
        url=url or model.handler,
        options=model.options,
        workers_min=model.workers.min,
        workers_max=model.workers.max if model.workers.max is not None else model.workers.min,
        target_ongoing_requests=model.target_ongoing_requests,
        upscale_delay_s=model.upscale_delay_s,
        downscale_delay_s=model.downscale_delay_s,
        devices=(model.device,) if isinstance(model.device, str) else model.device,
        threads=model.threads if isinstance(model.threads, int) else 0,
        batch_size=model.batch_size,
        max_batch_delay_s=model.max_batch_delay_ms / 1000,
        weight=model.weight,
        max_batch_weight=model.max_batch_weight,
        tenant_key=model.tenant_key,
        queue_size=model.queue_size,
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


def _with_its_folder(model: config.Model, folder: Path) -> tuple[config.Model, Path]:
    """The model with what its own folder says where the config does not, and that folder."""
    model_dir = folder
    if model.source is not None:
        described = read_folder((folder / model.source).resolve())
        model_dir = described.path
        if described.content:
            given = model.model_dump(exclude_unset=True, exclude={"source"})
            try:
                model = parse({**described.content, **given})
            except ConfigError as error:
                raise ConfigError(error.key, f"{error.text} (in {model_dir / FILE})") from None
    if not model.handler:
        raise ConfigError("handler", f"is missing, and {model_dir / FILE} does not name one")
    return model, model_dir


def _environment(model: config.Model, bases: Mapping[str, Path]) -> Environment:
    """Where a model's code runs. `bases`: what a relative path means, by the key that says it."""
    listed, base = model.requirements, bases["requirements"]
    return Environment(
        path=tuple(str((bases["path"] / folder).resolve()) for folder in model.path),
        env=model.env,
        pass_env=model.pass_env,
        requirements=() if isinstance(listed, str) else listed,
        requirements_file=str((base / listed).resolve()) if listed and isinstance(listed, str) else "",
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
