"""Stateful sequences of a handler in TorchServe's style: `sequenceBatching: true` in its model-config.yaml.

Such a handler keeps what it knows of a sequence itself, under `context.get_sequence_id(i)`. It is told by headers:
`ts_request_sequence_id` with each row, `ts_request_sequence_start` = "true" with a sequence's first, and
`ts_request_sequence_end` = "true" with the row whose message says so: by an input of that name whose value is "true".
After that row the sequence has ended. The handler may end sequences as well, any that are open: by the response
header `ts_request_sequence_end`, ids with ";" between them.

What fails is one item: the sequence goes on, as TorchServe means it. A state that is in doubt is the handler's to know.
What must not live here: which sequences are fed next (actors/worker_sequences.py), rows and answers (rows.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from actorserve.handlers.base import Answer, Request
from actorserve.handlers.torchserve.rows import Row

SEQUENCE_ID = "sequence_id"
"""The input of `open`'s request."""
TRUE = b"true"


class Conversation:
    """One sequence: the id that the handler knows it by, and whether it has had an item."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.has_begun = False


class Stateful:
    """See the module's docstring. `run` calls the handler for rows and settles them; gives their call."""

    def __init__(self, context: Any, run: Callable[[list[Row]], Any]) -> None:
        self._run = run
        self._id_key = context.header_key_sequence_id
        self._start_key = context.header_key_sequence_start
        self._end_key = context.header_key_sequence_end
        self._open: dict[str, Conversation] = {}
        self._ended: list[Conversation] = []

    def open(self, request: Request) -> Conversation:
        """Begin one. Its id is the client's; two clients with one id never meet: the second's gets a number."""
        wanted = request.inputs.get(SEQUENCE_ID, b"").decode()
        id = next(id for n in count(1) if (id := wanted if n == 1 else f"{wanted}-{n}") not in self._open)
        sequence = self._open[id] = Conversation(id)
        return sequence

    def feed(self, states: Sequence[Conversation], requests: Sequence[Request]) -> Sequence[Answer | Exception]:
        """One call of `handle` with a row of each sequence."""
        rows = [Row(request, self._headers(state, request)) for state, request in zip(states, requests, strict=True)]
        call = self._run(rows)
        for state, row, processor in zip(states, rows, call.request_processor, strict=True):
            state.has_begun = True
            if self._end_key in row.headers:
                self._end(state.id)
            for id in str(processor.get_response_header(self._end_key) or "").split(";"):
                self._end(id.strip())
        return [row.whole() for row in rows]

    def ended(self) -> Sequence[Conversation]:
        """Those that have ended in the last `feed`."""
        ended, self._ended = self._ended, []
        return ended

    def release(self, state: Conversation) -> None:
        """Its id is free."""
        self._open.pop(state.id, None)

    def _headers(self, state: Conversation, request: Request) -> dict[str, str]:
        headers = {self._id_key: state.id}
        if not state.has_begun:
            headers[self._start_key] = "true"
        if bytes(request.inputs.get(self._end_key, b"")).strip().lower() == TRUE:
            headers[self._end_key] = "true"
        return headers

    def _end(self, id: str) -> None:
        state = self._open.get(id) if id else None
        if state is not None and state not in self._ended:
            self._ended.append(state)
