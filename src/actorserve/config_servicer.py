"""`[[servicers]]`: a service of the user's own schema, what answers it and how often (docs/bring-your-own-schema.md).

Keys that a model has too mean what they mean there. What must not live here: other tables, importing what is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from actorserve.config_listener import Listener
from actorserve.config_types import AUTO, Folders, Table, Texts, check_device, check_target, is_variable

MOST_REPLICAS = 1024
UNLIMITED = -1
MOST_QUEUED = 10_000
"""What `max_queued_requests = -1` means: so many in all."""


class Replicas(Table):
    """How many replicas a servicer has: as many as it needs between two bounds (docs/scaling.md)."""

    min: int = Field(default=1, ge=0, le=MOST_REPLICAS, description="The fewest. 0: none until the first call.")
    max: int = Field(default=1, ge=0, le=MOST_REPLICAS, description="The most.")

    @model_validator(mode="after")
    def _in_order(self) -> Replicas:
        if self.max < self.min:
            raise ValueError(f"max = {self.max} is less than min = {self.min}")
        return self


class Servicer(Table):
    """A service of your own schema: a grpcio servicer class, or a grpclib service class."""

    servicer: str = Field(
        default="",
        description="`module:Class` of a grpcio servicer or a grpclib service; it is made once in each replica, "
        "without arguments.",
    )
    functions: Texts = Field(
        default=(),
        description="`module:add_XServicer_to_server` functions that protoc generated: those that register "
        "`servicer`, where its bases do not tell. Without `servicer`: a schema that the applications answer.",
    )
    name: str = Field(
        default="", description="Its name in the log and in health checks, beside its services'. Default: `servicer`."
    )
    listeners: Texts = Field(
        default=(), description='Listeners that serve it. Default: every one whose `services` name `"servicers"`.'
    )
    replicas: Replicas = Field(
        default_factory=Replicas, description="Worker processes that answer: a number, or `{ min = 1, max = 4 }`."
    )
    max_ongoing_requests: int = Field(
        default=5, ge=1, le=100_000, description="Calls that one replica has at once; also its threads for `def`s."
    )
    max_queued_requests: int = Field(
        default=UNLIMITED,
        ge=UNLIMITED,
        le=1_000_000,
        description="Calls that may wait for a replica; more are refused. -1: 10,000.",
    )
    target_ongoing_requests: float = Field(
        default=2.0, gt=0, le=1_000_000, description="Calls waiting or at work that one replica is meant to have."
    )
    upscale_delay_s: float = Field(
        default=30.0, ge=0, le=86400, description="Seconds that more replicas must have been wanted. Never from none."
    )
    downscale_delay_s: float = Field(
        default=600.0, ge=0, le=86400, description="Seconds that fewer replicas must have been wanted."
    )
    device: str | Texts = Field(
        default="cpu", description="The device that a replica has, as a model's. Most need none: `cpu`."
    )
    threads: int = Field(default=1, ge=1, le=1024, description="Compute threads of a replica (torch's).")
    startup_timeout_s: float = Field(default=120.0, gt=0, description="Seconds that a replica has to become READY.")
    response_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="Seconds that code on a replica's loop may keep it without a turn, after which it is killed.",
    )
    max_restarts: int = Field(
        default=5, ge=0, le=1000, description="Failures in a row after which a replica is given up (FAILED)."
    )
    restart: Literal["permanent", "transient", "temporary"] = Field(
        default="transient", description="When a replica that ended by itself is started again."
    )
    max_worker_memory_mb: int = Field(
        default=0, ge=0, le=1 << 24, description="Megabytes of a replica above which it is replaced. 0: no limit."
    )
    max_requests_per_worker: int = Field(
        default=0, ge=0, le=1 << 40, description="Calls after which a replica is replaced. 0: no limit."
    )
    path: Folders = Field(default=(), description="Folders added to the replica's `sys.path`.")
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of the replica.")
    pass_env: Texts = Field(
        default=(), description="Names of the server's environment variables that the replica sees too."
    )
    requirements: str | Texts = Field(default=(), description="Packages of this servicer alone, as a model's.")
    install_timeout_s: float = Field(
        default=600.0, gt=0, le=86400, description="Seconds that installing `requirements` may take."
    )

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.servicer or ",".join(self.functions)

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if value != AUTO:
            check_device(value)
        return value

    @field_validator("replicas", mode="before")
    @classmethod
    def _may_be_a_number(cls, value: Any) -> Any:
        if not isinstance(value, int):
            return value
        if isinstance(value, bool) or not 0 <= value <= MOST_REPLICAS:
            raise ValueError(f"{value} is wrong: it must be 0 to {MOST_REPLICAS}, or {{ min = ..., max = ... }}")
        return {"min": value, "max": value}

    @field_validator("servicer", "functions")
    @classmethod
    def _are_targets(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for target in (value,) if isinstance(value, str) else value:
            if target:
                check_target(target)
        return value

    @field_validator("env", "pass_env")
    @classmethod
    def _are_variables(cls, value: Any) -> Any:
        for name in value:
            if not is_variable(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return value

    @model_validator(mode="after")
    def _has_code(self) -> Servicer:
        if not self.servicer and not self.functions:
            raise ValueError('servicer is missing: name one as "module:Class", or functions that applications answer')
        return self


def check_servicers(servicers: Sequence[Servicer], listeners: Mapping[str, Listener]) -> None:
    """ValueError for two of one name, and for one that no listener serves."""
    names: set[str] = set()
    able = [name for name, listener in listeners.items() if "servicers" in listener.services]
    for servicer in servicers:
        if servicer.label in names:
            raise ValueError(f"two servicers are called {servicer.label!r}: give one a name")
        names.add(servicer.label)
        for name in servicer.listeners:
            if name not in able:
                raise ValueError(
                    f'servicer {servicer.label!r}: no listener {name!r} has "servicers" among its services'
                )
        if not able:
            raise ValueError(f'servicer {servicer.label!r}: no listener has "servicers" among its services')
