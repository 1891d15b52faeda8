"""`[model_defaults.NAME]`: what holds for models where neither their entry, nor the call, nor their source says it.

What must not live here: `[models.NAME]` (config_model.py), where defaults are applied (actors/model_specs.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from actorserve.config_types import Table, Texts

MOST_WORKERS = 1024
EVERY = "*"


class Workers(Table):
    """How many workers a model has: as many as it needs between two bounds (docs/scaling.md)."""

    min: int = Field(
        default=1,
        ge=0,
        le=MOST_WORKERS,
        description="Workers started, and the fewest there are. 0: none until the first request, where `max` allows "
        "some; else none until ScaleWorker asks for some.",
    )
    max: int | None = Field(
        default=None, ge=0, le=MOST_WORKERS, description="The most there are. Default: as `min`, so nothing scales."
    )
    initial: int | None = Field(
        default=None, ge=0, le=MOST_WORKERS, description="Workers started, between the two. Default: as `min`."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Workers:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max = {self.max} is less than min = {self.min}")
        most = self.min if self.max is None else self.max
        if self.initial is not None and not self.min <= self.initial <= most:
            raise ValueError(f"initial = {self.initial} is not between min = {self.min} and max = {most}")
        return self


class Defaults(Table):
    """What holds for a model where nothing closer says it. NAME is `"*"` (every model), a model's name, or
    `"name/version"`; the closest wins. Keys not given leave the defaults of `[models.NAME]` in force.
    """

    handler: str | None = Field(default=None, description="Handler of a source that names none.")
    workers: Workers | None = Field(
        default=None,
        description="Workers at the server's start; RegisterModel has `server.registered_workers`.",
    )
    device: str | Texts | None = Field(default=None, description="As in `[models.NAME]`; so are the following.")
    threads: int | str | None = Field(default=None, description="Compute threads of a worker.")
    batch_size: int | None = Field(default=None, ge=1, le=65536, description="Most requests in one batch.")
    max_batch_delay_ms: float | None = Field(
        default=None, ge=0, le=600_000, description="Milliseconds that an idle worker waits for a fuller batch."
    )
    queue_size: int | None = Field(default=None, ge=1, le=1_000_000, description="Requests that may wait.")
    startup_timeout_s: float | None = Field(
        default=None, gt=0, description="Seconds that a worker has to become READY."
    )
    response_timeout_s: float | None = Field(
        default=None, gt=0, description="Seconds of one call of the handler, after which the worker is killed."
    )
    envelope: Literal["body", "json", "kserve", "kservev2"] | None = Field(
        default=None, description="Request envelope of handlers in TorchServe's style (its `service_envelope`)."
    )
    limit_max_image_pixels: bool | None = Field(
        default=None, description="Whether TorchServe's image handlers refuse huge images. They do by default."
    )


FOR_TORCHSERVE = ("envelope", "limit_max_image_pixels")
"""Keys of Defaults that are options of TorchServe's handlers, and no keys of `[models.NAME]`."""


def find(tables: Mapping[str, Defaults], name: str, version: str) -> dict[str, Any]:
    """What holds for a model, from the widest to the closest table."""
    found: dict[str, Any] = {}
    for key in (EVERY, name, f"{name}/{version}"):
        if key in tables:
            found |= tables[key].model_dump(exclude_unset=True, exclude_none=True)
    return found
