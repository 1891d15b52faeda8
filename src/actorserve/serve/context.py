"""What user code may ask about where it runs: the replica, the request, and the way to other deployments.

What lives here: context variables and small records. They are set by what runs a replica (handlers/rpc/) and by
`serve.run` in a script. What must not: asyncio tasks, sockets.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from actorserve.serve.exceptions import ServeError

if TYPE_CHECKING:
    import asyncio

__all__ = ["OutCall", "ReplicaContext", "RequestContext", "Scope", "get_multiplexed_model_id", "get_replica_context"]


@dataclass(frozen=True, slots=True)
class OutCall:
    """A call to a deployment, as data. `deadline`: seconds of the monotonic clock; None: there is none."""

    application: str
    deployment: str
    method: str
    payload: bytes
    stream: bool = False
    deadline: float | None = None
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)


class Items(Protocol):
    """The answer to a call, item by item, encoded. Raises what serve.exceptions has, when an item is asked for."""

    def __aiter__(self) -> Items:
        """Give itself."""

    async def __anext__(self) -> bytes:
        """Wait for the next item."""

    async def aclose(self) -> None:
        """Nobody wants more: a call that runs is cancelled. Idempotent."""


class Link(Protocol):
    """The way from here to the server."""

    loop: asyncio.AbstractEventLoop

    def call(self, call: OutCall) -> Items:
        """Begin a call, at once. On the loop's thread alone."""

    def hold(self, cache: str, held: Sequence[str], loading: Sequence[str]) -> None:
        """Say which multiplexed models this replica holds and loads, for routing; a function's, by its name."""

    def turn(self, cache: str, model: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Have the load of a model to oneself among all replicas, once nobody else loads it."""


class Closable(Protocol):
    """Something that a request has begun and that ends with it when it is cancelled."""

    def cancel(self) -> Any:
        """End it."""


class Scope:
    """The life of one request, or of one batch: what it holds, and what it has begun."""

    def __init__(self) -> None:
        self.ended = False
        self.waiting = 0  # for how many models it waits: serve/multiplexing.py
        self._at_end: list[Callable[[], None]] = []
        self._begun: dict[int, Closable] = {}

    def at_end(self, call: Callable[[], None]) -> None:
        """Have `call` called when the request has ended; at once if it has."""
        if self.ended:
            call()
        else:
            self._at_end.append(call)

    def begin(self, one: Closable) -> None:
        """Cancel `one` if the request is cancelled."""
        self._begun[id(one)] = one

    def forget(self, one: Closable) -> None:
        """It has ended by itself."""
        self._begun.pop(id(one), None)

    def cancel(self) -> None:
        """The request was cancelled: so is what it has begun."""
        for one in list(self._begun.values()):
            one.cancel()

    def end(self) -> None:
        """Let go of everything. Idempotent."""
        self.ended = True
        calls, self._at_end = self._at_end, []
        self._begun.clear()
        for call in calls:
            call()


@dataclass(slots=True)
class RequestContext:
    """One request in a replica. `deadline`: seconds of the monotonic clock."""

    request_id: str = ""
    application: str = ""
    deployment: str = ""
    method: str = ""
    multiplexed_model_id: str = ""
    session_id: str = ""
    traceparent: str = ""
    deadline: float | None = None
    scope: Scope = field(default_factory=Scope)

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, never negative; None: there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@dataclass(frozen=True, slots=True)
class ReplicaContext:
    """Which replica this is. `servable_object`: the user's instance, or the function."""

    app_name: str
    deployment: str
    replica_tag: str
    servable_object: Any = None
    device: str = "cpu"

    @property
    def replica_id(self) -> str:
        """Its name in logs."""
        return self.replica_tag


REQUEST: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar("actorserve_request", default=None)
LOADING: contextvars.ContextVar[bool] = contextvars.ContextVar("actorserve_loading", default=False)


class _Process:
    """What holds for the whole process. One worker is one replica; a script has at most one server."""

    link: Link | None = None
    replica: ReplicaContext | None = None
    in_worker: bool = False


PROCESS = _Process()


def request() -> RequestContext | None:
    """The request that this code runs for; None outside of one."""
    return REQUEST.get()


def enter_worker() -> None:
    """From here on this process is a worker: `serve.run` and its like do nothing. Called before user code is."""
    PROCESS.in_worker = True


@contextlib.contextmanager
def entered(found: RequestContext) -> Iterator[RequestContext]:
    """Run the block for a request. The caller ends its scope."""
    token = REQUEST.set(found)
    try:
        yield found
    finally:
        REQUEST.reset(token)


def get_multiplexed_model_id() -> str:
    """The model that the running request asks for (metadata `multiplexed_model_id`); empty: none."""
    found = REQUEST.get()
    return "" if found is None else found.multiplexed_model_id


def get_replica_context() -> ReplicaContext:
    """Which replica this code runs in; ServeError outside of one."""
    if PROCESS.replica is None:
        raise ServeError("get_replica_context: this is no replica")
    return PROCESS.replica
