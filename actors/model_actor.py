"""One incarnation of a model actor: it owns one worker from its spawn to its end.

The tasks of an incarnation, all in one nursery: the worker's writer, its reader (frames -> endings), the
two output pumps, the one that waits for the process, the watch (hangs), the scales (memory), and the loop that
takes work from the mailbox. The first that finds the worker dead says why and cancels the others; what the worker
had in hand then ends or goes back.

What must not live here: restarts (supervision.py decides), limits (wear.py), who replaces a worn worker
(succession.py), who is in a batch (batching.py, taking.py), how a worker is started (starting.py), what
it says (hearing.py), how it is stopped, killed and buried (worker_end.py), bytes (wire.py).
Over 250 lines: the tasks share one nursery.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from actorserve.actors import hearing, wire
from actorserve.actors.composition import Composition
from actorserve.actors.in_hand import InHand
from actorserve.actors.loading import load_content
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.memory import own_memory
from actorserve.actors.messages import ChildSpec, Crashed, Drained, Exit, Finished, Killed
from actorserve.actors.pulse import NO_PONG_BEATS, Beat
from actorserve.actors.starting import Bond, bind, load, spawn
from actorserve.actors.taking import Taking
from actorserve.actors.waiters import Signal
from actorserve.actors.wear import Measure, Wear
from actorserve.actors.wire import Kind
from actorserve.actors.worker_end import describe_status
from actorserve.actors.worker_log import WorkerLog
from actorserve.actors.worker_process import Spawner
from actorserve.errors import ActorCrashed, ActorserveError, Draining

BEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class ActorSettings:
    """What every incarnation of every actor shares. `gather_limit`: bytes of one unary answer.

    `measure`: bytes of memory that the process of a pid holds by itself, None where it has gone. `find`: the mailbox of
    a model and a version, for calls that workers make; NoSuchModel.
    """

    spawner: Spawner
    cache_dir: Path
    path: tuple[str, ...] = ()
    gather_limit: int = 6_553_500
    measure: Measure = own_memory
    find: Callable[[str, str], Mailbox] | None = None


class Incarnation:
    """See the module's docstring. `run` once. `on_worn` is called when it should be replaced.

    `gate`: once READY it touches the mailbox only when that is set (rollout.py); None: at once.
    """

    def __init__(
        self,
        spec: ChildSpec,
        mailbox: Mailbox,
        settings: ActorSettings,
        on_ready: Callable[[float], None],
        on_worn: Callable[[], None],
        *,
        gate: trio.Event | None = None,
    ) -> None:
        self.spec = spec
        self.ready_at: float | None = None
        self.pid: int | None = None
        self._mailbox = mailbox
        self._settings = settings
        self._on_ready = on_ready
        self._gate = gate
        self._wear = Wear(spec.model, settings.measure, on_worn)
        self._signal = Signal()
        self._taking = Taking(mailbox, self._signal)
        self._cuts_sequences = False
        self._settled = trio.Event()  # READY, or ended
        self._log = WorkerLog(spec.model.key, spec.index)
        self._bond: Bond | None = None

    @property
    def worn(self) -> str:
        """Why it should be replaced, once it should; empty before. It goes on until `retire`."""
        return self._wear.why

    @property
    def answered(self) -> int:
        """How many envelopes this incarnation has ended."""
        return 0 if self._bond is None else self._bond.in_hand.answered

    @property
    def in_hand(self) -> int:
        """How many envelopes its worker has."""
        return 0 if self._bond is None else self._bond.in_hand.items

    def drain(self) -> None:
        """Take nothing more from the mailbox, finish what is in hand, end its sequences, then end."""
        self._cuts_sequences = True
        self.retire()

    def retire(self) -> None:
        """Leave the place to another: take nothing more, finish what is in hand, sequences too, then end."""
        self._taking.retire()

    async def control(self, content: Mapping[str, Any]) -> None:
        """Have the worker do something, once it is READY. HandlerRaised: it refused. No effect if it ends first."""
        await self._settled.wait()
        if self._bond is not None and self.ready_at is not None:
            with contextlib.suppress(ActorCrashed):
                await self._bond.controls.ask(content)

    # --- from spawn to end --------------------------------------------------------------------

    async def run(self) -> Exit:
        """Live; returns how it ended. Cancelling kills the worker and fails what it has begun."""
        worker = await spawn(self._settings.spawner, self.spec)
        if isinstance(worker, Crashed):
            return worker
        self.pid = worker.process.pid
        in_hand = InHand(worker.write, worker.write_now, gather_limit=self._settings.gather_limit)
        limit = self.spec.model.response_timeout_s
        bond = self._bond = bind(worker, self._mailbox, self._taking, self._log, in_hand, timeout_s=limit)
        try:
            exit = await self._live(bond)
        except BaseException:
            self._release(bond, Killed())
            raise
        self._release(bond, exit)
        return exit

    def _release(self, bond: Bond, exit: Exit) -> None:
        """End or give back what the worker had in hand."""
        name = self.spec.model.name

        def error() -> ActorserveError:
            if isinstance(exit, Crashed):
                return ActorCrashed(f"the worker of model {name} died: {exit.cause}")
            return Draining(f"the worker of model {name} was stopped before it had answered")

        left = bond.in_hand.abandon_all(error)
        self._taking.leave()
        bond.holding.gone()
        self._settled.set()
        bond.controls.abandon_all()
        self._mailbox.put_back(left)

    async def _live(self, bond: Bond) -> Exit:
        status = -signal.SIGKILL
        ended = trio.Event()
        async with trio.open_nursery() as pumps:
            for pump in self._log.pumps(bond.worker.process):
                pumps.start_soon(pump.run, ended.wait)
            try:
                drained = await self._work(bond)
            finally:
                with trio.CancelScope(shield=True):
                    status = await bond.end.bury()
                ended.set()
        return Drained() if drained else self._died(bond, status)

    def _died(self, bond: Bond, status: int) -> Exit:
        """How it ended that was not asked to."""
        failure = bond.end.failure
        if status == 0 and failure is None and self.ready_at is not None and not bond.in_hand.items:
            return Finished()
        crashed = failure or Crashed(describe_status(status))
        if bond.worker.process.stuck:
            return Crashed(f"{crashed.cause}; its thread cannot be killed and still runs", permanent=True)
        return crashed

    async def _work(self, bond: Bond) -> bool:
        """Load, serve, and drain; True if it drained, False if the worker died (see `WorkerEnd.failure`)."""
        drained = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bond.worker.run_writer)
            nursery.start_soon(self._read, bond, nursery)
            nursery.start_soon(bond.end.await_process, nursery.cancel_scope)
            await self._load(bond)
            nursery.start_soon(self._watch, bond)
            nursery.start_soon(self._wear.weigh, self.pid)
            if self._gate is not None and not self._gate.is_set():
                await self._gate.wait()
            if not self._taking.retiring:
                self._mailbox.learn(bond.own.able)
                if bond.own.multiplexes:
                    self._taking.hold()
            self._settled.set()
            if bond.own.checks_health and self.spec.model.health_check_period_s:
                nursery.start_soon(self._check_health, bond)
            await self._take_until_drained(bond.in_hand)
            await bond.end.stop(self.spec.grace_s)
            drained = True
            nursery.cancel_scope.cancel()
        return drained

    async def _load(self, bond: Bond) -> None:
        spec, settings = self.spec, self._settings
        sees_all = bond.worker.process.sees_all_devices
        content = load_content(spec, settings.path, settings.cache_dir, sees_all_devices=sees_all)
        began = trio.current_time()
        await load(bond, content, self._wear, self.pid, timeout_s=spec.model.startup_timeout_s)
        self.ready_at = trio.current_time()
        self._on_ready(self.ready_at - began)

    async def _read(self, bond: Bond, nursery: trio.Nursery) -> None:
        """Until the end of the socket; then the worker is dead, and the incarnation with it.

        `nursery`: the incarnation's, for the calls that its worker makes.
        """
        find = self._settings.find
        composition = None if find is None else Composition(find, bond.worker.write, nursery)
        try:
            await hearing.read(bond.worker, bond.in_hand, composition, bond.own, self._signal)
        except wire.WireError as error:
            bond.end.kill(Crashed(f"the worker broke the protocol: {error}"))
        bond.end.hear_end(nursery.cancel_scope)

    # --- hangs ----------------------------------------------------------------------------------

    async def _check_health(self, bond: Bond) -> None:
        model = self.spec.model
        why = await bond.controls.check_health(model.health_check_period_s, model.health_check_timeout_s)
        bond.end.kill(Crashed(why))

    async def _watch(self, bond: Bond) -> None:
        """Ping (pulse.py says when); kill a worker that does not answer. What PONG says of a hang, `OwnWords` hears."""
        in_hand = bond.in_hand
        while True:
            await trio.sleep(BEAT_S)
            self._log.say_dropped()
            in_hand.sequences.expire(self.spec.model.sequence_idle_timeout_s)
            self._wear.count(in_hand.answered + in_hand.items)
            match bond.own.pulse.beat(busy=in_hand.items > 0):
                case Beat.PING:
                    bond.worker.write(wire.frame(Kind.PING))
                case Beat.DEAD:
                    bond.end.kill(Crashed(f"no PONG within {NO_PONG_BEATS} s"))

    # --- taking work ------------------------------------------------------------------------------

    async def _take_until_drained(self, in_hand: InHand) -> None:
        """Until it has nothing in hand and will get nothing more; another's unbegun batch may still come back."""
        taking, mailbox = self._taking, self._mailbox
        while True:
            until = float("inf")
            if taking.retiring:
                taking.leave()
                mailbox.wake_next()
            else:
                until = taking.take(in_hand)
                self._wear.count(in_hand.answered + in_hand.items)
            if self._cuts_sequences or mailbox.closed:
                in_hand.sequences.drain(self.spec.model.name)
            if not in_hand.items and (taking.retiring or (mailbox.closed and not mailbox.waiting)):
                taking.leave()
                return
            with trio.move_on_at(until):
                await self._signal.wait()
