"""The worker's half of stateful sequences: which of them are fed next, and that each state is released once.

One round: close what was cancelled or has expired; open the newcomers; give the handler one item each of the
sequences that have one (up to `batch_size`, those that waited longest first); finish those that have ended. A
sequence without credit for its replies sits out, and the others go on. Everything runs in the worker's main thread.

What must not live here: batches and streams (worker_engine.py), sockets, trio, torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from actorserve.actors import wire
from actorserve.actors.wire import Data, Item, Kind, Outcome
from actorserve.actors.worker_items import Flags, Stream, encode, failure
from actorserve.handlers.base import Request

Make = Callable[[Item], Request]


class _Sequence(Stream):
    """One sequence: its state, the items that wait, and the credit for its replies."""

    __slots__ = ("ended", "item", "items", "opened")

    def __init__(self, item: Item, request: Request) -> None:
        super().__init__(item.id, request)
        self.item = item
        self.items: deque[Request] = deque()
        self.opened = False  # the handler has a state for it
        self.ended = False  # no more items come

    def is_fed_next(self) -> bool:
        return bool(self.items) and self.has_credit()

    def is_done(self) -> bool:
        return self.ended and not self.items and self.has_credit()


class Sequences:
    """See the module's docstring. `make` gives the Request of an Item, `out` takes frames for the next write."""

    def __init__(
        self, handler: Any, *, flags: Flags, make: Make, out: Callable[[Data], None], batch_size: int = 32
    ) -> None:
        self._handler = handler
        self._flags = flags
        self._make = make
        self._out = out
        self._batch_size = batch_size
        self._finishes = callable(getattr(handler, "finish", None))
        self._ends = callable(getattr(handler, "ended", None))
        self._newcomers: dict[int, _Sequence] = {}
        self._open: dict[int, _Sequence] = {}

    def __len__(self) -> int:
        return len(self._newcomers) + len(self._open)

    # --- what arrives -------------------------------------------------------------------------

    def hear(self, kind: int, id: int, content: Any) -> None:
        """Take one of OPEN_SEQUENCE, ITEM, END. What comes for a sequence that has ended is dropped."""
        if kind == Kind.OPEN_SEQUENCE:
            self._newcomers[id] = _Sequence(content, self._make(content))
            return
        sequence = self._open.get(id) or self._newcomers.get(id)
        if sequence is None:
            return
        if kind == Kind.ITEM:
            sequence.items.append(self._make(sequence.item._replace(inputs=wire.read_item(content))))
        else:
            sequence.ended = True

    def credit(self, id: int, payload: bytes) -> None:
        """Take a CREDIT."""
        sequence = self._open.get(id)
        if sequence is not None:
            chunks, size = wire.read_credit(payload)
            sequence.chunks += chunks
            sequence.bytes += size

    def has_work(self) -> bool:
        """Whether a round would do something."""
        return bool(self._newcomers) or any(
            sequence.is_fed_next() or sequence.is_done() or self._flags.is_cancelled(sequence.id)
            for sequence in self._open.values()
        )

    # --- a round --------------------------------------------------------------------------------

    def run_round(self) -> None:
        """See the module's docstring."""
        now = time.monotonic_ns()
        for sequence in list(self._open.values()):
            self._is_live(sequence, now)
        newcomers, self._newcomers = self._newcomers, {}
        for sequence in newcomers.values():
            if self._is_live(sequence, now):
                self._begin(sequence)
        fed = [sequence for sequence in self._open.values() if sequence.is_fed_next()][: self._batch_size]
        if fed:
            self._feed(fed)
        for sequence in [sequence for sequence in self._open.values() if sequence.is_done()]:
            self._finish(sequence)

    def _is_live(self, sequence: _Sequence, now_ns: int) -> bool:
        """Whether somebody still waits for it; if nobody does, it ends here."""
        if self._flags.is_cancelled(sequence.id):
            self._end(sequence, wire.error(sequence.id, Outcome.CANCELLED, b""))
        elif sequence.item.deadline_ns and now_ns >= sequence.item.deadline_ns:
            self._end(sequence, wire.error(sequence.id, Outcome.EXPIRED, b""))
        else:
            return True
        return False

    def _begin(self, sequence: _Sequence) -> None:
        try:
            with self._flags.handler_call():
                sequence.state = self._handler.open(sequence.request)
        except Exception as error:  # noqa: BLE001  # the handler's
            self._end(sequence, wire.error(sequence.id, *failure(error)))
            return
        sequence.opened = True
        self._open[sequence.id] = sequence

    def _feed(self, fed: Sequence[_Sequence]) -> None:
        """One item each. What `feed` raises leaves every state of the batch in doubt: they all end."""
        for sequence in fed:
            self._open[sequence.id] = self._open.pop(sequence.id)  # behind those that were not fed
        try:
            with self._flags.handler_call():
                states, requests = [one.state for one in fed], [one.items.popleft() for one in fed]
                answers = list(self._handler.feed(states, requests))
                ended = list(self._handler.ended() or ()) if self._ends else ()
            if len(answers) != len(fed):
                raise ValueError(f"feed returned {len(answers)} answers for {len(fed)} sequences")
        except Exception as error:  # noqa: BLE001  # the handler's
            for sequence in fed:
                self._end(sequence, wire.error(sequence.id, *failure(error)))
            return
        for sequence, answer in zip(fed, answers, strict=True):
            self._reply(sequence, answer)
        if ended:
            self._end_those(ended)

    def _end_those(self, states: Sequence[Any]) -> None:
        """The handler has ended them; whatever they still have waiting is not fed any more."""
        for sequence in list(self._open.values()):
            if any(sequence.state is state for state in states):
                self._end(sequence, wire.error(sequence.id, Outcome.ENDED, b""))

    def _reply(self, sequence: _Sequence, answer: Any) -> None:
        """The reply to one item: an answer, or a failure of that item alone."""
        try:
            if isinstance(answer, Exception):
                raise answer  # one path for what feed returned and what encoding raises
            data = encode(answer)
            sequence.bytes -= len(data)
            self._out(wire.chunk(sequence.id, data))
        except Exception as error:  # noqa: BLE001  # the handler's
            self._out(wire.fault(sequence.id, *failure(error)))
        sequence.chunks -= 1

    def _finish(self, sequence: _Sequence) -> None:
        """The client has ended and everything is answered; the handler may have a last word."""
        try:
            if self._finishes:
                with self._flags.handler_call():
                    answer = self._handler.finish(sequence.state)
                if answer is not None:
                    self._out(wire.chunk(sequence.id, encode(answer)))
        except Exception as error:  # noqa: BLE001  # the handler's
            self._end(sequence, wire.error(sequence.id, *failure(error)))
            return
        self._end(sequence, wire.done(sequence.id))

    def _end(self, sequence: _Sequence, last: bytes) -> None:
        """Release its state, if there is one, then say how it ended. Once per sequence."""
        self._open.pop(sequence.id, None)
        if sequence.opened:
            try:
                with self._flags.handler_call():
                    self._handler.release(sequence.state)
            except Exception as error:  # noqa: BLE001  # the handler's
                last = wire.error(sequence.id, *failure(error))
        self._flags.forget([sequence.id])
        self._out(last)

    def close(self) -> None:
        """The worker stops: nothing is fed any more, and every state is released."""
        for sequence in (*self._newcomers.values(), *self._open.values()):
            self._end(sequence, wire.error(sequence.id, Outcome.CANCELLED, b""))
        self._newcomers.clear()
