"""`serve.multiplexed`: many models share a replica, the least recently used one gives way.

    @serve.multiplexed(max_num_models_per_replica=3)
    async def get_model(self, model_id: str) -> Model: ...

What lives here: the decorator, and `Models`, the cache of one instance. What must not: routing; the server learns which
ids a replica holds (`Link.hold`) and prefers it.

Rules
1. A model is loaded once however many ask at the same time; a load that nobody waits for any more is cancelled; one
   that fails is kept by nobody, and the next request tries again.
2. A request uses a model from when it got it until it ends. A model in use is not evicted: who needs room waits, first
   come, first served. A request that waits for room does not keep the models that it has, so two never wait for each
   other.
3. Room is taken before a load begins: models held and being loaded never exceed `max_num_models_per_replica`.
4. With `max_memory_bytes_per_replica` room is bytes, by `memory_fn(model)` or what the model's parameters take. What a
   model needs is known after its first load: until then one is loaded at a time, and the others give way after it.
5. Of all replicas one at a time loads a model: a load that has room waits for its turn (actors/leases.py).
6. An evicted model is let go of; nothing of it is called. What still refers to it keeps it alive.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from actorserve.errors import TooLarge
from actorserve.serve.config import check_whole
from actorserve.serve.context import PROCESS, REQUEST, Scope, get_multiplexed_model_id
from actorserve.serve.exceptions import OptionError

__all__ = ["multiplexed"]

NO_LIMIT = -1
MULTIPLEX_MARK = "_actorserve_multiplexes"
"""Attribute of a function that `multiplexed` made."""


@dataclass(slots=True)
class Held:
    """A model that is here. `users`: the requests that have asked for it and not ended."""

    model: Any
    bytes: int = 0
    users: dict[int, Scope] = field(default_factory=dict)

    def is_free(self) -> bool:
        """Whether nobody uses it who is not itself waiting for room."""
        return all(scope.waiting for scope in self.users.values())


@dataclass(eq=False, slots=True)
class Waiter:
    """A request that waits for a load."""

    scope: Scope
    waits: bool = True

    def __post_init__(self) -> None:
        self.scope.waiting += 1

    def stop(self) -> None:
        """It waits no more. Idempotent."""
        if self.waits:
            self.waits = False
            self.scope.waiting -= 1


class Models:
    """The models of one instance. Everything runs on one loop."""

    def __init__(
        self,
        load: Callable[[str], Awaitable[Any]],
        *,
        most: int,
        most_bytes: int = 0,
        measure: Callable[[Any], int] | None = None,
        tell: Callable[[Sequence[str], Sequence[str]], None] = lambda _held, _loading: None,
        turn: Callable[[str], AbstractAsyncContextManager[None]] = lambda _id: nullcontext(),
    ) -> None:
        """`most`: -1 is no limit. `most_bytes`: 0 is none. `tell` hears of every change: the ids held, and loading.

        `turn`: what a load is done in, so that no other replica loads the same meanwhile.
        """
        self._turn = turn
        self._load = load
        self._most = most
        self._most_bytes = most_bytes
        self._measure = measure or memory_of
        self._tell = tell
        self.held: OrderedDict[str, Held] = OrderedDict()  # the least recently used first
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._waiters: dict[str, list[Waiter]] = {}  # who waits for each load
        self._reserved: set[str] = set()  # loads that have room
        self._sizes: dict[str, int] = {}  # what models took that were here once
        self._line: deque[tuple[str, asyncio.Future[None]]] = deque()  # loads without room, the oldest first

    async def get(self, id: str, scope: Scope) -> Any:
        """Give a model, loaded if it is not here; `scope` uses it until it ends."""
        if not id:
            raise ValueError("no model is asked for: the request has no multiplexed_model_id")
        while id not in self.held:
            await self._wait_loaded(id, scope)
        self.held.move_to_end(id)
        self._use(self.held[id], scope)
        return self.held[id].model

    def _use(self, found: Held, scope: Scope) -> None:
        if builtin_id(scope) not in found.users and not scope.ended:
            found.users[builtin_id(scope)] = scope
            scope.at_end(lambda: self._let_go(found, scope))

    def _let_go(self, found: Held, scope: Scope) -> None:
        found.users.pop(builtin_id(scope), None)
        self._admit()

    async def _wait_loaded(self, id: str, scope: Scope) -> None:
        """Wait for a load, begun if there is none. Those who wait when it ends have the model at once."""
        task = self._loads.get(id)
        if task is not None and task.cancelling():
            await asyncio.wait((task,))  # its loader cleans up; then anew
            return
        if task is None:
            task = self._loads[id] = asyncio.get_running_loop().create_task(self._bring(id))
            task.add_done_callback(lambda done: self._forget(id, done))
            self._say()
        waiter = Waiter(scope)
        waiters = self._waiters.setdefault(id, [])
        waiters.append(waiter)
        self._admit()  # what this request has may go now
        try:
            await asyncio.shield(task)
        finally:
            waiter.stop()
            waiters.remove(waiter)
            if not waiters and not task.done():
                task.cancel()

    def _forget(self, id: str, task: asyncio.Task[None]) -> None:
        if self._loads.get(id) is task:
            del self._loads[id]
            self._waiters.pop(id, None)
            self._say()
        if not task.cancelled() and task.done():
            task.exception()  # who waited has it; with nobody left, nobody is told

    async def _bring(self, id: str) -> None:
        """Load one model once there is room for it."""
        try:
            await self._room(id)
            async with self._turn(id):
                model = await self._load(id)
            size = self._measure(model) if self._most_bytes else 0
            if self._most_bytes and size > self._most_bytes:
                raise TooLarge(f"model {id!r}", size, self._most_bytes)
            self._sizes[id] = size
            found = self.held[id] = Held(model, size)
            for waiter in self._waiters.get(id, ()):
                waiter.stop()
                self._use(found, waiter.scope)
        finally:
            self._reserved.discard(id)
            self._shrink(id)
            self._admit()

    async def _room(self, id: str) -> None:
        if self._line or not self._make_room(id):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append((id, turn))
            self._admit()
            try:
                await turn
            except asyncio.CancelledError:
                self._line = deque(one for one in self._line if one[1] is not turn)
                raise
        self._reserved.add(id)

    def _admit(self) -> None:
        """Let the loads at the head of the line begin, as far as there is room."""
        while self._line:
            id, turn = self._line[0]
            if turn.done():
                self._line.popleft()
            elif self._make_room(id):
                self._line.popleft()
                self._reserved.add(id)
                turn.set_result(None)
            else:
                return

    def _make_room(self, id: str) -> bool:
        """Evict until one more model fits, but nobody unless that is enough."""
        free = [name for name, one in self.held.items() if one.is_free()]
        gone: list[str] = []
        while not self._fits(id, gone):
            if not free:
                return False
            gone.append(free.pop(0))
        for name in gone:
            del self.held[name]
        return True

    def _fits(self, id: str, gone: list[str]) -> bool:
        others = self._reserved - {id}
        if self._most != NO_LIMIT and len(self.held) - len(gone) + len(others) >= self._most:
            return False
        if not self._most_bytes:
            return True
        if others and not all(name in self._sizes for name in (*others, id)):
            return False  # one at a time until it is known what they take
        kept = sum(one.bytes for name, one in self.held.items() if name not in gone)
        return kept + sum(self._sizes.get(name, 0) for name in (*others, id)) <= self._most_bytes

    def _shrink(self, id: str) -> None:
        """After a load whose size was not known: the others give way, the least recently used first."""
        if not self._most_bytes:
            return
        for name in [name for name, one in self.held.items() if one.is_free() and name != id]:
            if sum(one.bytes for one in self.held.values()) <= self._most_bytes:
                return
            del self.held[name]

    def _say(self) -> None:
        """Say what is here, and what is coming."""
        held = list(self.held)
        self._tell(held, [id for id in self._loads if id not in self.held])


builtin_id = id


def memory_of(model: Any) -> int:
    """What a model takes, in bytes: what it says itself (`nbytes`), or its parameters and buffers."""
    if isinstance(size := getattr(model, "nbytes", None), int):
        return size
    if callable(getattr(model, "parameters", None)):
        tensors = [*model.parameters(), *(model.buffers() if hasattr(model, "buffers") else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    raise OptionError("memory_fn", f"it is needed: how large a {type(model).__name__} is cannot be told")


def multiplexed(
    function: Callable[..., Any] | None = None,
    /,
    max_num_models_per_replica: int = 3,
    *,
    max_memory_bytes_per_replica: int = 0,
    memory_fn: Callable[[Any], int] | None = None,
) -> Any:
    """Have an `async def` that loads a model by its id keep what it loaded. See the module's rules.

    -1 models: no limit. Sizes in bytes; 0: no limit. Called without an id, it loads the one that the request asks for.
    """
    if max_num_models_per_replica != NO_LIMIT:
        check_whole("max_num_models_per_replica", max_num_models_per_replica, least=1)
    check_whole("max_memory_bytes_per_replica", max_memory_bytes_per_replica, least=0, most=1 << 60)
    limits = {"most": max_num_models_per_replica, "most_bytes": max_memory_bytes_per_replica, "measure": memory_fn}
    if function is not None:
        return _decorated(function, limits)
    return lambda found: _decorated(found, limits)


def _decorated(function: Callable[..., Any], limits: dict[str, Any]) -> Callable[..., Any]:
    if not inspect.iscoroutinefunction(function):
        raise OptionError("multiplexed", f"{getattr(function, '__qualname__', function)!r} must be an `async def`")
    attribute = f"_actorserve_models_{function.__name__}"

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        parameters = list(inspect.signature(function).parameters)
        bound = inspect.signature(function).bind_partial(*args, **kwargs).arguments
        owner = bound.get(parameters[0]) if len(parameters) > 1 else call
        id = bound.get(parameters[-1]) or get_multiplexed_model_id()
        models = owner.__dict__.get(attribute)
        if models is None:
            load = functools.partial(function, owner) if len(parameters) > 1 else function
            cache = function.__qualname__
            tell, turn = functools.partial(_tell, cache), functools.partial(_turn, cache)
            models = owner.__dict__[attribute] = Models(load, tell=tell, turn=turn, **limits)
        return await models.get(id, _scope())

    setattr(call, MULTIPLEX_MARK, True)
    if len(inspect.signature(function).parameters) not in (1, 2):
        raise OptionError("multiplexed", f"{function.__qualname__} must take the model's id, and nothing more")
    return call


def _tell(cache: str, held: Sequence[str], loading: Sequence[str]) -> None:
    if PROCESS.link is not None:
        PROCESS.link.hold(cache, held, loading)


def _turn(cache: str, id: str) -> AbstractAsyncContextManager[None]:
    return nullcontext() if PROCESS.link is None else PROCESS.link.turn(cache, id)


def _scope() -> Scope:
    """Who uses the model: the running request; outside of one, the running task."""
    found = REQUEST.get()
    if found is not None:
        return found.scope
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # awaited in one
    scope = _TASKS.get(task)
    if scope is None:
        scope = _TASKS[task] = Scope()
        task.add_done_callback(lambda done: (_TASKS.pop(done, scope)).end())
    return scope


_TASKS: dict[asyncio.Task[Any], Scope] = {}
