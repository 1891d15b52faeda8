"""One child of the supervisor: a replica's life across its incarnations.

It runs incarnations (succession.py), asks supervision.judge what an end means, and does that. Its state, counts
and reasons are what the tree shows. What must not live here: the decision (supervision.py), the worker
(model_actor.py), the other children (staffing.py).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
import trio

from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ChildSpec, Crashed, Exit, Killed, ReplicaView, State
from actorserve.actors.model_actor import ActorSettings, Incarnation
from actorserve.actors.reply import Reply, fail_quietly
from actorserve.actors.succession import Succession
from actorserve.actors.supervision import GiveUp, Gone, RestartAfter, cause_of, judge
from actorserve.errors import ActorserveError, LoadFailed, StartupTimeout, Unavailable

log = structlog.get_logger("actorserve.model")

ALIVE = frozenset((State.LOADING, State.READY, State.RESTARTING))


class Child:
    """See the module's docstring. `on_change` is called after each change of `state`.

    `turn`: held while a worker is being replaced; shared by the replicas of a model. `gate`: as for an incarnation.
    """

    def __init__(
        self,
        spec: ChildSpec,
        mailbox: Mailbox,
        settings: ActorSettings,
        *,
        stable_after_s: float,
        on_change: Callable[[], None],
        turn: trio.Lock,
        gate: trio.Event | None = None,
    ) -> None:
        self.spec = spec
        self.state = State.LOADING
        self.reason = ""
        self.ready: Reply[None] = Reply()
        self.gone = trio.Event()
        self._mailbox = mailbox
        self._stable_after_s = stable_after_s
        self._on_change = on_change
        self._scope = trio.CancelScope()
        self._stop = trio.Event()
        self._restarts = 0
        self._failures = 0
        self._last_exit: Exit | None = None
        self._pause_s: float | None = None
        self._started_at = time.time()
        self._log = log.bind(model=spec.model.key, worker=spec.index)
        self._succession = Succession(
            lambda ready, worn: Incarnation(self.spec, mailbox, settings, ready, worn, gate=gate),
            on_ready=self._on_ready,
            on_end=self._on_end,
            may_replace=lambda: not self._is_stopping,
            turn=turn,
            log=self._log,
        )

    @property
    def is_alive(self) -> bool:
        """Whether it answers, or will. One that is to end before it was READY is none, from then on."""
        return self.state in ALIVE and not self.is_leaving

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to end."""
        return self._stop.is_set()

    @property
    def _is_stopping(self) -> bool:
        return self.is_leaving or self._mailbox.closed

    async def control(self, content: Mapping[str, Any]) -> None:
        """Have its worker do something, where it has one: see `Incarnation.control`."""
        current = self._succession.current
        if current is not None:
            await current.control(content)

    def drain(self) -> None:
        """Take nothing more, finish what is in hand, end its sequences, end. Idempotent."""
        self._leave(self._succession.drain)

    def retire(self) -> None:
        """As `drain`, but its sequences go on until their clients end them."""
        self._leave(self._succession.retire)

    def _leave(self, finish: Callable[[], None]) -> None:
        self._stop.set()
        if self.state in (State.READY, State.DRAINING):  # one that retires may have to be quicker now
            self._change(State.DRAINING)
            finish()
        elif self.state in ALIVE:
            self.kill()

    def kill(self) -> None:
        """End now; what is in hand fails with ActorCrashed."""
        self._stop.set()
        self._scope.cancel()

    async def run(self) -> None:
        """Live until drained, killed or given up. Runs in the supervisor's nursery."""
        try:
            with self._scope:
                await self._run_incarnations()
        except Exception as error:  # noqa: BLE001  # the child's edge: a bug of one must not end the others
            self._log.exception("worker's actor failed")
            self._give_up(f"a bug in the server: {type(error).__name__}: {error}", Killed())
        finally:
            if self.state is not State.FAILED:
                self._last_exit = self._last_exit or Killed()
                self._change(State.DRAINING)
            fail_quietly(self.ready, Unavailable(f"worker {self.spec.name} was stopped before it was READY"))
            self.gone.set()

    async def _run_incarnations(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await self._succession.live(nursery)
                if self._pause_s is None:
                    return
                with trio.move_on_after(self._pause_s):
                    await self._stop.wait()
                    return  # who said so has told the heir, if there is one

    def _on_ready(self, seconds: float) -> None:
        self._started_at = time.time()
        self.reason = ""
        self._change(State.READY)
        current = self._succession.current
        pid = None if current is None else current.pid
        self._log.info("worker ready", pid=pid, seconds=round(seconds, 3), incarnation=self._succession.begun)
        if not self.ready.is_set:
            self.ready.set(None)
        if self._stop.is_set():
            self.drain()

    def _on_end(self, incarnation: Incarnation, exit: Exit) -> bool:
        """An incarnation ended with nobody in its place; whether there will be a next one, after `_pause_s`."""
        self._last_exit = exit
        self._pause_s = self._after(exit, incarnation)
        return self._pause_s is not None

    def _after(self, exit: Exit, incarnation: Incarnation) -> float | None:
        """Do what the verdict on an ended incarnation says; seconds to wait for the next, None for the end."""
        stable = incarnation.ready_at is not None and trio.current_time() - incarnation.ready_at >= self._stable_after_s
        verdict = judge(
            exit,
            restart=self.spec.restart,
            stopping=self._is_stopping,
            proven=incarnation.answered > 0 or stable,
            failures=self._failures,
            max_restarts=self.spec.model.max_restarts,
            luck=random.random(),  # noqa: S311  # jitter, not a secret
        )
        cause = cause_of(exit)
        match verdict:
            case RestartAfter(delay, failures):
                self._failures = failures
                self._restarts += 1
                self.reason = cause
                self._change(State.RESTARTING)
                self._log.warning("worker died, restarting", cause=cause, after_s=round(delay, 2), failures=failures)
                return delay
            case GiveUp(reason, failures):
                self._failures = failures
                self._give_up(reason, exit)
            case Gone():
                if not self._is_stopping:
                    self._log.info("worker gone", cause=cause)
        return None

    def _give_up(self, reason: str, exit: Exit) -> None:
        self.reason = reason
        self._change(State.FAILED)
        self._log.error("worker failed", reason=reason)
        error: ActorserveError = LoadFailed(reason)
        if isinstance(exit, Crashed) and exit.timed_out:
            error = StartupTimeout(reason)
        fail_quietly(self.ready, error)

    def _change(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._on_change()

    def view(self) -> ReplicaView:
        """What the tree shows of it."""
        current = self._succession.current
        return ReplicaView(
            name=self.spec.name,
            index=self.spec.index,
            device=self.spec.device,
            state=self.state,
            incarnation=self._succession.begun,
            pid=None if current is None else current.pid,
            restarts=self._restarts,
            replaced=self._succession.replaced,
            failures_in_a_row=self._failures,
            last_exit=self._last_exit,
            reason=self.reason,
            started_at=self._started_at,
            in_hand=self._succession.in_hand,
        )
