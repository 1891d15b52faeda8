"""Interceptors: what runs around every call, before any of its messages is read; and grpclib's events as one of them.

    async def timed(call: ServerStream, proceed: Proceed) -> None:
        began = trio.current_time()
        try:
            await proceed(call)
        finally:
            print(call.method, trio.current_time() - began)

The first given is the outermost. To refuse a call raise GRPCError (or an error that the server's table knows)
instead of proceeding. A call is cancelled inside its interceptors: let Cancelled through.
What must not live here: what a certain interceptor decides (services/access.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from grpclib.events import _DispatchServerEvents

from actorserve.services.transport.server_stream import ServerStream

Proceed = Callable[[ServerStream], Awaitable[None]]


class Interceptor(Protocol):
    """See the module's docstring."""

    async def __call__(self, call: ServerStream, proceed: Proceed) -> None:
        """Run one call, by `await proceed(call)`, or refuse it."""


async def _innermost(call: ServerStream) -> None:
    await call.handler.func(call)


def compose(interceptors: Sequence[Interceptor]) -> Proceed:
    """One function that runs a call through all of them."""
    proceed: Proceed = _innermost
    for interceptor in reversed(interceptors):
        proceed = _around(interceptor, proceed)
    return proceed


def _around(interceptor: Interceptor, inner: Proceed) -> Proceed:
    async def run(call: ServerStream) -> None:
        await interceptor(call, inner)

    return run


class Events(_DispatchServerEvents):
    """grpclib's server events: `grpclib.events.listen(server, RecvRequest, callback)` works on a GrpcServer.

    It becomes an interceptor once somebody listens; the messages of calls then pass through a wrapper.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        super().__init__()
        self._on_first = on_first

    def add_listener(self, event_type: Any, callback: Any) -> None:
        """See `grpclib.events.listen`."""
        super().add_listener(event_type, callback)
        self._on_first()

    async def intercept(self, call: ServerStream, proceed: Proceed) -> None:
        """Tell of the request, then let the method see its stream through the wrapper."""
        await self.recv_request(
            call.metadata,
            call.handler.func,
            method_name=call.method,
            deadline=call.deadline,
            content_type="application/grpc",
            user_agent=call.user_agent,
            peer=call.peer,
        )
        await proceed(EventedStream(call, self))  # type: ignore[arg-type]  # it offers what a ServerStream does


class EventedStream:
    """A ServerStream whose messages and metadata pass through grpclib's events."""

    def __init__(self, call: ServerStream, events: Events) -> None:
        self._call = call
        self._events = events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def recv_message(self) -> Any:
        """See `ServerStream.recv_message`."""
        message = await self._call.recv_message()
        if message is not None:
            (message,) = await self._events.recv_message(message)
        return message

    def __aiter__(self) -> EventedStream:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send_message(self, message: Any, **more: Any) -> None:
        """See `ServerStream.send_message`."""
        (message,) = await self._events.send_message(message)
        await self._call.send_message(message, **more)

    async def send_initial_metadata(self, *, metadata: Any = None) -> None:
        """See `ServerStream.send_initial_metadata`."""
        (metadata,) = await self._events.send_initial_metadata(metadata or {})
        await self._call.send_initial_metadata(metadata=metadata)

    async def send_trailing_metadata(self, *, metadata: Any = None, **status: Any) -> None:
        """See `ServerStream.send_trailing_metadata`."""
        (metadata,) = await self._events.send_trailing_metadata(
            metadata or {},
            status=status.get("status"),
            status_message=status.get("status_message"),
            status_details=status.get("status_details"),
        )
        await self._call.send_trailing_metadata(metadata=metadata, **status)
