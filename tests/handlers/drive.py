"""Drives a continuous-batching handler without a server, as a worker would: prefill, step, release, in that order.

What must not live here: assertions. The contract is handlers/base.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actorserve.handlers.base import Context, Request


def loaded(handler: Any, cache_dir: Path, **options: Any) -> Any:
    """The handler, loaded on the CPU."""
    handler.load(Context("cpu", Path(__file__).parent, options, log=None, cache_dir=cache_dir))
    return handler


def ask(handler: Any, *batch: Mapping[str, bytes]) -> list[Any]:
    """One batch through `infer`."""
    return list(handler.infer([Request(inputs) for inputs in batch]))


def pieces(handler: Any, *batch: Mapping[str, bytes]) -> list[list[Any]]:
    """Generate the whole batch at once; each generation's answers. The first failure is raised."""
    heard: list[list[Any]] = [[] for _ in batch]
    running: list[tuple[int, Any]] = []
    for index, inputs in enumerate(batch):
        state, first = handler.prefill(Request(inputs))
        _hear(handler, heard[index], state, first)
        if not first.done:
            running.append((index, state))
    while running:
        steps = handler.step([state for _, state in running])
        for (index, state), step in zip(running, steps, strict=True):
            _hear(handler, heard[index], state, step)
        running = [at for at, step in zip(running, steps, strict=True) if not step.done]
    return heard


def texts(handler: Any, *batch: Mapping[str, bytes]) -> list[str]:
    """Generate the whole batch at once; each generation's text."""
    return ["".join(answers) for answers in pieces(handler, *batch)]


def _hear(handler: Any, answers: list[Any], state: Any, step: Any) -> None:
    if isinstance(step, Exception):
        raise step
    if step.answer is not None:
        answers.append(step.answer)
    if step.done:
        handler.release(state)


def requests(*batch: Mapping[str, bytes]) -> Sequence[Request]:
    """The inputs as requests."""
    return [Request(inputs) for inputs in batch]
