"""A batch in parts: while one part is in inference, the next is preprocessed and the last is postprocessed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

HANDLER_METHODS = ("preprocess", "inference", "postprocess")


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
        self._parallelism = dict.fromkeys(HANDLER_METHODS, 1)
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._local = threading.local()
        self.parallelism = dict(parallelism or {})

    @property
    def parallelism(self) -> dict[str, int]:
        """How many threads each stage has."""
        return dict(self._parallelism)

    @parallelism.setter
    def parallelism(self, parallelism: Mapping[str, int]) -> None:
        """Set the threads of the stages that are named; ValueError for another name or less than 1."""
        for stage, threads in parallelism.items():
            if stage not in HANDLER_METHODS:
                raise ValueError(f"parallelism has {stage!r}; stages are {', '.join(HANDLER_METHODS)}")
            if threads < 1:
                raise ValueError(f"parallelism of {stage} is {threads}; it must be at least 1")
        self.shutdown()
        self._parallelism |= parallelism

    def __call__(self, data: Sequence[Any], context: Any) -> list[Any]:
        """Answer a batch, a description or an explanation; the time is the metric HandlerTime, in milliseconds."""
        began = time.perf_counter()
        self.handler.context = context
        if self._asks("_is_describe"):
            answers = [self.handler.describe_handle()]
        elif self._asks("_is_explain"):
            answers = self.handler.explain_handle(self.handler.preprocess(data), data)
        else:
            answers = self.handle(data)
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - began) * 1000, 2), None, "ms")
        return answers

    def handle(self, data: Sequence[Any]) -> list[Any]:
        """Answer a batch in parts. What a stage raises is raised here, once all parts have ended."""
        size = self.micro_batch_size
        parts = [self._send(index, data[start : start + size]) for index, start in enumerate(range(0, len(data), size))]
        wait(parts)
        return [answer for part in parts for answer in part.result()]

    def get_micro_batch_idx(self) -> int | None:
        """Which part the thread that asks works on; None outside of a stage."""
        return getattr(self._local, "index", None)

    def shutdown(self) -> None:
        """End the threads; another call starts new ones."""
        for pool in self._pools.values():
            pool.shutdown()
        self._pools.clear()

    def _asks(self, question: str) -> bool:
        return bool(getattr(self.handler, question, bool)())

    def _send(self, index: int, part: Sequence[Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(part)
        for stage in HANDLER_METHODS:
            future = self._pool(stage).submit(self._apply, index, getattr(self.handler, stage), future)
        return future

    def _pool(self, stage: str) -> ThreadPoolExecutor:
        if stage not in self._pools:
            self._pools[stage] = ThreadPoolExecutor(self._parallelism[stage], thread_name_prefix=stage)
        return self._pools[stage]

    def _apply(self, index: int, stage: Callable[[Any], Any], earlier: Future[Any]) -> Any:
        data = earlier.result()
        self._local.index = index
        return stage(data)
