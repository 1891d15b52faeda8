"""What a native handler is: the one file that somebody who brings a model has to read.

A handler is a class with `infer`, or `generate`, or `prefill` + `step` + `release`, or `infer` with one of the
latter two; or with `open` + `feed` + `release` (stateful sequences), alone or beside `infer` and `generate`. Every
other method is optional. It runs in a worker process, in the main thread, one call at a time. It never imports trio
or gRPC; it may import torch.

What must not live here: anything about how a worker is run or reached (actors/ has that).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from actorserve.errors import BadInput

__all__ = ["Answer", "BadInput", "Context", "Handler", "Request", "Step", "missing_methods"]

Answer = Any
"""bytes, str (sent as UTF-8), or anything that `json.dumps` takes."""

_EMPTY: Mapping[str, Any] = MappingProxyType({})


def _never() -> bool:
    return False


class Request:
    """One item of a batch, read-only.

    `inputs` are the request's fields as bytes; `metadata` is the call's gRPC metadata, where keys
    that end in `-bin` hold bytes and all others str; `id` names the request in the log.
    """

    __slots__ = ("_cancelled", "_deadline_ns", "_trailers", "id", "inputs", "metadata")

    def __init__(
        self,
        inputs: Mapping[str, bytes],
        metadata: Mapping[str, str | bytes] = _EMPTY,
        id: str = "",
        *,
        deadline_ns: int = 0,
        cancelled: Callable[[], bool] = _never,
    ) -> None:
        """`deadline_ns` is CLOCK_MONOTONIC in nanoseconds, 0 for none."""
        self.inputs = inputs
        self.metadata = metadata
        self.id = id
        self._deadline_ns = deadline_ns
        self._cancelled = cancelled
        self._trailers: dict[str, str | bytes] | None = None

    def time_remaining(self) -> float | None:
        """Seconds until the caller stops waiting, never below 0; None without a deadline."""
        if not self._deadline_ns:
            return None
        return max(0.0, (self._deadline_ns - time.monotonic_ns()) / 1e9)

    def cancelled(self) -> bool:
        """Whether the caller has gone, so that the answer would be dropped."""
        return self._cancelled()

    def set_trailer(self, key: str, value: str | bytes) -> None:
        """Add trailing metadata to the answer; bytes need a key that ends in `-bin`."""
        if isinstance(value, bytes) != key.endswith("-bin"):
            raise ValueError(f"trailer {key!r}: bytes belong to keys that end in -bin, str to all others")
        if self._trailers is None:
            self._trailers = {}
        self._trailers[key] = value

    @property
    def trailers(self) -> Mapping[str, str | bytes]:
        """What `set_trailer` has gathered so far."""
        return _EMPTY if self._trailers is None else self._trailers


@dataclass(frozen=True, slots=True)
class Context:
    """What `load` is given.

    `device` is torch's name for it ("cpu"); `model_dir` is the folder that relative paths of the
    model's files mean; `cache_dir` is where converted weights may be kept between runs; `options`
    is the model's `options` table of the config; `log` takes `debug/info/warning/error(text)`.
    """

    device: str
    model_dir: Path
    options: Mapping[str, Any]
    log: Any
    cache_dir: Path = field(default_factory=lambda: Path.home() / ".cache" / "actorserve")
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of continuous batching gave one generation: perhaps an answer, perhaps the end."""

    answer: Answer | None = None
    done: bool = False


@runtime_checkable
class Handler(Protocol):
    """The methods a handler may have. Inherit from it or not: only the methods count."""

    def load(self, context: Context) -> None:
        """Read the weights. Called once, before anything else."""

    def infer(self, batch: Sequence[Request]) -> Sequence[Answer | Exception]:
        """Answer each item: same length, same order. An exception in the list fails its item alone."""

    def generate(self, request: Request) -> Iterator[Answer]:
        """Yield one stream's answers. Closed (GeneratorExit) before its next step when the caller goes."""

    def prefill(self, request: Request) -> tuple[Any, Step]:
        """Begin one generation of a continuous batch: its state and its first step."""

    def step(self, states: Sequence[Any]) -> Sequence[Step | Exception]:
        """Advance each generation by one: same length, same order."""

    def open(self, request: Request) -> Any:
        """Begin one stateful sequence: its state. The request has the call's metadata, and the input `sequence_id`."""

    def feed(self, states: Sequence[Any], requests: Sequence[Request]) -> Sequence[Answer | Exception]:
        """Answer the next item of each of several sequences: same length, same order.

        An exception in the list fails its item alone, and the sequence goes on: its state must be as before. What
        is raised ends every sequence of the batch, for their states are in doubt.
        """

    def ended(self) -> Sequence[Any]:
        """Say which states' sequences the handler itself has ended; asked after each `feed`. Optional.

        Any that are open may be among them. What their clients still send is answered with NOT_FOUND.
        """

    def finish(self, state: Any) -> Answer | None:
        """Say a last word once the client has ended and every item is answered; None for nothing. Optional."""

    def release(self, state: Any) -> None:
        """Free one generation's or one sequence's state: exactly once, whether it is done, cancelled or failed."""

    def weight(self, request: Request) -> int:
        """How much of a forward this item takes, at least 0, in units of your own: tokens, say.

        Asked only where the config has `max_batch_weight`: `infer` then gets at most so much at once, lightest items
        first, so that items of one size are together. An item above it fails alone with RESOURCE_EXHAUSTED. An
        exception fails its item alone. Must be quick: it runs once an item, before the batch.
        """

    def describe(self) -> Mapping[str, Any]:
        """Say something of this model: DescribeModel with `customized` answers it as `customizedMetadata`.

        What JSON takes. Called between two batches, in the main thread, each time that somebody asks.
        """

    def warmup(self) -> Sequence[Mapping[str, bytes]]:
        """Inputs to run once before the worker is READY."""

    def close(self) -> None:
        """Called once, before the worker ends by itself."""


def missing_methods(handler: object) -> str | None:
    """Say what a handler lacks, or None if it can serve."""

    def has(name: str) -> bool:
        return callable(getattr(handler, name, None))

    if has("feed"):
        lacking = [name for name in ("open", "release") if not has(name)]
        if lacking:
            return f"has feed but lacks {' and '.join(lacking)}"
        return "has both feed and prefill/step: release frees one kind of state" if has("prefill") else None
    continuous = [name for name in ("prefill", "step", "release") if has(name)]
    if 0 < len(continuous) < 3:
        lacking = [name for name in ("prefill", "step", "release") if name not in continuous]
        return f"has {' and '.join(continuous)} but lacks {' and '.join(lacking)}"
    if continuous and has("generate"):
        return "has both generate and prefill/step: streaming is one or the other"
    if not (continuous or has("infer") or has("generate")):
        return "has none of infer, generate, prefill + step + release, or open + feed + release"
    return None
