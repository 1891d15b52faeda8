"""One incarnation of a model actor: it owns one worker from its spawn to its end.

The tasks of an incarnation, all in one nursery: the worker's writer, its reader (frames -> endings), the
two output pumps, the one that waits for the process, the watch (hangs), the scales (memory), and the loop that
takes work from the mailbox. The first that finds the worker dead says why and cancels the others; what the worker
had in hand then ends or goes back.

What must not live here: restarts (supervision.py decides), limits (wear.py), who replaces a worn worker
(succession.py), who is in a batch (batching.py, taking.py), bytes (wire.py).
Over 250 lines: the tasks share one nursery and what they find out.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from actorserve.actors import wire, wire_calls
from actorserve.actors.composition import Composition
from actorserve.actors.controls import Controls
from actorserve.actors.in_hand import InHand
from actorserve.actors.leases import Turn
from actorserve.actors.loading import load_content
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.memory import own_memory
from actorserve.actors.messages import Capabilities, ChildSpec, Crashed, Drained, Exit, Finished, Killed
from actorserve.actors.pulse import NO_PONG_BEATS, Beat, Pulse
from actorserve.actors.taking import Taking
from actorserve.actors.waiters import Signal
from actorserve.actors.wear import Measure, Wear
from actorserve.actors.wire import Frame, Kind
from actorserve.actors.worker_process import LineLimit, OutputPump, Spawner, Worker, dropped_lines
from actorserve.errors import ActorCrashed, ActorserveError, Draining, LoadFailed

OF_WORK = frozenset(
    int(kind)
    for kind in (
        *(Kind.RESULT, Kind.CHUNK, Kind.BEGUN, Kind.DONE, Kind.ERROR, Kind.FAULT),
        *(Kind.INITIAL, Kind.ENDED, Kind.TAKEN),
    )
)
OF_COMPOSITION = frozenset(
    int(kind) for kind in (Kind.CALL, Kind.CALL_ITEM, Kind.CALL_END, Kind.CALL_CREDIT, Kind.CALL_CANCEL)
)
BEAT_S = 1.0
REAP_S = 5.0
LAST_WORDS_S = 1.0
LEVELS = frozenset(("debug", "info", "warning", "error", "critical"))

log = structlog.get_logger("actorserve.model")


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
        self._gate = gate
        self._able = Capabilities(infer=False, generate=False)  # until its worker says what it can do
        self._wear = Wear(spec.model, settings.measure, on_worn)
        self.ready_at: float | None = None
        self.pid: int | None = None
        self._mailbox = mailbox
        self._settings = settings
        self._on_ready = on_ready
        self._signal = Signal()
        self._taking = Taking(mailbox, self._signal)
        self._draining = False
        self._cuts_sequences = False
        self._stopping = False
        self._process_ended = trio.Event()
        self._log_limit = LineLimit()
        self._pulse = Pulse()
        self._loaded = trio.Event()
        self._ended = trio.Event()
        self._died = False
        self._failure: Crashed | None = None  # why, where the process's status does not say it
        self._in_hand: InHand | None = None
        self._composition: Composition | None = None
        self._controls: Controls | None = None
        self._checks_health = self._multiplexes = False
        self._write: Callable[[wire.Data], None] | None = None
        self._settled = trio.Event()  # READY, or ended
        self._log = log.bind(model=spec.model.key, worker=spec.index)

    @property
    def worn(self) -> str:
        """Why it should be replaced, once it should; empty before. It goes on until `retire`."""
        return self._wear.why

    @property
    def answered(self) -> int:
        """How many envelopes this incarnation has ended."""
        return 0 if self._in_hand is None else self._in_hand.answered

    @property
    def in_hand(self) -> int:
        """How many envelopes its worker has."""
        return 0 if self._in_hand is None else self._in_hand.items

    def drain(self) -> None:
        """Take nothing more from the mailbox, finish what is in hand, end its sequences, then end."""
        self._cuts_sequences = True
        self.retire()

    def retire(self) -> None:
        """Leave the place to another: take nothing more, finish what is in hand, sequences too, then end."""
        self._draining = True
        self._signal.set()

    async def control(self, content: Mapping[str, Any]) -> None:
        """Have the worker do something, once it is READY. HandlerRaised: it refused. No effect if it ends first."""
        await self._settled.wait()
        if self._controls is not None and self.ready_at is not None:
            with contextlib.suppress(ActorCrashed):
                await self._controls.ask(content)

    # --- from spawn to end --------------------------------------------------------------------

    async def run(self) -> Exit:
        """Live; returns how it ended. Cancelling kills the worker and fails what it has begun."""
        limit = self.spec.model.startup_timeout_s
        worker: Worker | None = None
        try:
            await self._settings.spawner.prepare(self.spec)
            with trio.move_on_after(limit):
                worker = await self._settings.spawner.spawn(self.spec)
        except LoadFailed as error:
            return Crashed(str(error), permanent=error.permanent)
        except Exception as error:  # noqa: BLE001  # whatever a spawner raises is a failed start
            return Crashed(f"no worker could be started: {error}")
        if worker is None:
            return Crashed(f"no process within startup_timeout_s = {limit:g}", timed_out=True)
        self.pid = worker.process.pid
        self._write = worker.write
        self._in_hand = InHand(worker.write, worker.write_now, gather_limit=self._settings.gather_limit)
        try:
            exit = await self._live(worker, self._in_hand)
        except BaseException:
            self._release(Killed())
            raise
        self._release(exit)
        return exit

    def _release(self, exit: Exit) -> None:
        """End or give back what the worker had in hand."""
        name = self.spec.model.name

        def error() -> ActorserveError:
            if isinstance(exit, Crashed):
                return ActorCrashed(f"the worker of model {name} died: {exit.cause}")
            return Draining(f"the worker of model {name} was stopped before it had answered")

        assert self._in_hand is not None  # noqa: S101  # narrows the type: run() has set it
        left = self._in_hand.abandon_all(error)
        self._taking.leave()
        _begin(self._mailbox.leases.gone(self._may_load))
        self._settled.set()
        if self._controls is not None:
            self._controls.abandon_all()
        self._mailbox.put_back(left)

    async def _live(self, worker: Worker, in_hand: InHand) -> Exit:
        status = -signal.SIGKILL
        async with trio.open_nursery() as pumps:
            for name, descriptor in worker.process.outputs():
                pump = OutputPump(descriptor, self._emit(name), LineLimit())
                pumps.start_soon(pump.run, self._ended.wait)
            try:
                drained = await self._work(worker, in_hand)
            finally:
                with trio.CancelScope(shield=True):
                    status = await self._bury(worker)
                self._ended.set()
        if drained:
            return Drained()
        if status == 0 and self._failure is None and self.ready_at is not None and not in_hand.items:
            return Finished()
        crashed = self._failure or Crashed(describe_status(status))
        if worker.process.stuck:
            return Crashed(f"{crashed.cause}; its thread cannot be killed and still runs", permanent=True)
        return crashed

    async def _work(self, worker: Worker, in_hand: InHand) -> bool:
        """Load, serve, and drain; True if it drained, False if the worker died (see `_failure`)."""
        drained = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run_writer)
            self._controls = Controls(worker.write)
            if self._settings.find is not None:
                self._composition = Composition(self._settings.find, worker.write, nursery)
            nursery.start_soon(self._read, worker, in_hand, nursery.cancel_scope)
            nursery.start_soon(self._await_process, worker, nursery.cancel_scope)
            await self._load(worker)
            nursery.start_soon(self._watch, worker, in_hand)
            nursery.start_soon(self._wear.weigh, self.pid)
            if self._gate is not None and not self._gate.is_set():
                await self._gate.wait()
            if not self._draining:
                self._mailbox.learn(self._able)
                if self._multiplexes:
                    self._mailbox.affinity.hold(self._signal, (), (), trio.current_time())
            self._settled.set()
            if self._checks_health and self.spec.model.health_check_period_s:
                nursery.start_soon(self._check_health, worker, self._controls)
            await self._take_until_drained(in_hand)
            await self._say_stop(worker)
            drained = True
            nursery.cancel_scope.cancel()
        return drained

    async def _check_health(self, worker: Worker, controls: Controls) -> None:
        model = self.spec.model
        why = await controls.check_health(model.health_check_period_s, model.health_check_timeout_s)
        self._kill(worker, Crashed(why))

    def _kill(self, worker: Worker, why: Crashed) -> None:
        """End a worker that is no good; the reader then reads the socket to its end."""
        if self._failure is None:
            self._failure = why
        worker.process.kill()

    async def _say_stop(self, worker: Worker) -> None:
        """Ask the worker to close its handler and end; the reader sees the end of the socket."""
        self._stopping = True
        worker.write(wire.frame(Kind.STOP))
        with trio.move_on_after(self.spec.grace_s):
            await self._process_ended.wait()

    async def _await_process(self, worker: Worker, scope: trio.CancelScope) -> None:
        """The end of the process ends the incarnation, even where a grandchild holds the socket open."""
        await worker.process.wait()
        self._process_ended.set()
        if not self._stopping:
            await trio.sleep(LAST_WORDS_S)  # the reader finds the end of the socket sooner than that
            self._died = True
            scope.cancel()

    async def _bury(self, worker: Worker) -> int:
        """Make sure that the process is gone; its exit status."""
        await trio.aclose_forcefully(worker)
        if self._died:
            with trio.move_on_after(REAP_S):
                return await worker.process.wait()
        worker.process.kill()
        return await worker.process.wait()

    # --- loading --------------------------------------------------------------------------------

    async def _load(self, worker: Worker) -> None:
        model = self.spec.model
        sees_all = worker.process.sees_all_devices
        content = load_content(self.spec, self._settings.path, self._settings.cache_dir, sees_all_devices=sees_all)
        began = trio.current_time()
        worker.write(wire.note(Kind.LOAD, content))
        with trio.move_on_after(model.startup_timeout_s) as timeout:
            await self._loaded.wait()
        if timeout.cancelled_caught:
            cause = f"not READY within startup_timeout_s = {model.startup_timeout_s:g}"
            self._kill(worker, Crashed(cause, timed_out=True))
            await trio.sleep_forever()  # until the reader has found the end of the socket
        if excess := await self._wear.excess(self.pid):
            self._kill(worker, Crashed(f"as soon as it is loaded {excess}", permanent=True))
            await trio.sleep_forever()  # as above
        self.ready_at = trio.current_time()
        self._on_ready(self.ready_at - began)

    # --- what the worker says ---------------------------------------------------------------------

    async def _read(self, worker: Worker, in_hand: InHand, scope: trio.CancelScope) -> None:
        """Until the end of the socket; then the worker is dead, and the incarnation with it."""
        try:
            while frames := await worker.receive():
                before = in_hand.batches, in_hand.streams, len(in_hand.sequences)
                for frame in frames:
                    self._hear(frame, worker, in_hand)
                if (in_hand.batches, in_hand.streams, len(in_hand.sequences)) != before:
                    self._signal.set()
        except wire.WireError as error:
            self._kill(worker, Crashed(f"the worker broke the protocol: {error}"))
        if not self._stopping:
            self._died = True
            scope.cancel()

    def _hear(self, frame: Frame, worker: Worker, in_hand: InHand) -> None:
        if frame.kind in OF_WORK:
            in_hand.hear(frame)
            return
        if frame.kind in OF_COMPOSITION and self._composition is not None:
            self._composition.hear(frame)
            return
        match frame.kind:
            case Kind.PONG:
                self._pulse.heard()
                limit = self.spec.model.response_timeout_s
                if wire.read_pong(frame.payload) > limit:
                    self._kill(worker, Crashed(f"no answer within response_timeout_s = {limit:g}"))
            case Kind.LOG:
                self._relay(wire.read_note(frame.payload))
            case Kind.READY:
                self._hear_ready(wire.read_note(frame.payload))
            case Kind.CONTROLLED | Kind.MODELS:
                self._hear_of_calls(frame)
            case Kind.FAILED:
                said = wire.read_note(frame.payload)
                self._failure = Crashed(str(said.get("reason")), permanent=bool(said.get("permanent")))
            case other:
                raise wire.WireError(f"unexpected frame {Kind(other).name}")

    def _hear_ready(self, said: dict[str, Any]) -> None:
        able = (bool(said.get(name)) for name in ("infer", "generate", "continuous", "sequences", "calls"))
        self._able = Capabilities(*able)
        self._checks_health = bool(said.get("checks_health"))
        self._multiplexes = bool(said.get("multiplexes"))
        self._loaded.set()

    def _hear_of_calls(self, frame: Frame) -> None:
        """What only workers with a schema of their own say."""
        if frame.kind == Kind.MODELS:
            said = wire_calls.read_models(frame.payload)
            if not self._draining:
                now = trio.current_time()
                self._mailbox.affinity.hold(self._signal, said.held, said.loading, now, said.seen)
            _begin(self._mailbox.leases.say(self._may_load, said.wants))
            self._mailbox.wake_next()
        elif self._controls is not None:
            self._controls.hear(frame)

    def _may_load(self, number: int) -> None:
        """A load of its worker has its turn (leases.py)."""
        if self._write is not None:
            self._write(wire_calls.may_load(number))

    def _relay(self, said: dict[str, Any]) -> None:
        """Log what the handler logged, as many lines a second as it may print."""
        if not self._log_limit.allows(trio.current_time()):
            return
        level = str(said.get("level"))
        emit = getattr(self._log, level if level in LEVELS else "info")
        emit(str(said.get("text")), logger_name=str(said.get("logger")))

    def _emit(self, stream: str) -> Callable[[str], None]:
        def emit(line: str) -> None:
            self._log.info(line, stream=stream)

        return emit

    # --- hangs ----------------------------------------------------------------------------------

    async def _watch(self, worker: Worker, in_hand: InHand) -> None:
        """Ping (pulse.py says when); kill a worker that does not answer. What PONG says of a hang, `_hear` hears."""
        while True:
            await trio.sleep(BEAT_S)
            if self._log_limit.dropped:
                self._log.warning(dropped_lines(self._log_limit.take_dropped()))
            in_hand.sequences.expire(self.spec.model.sequence_idle_timeout_s)
            self._wear.count(in_hand.answered + in_hand.items)
            match self._pulse.beat(busy=in_hand.items > 0):
                case Beat.PING:
                    worker.write(wire.frame(Kind.PING))
                case Beat.DEAD:
                    self._kill(worker, Crashed(f"no PONG within {NO_PONG_BEATS} s"))

    # --- taking work ------------------------------------------------------------------------------

    async def _take_until_drained(self, in_hand: InHand) -> None:
        """Until it has nothing in hand and will get nothing more; another's unbegun batch may still come back."""
        while True:
            until = float("inf")
            if self._draining:
                self._taking.leave()
                self._mailbox.wake_next()
            else:
                until = self._taking.take(in_hand)
                self._wear.count(in_hand.answered + in_hand.items)
            if self._cuts_sequences or self._mailbox.closed:
                in_hand.sequences.drain(self.spec.model.name)
            if not in_hand.items and (self._draining or (self._mailbox.closed and not self._mailbox.waiting)):
                self._taking.leave()
                return
            with trio.move_on_at(until):
                await self._signal.wait()


def _begin(turns: Iterable[Turn[Callable[[int], None]]]) -> None:
    for turn in turns:
        turn.who(turn.number)


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"it exited with status {status}"
    try:
        return f"it was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"it was killed by signal {-status}"
