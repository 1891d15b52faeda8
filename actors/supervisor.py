"""The supervisor: it spawns, scales, drains and kills model actors, each in its own task of one nursery.

    supervisor
      |- minilm/1.0     one mailbox        strategy: one_for_one, always; replicas are independent
      |    |- #0  #1    children           (child.py: incarnations, restarts)
      |- digits/1.0

It is asked by messages (Spawn, Replace, Update, Scale, Stop, SetDefault, Observe); each answer is a Reply that any may
await. Its loop never awaits one: a client's cancel or deadline ends the answer, never the change (design §8). An error
of the supervisor itself is not turned into anything: it ends the server.

What a message does is in a room that can be read alone: which models there are (roster.py), who works for one
(staffing.py), how many (scaling.py), others in their place (rolling.py), how a model ends (retiring.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, overload

import structlog
import trio

from actorserve.actors.autoscaler import Autoscaler
from actorserve.actors.child import Child
from actorserve.actors.device import Ledger
from actorserve.actors.directory import Directory
from actorserve.actors.messages import (
    Change,
    ModelSpec,
    Observe,
    Replace,
    Scale,
    SetDefault,
    Spawn,
    Stop,
    Tree,
    Update,
)
from actorserve.actors.model import Model
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.reply import Reply
from actorserve.actors.retiring import Retiring
from actorserve.actors.rolling import Rolling
from actorserve.actors.rollout import count_for
from actorserve.actors.roster import Roster
from actorserve.actors.scaling import Scaling
from actorserve.actors.staffing import Staffing
from actorserve.errors import ActorserveError, Draining, Overloaded

INBOX = 1000

log = structlog.get_logger("actorserve.supervisor")
Request = Change | Update | Observe


class Supervisor:
    """See the module's docstring."""

    def __init__(
        self,
        settings: ActorSettings,
        directory: Directory,
        *,
        stable_after_s: float = 60.0,
        grace_s: float = 30.0,
        on_change: Callable[[], None] = lambda: None,
        ledger: Ledger | None = None,
        on_gone: Callable[[ModelSpec], Awaitable[None]] | None = None,
    ) -> None:
        """`on_gone` is awaited when a model is gone, or was refused: nobody needs its folder any more."""
        self._on_gone = on_gone
        self._directory = directory
        self._on_change = on_change
        ledger = Ledger() if ledger is None else ledger
        self._roster = roster = Roster(directory, ledger, on_change)
        self._staffing = staffing = Staffing(
            settings, roster, ledger, stable_after_s=stable_after_s, grace_s=grace_s, on_change=on_change
        )
        self._autoscaler: Autoscaler[Model] = Autoscaler(roster.models.values, staffing.resize)
        wake = self._autoscaler.wake
        self._scaling = Scaling(roster, staffing, grace_s=grace_s, wake=wake, on_change=on_change)
        self._rolling = Rolling(
            roster, staffing, self._scaling, grace_s=grace_s, wake=wake, on_change=on_change, on_gone=on_gone
        )
        self._retiring = Retiring(roster, on_gone)
        self._send, self._inbox = trio.open_memory_channel[tuple[Request, Reply[Any]]](INBOX)
        self._draining = False

    # --- asked from outside -------------------------------------------------------------------

    @overload
    def ask(self, message: Observe) -> Reply[Tree]: ...
    @overload
    def ask(self, message: Change | Update) -> Reply[None]: ...
    def ask(self, message: Request) -> Reply[Any]:
        """Send a message; the Reply is what it answers. Overloaded when 1,000 are waiting."""
        reply: Reply[Any] = Reply()
        try:
            self._send.send_nowait((message, reply))
        except trio.WouldBlock:
            raise Overloaded("supervisor", INBOX, 1.0) from None
        return reply

    async def carry_out(self, message: Change | Update) -> Reply[None]:
        """As `ask`, once it has begun: waits for room among the messages instead of refusing.

        What it then refuses is raised. Cancelled, it may have begun.
        """
        reply: Reply[None] = Reply()
        seen: Reply[Tree] = Reply()
        for one in ((message, reply), (Observe(), seen)):  # answered in turn, so the second says that the first began
            await self._send.send(one)
        await seen.wait()
        if reply.is_set:
            await reply.wait()
        return reply

    def check(self, message: Change) -> str:
        """The version that a change means. Raises why it would be refused; changes nothing."""
        if self._draining:
            raise Draining("the server is shutting down")
        match message:
            case Spawn(model=spec):
                self._roster.check_free(spec)
                return self._roster.settled(spec).version
            case Replace(model=spec):
                self._roster.find(spec.name, spec.version)
                return self._roster.settled(spec).version
            case Stop():
                return self._roster.stoppable(message).spec.version
            case Scale() | SetDefault():
                return self._roster.find(message.name, message.version).spec.version

    def has(self, name: str, version: str) -> bool:
        """Whether a version is registered, and does not leave."""
        return self._roster.has(name, version)

    def note_failed_rollout(self, name: str, version: str, why: str) -> None:
        """Have the tree say of a version why what was to take its place could not."""
        model = self._roster.models.get((name, version))
        if model is not None:
            model.rollout_failure = why
            self._on_change()

    def observe(self) -> Tree:
        """The tree now, for those in the same task tree; others ask with Observe."""
        return self._roster.observe()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer messages until cancelled; cancelling kills every child."""
        async with trio.open_nursery() as nursery:
            self._staffing.nursery = nursery
            nursery.start_soon(self._autoscaler.run)
            task_status.started()
            async for message, reply in self._inbox:
                try:
                    self._handle(message, reply)
                except ActorserveError as error:
                    if isinstance(message, Spawn | Replace):
                        nursery.start_soon(self._refused, message)
                    reply.fail(error)

    async def _refused(self, message: Spawn | Replace) -> None:
        """Nobody runs by its spec, unless it is a change of one that does."""
        spec = message.model
        running = self._roster.models.get((spec.name, spec.version)) if isinstance(message, Replace) else None
        if self._on_gone is not None and (running is None or running.spec.model_dir != spec.model_dir):
            await self._on_gone(spec)

    def _handle(self, message: Request, reply: Reply[Any]) -> None:
        if self._draining and not isinstance(message, Observe):
            raise Draining("the server is shutting down")
        match message:
            case Spawn():
                self._spawn(message, reply)
            case Replace():
                self._rolling.replace(message, reply)
            case Scale():
                self._scaling.scale(message, reply)
            case Stop():
                self._stop(message, reply)
            case SetDefault():
                self._set_default(message, reply)
            case Update(model=spec):
                model = self._roster.find(spec.name, spec.version)
                self._staffing.start_soon(self._scaling.update, model, spec, reply)
            case Observe():
                reply.set(self.observe())
            case other:
                raise TypeError(f"unhandled message {other!r}")

    # --- spawn, stop ----------------------------------------------------------------------------

    def _spawn(self, message: Spawn, reply: Reply[None]) -> None:
        spec = self._roster.settled(message.model)
        self._roster.check_free(spec)
        model = Model(spec, self._autoscaler.wake)
        self._roster.enter(model)
        begun = spec.workers_begun if message.workers is None else count_for(spec, message.workers)
        log.info("model registered", model=spec.key, handler=spec.handler, workers=begun)
        children = self._staffing.grow(model, begun)
        self._autoscaler.wake()
        model.refresh()
        self._on_change()
        self._staffing.start_soon(self._answer_when_ready, model, children, reply, message.unregister_on_failure)

    async def _answer_when_ready(
        self, model: Model, children: Iterable[Child], reply: Reply[None], unregister_on_failure: bool
    ) -> None:
        before = model.rollouts
        try:
            for child in children:
                await child.ready.wait()
        except ActorserveError as error:
            known = self._roster.models.get((model.spec.name, model.spec.version)) is model
            rolled = model.rollout is not None or model.rollouts != before  # then that decides what becomes of it
            if unregister_on_failure and known and not rolled:
                self._roster.forget(model)
                await self._retiring.retire(model, 0.0)
            reply.fail(error)
        else:
            reply.set(None)

    def _stop(self, message: Stop, reply: Reply[None]) -> None:
        model = self._roster.stoppable(message)
        self._roster.forget(model)
        self._staffing.start_soon(self._retiring.answer_when_gone, model, message.grace_s, reply)

    def _set_default(self, message: SetDefault, reply: Reply[None]) -> None:
        model = self._roster.find(message.name, message.version)
        self._directory.set_default(model.spec.name, model.spec.version)
        log.info("default version set", model=model.spec.key)
        self._on_change()
        reply.set(None)

    async def drain(self, grace_s: float) -> None:
        """Stop every model, the last registered first; returns when all are gone. For the server's end.

        Names stay in the directory: a call that comes late is told DRAINING, not that there is no such model.
        """
        self._draining = True
        models = [*reversed(self._roster.models.values()), *self._roster.leaving]
        for model in models:
            model.mailbox.close(lambda: Draining("the server is shutting down"))
        async with trio.open_nursery() as nursery:
            for model in models:
                nursery.start_soon(self._retiring.retire, model, grace_s)
