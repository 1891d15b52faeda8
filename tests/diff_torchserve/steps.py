"""What a case is made of: one call, where it stands, and what must have happened before it.

Data only. What must not live here: the cases themselves (cases.py and its parts), sending them (calls.py).
Placeholders in texts and bytes: `{store}` (the server's model store), `{web}` (host and port of the file server),
`{inference}` and `{management}` (the server's tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INFERENCE = ("Ping", "Predictions", "StreamPredictions", "StreamPredictions2")


@dataclass(frozen=True)
class Step:
    """One call.

    `messages` is for StreamPredictions2, whose messages wait for one answer each, unless `burst` sends all and closes.
    `raw` are bytes in place of a message. `behind` calls of the same model keep its worker busy and fill its queue
    while this one is made; their answers are part of the answer. `ready` repeats a DescribeModel until that many
    workers are READY. An answer is awaited for `patience_s`; none is an answer too.
    """

    name: str
    rpc: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()
    burst: bool = False
    metadata: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    behind: int = 0
    ready: int | None = None
    patience_s: float = 60.0
    compared: bool = True


@dataclass(frozen=True)
class Scenario:
    """Calls in their order, to one server; models that it leaves are unregistered after it."""

    name: str
    steps: tuple[Step, ...]
    configuration: str = "open"


def predict(name: str, data: bytes, model: str = "rows", **more: Any) -> Step:
    """Predictions with one input, `data`."""
    return Step(name, more.pop("rpc", "Predictions"), {"model_name": model, "input": {"data": data}}, **more)


def register(url: str, name: str = "", step: str = "", *, workers: int = 1, **fields: Any) -> Step:
    """RegisterModel, synchronous unless `fields` say otherwise."""
    given = {"url": url, "model_name": name, "initial_workers": workers, "synchronous": True} | fields
    return Step(step or f"register {name or url}", "RegisterModel", given)


def manage(name: str, rpc: str, **fields: Any) -> Step:
    """Any management call."""
    return Step(name, rpc, fields)


def await_ready(model: str, workers: int = 1, version: str = "") -> Step:
    """Not a case: until so many workers are READY."""
    fields = {"model_name": model, "model_version": version}
    return Step(f"await {model} {version}", "DescribeModel", fields, ready=workers, compared=False)
