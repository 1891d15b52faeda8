"""Streams of a handler that pushes its answers instead of yielding them.

TorchServe's handlers send parts of their answers from inside `handle`, from as deep as they like, and then return.
The engine wants iterators that it can leave and close between two answers. So `handle` runs in a thread of its own,
hand in hand with the main thread: the thread runs only while `next` waits for it, and stands still inside
`send_intermediate_predict_response` until the stream that waits for more has asked. Never do two threads run model
code at once, nothing runs ahead of a stream's credit, and a hanging handler hangs `next`, so that it is noticed. A
generator cannot do this (the push is not in its frame), nor can a queue that the handler fills freely.

Streams that arrive together share one call of `handle`, as they do in a batch of TorchServe: one push answers each.
What one of them asks for is kept for the others, up to `limit` bytes.

Once every stream of a run is closed, the next push raises `StreamClosed` in the handler, whose `finally` blocks run.
What must not live here: what a row means (rows.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actorserve.errors import HandlerStatus
from actorserve.handlers.base import Request
from actorserve.handlers.torchserve.rows import Row, is_alone

Handle = Callable[[list[Row], Any], object]
"""Calls the handler for rows within their ts.context.Call, and settles each of them. Raises only StreamClosed."""


class StreamClosed(BaseException):
    """Nobody waits for the rest. Raised inside the handler, as GeneratorExit is inside a generator."""


class Run:
    """One call of `handle` in its thread."""

    def __init__(self, rows: list[Row], call: Any, handle: Handle) -> None:
        self.rows = rows
        self.call = call
        self.ended = False
        self._fatal: BaseException | None = None
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(handle,), name="handle", daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Let the handler run until it pushes or ends (main thread)."""
        self._go.release()
        self._back.acquire()
        if self._fatal is not None:
            raise self._fatal

    def pause(self) -> None:
        """Stand still until more is wanted (whichever thread pushes). StreamClosed if nothing is."""
        self._back.release()
        self._go.acquire()
        if self.is_abandoned():
            raise StreamClosed

    def is_abandoned(self) -> bool:
        """Whether no stream of the run waits for more."""
        return all(row.closed or row.error is not None for row in self.rows)

    def abandon(self) -> None:
        """End the handler, which stands still in a push (main thread)."""
        while not self.ended:
            self.resume()
        self._thread.join()

    def _run(self, handle: Handle) -> None:
        self._go.acquire()
        try:
            handle(self.rows, self.call)
        except StreamClosed:
            pass
        except BaseException as error:  # noqa: BLE001  # SystemExit and its like: `resume` raises it in the main thread
            self._fatal = error
        finally:
            self.ended = True
            self._back.release()


class Runs:
    """All streams of a worker: those that wait for their first call, and those in one. Main thread, but for `push`."""

    def __init__(
        self, context: Any, make_call: Callable[[list[Row]], Any], handle: Handle, limits: tuple[int, int]
    ) -> None:
        """`limits`: most streams of one call, and most bytes that wait for one stream."""
        self._context = context
        self._make_call = make_call
        self._handle = handle
        self._most, self.limit = limits
        self._waiting: list[Row] = []
        self._rows: dict[str, Row] = {}

    def open(self, request: Request) -> RowStream:
        """A stream that joins the next call."""
        row = Row(request)
        self._waiting.append(row)
        return RowStream(self, row)

    def enter(self, rows: Sequence[Row]) -> Any:
        """The call of these rows; their pushes find them from now on, until `leave`."""
        call = self._make_call(list(rows))
        for index, id in call.request_ids.items():
            if id in self._rows:  # a client gave the same id to two requests
                id = call.request_ids[index] = f"{id}-{id_of(rows[index])}"  # noqa: PLW2901  # the one that is told
            self._rows[id] = rows[index]
        return call

    def leave(self, call: Any) -> None:
        """The call has ended."""
        for id in call.request_ids.values():
            self._rows.pop(id, None)

    def push(self, values: Sequence[Any], ids: Mapping[int, str], message: str, code: int) -> None:
        """`send_intermediate_predict_response`: an item of `values` for each request; waits where these are streams."""
        missing = [index for index in ids if index >= len(values)]
        if missing:
            raise ValueError(f"{len(values)} intermediate answers for {len(ids)} requests")
        run = None
        for index, id in ids.items():
            row = self._rows.get(id)
            if row is None:
                continue  # it has ended
            run = row.run or run
            if 200 <= code < 300:
                row.add(values[index], self.limit)
            elif row.error is None:
                row.error = HandlerStatus(code, message)
        if run is not None:
            run.pause()

    def next(self, row: Row) -> bytes:
        """The row's next part; StopIteration after the last, or the row's error."""
        if row.run is None:
            self._begin(row)
        run = row.run
        while not row.chunks and row.error is None and not run.ended:
            self._resume(run)
        if row.chunks:
            return row.take()
        if row.error is not None:
            raise row.error
        raise StopIteration

    def close(self, row: Row) -> None:
        """The caller has gone, or the row has ended. The last of a run takes the run along."""
        row.closed = True
        if row in self._waiting:
            self._waiting.remove(row)
        run = row.run
        if run is not None and not run.ended and run.is_abandoned():
            self._context.call = run.call
            run.abandon()
            self.leave(run.call)

    def _begin(self, row: Row) -> None:
        self._waiting.remove(row)
        others = () if is_alone(row) else self._waiting
        rows = [row, *(other for other in others if not (is_alone(other) or other.request.cancelled()))][: self._most]
        for other in rows[1:]:
            self._waiting.remove(other)
        run = Run(rows, self.enter(rows), self._handle)
        for one in rows:
            one.run = run

    def _resume(self, run: Run) -> None:
        self._context.call = run.call
        run.resume()
        if run.ended:
            self.leave(run.call)


class RowStream:
    """The iterator of one stream, as the engine wants it."""

    def __init__(self, runs: Runs, row: Row) -> None:
        self._runs = runs
        self._row = row

    def __iter__(self) -> RowStream:
        return self

    def __next__(self) -> bytes:
        return self._runs.next(self._row)

    def close(self) -> None:
        """Called once, by the engine, however the stream ended."""
        self._runs.close(self._row)


def id_of(row: Row) -> str:
    """What tells this row from every other that lives."""
    return f"{id(row):x}"
