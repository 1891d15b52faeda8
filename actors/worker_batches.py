"""A batch in the worker: which of its items are still wanted, which go into one forward, and how each of them ends.

A handler may have `weight(request)`, which only model code can know (the tokens of a text, the pixels of a picture).
Where the model's config has `max_batch_weight`, what has arrived goes through the handler in forwards of at most that
weight, lightest items first: items of about one size share a forward, so that little of it is padding (contracts §3).

What must not live here: frames, streams and the loop (worker_engine.py), trio, torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from actorserve.actors import wire
from actorserve.actors.wire import Item, Outcome, Result
from actorserve.actors.worker_items import Flags, encode, failure, text_of
from actorserve.errors import BadInput
from actorserve.handlers.base import Request

Member = tuple[Item, Request]


def forwards(weights: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of `weights`, lightest first and ties in order, cut so that no part weighs more than `limit`.

    Each weight is at most `limit`. A part is cut where the next item does not fit.
    """
    parts: list[list[int]] = []
    room = -1
    for index in sorted(range(len(weights)), key=weights.__getitem__):
        if not parts or weights[index] > room:
            parts.append([])
            room = limit
        parts[-1].append(index)
        room -= weights[index]
    return parts


class Batches:
    """Runs batches through a handler's `infer`; holds nothing between two of them."""

    def __init__(self, handler: Any, *, flags: Flags, make: Callable[[Item], Request], max_weight: int) -> None:
        """`make`: an item's request. `max_weight`: of one forward, in the handler's units; 0: no limit."""
        self._handler = handler
        self._flags = flags
        self._make = make
        self._weighs = max_weight > 0 and callable(getattr(handler, "weight", None))
        self._max_weight = max_weight

    def run(self, items: Sequence[Item]) -> list[Result]:
        """How each item ended, in any order. Whoever goes, or whose time is over, before his forward is left out."""
        results: list[Result] = []
        members = self._wanted([(item, self._make(item)) for item in items], results)
        if not self._weighs:
            self._forward(members, results)
        else:
            for part in self._parts(members, results):
                self._forward(self._wanted(part, results), results)
        self._flags.forget([item.id for item in items])
        return results

    def _wanted(self, members: Sequence[Member], results: list[Result]) -> list[Member]:
        """The members that somebody still waits for; the others have ended."""
        wanted = []
        now = time.monotonic_ns()
        for member in members:
            item = member[0]
            dropped = self._flags.dropped(item.id, item.deadline_ns, now)
            if dropped is None:
                wanted.append(member)
            else:
                results.append(Result(item.id, dropped, b"", {}))
        return wanted

    def _parts(self, members: Sequence[Member], results: list[Result]) -> Iterator[list[Member]]:
        """The members of each forward. What cannot be weighed, or weighs more than a forward may, has ended."""
        good: list[Member] = []
        weights: list[int] = []
        for item, request in members:
            weight = self._weigh(request)
            if isinstance(weight, Exception):
                results.append(Result(item.id, *failure(weight), {}))
            elif weight > self._max_weight:
                size = wire.too_large_data(weight, self._max_weight)
                results.append(Result(item.id, Outcome.TOO_LARGE, size, {}))
            else:
                good.append((item, request))
                weights.append(weight)
        for part in forwards(weights, self._max_weight):
            yield [good[index] for index in part]

    def _weigh(self, request: Request) -> int | Exception:
        try:
            with self._flags.handler_call():
                weight = self._handler.weight(request)
            if type(weight) is not int or weight < 0:
                raise TypeError(f"weight returned {weight!r}; it must be a whole number of at least 0")
        except Exception as error:  # noqa: BLE001  # the handler's: it is its item's ending
            return error
        return weight

    def _forward(self, members: Sequence[Member], results: list[Result]) -> None:
        if not members:
            return
        answers = self._infer([request for _, request in members])
        for (item, request), answer in zip(members, answers, strict=True):
            results.append(_result(item.id, request, answer))

    def _infer(self, requests: list[Request]) -> Sequence[Any]:
        """Answers or exceptions, one each. BadInput raised for a batch is found out item by item."""
        try:
            with self._flags.handler_call():
                answers = list(self._handler.infer(requests))
            if len(answers) != len(requests):
                raise ValueError(f"infer returned {len(answers)} answers for {len(requests)} requests")
        except BadInput as error:
            if len(requests) == 1:
                return [error]
            return [self._infer([request])[0] for request in requests]
        except Exception as error:  # noqa: BLE001  # the handler's: whatever it raises is its items' ending
            return [error] * len(requests)
        return answers


def _result(id: int, request: Request, answer: Any) -> Result:
    if not isinstance(answer, Exception):
        try:
            return Result(id, Outcome.OK, encode(answer), request.trailers)
        except Exception as error:  # noqa: BLE001  # the handler's: an answer may be any object
            answer = TypeError(f"the answer is not bytes, str or JSON: {text_of(error)}")
    return Result(id, *failure(answer), {})
