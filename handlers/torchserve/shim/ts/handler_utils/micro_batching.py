"""A batch in parts: while one part is in inference, the next is preprocessed and the last is postprocessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

STAGES = ("preprocess", "inference", "postprocess")


class MicroBatching:
    """Stands for a handler's `handle`: `self.handle = MicroBatching(self, micro_batch_size)` in `__init__`.

    Each stage has `parallelism[stage]` threads, 1 where it is not given. The order of answers is that of the data.
    """

    def __init__(
        self, parent_handler: Any, micro_batch_size: int = 1, parallelism: Mapping[str, int] | None = None
    ) -> None:
        """`micro_batch_size`: most items of one part, at least 1."""
        if micro_batch_size < 1:
            raise ValueError(f"micro_batch_size is {micro_batch_size}; it must be at least 1")
        self.handler = parent_handler
        self.micro_batch_size = micro_batch_size
        self.parallelism = dict.fromkeys(STAGES, 1) | dict(parallelism or {})
        unknown = sorted(set(self.parallelism) - set(STAGES))
        if unknown:
            raise ValueError(f"parallelism has {unknown[0]!r}; stages are {', '.join(STAGES)}")
        self._pools: dict[str, ThreadPoolExecutor] = {}

    def __call__(self, data: Sequence[Any], context: Any) -> list[Any]:
        """Answer a batch. What a stage raises is raised here."""
        self.handler.context = context
        size = self.micro_batch_size
        parts = [self._send(data[start : start + size]) for start in range(0, len(data), size)]
        return [answer for part in parts for answer in part.result()]

    def _send(self, part: Sequence[Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(part)
        for stage in STAGES:
            future = self._pool(stage).submit(_apply, getattr(self.handler, stage), future)
        return future

    def _pool(self, stage: str) -> ThreadPoolExecutor:
        if stage not in self._pools:
            self._pools[stage] = ThreadPoolExecutor(self.parallelism[stage], thread_name_prefix=stage)
        return self._pools[stage]

    def shutdown(self) -> None:
        """End the threads."""
        for pool in self._pools.values():
            pool.shutdown()
        self._pools.clear()


def _apply(stage: Callable[[Any], Any], earlier: Future[Any]) -> Any:
    return stage(earlier.result())
