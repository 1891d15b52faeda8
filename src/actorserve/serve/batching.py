"""`serve.batch`: calls that run at the same time in one replica are answered by one call of a function.

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.1)
    async def classify(self, images: list[Image]) -> list[str]: ...

What lives here: the decorator, one queue per instance, and the decision who is in a batch (`choose`, pure). What must
not: the mailbox's batches (actors/batching.py): these are gathered from calls that a replica already runs.

Rules
1. A batch is begun when it is full, or when its oldest call has waited `batch_wait_timeout_s`; at most
   `max_concurrent_batches` run at once. Calls are taken in the order in which they came.
2. Whose caller has gone, or whose deadline has passed, is dropped when a batch begins, before any user code.
3. Calls that ask for different multiplexed models are never in one batch.
4. A result that is an exception fails its own call alone; an exception that the function raises fails all of its batch.
5. An async generator answers in steps: each gives one item per call; StopIteration (the class, or one of it) ends that
   call's stream, an exception fails it. With nobody left, the generator is closed.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actorserve.errors import Expired, TooLarge
from actorserve.serve.config import check_number, check_whole
from actorserve.serve.context import REQUEST, RequestContext, Scope
from actorserve.serve.exceptions import BatchSizeError, OptionError
from actorserve.serve.graph import BATCH_MARK

__all__ = ["batch"]

STREAM_ROOM = 16
"""Items that one call's stream may be behind its batch before the batch waits for it."""


@dataclass(slots=True)
class Settings:
    """What the decorator was told; the setters change it while calls run."""

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.01
    max_concurrent_batches: int = 1
    batch_size_fn: Callable[[list[Any]], int] | None = None

    def check(self) -> None:
        """OptionError names the one that is wrong."""
        check_whole("max_batch_size", self.max_batch_size, least=1, most=1 << 31)
        check_number("batch_wait_timeout_s", self.batch_wait_timeout_s)
        check_whole("max_concurrent_batches", self.max_concurrent_batches, least=1, most=65536)
        if self.batch_size_fn is not None and not callable(self.batch_size_fn):
            raise OptionError("batch_size_fn", f"{self.batch_size_fn!r} is no function")

    def weigh(self, members: Sequence[Member]) -> int:
        """What these calls weigh together: how many they are, or what the user's function says of their items."""
        if self.batch_size_fn is None:
            return len(members)
        return self.batch_size_fn([member.item for member in members])


@dataclass(eq=False, slots=True)
class Member:
    """One call that waits to be in a batch. Times in seconds of the loop's clock; the deadline is time.monotonic's."""

    item: Any
    arguments: dict[str, Any]
    arrival: float
    result: asyncio.Future[Any]
    model: str = ""
    deadline: float | None = None
    items: asyncio.Queue[Any] | None = None
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


def choose(waiting: Sequence[Member], now: float, settings: Settings) -> tuple[list[Member], float | None]:
    """Who is in the next batch: (its members, None), or (nobody, when to look again). Pure.

    Each model's calls make a batch of their own; the model of the oldest call that may go, goes first.
    """
    groups: dict[str, list[Member]] = {}
    for member in waiting:
        groups.setdefault(member.model, []).append(member)
    soonest: float | None = None
    for group in groups.values():
        taken = _fitting(group, settings)
        full = len(taken) < len(group) or settings.weigh(taken) >= settings.max_batch_size
        due = group[0].arrival + settings.batch_wait_timeout_s
        if full or due <= now:
            return taken, None
        soonest = due if soonest is None else min(soonest, due)
    return [], soonest


def _fitting(group: Sequence[Member], settings: Settings) -> list[Member]:
    """The first of a group that fit into one batch, in order; at least one."""
    if settings.batch_size_fn is None:
        return list(group[: settings.max_batch_size])
    taken = [group[0]]
    for member in group[1:]:
        if settings.weigh([*taken, member]) > settings.max_batch_size:
            break
        taken.append(member)
    return taken


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


# --- the decorator --------------------------------------------------------------------------------


class _Batched:
    """What a decorated function knows: its settings, and its queue for each instance."""

    def __init__(self, function: Callable[..., Any], settings: Settings) -> None:
        self.function = function
        self.settings = settings
        self.streams = inspect.isasyncgenfunction(function)
        self.signature = inspect.signature(function)
        self.names = list(self.signature.parameters)
        self.wrapper: Callable[..., Any] | None = None
        self._own: Queue | None = None
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if any(one.kind in variable for one in self.signature.parameters.values()):
            raise OptionError("batch", f"{function.__qualname__} takes *args or **kwargs: name what is batched")

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Queue, Member]:
        """Queue one call."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        if self._is_method(args):
            instance = arguments.pop(self.names[0])
            queue = self._queue_of(instance)
        else:
            if self._own is None:
                self._own = Queue(self.function, self.settings, streams=self.streams)
            queue = self._own
        if not arguments:
            raise TypeError(f"{self.function.__qualname__} is batched and takes no item")
        return queue, queue.add(next(iter(arguments.values())), arguments)

    def _is_method(self, args: tuple[Any, ...]) -> bool:
        if not args:
            return False
        name = self.function.__name__
        return any(vars(kind).get(name) is self.wrapper for kind in type(args[0]).__mro__)

    def _queue_of(self, instance: Any) -> Queue:
        name = f"_actorserve_queue_{self.function.__name__}"
        queue = instance.__dict__.get(name)
        if queue is None:
            run = functools.partial(self.function, instance)
            queue = instance.__dict__[name] = Queue(run, self.settings, streams=self.streams)
        found: Queue = queue
        return found


def batch(
    function: Callable[..., Any] | None = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], int] | None = None,
) -> Any:
    """Have an `async def` that takes and gives lists answer single calls. See the module's rules.

    Times in seconds. `batch_size_fn(items)` says what items weigh together, and `max_batch_size` is then a weight.
    The decorated function has `set_max_batch_size(n)` and `set_batch_wait_timeout_s(s)`.
    """
    settings = Settings(max_batch_size, batch_wait_timeout_s, max_concurrent_batches, batch_size_fn)
    settings.check()
    if function is not None:
        return _decorated(function, settings)
    return lambda found: _decorated(found, settings)


def _decorated(function: Callable[..., Any], settings: Settings) -> Callable[..., Any]:
    if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        raise OptionError("batch", f"{getattr(function, '__qualname__', function)!r} must be an `async def`")
    batched = _Batched(function, settings)
    made: Any = functools.wraps(function)(_streaming(batched) if batched.streams else _single(batched))
    batched.wrapper = made

    def set_max_batch_size(value: int) -> None:
        check_whole("max_batch_size", value, least=1, most=1 << 31)
        settings.max_batch_size = value

    def set_batch_wait_timeout_s(value: float) -> None:
        check_number("batch_wait_timeout_s", value)
        settings.batch_wait_timeout_s = value

    for name, value in (
        (BATCH_MARK, settings),
        ("set_max_batch_size", set_max_batch_size),
        ("set_batch_wait_timeout_s", set_batch_wait_timeout_s),
    ):
        setattr(made, name, value)
    wrapped: Callable[..., Any] = made
    return wrapped


def _single(batched: _Batched) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        _, member = batched.add(args, kwargs)
        return await member.result

    return call


def _streaming(batched: _Batched) -> Callable[..., AsyncIterator[Any]]:
    async def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        _, member = batched.add(args, kwargs)
        assert member.items is not None  # noqa: S101  # of a streaming queue
        getting: asyncio.Future[Any] | None = None
        try:
            while not member.result.done() or not member.items.empty():
                getting = asyncio.ensure_future(member.items.get())
                await asyncio.wait((getting, member.result), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield getting.result()
                elif not member.items.empty():
                    getting.cancel()
                    yield member.items.get_nowait()
            member.result.result()
        finally:
            if getting is not None:
                getting.cancel()
            member.result.cancel()

    return call
