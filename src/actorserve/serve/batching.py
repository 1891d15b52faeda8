"""`serve.batch`: calls that run at the same time in one replica are answered by one call of a function.

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.1)
    async def classify(self, images: list[Image]) -> list[str]: ...

What lives here: the decorator, and one queue per instance. What must not: who is in a batch (batch_rules.py), how one
runs (batch_queue.py). The mailbox's batches (actors/batching.py) are others: these are gathered from calls that a
replica already runs.

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
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from actorserve.serve.batch_queue import Queue
from actorserve.serve.batch_rules import Member, Settings
from actorserve.serve.config import check_number, check_whole
from actorserve.serve.exceptions import OptionError
from actorserve.serve.graph import BATCH_MARK

__all__ = ["batch"]


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
