"""The user's instance of one deployment in this replica: made from its definition, and called, whatever it is.

What lives here: resolving references into handles, `async def` on the loop, `def` in threads, generators of both kinds.
What must not live here: frames, gRPC (client_calls.py, handle_calls.py).

Rules
1. The constructor runs on the loop; it may be `async`. Then `reconfigure(user_config)`, where there is a user_config.
2. A plain `def`, and each whole generator, runs in a thread of the pool, in the request's context. A thread cannot be
   interrupted: a cancelled call ends when its thread does, so that a replica never has more threads at work than calls.
3. What a method returns is awaited where it can be: a response of a handle may be returned as it is.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from actorserve.serve.graph import CallRef, HandleRef, InputRef, over
from actorserve.serve.handle import Call, DeploymentHandle, DeploymentResponse, Input, RayServeDAGHandle
from actorserve.serve.handle import RayServeDeploymentHandle as LegacyHandle

Submit = Callable[[Callable[[], None]], None]
"""Runs a function in a thread of the pool; it must not raise."""


def resolved(value: Any, application: str, *, legacy: bool) -> Any:
    """An argument of a constructor with handles in place of references. `legacy`: under a driver of Ray 2.1."""
    kind = LegacyHandle if legacy else DeploymentHandle

    def inner(one: Any) -> Any:
        match one:
            case HandleRef():
                return kind(one.deployment, application)
            case CallRef():
                return RayServeDAGHandle(call(one))
        return over(one, inner)

    def call(one: CallRef) -> Call:
        handle = DeploymentHandle(one.deployment, application, method=one.method)
        return Call(handle, tuple(map(argument, one.args)), {key: argument(each) for key, each in one.kwargs.items()})

    def argument(one: Any) -> Any:
        match one:
            case InputRef():
                return Input(one.path)
            case CallRef():
                return call(one)
            case HandleRef():
                return kind(one.deployment, application)
        return over(one, argument)

    return inner(value)


class Instance:
    """See the module's docstring. `target`: the class or the function."""

    def __init__(self, target: Callable[..., Any], submit: Submit) -> None:
        self._target = target
        self._submit = submit
        self.object: Any = None

    async def build(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Make it (rule 1); what the constructor raises goes through."""
        if not inspect.isclass(self._target):
            self.object = self._target
            return
        self.object = self._target.__new__(self._target, *args, **kwargs)
        if inspect.iscoroutinefunction(self._target.__init__):
            await self.object.__init__(*args, **kwargs)
        else:
            self.object.__init__(*args, **kwargs)

    def method(self, name: str) -> Callable[..., Any] | None:
        """A method that may be called; None: there is none of this name."""
        if name.startswith("_") and name != "__call__":
            return None
        if not inspect.isclass(self._target):
            return self._target if name == "__call__" else None
        found = getattr(self.object, name, None)
        return found if callable(found) else None

    async def reconfigure(self, user_config: Any) -> None:
        """Hand the configuration to the user's `reconfigure`; TypeError where there is none."""
        method = getattr(self.object, "reconfigure", None)
        if not callable(method):
            raise TypeError("user_config is set, but the deployment has no method `reconfigure`")
        await self.call(method, (user_config,), {})

    async def check_health(self) -> None:
        """Call the user's `check_health`, where there is one; what it raises is why the replica is not healthy."""
        method = getattr(self.object, "check_health", None)
        if callable(method):
            await self.call(method, (), {})

    async def call(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """One answer. TypeError for a generator, which gives many."""
        if inspect.isasyncgenfunction(_plain(method)) or inspect.isgeneratorfunction(_plain(method)):
            raise TypeError(f"{name_of(method)} is a generator: it answers in many items, and one was asked for")
        answer = await self._begin(method, args, kwargs)
        if inspect.isasyncgen(answer) or inspect.isgenerator(answer):
            raise TypeError(f"{name_of(method)} gave a generator: it answers in many items, and one was asked for")
        return answer

    async def stream(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        send: Callable[[Any], Awaitable[None]],
        send_blocking: Callable[[Any], bool],
    ) -> None:
        """Many answers: `send` waits for room on the loop, `send_blocking` in a thread; False: nobody wants more.

        TypeError where the method is no generator.
        """
        if inspect.isasyncgenfunction(_plain(method)):
            await self._drain(method(*args, **kwargs), send)
        elif inspect.isgeneratorfunction(_plain(method)):
            await self._drain_in_thread(lambda: method(*args, **kwargs), send_blocking)
        else:
            answer = await self._begin(method, args, kwargs)
            if hasattr(answer, "__anext__"):
                await self._drain(answer, send)
            elif inspect.isgenerator(answer):
                await self._drain_in_thread(lambda: answer, send_blocking)
            else:
                raise TypeError(f"{name_of(method)} is no generator: it answers once, and a stream was asked for")

    async def _begin(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(_plain(method)):
            answer = await method(*args, **kwargs)
        else:
            answer = await self.in_thread(lambda: method(*args, **kwargs))
        while inspect.iscoroutine(answer) or isinstance(answer, DeploymentResponse):
            answer = await answer
        return answer

    async def _drain(self, answer: AsyncIterator[Any], send: Callable[[Any], Awaitable[None]]) -> None:
        try:
            async for item in answer:
                await send(item)
        finally:
            close = getattr(answer, "aclose", None)
            if close is not None:
                await close()

    async def _drain_in_thread(self, begin: Callable[[], Iterator[Any]], send: Callable[[Any], bool]) -> None:
        def run() -> None:
            answer = begin()
            try:
                for item in answer:
                    if not send(item):
                        return
            finally:
                close = getattr(answer, "close", None)
                if close is not None:
                    close()

        await self.in_thread(run)

    async def in_thread(self, run: Callable[[], Any]) -> Any:
        """Run it in a thread of the pool, in this context. Cancelled: raised once the thread has ended (rule 2)."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                answer = context.run(run)
            except BaseException as error:  # noqa: BLE001  # the user's, raised where it is awaited
                loop.call_soon_threadsafe(_fail, done, error)
            else:
                loop.call_soon_threadsafe(_settle, done, answer)

        self._submit(work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait((done,))
            if done.exception() is None:
                done.result()
            raise


def _settle(done: asyncio.Future[Any], answer: Any) -> None:
    if not done.done():
        done.set_result(answer)


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if isinstance(error, StopIteration):
        error = RuntimeError("the method raised StopIteration")  # a future cannot hold it
    if not done.done():
        done.set_exception(error)


def _plain(method: Any) -> Any:
    """What is inside functools.partial and an object's __call__."""
    while isinstance(method, functools.partial):
        method = method.func
    return method


def name_of(method: Any) -> str:
    """What a method is called in errors."""
    return str(getattr(method, "__qualname__", None) or method)
