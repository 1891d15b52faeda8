"""The supervisor: it spawns, scales, drains and kills model actors, each in its own task of one nursery.

    supervisor
      |- minilm/1.0     one mailbox        strategy: one_for_one, always; replicas are independent
      |    |- #0  #1    children           (child.py: incarnations, restarts)
      |- digits/1.0

It is asked by messages (Spawn, Replace, Update, Scale, Stop, SetDefault, Observe); each answer is a Reply that any may
await. Its loop never awaits one: a client's cancel or deadline ends the answer, never the change (design §8). An error
of the supervisor itself is not turned into anything: it ends the server.
Over 250 lines: every message has its answer here, so that the tree is read in one place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, overload

import structlog
import trio

from actorserve.actors.autoscaler import Autoscaler
from actorserve.actors.child import Child
from actorserve.actors.device import Ledger
from actorserve.actors.directory import Directory
from actorserve.actors.messages import (
    Change,
    ChildSpec,
    ModelSpec,
    Observe,
    Placement,
    Replace,
    Scale,
    SetDefault,
    Spawn,
    State,
    Stop,
    Tree,
    Update,
)
from actorserve.actors.model import Model
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.reply import Reply
from actorserve.actors.rollout import Rollout, count_for, needs_workers
from actorserve.errors import (
    ActorserveError,
    AlreadyRegistered,
    ConfigError,
    Draining,
    HandlerRaised,
    LoadFailed,
    NoSuchModel,
    Overloaded,
    WrongState,
)

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
        self._settings = settings
        self._directory = directory
        self._stable_after_s = stable_after_s
        self._grace_s = grace_s
        self._on_change = on_change
        self._ledger = Ledger() if ledger is None else ledger
        self._models: dict[tuple[str, str], Model] = {}
        self._autoscaler: Autoscaler[Model] = Autoscaler(self._models.values, self._resize)
        self._leaving: list[Model] = []
        self._send, self._inbox = trio.open_memory_channel[tuple[Request, Reply[Any]]](INBOX)
        self._nursery: trio.Nursery | None = None
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
                if (spec.name, spec.version) in self._models:
                    raise AlreadyRegistered(f"model {spec.name} version {spec.version} is registered already")
                return self._settled(spec).version
            case Replace(model=spec):
                self._find(spec.name, spec.version)
                return self._settled(spec).version
            case Stop():
                return self._stoppable(message).spec.version
            case Scale() | SetDefault():
                return self._find(message.name, message.version).spec.version

    def has(self, name: str, version: str) -> bool:
        """Whether a version is registered, and does not leave."""
        return (name, version) in self._models

    def note_failed_rollout(self, name: str, version: str, why: str) -> None:
        """Have the tree say of a version why what was to take its place could not."""
        model = self._models.get((name, version))
        if model is not None:
            model.rollout_failure = why
            self._on_change()

    def observe(self) -> Tree:
        """The tree now, for those in the same task tree; others ask with Observe."""
        default = self._directory.default
        return Tree(
            tuple(
                model.view(is_default=default(name) == version)
                for (name, version), model in sorted(self._models.items())
            ),
            tuple(model.view(is_default=False) for model in self._leaving),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer messages until cancelled; cancelling kills every child."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
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
        running = self._models.get((spec.name, spec.version)) if isinstance(message, Replace) else None
        if self._on_gone is not None and (running is None or running.spec.model_dir != spec.model_dir):
            await self._on_gone(spec)

    def _handle(self, message: Request, reply: Reply[Any]) -> None:
        if self._draining and not isinstance(message, Observe):
            raise Draining("the server is shutting down")
        match message:
            case Spawn():
                self._spawn(message, reply)
            case Replace():
                self._replace(message, reply)
            case Scale():
                self._scale(message, reply)
            case Stop():
                self._stop(message, reply)
            case SetDefault():
                self._set_default(message, reply)
            case Update(model=spec):
                self._start_soon(self._update, self._find(spec.name, spec.version), spec, reply)
            case Observe():
                reply.set(self.observe())
            case other:
                raise TypeError(f"unhandled message {other!r}")

    def _start_soon(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        assert self._nursery is not None  # noqa: S101  # narrows the type: run() has set it
        self._nursery.start_soon(task, *args)

    # --- spawn --------------------------------------------------------------------------------

    def _spawn(self, message: Spawn, reply: Reply[None]) -> None:
        spec = self._settled(message.model)
        key = (spec.name, spec.version)
        if key in self._models:
            raise AlreadyRegistered(f"model {spec.name} version {spec.version} is registered already")
        model = self._models[key] = Model(spec, self._autoscaler.wake)
        self._directory.add(spec.name, spec.version, model.mailbox)
        begun = spec.workers_begun if message.workers is None else count_for(spec, message.workers)
        log.info("model registered", model=spec.key, handler=spec.handler, workers=begun)
        children = self._grow(model, begun)
        self._autoscaler.wake()
        model.refresh()
        self._on_change()
        self._start_soon(self._answer_when_ready, model, children, reply, message.unregister_on_failure)

    def _settled(self, spec: ModelSpec) -> ModelSpec:
        """The spec with its number of threads; LoadFailed where it names a device that does not exist."""
        try:
            others = (model.spec for key, model in self._models.items() if key != (spec.name, spec.version))
            return self._ledger.settle_threads(spec, others)
        except ConfigError as error:
            raise LoadFailed(str(error)) from None

    def _forget_failed(self, model: Model) -> None:
        for index in [index for index, child in model.children.items() if child.state is State.FAILED]:
            del model.children[index]

    def _grow(self, model: Model, count: int) -> list[Child]:
        """Start children until `count` are alive."""
        started = []
        while model.alive < count:
            child = self._child(model, model.spec)
            model.children[child.spec.index] = child
            started.append(child)
            self._start_soon(self._run_child, model, child)
        return started

    def _child(self, model: Model, spec: ModelSpec, rollout: Rollout | None = None) -> Child:
        def changed() -> None:
            model.refresh()
            self._on_change()
            if rollout is not None:
                rollout.news.set()

        return Child(
            ChildSpec(spec, model.free_index(), self._place(spec), restart=spec.restart, grace_s=self._grace_s),
            model.mailbox,
            self._settings,
            stable_after_s=self._stable_after_s,
            on_change=changed,
            turn=model.turn,
            gate=None if rollout is None else rollout.gate,
        )

    def _place(self, spec: ModelSpec) -> Placement:
        children = [child for one in (*self._models.values(), *self._leaving) for child in one.everyone()]
        loading = [child.spec.placement for child in children if child.state is not State.READY]
        return self._ledger.assign(spec.key, spec.devices, loading)

    async def _run_child(self, model: Model, child: Child) -> None:
        await child.run()
        self._ledger.release(child.spec.placement)
        if child.state is not State.FAILED and model.children.get(child.spec.index) is child:
            del model.children[child.spec.index]
        model.dismissed.discard(child)
        model.refresh()
        self._on_change()

    async def _answer_when_ready(
        self, model: Model, children: Iterable[Child], reply: Reply[None], unregister_on_failure: bool
    ) -> None:
        before = model.rollouts
        try:
            for child in children:
                await child.ready.wait()
        except ActorserveError as error:
            known = self._models.get((model.spec.name, model.spec.version)) is model
            rolled = model.rollout is not None or model.rollouts != before  # then that decides what becomes of it
            if unregister_on_failure and known and not rolled:
                self._forget(model)
                await self._retire(model, 0.0)
            reply.fail(error)
        else:
            reply.set(None)

    # --- scale --------------------------------------------------------------------------------

    def _find(self, name: str, version: str) -> Model:
        wanted = version or self._directory.default(name) or ""
        model = self._models.get((name, wanted))
        if model is None:
            raise NoSuchModel(name, version if self._directory.default(name) else "")
        return model

    def _scale(self, message: Scale, reply: Reply[None]) -> None:
        model = self._find(message.name, message.version)
        for one in (model, model.rollout):
            if one is not None:
                one.spec = replace(one.spec, workers_min=message.workers_min, workers_max=message.workers_max)
        self._keep_bounds(model, self._grace_s if message.grace_s is None else message.grace_s, reply)

    def _keep_bounds(self, model: Model, grace_s: float, reply: Reply[None]) -> None:
        """Have as many replicas as the spec says. The reply is given when the new ones are READY."""
        least, most = model.spec.workers_min, model.spec.workers_max
        self._forget_failed(model)
        started = self._grow(model, least)
        self._autoscaler.wake()
        alive = sorted(index for index, child in model.children.items() if child.is_alive)
        alive.sort(key=lambda index: model.children[index].state is not State.READY)  # those that work stay
        leaving = [model.children[index] for index in alive[most:]]
        for child in leaving:
            child.drain()
        model.refresh()
        self._on_change()
        log.info("model scaled", model=model.spec.key, workers=count_for(model.spec, len(alive)))
        self._start_soon(self._answer_when_scaled, model, started, leaving, grace_s, reply)

    def _resize(self, model: Model, target: int) -> None:
        """Do what autoscaling decided. Those that leave finish what they have in hand, however long that takes."""
        self._grow(model, target)
        alive = [child for child in model.children.values() if child.is_alive]
        alive.sort(key=lambda child: (child.state is not State.READY, -child.view().in_hand, child.spec.index))
        for child in alive[target:]:
            child.retire()
        model.refresh()
        self._on_change()

    async def _answer_when_scaled(
        self, model: Model, started: Iterable[Child], leaving: Iterable[Child], grace_s: float, reply: Reply[None]
    ) -> None:
        with trio.move_on_after(grace_s):
            for child in leaving:
                await child.gone.wait()
        for child in leaving:
            child.kill()
        while True:
            try:
                for child in started:
                    await child.ready.wait()
            except ActorserveError as error:
                if model.mailbox.closed or not child.is_leaving:
                    reply.fail(error)
                    return
                started = model.staff()  # another change has followed, or a rollout has taken over
            else:
                reply.set(None)
                return

    # --- update -------------------------------------------------------------------------------

    async def _update(self, model: Model, spec: ModelSpec, reply: Reply[None]) -> None:
        """Tell every worker, one after another; one whose code refuses has all of them keep the old configuration."""
        old, told = model.spec, spec.options.get("user_config")
        self._respecify(model, spec)
        if told != old.options.get("user_config"):
            done: list[Child] = []
            for child in [one for one in model.children.values() if one.is_alive]:
                try:
                    await child.control({"do": "reconfigure", "user_config": told})
                except HandlerRaised as error:
                    self._respecify(model, old)
                    for other in done:
                        with contextlib.suppress(HandlerRaised):
                            await other.control({"do": "reconfigure", "user_config": old.options.get("user_config")})
                    reply.fail(WrongState(f"{spec.name}: reconfigure raised {error}"))
                    return
                done.append(child)
        try:
            self._scale(Scale(spec.name, spec.version, spec.workers_min, spec.workers_max), reply)
        except ActorserveError as error:  # it has gone meanwhile
            reply.fail(error)

    def _respecify(self, model: Model, spec: ModelSpec) -> None:
        model.spec = spec
        for child in model.children.values():
            child.spec = replace(child.spec, model=spec)

    # --- replace: rollout.py says what it is -----------------------------------------------------

    def _replace(self, message: Replace, reply: Reply[None]) -> None:
        model = self._find(message.model.name, message.model.version)
        spec = self._settled(message.model)
        model.drop_rollout(WrongState(f"another change of model {spec.name} version {spec.version} came"))
        model.rollout_failure = ""
        if not needs_workers(model.spec, spec):
            model.change(spec)
            log.info("model changed, its workers stay", model=spec.key)
            self._keep_bounds(model, self._grace_s, reply)
            return
        model.rollout = rollout = Rollout(spec)
        for _ in range(count_for(spec, model.alive) if model.alive else spec.workers_min):
            child = self._child(model, spec, rollout)
            rollout.children[child.spec.index] = child
            self._start_soon(self._run_child, model, child)
        log.info("rollout begun", model=spec.key, handler=spec.handler, workers=len(rollout.children))
        if model.alive or rollout.children:
            model.refresh()
            self._on_change()
            self._start_soon(self._roll_out, model, rollout, reply)
        else:  # no worker is there, nor asked for
            children = list(rollout.children.values())
            self._take_over(model, rollout)
            self._start_soon(self._answer_when_ready, model, children, reply, False)

    async def _roll_out(self, model: Model, rollout: Rollout, reply: Reply[None]) -> None:
        try:
            await rollout.wait_ready()
        except ActorserveError as error:
            log.warning("rollout failed, what was there goes on", model=rollout.spec.key, why=str(error))
            if model.rollout is rollout:
                model.rollout_failure = str(error)
                model.drop_rollout(error)
            model.refresh()
            self._on_change()
            reply.fail(error)
            await rollout.dismiss(self._grace_s)
            await self._let_go(model, rollout.spec)
        else:
            self._take_over(model, rollout)
            reply.set(None)

    def _take_over(self, model: Model, rollout: Rollout) -> None:
        """Put the new replicas in the place of the old in one step: nothing else runs meanwhile."""
        old, old_spec, alive = list(model.children.values()), model.spec, model.alive
        self._forget_failed(model)
        model.children.update(rollout.children)
        model.rollout = None
        model.rollouts += 1
        model.change(rollout.spec)
        for child in old:
            if child.is_alive:
                child.retire()
        rollout.gate.set()
        self._resize(model, count_for(rollout.spec, alive) if alive else rollout.spec.workers_min)
        self._autoscaler.wake()
        log.info("rollout done", model=rollout.spec.key, workers=model.alive)
        self._start_soon(self._let_go_after, model, old, old_spec)

    async def _let_go_after(self, model: Model, children: Iterable[Child], spec: ModelSpec) -> None:
        for child in children:
            await child.gone.wait()
        await self._let_go(model, spec)

    async def _let_go(self, model: Model, spec: ModelSpec) -> None:
        """Nobody runs by this spec any more."""
        if self._on_gone is not None and spec.model_dir != model.spec.model_dir:
            await self._on_gone(spec)

    # --- stop ---------------------------------------------------------------------------------

    def _set_default(self, message: SetDefault, reply: Reply[None]) -> None:
        model = self._find(message.name, message.version)
        self._directory.set_default(model.spec.name, model.spec.version)
        log.info("default version set", model=model.spec.key)
        self._on_change()
        reply.set(None)

    def _stoppable(self, message: Stop) -> Model:
        model = self._find(message.name, message.version)
        spec = model.spec
        others = any(name == spec.name and version != spec.version for name, version in self._models)
        if others and not message.forced and self._directory.default(spec.name) == spec.version:
            raise WrongState(f"version {spec.version} is the default of model {spec.name}; other versions exist")
        return model

    def _stop(self, message: Stop, reply: Reply[None]) -> None:
        model = self._stoppable(message)
        self._forget(model)
        self._start_soon(self._answer_when_gone, model, message.grace_s, reply)

    def _forget(self, model: Model) -> None:
        """Take a model's name away and shut its door: this begins its drain."""
        spec = model.spec
        model.mailbox.close(lambda: NoSuchModel(spec.name, spec.version))
        if self._models.get((spec.name, spec.version)) is model:
            del self._models[spec.name, spec.version]
            self._directory.remove(spec.name, spec.version)
            self._leaving.append(model)
            self._on_change()

    async def _answer_when_gone(self, model: Model, grace_s: float, reply: Reply[None]) -> None:
        await self._retire(model, grace_s)
        reply.set(None)

    async def _retire(self, model: Model, grace_s: float) -> None:
        """Wait for the drain of a model whose door is shut until the grace ends, then kill what is left."""
        model.drop_rollout(model.stopped())
        children = list(model.everyone())
        model.refresh()
        with trio.move_on_after(grace_s):
            await model.mailbox.wait_empty()
            for child in children:
                if child.state is not State.READY:
                    child.drain()  # nothing is left for one that is still loading
            for child in children:
                await child.gone.wait()
        model.mailbox.fail_all(model.stopped)
        for child in children:
            child.kill()
        for child in children:
            await child.gone.wait()
        model.mailbox.fail_all(model.stopped)  # what came back from those that were killed
        self._leaving = [other for other in self._leaving if other is not model]
        if self._on_gone is not None:
            await self._on_gone(model.spec)
        log.info("model gone", model=model.spec.key)

    async def drain(self, grace_s: float) -> None:
        """Stop every model, the last registered first; returns when all are gone. For the server's end.

        Names stay in the directory: a call that comes late is told DRAINING, not that there is no such model.
        """
        self._draining = True
        models = [*reversed(self._models.values()), *self._leaving]
        for model in models:
            model.mailbox.close(lambda: Draining("the server is shutting down"))
        async with trio.open_nursery() as nursery:
            for model in models:
                nursery.start_soon(self._retire, model, grace_s)
