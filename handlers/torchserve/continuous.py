"""Continuous batching of a handler in TorchServe's style: `continuousBatching: true` in its model-config.yaml.

`handle` is called again and again with all requests that run: one that is new has its row, one that was there before
is `{}` and known by its id. What it returns is each one's next part; `context.stopping_criteria[i]`, called with it,
says whether that one is done (True), goes on (False), or never was a stream (None: it is done).

Handlers forget whom they do not see in a call. So each call has every request that runs: a newcomer joins the others'
next call, and one whose client reads slowly stays in, and its parts wait for it, up to `limit` bytes.
What must not live here: who joins and leaves (actors/worker_engine.py), rows and answers (rows.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from actorserve.errors import HandlerStatus
from actorserve.handlers.base import Request, Step
from actorserve.handlers.torchserve.rows import Row
from actorserve.handlers.torchserve.runs import id_of


class Generation:
    """One request that runs; what the handler gave and nobody took is in its row."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.is_done = False

    @property
    def runs(self) -> bool:
        """Whether the handler has more to say."""
        return not self.is_done and self.row.error is None

    @property
    def has_something(self) -> bool:
        """Whether a step can be told without the handler."""
        return bool(self.row.chunks) or not self.runs


class Continuous:
    """See the module's docstring. `run` calls the handler for rows and settles them; gives what it returned."""

    def __init__(self, context: Any, run: Callable[[list[Row]], Any], limit: int) -> None:
        self._context = context
        self._run = run
        self._limit = limit
        self._live: dict[int, Generation] = {}

    def prefill(self, request: Request) -> tuple[Generation, Step]:
        """Let a request join the next call."""
        row = Row(request)
        if any(other.row.id == row.id for other in self._live.values()):  # a client gave one id to two requests
            row.id = f"{row.id}-{id_of(row)}"
        generation = self._live[id(row)] = Generation(row)
        return generation, Step()

    def step(self, states: Sequence[Generation]) -> Sequence[Step | Exception]:
        """The next part of each; the handler is called if one of them has none that waits."""
        if not all(state.has_something for state in states):
            self._advance([one for one in self._live.values() if one.runs])
        return [self._next(state) for state in states]

    def release(self, state: Generation) -> None:
        """It leaves the calls."""
        self._live.pop(id(state.row), None)

    def _advance(self, running: list[Generation]) -> None:
        answers = self._run([one.row for one in running])
        for index, one in enumerate(running):
            one.row.seen = True
            if one.row.error is None:
                self._judge(one, index, answers)

    def _judge(self, one: Generation, index: int, answers: Any) -> None:
        """Whether it is done, by its criterion."""
        criteria = self._context.stopping_criteria
        try:
            criterion = criteria[index] if criteria else None
            said = None if criterion is None else criterion(answers[index])
            one.is_done = said is None or bool(said)
        except Exception as error:  # noqa: BLE001  # the handler's: it is this one's ending
            one.row.error = error
        if one.row.size > self._limit:
            text = f"{one.row.size} bytes of the stream wait for the client; the limit is {self._limit}"
            one.row.chunks.clear()
            one.row.error = HandlerStatus(429, text)

    @staticmethod
    def _next(state: Generation) -> Step | Exception:
        if state.row.chunks:
            answer = state.row.take()
            return Step(answer, done=state.is_done and not state.row.chunks and state.row.error is None)
        return state.row.error if state.row.error is not None else Step(done=True)
