"""The registrar: it carries out what the management API asks, one change at a time for each model.

    validated -> committed as intent -> begun by the supervisor -> (accepted) -> done -> committed as done -> (answered)

A change runs in the registrar's nursery: a client's cancel or deadline ends the answer, never the change. What the
supervisor refuses after all is taken back in the registry. What a killed server leaves is put right by the next
start (`begin`), by registry_rules.py. What must not live here: SQL (registry.py), what a change makes of a row
(asked.py), how a model starts or ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import structlog
import trio

from actorserve.actors import registry_jobs as jobs
from actorserve.actors.asked import Answer, Asked, Said, Turns, Unsettled, intended, name_of
from actorserve.actors.messages import Change, ModelSpec, Replace, SetDefault, Spawn, Stop
from actorserve.actors.registry import Registry
from actorserve.actors.registry_rules import Entry, RowState, read_spec, to_spawn
from actorserve.actors.reply import Reply, fail_quietly
from actorserve.actors.supervisor import Supervisor
from actorserve.errors import ActorserveError, Overloaded, StateFailed

AT_ONCE = 1000
log = structlog.get_logger("actorserve.registrar")


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
        self._turns = Turns()
        self._rollouts: dict[int, Unsettled] = {}  # by the row's id
        self._waited_for: dict[tuple[str, str], Reply[None]] = {}  # registrations that are undone if they fail
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

    def ask(self, message: Change, said: Said | None = None) -> Answer:
        """Ask for a change. Overloaded when 1,000 are under way. `said`: by config.toml; None: by the API."""
        if self._open >= AT_ONCE:
            raise Overloaded("registrar", AT_ONCE, 1.0)
        assert self._nursery is not None  # noqa: S101  # narrows the type: run() has set it
        asked = Asked(message, said, self._turns.queue(name_of(message)))
        self._open += 1
        self._nursery.start_soon(self._carry_out, asked)
        return asked.answer

    async def wait_settled(self, name: str, version: str) -> None:
        """Wait until a registration of this version that is under way is kept, or undone."""
        while (done := self._waited_for.get((name, version))) is not None:
            with suppress(ActorserveError):
                await done.wait()

    async def say(self, name: str, job: Callable[[sqlite3.Connection], str | None]) -> None:
        """Write what the file says of a model, in its turn; the version that `job` gives is its default from then on.

        StateFailed: nothing was changed.
        """
        async with self._turns.take(name):
            default = await self._registry.run(job)
            if default is not None:
                await (await self._supervisor.carry_out(SetDefault(name, default))).wait()

    async def _carry_out(self, asked: Asked) -> None:
        answer = asked.answer
        try:
            await self._change(asked)
            error = None
        except ActorserveError as wrong:
            error = wrong
        finally:
            self._open -= 1
            self._waited_for = {key: done for key, done in self._waited_for.items() if done is not answer.done}
        if error is None:
            answer.done.set(None)
        else:
            fail_quietly(answer.accepted, error)
            answer.done.fail(error)

    async def _change(self, asked: Asked) -> None:
        name = asked.name
        try:
            async with self._placed(asked) as placed:
                asked, message = placed, placed.message
                version = self._supervisor.check(message)
                if asked.is_undone_on_failure:  # before anybody can see that it is there
                    self._waited_for[name, version] = asked.answer.done
                intent, reply = await self._begin(asked, version)
                if isinstance(message, Spawn | Stop) and not asked.is_undone_on_failure:
                    self._waited_for.pop((name, version), None)  # nobody is to take away what comes after it
        except ActorserveError:
            if isinstance(asked.message, Spawn | Replace):
                await self._on_refused(asked.message.model)
            raise
        if isinstance(message, Spawn):
            self._on_kept(message.model)
        asked.answer.accepted.set(None)
        error: ActorserveError | None = None
        try:
            await reply.wait()
        except ActorserveError as wrong:
            error = wrong
        await self._over(asked, intent, failed=error is not None)
        if error is not None:
            raise error

    async def _over(self, asked: Asked, intent: jobs.Intent, *, failed: bool) -> None:
        """Commit what a change has come to, where its intent did not say all."""
        match asked.message:
            case Replace():
                await self._end_rollout(asked, intent, failed=failed)
            case Stop() if not failed:
                await self._note(asked.name, _removing(intent.number))
            case Spawn(unregister_on_failure=True) if failed:
                await self._note(asked.name, _undoing(asked, intent.number))
            case Spawn(unregister_on_failure=True) if asked.said is None:
                await self._finish(asked, intent)
            case _:
                pass

    async def _note(self, name: str, job: Callable[[sqlite3.Connection], object]) -> None:
        """As `_record`, in a turn of its own."""
        async with self._turns.take(name):
            await self._record(name, job)

    async def _record(self, name: str, job: Callable[[sqlite3.Connection], object]) -> None:
        """Have the registry say what has happened, now or with its next change. The caller has the turn."""
        if not await self._registry.record(job):
            log.error("registry not written, it will be with its next change", model=name)

    @asynccontextmanager
    async def _placed(self, asked: Asked) -> AsyncIterator[Asked]:
        """A change in its turn, and as what it is by then: an entry that config.toml has is a registration or, where
        its version is there, a change of that. It waits for what the API registers, and is what that leaves.
        """
        while True:
            async with self._turns.take(asked.name, asked.turn):
                if asked.said is None or not isinstance(asked.message, Spawn):
                    yield asked
                    return
                spec = asked.message.model
                if (spec.name, spec.version) not in self._waited_for:
                    is_there = self._supervisor.has(spec.name, spec.version)
                    yield replace(asked, message=Replace(spec)) if is_there else asked
                    return
            await self.wait_settled(spec.name, spec.version)
            asked = replace(asked, turn=self._turns.queue(asked.name))

    async def _begin(self, asked: Asked, version: str) -> tuple[jobs.Intent, Reply[None]]:
        """Commit the intent and have the supervisor begin. Refused after all: it is taken back."""
        message, name = asked.message, asked.name
        job = partial(
            jobs.intend,
            name=name,
            version=version,
            become=partial(intended, message, asked.said),
            choose=isinstance(message, SetDefault),
        )
        intent = await self._registry.run(job)
        if not isinstance(message, Spawn | Replace):
            message = replace(message, version=version)
        try:
            reply = await self._supervisor.carry_out(message)
        except ActorserveError:
            await self._record(name, partial(jobs.restore, name=name, rows=intent.before, default=intent.chosen))
            raise
        if isinstance(message, Replace):
            known = self._rollouts.get(intent.number)
            before = known.before if known else next(row for row in intent.before if row.version == version)
            self._rollouts[intent.number] = Unsettled(before, asked)
        return intent, reply

    async def _finish(self, asked: Asked, intent: jobs.Intent) -> None:
        """Commit that a model whose replicas are READY is registered; where that fails, it is taken away again."""
        name, version, number = asked.name, intent.after.version, intent.number
        async with self._turns.take(name):
            try:
                await self._registry.run(partial(jobs.settle, number=number, state=RowState.REGISTERED))
            except StateFailed as error:
                if self._waited_for.get((name, version)) is not asked.answer.done:
                    raise  # it was unregistered meanwhile, and may have been registered anew
                await self._record(name, _removing(number))
                gone = await self._supervisor.carry_out(Stop(name, version, 0.0, forced=True))
                wrong = error
            else:
                return
        await gone.wait()
        raise wrong

    async def _end_rollout(self, asked: Asked, intent: jobs.Intent, *, failed: bool) -> None:
        """Commit how it ended. What a failed one goes back to is what the last that did not fail has left."""
        async with self._turns.take(asked.name):
            unsettled = self._rollouts.get(intent.number)
            if unsettled is None:  # one that followed has ended before
                return
            if unsettled.latest is asked:
                del self._rollouts[intent.number]
                if failed:
                    job = partial(jobs.take_back, number=intent.number, before=unsettled.before)
                    await self._record(asked.name, job)
            elif not failed:
                unsettled.before = intent.after


def _removing(number: int) -> Callable[[sqlite3.Connection], None]:
    """The job that says that an unregistration is over."""
    return partial(jobs.settle, number=number, state=RowState.REMOVED)


def _undoing(asked: Asked, number: int) -> Callable[[sqlite3.Connection], None]:
    """The job that says that a registration which was waited for has come to nothing."""
    return _removing(number) if asked.said is None else partial(jobs.take_back, number=number, before=None)
