"""What a worker has in hand, for both of its threads: arrivals, cancel flags, streams with their credit, and how
answers and errors become bytes.

What must not live here: the loop (worker_engine.py), sockets and processes (worker_main.py), trio, torch.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from actorserve.actors import wire
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, Outcome
from actorserve.errors import BadInput, HandlerStatus
from actorserve.handlers.base import Request


def encode(answer: Any) -> bytes:
    """An Answer's bytes (contracts §1): bytes as they are, str as UTF-8, anything else as JSON."""
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, str):
        return answer.encode()
    if isinstance(answer, (bytearray, memoryview)):
        return bytes(answer)
    return json.dumps(answer).encode()


def text_of(error: BaseException) -> str:
    """An exception's text, whatever its class does."""
    try:
        return str(error)[:2000]
    except Exception:  # noqa: BLE001  # the handler's class
        return "(its text cannot be had)"


def failure(error: BaseException) -> tuple[Outcome, bytes]:
    """How an exception of the handler travels back."""
    if isinstance(error, BadInput):
        return Outcome.BAD_INPUT, wire.error_data(str(error.field), str(error.text))
    if isinstance(error, HandlerStatus):
        return Outcome.CODED, wire.status_data(error.code, str(error.text), error.answer)
    return Outcome.RAISED, wire.error_data(type(error).__name__, text_of(error))


class Arrival(NamedTuple):
    """A frame as the reader thread hands it over; `content`: a BATCH's items, an OPEN's item, else the payload."""

    kind: int
    id: int
    content: Any


class Flags:
    """What the reader thread tells the main thread while model code runs, and the other way round."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[int, bool] = {}
        self._call_began: float | None = None

    def add(self, ids: Sequence[int]) -> None:
        """Items have arrived (reader thread)."""
        with self._lock:
            self._live.update(dict.fromkeys(ids, False))

    def cancel(self, id: int) -> None:
        """The caller of an item has gone (reader thread). Unknown: it has ended already."""
        with self._lock:
            if id in self._live:
                self._live[id] = True

    def forget(self, ids: Sequence[int]) -> None:
        """Items have ended (main thread)."""
        with self._lock:
            for id in ids:
                self._live.pop(id, None)

    def is_cancelled(self, id: int) -> bool:
        """Whether the caller of a live item has gone."""
        return self._live.get(id, False)

    def dropped(self, id: int, deadline_ns: int, now_ns: int) -> Outcome | None:
        """How an item has ended without the handler: its caller has gone, or its deadline has passed."""
        if self.is_cancelled(id):
            return Outcome.CANCELLED
        if deadline_ns and now_ns >= deadline_ns:
            return Outcome.EXPIRED
        return None

    @contextmanager
    def handler_call(self) -> Iterator[None]:
        """Time spent inside counts against `response_timeout_s`."""
        self._call_began = time.monotonic()
        try:
            yield
        finally:
            self._call_began = None

    def seconds_in_call(self) -> float:
        """For how long the main thread has been inside the current handler call; 0 outside."""
        began = self._call_began
        return 0.0 if began is None else time.monotonic() - began


class Stream:
    """One stream: a generator, or a generation of a continuous batch; and the credit it has left."""

    __slots__ = ("bytes", "chunks", "id", "iterator", "request", "state")

    def __init__(self, id: int, request: Request) -> None:
        self.id = id
        self.request = request
        self.iterator: Iterator[Any] | None = None
        self.state: Any = None
        self.chunks = CREDIT_CHUNKS
        self.bytes = CREDIT_BYTES

    def has_credit(self) -> bool:
        """Whether it may give one chunk, however large."""
        return self.chunks > 0 and self.bytes > 0
