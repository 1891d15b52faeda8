"""The calls of one batched function, from waiting to their results; batching.py has the rules.

What lives here: the queue, its running batches, and what each call gets of a batch. What must not: who is in a batch
(batch_rules.py), the decorator (batching.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from actorserve.errors import Expired, TooLarge
from actorserve.serve.batch_rules import Member, Settings, choose
from actorserve.serve.context import REQUEST, RequestContext, Scope
from actorserve.serve.exceptions import BatchSizeError

STREAM_ROOM = 16
"""Items that one call's stream may be behind its batch before the batch waits for it."""


class Queue:
    """The calls of one batched function, in one instance. Everything runs on one loop."""

    def __init__(self, run: Callable[..., Any], settings: Settings, *, streams: bool) -> None:
        """`run` takes the batch's arguments by name."""
        self._run = run
        self._settings = settings
        self._streams = streams
        self._waiting: deque[Member] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: Any, arguments: dict[str, Any]) -> Member:
        """Queue a call of the running request. TooLarge: it is above the size of a batch by itself."""
        loop = asyncio.get_running_loop()
        asking = REQUEST.get()
        member = Member(item, arguments, loop.time(), loop.create_future())
        if asking is not None:
            member.model, member.deadline = asking.multiplexed_model_id, asking.deadline
        if self._streams:
            member.items = asyncio.Queue(STREAM_ROOM)
        weight = self._settings.weigh([member])
        if weight > self._settings.max_batch_size:
            raise TooLarge("an item", weight, self._settings.max_batch_size, "by batch_size_fn")
        self._waiting.append(member)
        self.pump()
        return member

    def pump(self) -> None:
        """Begin every batch that may begin now; set the timer for the next."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._running) < self._settings.max_concurrent_batches:
            self._drop()
            members, later = choose(self._waiting, loop.time(), self._settings)
            if not members:
                if later is not None:
                    self._timer = loop.call_at(later, self.pump)
                return
            for member in members:
                self._waiting.remove(member)
            self._begin(members)

    def _drop(self) -> None:
        """End those whom nobody waits for any more, and those whose deadline has passed."""
        now = time.monotonic()
        for member in [one for one in self._waiting if one.result.done() or _late(one, now)]:
            self._waiting.remove(member)
            if not member.result.done():
                member.result.set_exception(Expired("the deadline passed before the batch began"))

    def _begin(self, members: list[Member]) -> None:
        context = members[0].context
        scope = Scope()
        context.run(_enter, members, scope)
        work = self._stream(members) if self._streams else self._answer(members)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._running.add(task)
        task.add_done_callback(lambda done: self._ended(done, members, scope))

    def _ended(self, task: asyncio.Task[None], members: list[Member], scope: Scope) -> None:
        self._running.discard(task)
        scope.end()
        error: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
        for member in members:
            if member.result.done():
                continue
            if error is None:
                member.result.set_result(None)
            elif isinstance(error, asyncio.CancelledError):
                member.result.cancel()
            else:
                member.result.set_exception(_own(error))
        self.pump()

    def _call(self, members: Sequence[Member]) -> Any:
        return self._run(**{name: [one.arguments[name] for one in members] for name in members[0].arguments})

    async def _answer(self, members: list[Member]) -> None:
        results = _checked(await self._call(members), members)
        for member, result in zip(members, results, strict=True):
            if not member.result.done():
                if isinstance(result, Exception):
                    member.result.set_exception(_own(result))
                else:
                    member.result.set_result(result)

    async def _stream(self, members: list[Member]) -> None:
        steps: AsyncIterator[Any] = self._call(members)
        try:
            async for step in steps:
                for member, item in zip(members, _checked(step, members), strict=True):
                    await _hand(member, item)
                if all(member.result.done() for member in members):
                    return
        finally:
            await steps.aclose()  # type: ignore[attr-defined]  # an async generator's


def _late(member: Member, now: float) -> bool:
    return member.deadline is not None and member.deadline <= now


def _checked(results: Any, members: Sequence[Member]) -> Sequence[Any]:
    if isinstance(results, str | bytes) or not hasattr(results, "__len__"):
        raise BatchSizeError(
            f"a batched function must give a list, one result per item; it gave {type(results).__name__}"
        )
    if len(results) != len(members):
        raise BatchSizeError(f"the batched function gave {len(results)} results for {len(members)} items")
    return list(results)


async def _hand(member: Member, item: Any) -> None:
    """Give one call its item of a step. One that has ended, or gone, gets none and holds nobody up."""
    if member.result.done():
        return
    if item is StopIteration or item is StopAsyncIteration or isinstance(item, StopIteration | StopAsyncIteration):
        member.result.set_result(None)
    elif isinstance(item, Exception):
        member.result.set_exception(_own(item))
    else:
        assert member.items is not None  # noqa: S101  # of a streaming queue
        putting = asyncio.ensure_future(member.items.put(item))
        await asyncio.wait((putting, member.result), return_when=asyncio.FIRST_COMPLETED)
        putting.cancel()


def _own(error: BaseException) -> BaseException:
    """An exception as one call's own: a future cannot hold StopIteration."""
    if isinstance(error, StopIteration | StopAsyncIteration):
        return RuntimeError(f"the batched function raised {type(error).__name__}")
    return error


def _enter(members: Sequence[Member], scope: Scope) -> None:
    """In the batch's context: a request that stands for all of its calls."""
    first = REQUEST.get() or RequestContext()
    deadlines = [member.deadline for member in members]
    last = None if None in deadlines else max(one for one in deadlines if one is not None)
    REQUEST.set(
        RequestContext(
            request_id=first.request_id,
            application=first.application,
            deployment=first.deployment,
            method=first.method,
            multiplexed_model_id=members[0].model,
            session_id=first.session_id,
            traceparent=first.traceparent,
            deadline=last,
            scope=scope,
        )
    )
