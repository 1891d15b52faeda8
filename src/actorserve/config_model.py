"""`[models.NAME]`: one version of a model, what runs, how often and how it is fed, and every bound on it.

A folder's `model.toml` is checked by the same table.
What must not live here: `[model_defaults.NAME]` (config_defaults.py), what needs other entries (config_versions.py),
what a source says (actors/model_store.py).
Over 250 lines: one table.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from actorserve.config_defaults import Workers
from actorserve.config_types import (
    AUTO,
    NAME,
    Folder,
    Folders,
    Table,
    Texts,
    as_toml,
    check_device,
    check_handler,
    is_metadata_key,
    is_packed,
    is_variable,
)

MOST_THREADS = 1024


class Model(Table):
    """One version of a model: what runs, how often, and how it is fed. NAME is the model's name, unless the key `name`
    says another: so a file may have several versions of one model, whose default is the first in the file's order.
    """

    name: str = Field(
        default="",
        pattern=NAME,
        description="The model's name. Default: the entry's NAME. No two entries have one name and version.",
    )
    source: Folder | None = Field(
        default=None,
        description="The model's folder: first on the worker's `sys.path`, and what its handler gets as `model_dir`. "
        "Or an archive (`.mar`, `.zip`, `.tar.gz`, `.tgz`), or a file (`.pt`, `.pt2`, `.safetensors`): "
        "docs/archives.md.",
    )
    handler: str = Field(
        default="",
        description="`module:Class` of the handler. May be left out where `source` names one; for an archive or a file "
        "also in TorchServe's notation.",
    )
    version: str = Field(default="1.0", pattern=NAME, description="The version's name.")
    default: bool = Field(
        default=False,
        description="The version that calls without one get, until SetDefault chooses another (docs/state.md). At most "
        "one entry of a model says so. In the config file only.",
    )
    workers: Workers = Field(default_factory=Workers, description="How many workers, as `{ min = 1, max = 4 }`.")
    target_ongoing_requests: float = Field(
        default=2.0, gt=0, le=1_000_000, description="Requests waiting or at work that one worker is meant to have."
    )
    upscale_delay_s: float = Field(
        default=30.0, ge=0, le=86400, description="Seconds that more workers must have been wanted. Never from none."
    )
    downscale_delay_s: float = Field(
        default=600.0, ge=0, le=86400, description="Seconds that fewer workers must have been wanted."
    )
    downscale_to_zero_delay_s: float | None = Field(
        default=None,
        ge=0,
        le=86400,
        description="Seconds without a request after which the last worker ends. Default: `downscale_delay_s`.",
    )
    upscaling_factor: float = Field(
        default=1.0, gt=0, le=1000, description="Part of the way to what is wanted that one change goes up."
    )
    downscaling_factor: float = Field(
        default=1.0, gt=0, le=1000, description="Part of the way that one change goes down; one worker at the least."
    )
    look_back_period_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="Seconds over which the requests waiting or at work are averaged. 0: those of now.",
    )
    device: str | Texts = Field(
        default=AUTO,
        description="Where workers compute: `cpu`, `cuda:N`, a list of the latter, or `auto`: all GPUs, the CPU where "
        "there is none (docs/devices.md).",
    )
    threads: int | str = Field(
        default=1,
        description="Compute threads of a worker, 1 to 1024. `auto`: the cores shared out among all CPU workers.",
    )
    batch_size: int = Field(
        default=32, ge=1, le=65536, description="Most requests in one batch, and most streams open in one worker."
    )
    max_batch_delay_ms: float = Field(
        default=0.0,
        ge=0,
        le=600_000,
        description="Milliseconds that an idle worker waits for a fuller batch, counted from the oldest's arrival.",
    )
    weight: str = Field(
        default="count",
        description="What a request weighs in a batch: `count`, `bytes` (of its inputs), or `metadata:KEY`, the whole "
        "number in that metadata of the call. All but `count` need `max_batch_weight`.",
    )
    max_batch_weight: int = Field(
        default=0,
        ge=0,
        le=10**15,
        description="Most weight in one batch; a request above it is refused. 0: no limit. With a handler that weighs "
        "by itself, most weight of one forward.",
    )
    tenant_key: str = Field(
        default="",
        description="Metadata key of the call that names its tenant; tenants take turns. Empty: all are one.",
    )
    queue_size: int = Field(default=100, ge=1, le=1_000_000, description="Requests that may wait; more are refused.")
    job_tickets: bool = Field(
        default=False, description="Let no request wait: one that finds no idle worker is refused at once."
    )
    startup_timeout_s: float = Field(default=120.0, gt=0, description="Seconds that a worker has to become READY.")
    max_sequences: int = Field(
        default=100, ge=1, le=1_000_000, description="Stateful sequences that may be open at once; more are refused."
    )
    sequence_idle_timeout_s: float = Field(
        default=60.0, gt=0, le=86400, description="Seconds without a message after which a sequence expires."
    )
    response_timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds of one call of the handler, after which the worker is killed."
    )
    max_restarts: int = Field(
        default=5, ge=0, le=1000, description="Failures in a row after which a worker is given up (FAILED)."
    )
    restart: Literal["permanent", "transient", "temporary"] = Field(
        default="transient",
        description="When a worker that ended by itself is started again: always; after a crash only; never.",
    )
    max_worker_memory_mb: int = Field(
        default=0,
        ge=0,
        le=1 << 24,
        description="Megabytes (2^20 bytes) of a worker's own memory above which it is replaced. 0: no limit.",
    )
    max_requests_per_worker: int = Field(
        default=0, ge=0, le=1 << 40, description="Requests after which a worker is replaced. 0: no limit."
    )
    path: Folders = Field(
        default=(),
        description="Folders added to the worker's `sys.path`, after the config file's and the model's own, "
        "before site-packages.",
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="Environment variables of the worker (docs/environments.md)."
    )
    pass_env: Texts = Field(
        default=(),
        description="Names of the server's environment variables that the worker sees too. In the config file only.",
    )
    requirements: str | Texts = Field(
        default=(),
        description="Packages of this model alone, as pip takes them: a list, or the path of a requirements file. "
        "They are installed into a venv below `server.cache_dir`.",
    )
    install_timeout_s: float = Field(
        default=600.0, gt=0, le=86400, description="Seconds that installing `requirements` may take."
    )
    isolation: Literal["process", "thread"] = Field(
        default="process",
        description="`thread` runs a trusted handler in a thread of the server, which it can stop or crash. "
        "In the config file only.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Handed to the handler as it is.")

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        check_device(value)
        return value

    @field_validator("threads")
    @classmethod
    def _is_count(cls, value: int | str) -> int | str:
        if value != AUTO and not (isinstance(value, int) and 1 <= value <= MOST_THREADS):
            raise ValueError(f'{as_toml(value)} is wrong: it must be 1 to {MOST_THREADS}, or "{AUTO}"')
        return value

    @field_validator("tenant_key")
    @classmethod
    def _is_metadata_key(cls, value: str) -> str:
        if value and not is_metadata_key(value):
            raise ValueError(f"{as_toml(value)} is no metadata key: lower-case letters, digits, '_', '.' and '-'")
        return value

    @field_validator("weight")
    @classmethod
    def _is_weight(cls, value: str) -> str:
        kind, _, key = value.partition(":")
        if value in ("count", "bytes") or (kind == "metadata" and is_metadata_key(key) and not key.endswith("-bin")):
            return value
        raise ValueError(f'{as_toml(value)} is wrong: it must be "count", "bytes" or "metadata:KEY"')

    @model_validator(mode="after")
    def _weight_has_a_limit(self) -> Model:
        if self.weight != "count" and not self.max_batch_weight:
            raise ValueError(f"max_batch_weight is missing: weight = {as_toml(self.weight)} is nothing without it")
        return self

    @field_validator("options")
    @classmethod
    def _travels(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, option in value.items():
            try:
                json.dumps(option, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    f"option {name} = {option} cannot be handed to a worker; text, numbers, true, false, lists and "
                    "tables can, so write it as text"
                ) from None
        return value

    @field_validator("env", "pass_env")
    @classmethod
    def _are_variables(cls, value: Any) -> Any:
        for name in value:
            if not is_variable(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        if isinstance(value, dict) and any("\0" in text for text in value.values()):
            raise ValueError("an environment variable cannot hold a zero byte")
        return value

    @model_validator(mode="after")
    def _a_thread_has_no_environment(self) -> Model:
        given = [key for key in ("env", "pass_env", "requirements") if getattr(self, key)]
        if self.isolation == "thread" and given:
            raise ValueError(f'isolation = "thread" shares the server\'s environment: it cannot have {given[0]}')
        if self.isolation == "thread" and self.max_worker_memory_mb:
            raise ValueError('max_worker_memory_mb cannot be kept: isolation = "thread" has no memory of its own')
        return self

    @field_validator("handler")
    @classmethod
    def _names_a_class(cls, value: str, others: ValidationInfo) -> str:
        source = others.data.get("source")
        if value and not (source is not None and is_packed(source.name)):
            check_handler(value)
        return value

    @model_validator(mode="after")
    def _has_code(self) -> Model:
        if not self.handler and self.source is None:
            raise ValueError('handler is missing: name one as "module:Class"')
        return self

    @model_validator(mode="after")
    def _may_be_replaced(self) -> Model:
        for limit in ("max_worker_memory_mb", "max_requests_per_worker"):
            if self.restart == "temporary" and getattr(self, limit):
                raise ValueError(f'{limit} cannot be kept: with restart = "temporary" no worker is ever replaced')
        return self
