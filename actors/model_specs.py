"""What is known of a model becomes its ModelSpec: keys of the config, of RegisterModel, of its folder, and defaults.

What must not live here: opening folders and archives (model_store.py), reading them (model_folder.py), which keys there
are (config.py), gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from actorserve import config
from actorserve.actors import manifest
from actorserve.actors.messages import Environment, ModelSpec, Restart
from actorserve.actors.model_folder import FILE, Folder
from actorserve.config_defaults import FOR_TORCHSERVE
from actorserve.errors import ConfigError

FindDefaults = Callable[[str, str], Mapping[str, Any]]
"""What `[model_defaults]` says of a model by its name and version."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


def no_defaults(_name: str, _version: str) -> Mapping[str, Any]:
    """A FindDefaults where nothing is said."""
    return NOTHING


def merge(described: Folder, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that count: `given` wins over what the folder says, and that over `defaults`. What runs TorchServe's
    handlers takes their place.

    Its defaults are TorchServe's: one request a batch, 100 ms (0.12.0: RegisterModelRequest.java).
    """
    for_torchserve = {key: value for key, value in defaults.items() if key in FOR_TORCHSERVE}
    content = {**without(defaults, FOR_TORCHSERVE), **described.content, **given}
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


def without(content: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The content but for some keys."""
    return {key: value for key, value in content.items() if key not in keys}


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
    with reading("path", ", ".join(map(str, model.path))):
        path = tuple(str((bases["path"] / folder).resolve()) for folder in model.path)
    with reading("requirements", listed):
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


@contextmanager
def reading(key: str, written: object) -> Iterator[None]:
    """What the file system says against a path, as the ConfigError of its key. RuntimeError: links in a circle."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(key, f"{written!s:.200} cannot be used: {why}") from None
