"""Handles: how one deployment calls another, and how a script calls its application.

    answer = await handle.method.remote(x)                      # in async code
    answer = handle.method.remote(x).result()                   # in a plain def, or in a script
    async for part in handle.options(stream=True).remote(x):    # an iterator, where the method is a generator

A call begins with `.remote()`, whether somebody awaits it or not. What must not live here: the socket (`Link`).

Rules
1. Arguments that are themselves responses are awaited first: `b.remote(a.remote(x))`.
2. The request's deadline goes with every call that it makes; when it is cancelled, so are the calls that it began.
3. A multiplexed model id is said by `.options(multiplexed_model_id=...)`, never inherited.
4. In a graph under a 2.1 driver, `.remote()` is a coroutine that gives the response: awaited twice in all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator, Mapping
from typing import Any, TypeVar

from actorserve.serve.codec import packed_arguments, read_result
from actorserve.serve.context import PROCESS, Items, Link, OutCall, RequestContext, Scope, request
from actorserve.serve.exceptions import RequestCancelledError, ServeError

__all__ = [
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "RayServeDAGHandle",
    "RayServeDeploymentHandle",
    "RayServeHandle",
    "RayServeSyncHandle",
]
T = TypeVar("T")


class DeploymentHandle:
    """Calls one deployment. It can be given to another deployment, and pickled."""

    def __init__(
        self,
        deployment: str,
        application: str,
        *,
        method: str = "__call__",
        stream: bool = False,
        multiplexed_model_id: str = "",
        session_id: str = "",
        link: Link | None = None,
    ) -> None:
        """`link`: in a script; in a replica it is the process's own."""
        self._deployment = deployment
        self._application = application
        self._method = method
        self._stream = stream
        self._multiplexed_model_id = multiplexed_model_id
        self._session_id = session_id
        self._link = link

    @property
    def deployment_name(self) -> str:
        """The deployment that it calls."""
        return self._deployment

    @property
    def app_name(self) -> str:
        """The application of that deployment."""
        return self._application

    def options(
        self,
        *,
        method_name: str | None = None,
        stream: bool | None = None,
        multiplexed_model_id: str | None = None,
        session_id: str | None = None,
    ) -> DeploymentHandle:
        """Give a handle that calls in another way. What is None stays."""
        return type(self)(
            self._deployment,
            self._application,
            method=self._method if method_name is None else method_name,
            stream=self._stream if stream is None else stream,
            multiplexed_model_id=self._multiplexed_model_id if multiplexed_model_id is None else multiplexed_model_id,
            session_id=self._session_id if session_id is None else session_id,
            link=self._link,
        )

    def __getattr__(self, name: str) -> DeploymentHandle:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.options(method_name=name)

    def __reduce__(self) -> Any:
        options = {
            "method": self._method,
            "stream": self._stream,
            "multiplexed_model_id": self._multiplexed_model_id,
            "session_id": self._session_id,
        }
        return _restored, (type(self), self._deployment, self._application, options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(deployment={self._deployment!r}, application={self._application!r})"

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a call. Gives a DeploymentResponse, or a DeploymentResponseGenerator where `stream` was asked for."""
        return self._begin(args, kwargs)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        link = self._link or PROCESS.link
        if link is None:
            raise ServeError(f"{self!r}: there is no server to ask here; not while the module loads")
        kind = DeploymentResponseGenerator if self._stream else DeploymentResponse
        return kind(link, self, args, kwargs)

    def _call(self, payload: bytes, asking: RequestContext | None) -> OutCall:
        """The call as data, with what the request that makes it hands down."""
        metadata: dict[str, str | bytes] = {}
        if asking is not None:
            for key in ("request_id", "traceparent"):
                if value := getattr(asking, key):
                    metadata[key] = value
        if self._multiplexed_model_id:
            metadata["multiplexed_model_id"] = self._multiplexed_model_id
        if session := self._session_id or (asking.session_id if asking is not None else ""):
            metadata["session_id"] = session
        deadline = None if asking is None else asking.deadline
        return OutCall(self._application, self._deployment, self._method, payload, self._stream, deadline, metadata)


def _restored(kind: type[DeploymentHandle], deployment: str, application: str, options: dict[str, Any]) -> Any:
    return kind(deployment, application, **options)


class RayServeDeploymentHandle(DeploymentHandle):
    """A handle in a graph under a 2.1 driver: `.remote()` is a coroutine that gives the response."""

    async def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a call and give its response, to be awaited in turn."""
        return self._begin(args, kwargs)


RayServeHandle = RayServeDeploymentHandle


class RayServeSyncHandle(DeploymentHandle):
    """Ray's name of a handle in a script."""


class _Response:
    """What both kinds of response share: a task on the link's loop, begun at once."""

    def __init__(self, link: Link, handle: DeploymentHandle, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._link = link
        self._handle = handle
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
        return self._handle._call(payload, self._asking)  # noqa: SLF001  # of one file

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

    def __init__(self, link: Link, handle: DeploymentHandle, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._answer: Items | None = None
        self._taking: asyncio.Future[Any] | None = None
        self._over = False
        super().__init__(link, handle, args, kwargs)

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


class RayServeDAGHandle:
    """What a 2.1 driver gets in place of a graph: `await (await dag.remote(x))` runs it."""

    def __init__(self, node: Any) -> None:
        """`node`: a DeploymentHandle, or a `Call` with its arguments resolved to such."""
        self._node = node

    async def remote(self, *args: Any) -> Any:
        """Begin the graph with its input and give its response."""
        given = args[0] if len(args) == 1 else args
        return self._started(self._node, given)

    def _started(self, node: Any, given: Any) -> Any:
        if isinstance(node, Call):
            args = tuple(self._filled(one, given) for one in node.args)
            kwargs = {key: self._filled(one, given) for key, one in node.kwargs.items()}
            return DeploymentHandle._begin(node.handle, args, kwargs)  # noqa: SLF001  # of one file
        return DeploymentHandle._begin(node, (given,), {})  # noqa: SLF001  # of one file

    def _filled(self, value: Any, given: Any) -> Any:
        """The value with the input in place of what stands for it; a call inside is begun."""
        if isinstance(value, Input):
            return value.of(given)
        if isinstance(value, Call):
            return self._started(value, given)
        return value


_GIVE_RESPONSES = (RayServeDeploymentHandle.remote.__code__, RayServeDAGHandle.remote.__code__)


class Call:
    """A call in a graph: whom, and with what."""

    def __init__(self, handle: DeploymentHandle, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.handle = handle
        self.args = args
        self.kwargs = kwargs


class Input:
    """The input of a graph, or a part of it."""

    def __init__(self, path: tuple[tuple[str, Any], ...]) -> None:
        self.path = path

    def of(self, given: Any) -> Any:
        """Take the part out of what the graph was called with."""
        for how, key in self.path:
            given = given[key] if how == "item" else getattr(given, key)
        return given


class _End:
    """What stands behind the last item."""


_END = _End()


async def _settled(value: Any) -> Any:
    """An argument that is ready to travel: responses, and coroutines of `remote` that give them, are awaited first.

    No other coroutine is: it may never end.
    """
    while isinstance(value, DeploymentResponse) or (inspect.iscoroutine(value) and value.cr_code in _GIVE_RESPONSES):
        value = await value
    match value:
        case dict():
            return {key: await _settled(one) for key, one in value.items()}
        case list():
            return [await _settled(one) for one in value]
        case tuple() if not hasattr(value, "_fields"):
            return tuple([await _settled(one) for one in value])
    return value
