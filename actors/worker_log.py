"""One worker's lines in the server's log: what it prints, and what its handler logs.

What must not live here: reading pipes and counting lines (worker_process.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
import trio

from actorserve.actors.worker_process import LineLimit, OutputPump, Process, dropped_lines

LEVELS = frozenset(("debug", "info", "warning", "error", "critical"))

log = structlog.get_logger("actorserve.model")


class WorkerLog:
    """See the module's docstring. `model` and `worker` are on every line."""

    def __init__(self, model: str, worker: int) -> None:
        self._log = log.bind(model=model, worker=worker)
        self._limit = LineLimit()  # of what the handler logs; each pipe has its own

    def pumps(self, process: Process) -> list[OutputPump]:
        """What reads the worker's output pipes, to be run."""
        return [OutputPump(descriptor, self._emit(name), LineLimit()) for name, descriptor in process.outputs()]

    def relay(self, said: dict[str, Any]) -> None:
        """Log what the handler logged, as many lines a second as it may print."""
        if not self._limit.allows(trio.current_time()):
            return
        level = str(said.get("level"))
        emit = getattr(self._log, level if level in LEVELS else "info")
        emit(str(said.get("text")), logger_name=str(said.get("logger")))

    def say_dropped(self) -> None:
        """Say how many of those lines were too many."""
        if self._limit.dropped:
            self._log.warning(dropped_lines(self._limit.take_dropped()))

    def _emit(self, stream: str) -> Callable[[str], None]:
        def emit(line: str) -> None:
            self._log.info(line, stream=stream)

        return emit
