"""Responses: a call that a handle has begun, and what comes of it: one answer, or many.

What lives here: the call's task on the link's loop, how it is waited for from any loop or thread, and arguments that
are themselves responses. What must not: whom a handle calls, and how (handle.py), the socket (`Link`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from types import CodeType
from typing import Any, TypeVar

from actorserve.serve.codec import packed_arguments, read_result
from actorserve.serve.context import Items, Link, OutCall, RequestContext, Scope, request
from actorserve.serve.exceptions import RequestCancelledError, ServeError

T = TypeVar("T")
Make = Callable[[bytes, RequestContext | None], OutCall]
"""Makes a call of its packed arguments, with what the request that makes it hands down."""
GIVE_RESPONSES: set[CodeType] = set()
"""Code of each `async def` that gives a response: its coroutines may be passed on as responses may (handle.py)."""


class _Response:
    """What both kinds of response share: a task on the link's loop, begun at once. `handle`: by its name in errors."""

    def __init__(self, link: Link, handle: object, make: Make, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._link = link
        self._handle = handle
        self._make = make
        self._asking = request()
        self._cancelled = False
        self._task = self._start(self._run(args, kwargs))
        if self._asking is not None:
            self._belong(self._asking.scope)

    def _belong(self, scope: Scope) -> None:
        """Be cancelled with the request that began it, until it has ended."""
        scope.begin(self)
        self._task.add_done_callback(lambda _task: scope.forget(self))

    @property
    def request_id(self) -> str:
        """The id of the request that it belongs to; empty where there is none."""
        return "" if self._asking is None else self._asking.request_id

    def cancel(self) -> None:
        """End the call. Whoever awaits it gets RequestCancelledError."""
        self._cancelled = True
        task = self._task
        if isinstance(task, concurrent.futures.Future) or self._here():
            task.cancel()
        else:
            self._link.loop.call_soon_threadsafe(task.cancel)

    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OutCall:
        ready = [await _settled(one) for one in args]
        named = {key: await _settled(one) for key, one in kwargs.items()}
        try:
            payload = packed_arguments(ready, named)
        except Exception as error:
            text = f"an argument of {self._handle!r} cannot be pickled: {type(error).__name__}: {error}"
            raise TypeError(text) from error
        return self._make(payload, self._asking)

    def _here(self) -> bool:
        """Whether this thread runs the link's loop."""
        try:
            return asyncio.get_running_loop() is self._link.loop
        except RuntimeError:
            return False

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T] | concurrent.futures.Future[T]:
        if self._here():
            return self._link.loop.create_task(coroutine)
        return asyncio.run_coroutine_threadsafe(coroutine, self._link.loop)

    async def _from_here(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Have a coroutine run on the link's loop, from whichever loop this is."""
        if self._here():
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._link.loop))

    def _blocking(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Have it run there and wait in this thread, which must not be the loop's own."""
        if self._here():
            coroutine.close()
            raise ServeError("this would block the event loop: await the response, or make the method a plain def")
        return asyncio.run_coroutine_threadsafe(coroutine, self._link.loop).result(timeout_s)

    async def _outcome(self) -> Any:
        """What the task gave; on the link's loop."""
        task = self._task
        try:
            return await (task if isinstance(task, asyncio.Task) else asyncio.wrap_future(task))
        except asyncio.CancelledError:
            if self._cancelled:
                raise RequestCancelledError(f"the call of {self._handle!r} was cancelled") from None
            raise


class DeploymentResponse(_Response):
    """One answer: awaited, or `.result()` in a plain def. It may be passed on to another call without awaiting."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._from_here(self._outcome()).__await__()

    def result(self, timeout_s: float | None = None, *, _skip_asyncio_check: bool = False) -> Any:
        """Block until the answer is here. TimeoutError after `timeout_s` seconds; not in the event loop's thread."""
        return self._blocking(self._outcome(), timeout_s)

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = self._link.call(await self._call(args, kwargs))
        try:
            async for data in answer:
                return read_result(data)
        finally:
            await answer.aclose()
        raise ServeError(f"{self._handle!r} gave no answer")


class DeploymentResponseGenerator(_Response):
    """Many answers: `async for`, or `for` in a plain def. The replica goes on as they are taken."""

    def __init__(self, link: Link, handle: object, make: Make, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._answer: Items | None = None
        self._taking: asyncio.Future[Any] | None = None
        self._over = False
        super().__init__(link, handle, make, args, kwargs)

    def _belong(self, scope: Scope) -> None:
        """Be cancelled with the request, and at its end, where nobody has taken all of it."""
        scope.begin(self)
        scope.at_end(self._drop)

    def _drop(self) -> None:
        if not self._over:
            self.cancel()

    def __del__(self) -> None:
        if not getattr(self, "_over", True) and not self._link.loop.is_closed():
            self.cancel()  # nobody can take the rest

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        found = await self._from_here(self._next())
        if found is _END:
            raise StopAsyncIteration
        return found

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        found = self._blocking(self._next())
        if found is _END:
            raise StopIteration
        return found

    def cancel(self) -> None:
        """End the call. Whoever iterates gets RequestCancelledError."""
        super().cancel()
        self._link.loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self._over = True
        if self._taking is not None:
            self._taking.cancel()
        elif self._answer is not None:
            answer, self._answer = self._answer, None
            self._link.loop.create_task(_close(answer))

    async def _next(self) -> Any:
        """The next item, or _END; raises what the method raised. On the link's loop."""
        if self._answer is None:
            await self._outcome()
        if self._cancelled or self._answer is None:
            raise RequestCancelledError(f"the call of {self._handle!r} was cancelled")
        self._taking = asyncio.ensure_future(anext(self._answer, _END))
        try:
            found = await self._taking
            if found is not _END:
                return read_result(found)
            self._over = True
        except BaseException as error:
            self._over = True
            await self._answer.aclose()
            if isinstance(error, asyncio.CancelledError) and self._cancelled:
                raise RequestCancelledError(f"the call of {self._handle!r} was cancelled") from None
            raise
        else:
            return _END
        finally:
            self._taking = None

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._answer = self._link.call(await self._call(args, kwargs))


async def _close(answer: Items) -> None:
    await answer.aclose()


class _End:
    """What stands behind the last item."""


_END = _End()


async def _settled(value: Any) -> Any:
    """An argument that is ready to travel: responses, and coroutines of `remote` that give them, are awaited first.

    No other coroutine is: it may never end.
    """
    while isinstance(value, DeploymentResponse) or (inspect.iscoroutine(value) and value.cr_code in GIVE_RESPONSES):
        value = await value
    match value:
        case dict():
            return {key: await _settled(one) for key, one in value.items()}
        case list():
            return [await _settled(one) for one in value]
        case tuple() if not hasattr(value, "_fields"):
            return tuple([await _settled(one) for one in value])
    return value
