"""The registrar: it carries out what the management API asks, one change at a time for each model.

    validated -> committed as intent -> begun by the supervisor -> (accepted) -> done -> committed as done -> (answered)

A change runs in the registrar's nursery: a client's cancel or deadline ends the answer, never the change. What the
supervisor refuses after all is taken back in the registry. What a killed server leaves is put right by the next
start (`begin`), by registry_rules.py. What must not live here: SQL (registry.py), how a model starts or ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
import trio

from actorserve.actors import registry as jobs
from actorserve.actors.messages import ModelSpec, Scale, SetDefault, Spawn, Stop
from actorserve.actors.registry import Registry
from actorserve.actors.registry_rules import Entry, Row, RowState, read_spec, to_spawn, write_spec
from actorserve.actors.reply import Reply, fail_quietly
from actorserve.actors.supervisor import Change, Supervisor
from actorserve.errors import ActorserveError, NoSuchModel, Overloaded

AT_ONCE = 1000
log = structlog.get_logger("actorserve.registrar")


class Answer:
    """What becomes of a change. `accepted`: it is durable and has begun; `done`: it is over. Both may fail."""

    def __init__(self) -> None:
        self.accepted: Reply[None] = Reply()
        self.done: Reply[None] = Reply()


class Turn:
    """A place in the queue of one model's changes."""

    def __init__(self, before: Turn | None) -> None:
        self.before = before
        self.over = trio.Event()


class Registrar:
    """See the module's docstring."""

    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        *,
        on_refused: Callable[[ModelSpec], Awaitable[None]],
        on_kept: Callable[[ModelSpec], None] = lambda _: None,
    ) -> None:
        """`on_refused` is awaited when a model was not registered after all: nobody needs its folder.

        `on_kept` is called once its registration is durable.
        """
        self._registry = registry
        self._supervisor = supervisor
        self._on_refused = on_refused
        self._on_kept = on_kept
        self.dropped: list[ModelSpec] = []
        self._last: dict[str, Turn] = {}
        self._open = 0
        self._nursery: trio.Nursery | None = None

    async def begin(self, entries: Mapping[str, Entry]) -> list[ModelSpec]:
        """Put right what an ended server has left, apply config.toml's entries; what is to run, in order to spawn it.

        `dropped` are then models of the API's that are no more.
        StateFailed: nothing was changed.
        """
        planned, rows, chosen = await self._registry.run(partial(jobs.start, entries=entries))
        for change in planned.changes:
            log.info("registry", change=change)
        self.dropped = [read_spec(text) for text in planned.dropped]
        return to_spawn(rows, entries, chosen)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out what is asked until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def ask(self, message: Change) -> Answer:
        """Ask for a change. Overloaded when 1,000 are under way."""
        if self._open >= AT_ONCE:
            raise Overloaded("registrar", AT_ONCE, 1.0)
        answer = Answer()
        self._open += 1
        assert self._nursery is not None  # noqa: S101  # narrows the type: run() has set it
        name = message.model.name if isinstance(message, Spawn) else message.name
        self._nursery.start_soon(self._carry_out, message, name, self._queue(name), answer)
        return answer

    async def _carry_out(self, message: Change, name: str, turn: Turn, answer: Answer) -> None:
        try:
            await self._change(message, name, turn, answer)
            answer.done.set(None)
        except ActorserveError as error:
            fail_quietly(answer.accepted, error)
            answer.done.fail(error)
        finally:
            self._open -= 1

    async def _change(self, message: Change, name: str, turn: Turn, answer: Answer) -> None:
        try:
            async with self._turn(name, turn):
                version = self._supervisor.check(message)
                number, reply = await self._begin(message, name, version)
        except ActorserveError:
            if isinstance(message, Spawn):
                await self._on_refused(message.model)
            raise
        if isinstance(message, Spawn):
            self._on_kept(message.model)
        answer.accepted.set(None)
        try:
            await reply.wait()
        except ActorserveError:
            if isinstance(message, Spawn) and message.unregister_on_failure:
                await self._settle(name, number, RowState.REMOVED)
            raise
        if isinstance(message, Spawn) and message.unregister_on_failure:
            await self._finish(message, number)
        elif isinstance(message, Stop):
            await self._settle(name, number, RowState.REMOVED)

    def _queue(self, name: str) -> Turn:
        """Join the queue of a model's changes, at its end."""
        turn = self._last[name] = Turn(self._last.get(name))
        return turn

    @asynccontextmanager
    async def _turn(self, name: str, turn: Turn) -> AsyncIterator[None]:
        """One change of a model at a time, in the order in which they were asked."""
        try:
            if turn.before is not None:
                await turn.before.over.wait()
                turn.before = None
            yield
        finally:
            turn.over.set()
            if self._last.get(name) is turn:
                del self._last[name]

    async def _begin(self, message: Change, name: str, version: str) -> tuple[int, Reply[None]]:
        """Commit the intent and have the supervisor begin; the row's id. Refused after all: it is taken back."""
        job = partial(
            jobs.intend,
            name=name,
            version=version,
            become=partial(_intended, message),
            choose=isinstance(message, SetDefault),
        )
        intent = await self._registry.run(job)
        if not isinstance(message, Spawn):
            message = replace(message, version=version)
        try:
            return intent.number, await self._supervisor.carry_out(message)
        except ActorserveError:
            await self._registry.run(partial(jobs.restore, name=name, rows=intent.before, default=intent.chosen))
            raise

    async def _finish(self, message: Spawn, number: int) -> None:
        """Commit that a model whose replicas are READY is registered; where that fails, it is not."""
        spec = message.model
        try:
            await self._settle(spec.name, number, RowState.REGISTERED)
        except ActorserveError:
            await (await self._supervisor.carry_out(Stop(spec.name, spec.version, 0.0))).wait()
            raise

    async def _settle(self, name: str, number: int, state: RowState) -> None:
        async with self._turn(name, self._queue(name)):
            await self._registry.run(partial(jobs.settle, number=number, state=state))


def _intended(message: Change, row: Row | None) -> Row:
    """The row that says what is to be."""
    if isinstance(message, Spawn):
        spec = message.model
        # nobody is told of one that is waited for until it is READY; of the others they are now
        state = RowState.PENDING if message.unregister_on_failure else RowState.REGISTERED
        return Row(0, spec.name, spec.version, state, write_spec(spec), row.text if row else None)
    if row is None:
        raise NoSuchModel(message.name, message.version)
    match message:
        case Scale(workers_min=least, workers_max=most):
            return replace(row, workers=(least, most))
        case Stop():
            return replace(row, state=RowState.LEAVING)
        case SetDefault():
            return row
