"""What one worker says: its frames, one after another, each to whom it is for.

What lives here: the reader of the socket, and what a worker says of itself. What must not: what work and calls come to
(in_hand.py, composition.py), bytes (wire.py), when it is pinged (pulse.py, model_actor.py).
"""

from __future__ import annotations

from typing import Any

import trio

from actorserve.actors import wire
from actorserve.actors.composition import Composition
from actorserve.actors.controls import Controls
from actorserve.actors.holding import Holding
from actorserve.actors.in_hand import InHand
from actorserve.actors.messages import Capabilities, Crashed
from actorserve.actors.pulse import Pulse
from actorserve.actors.waiters import Signal
from actorserve.actors.wire import Frame, Kind
from actorserve.actors.worker_end import WorkerEnd
from actorserve.actors.worker_log import WorkerLog
from actorserve.actors.worker_process import Worker

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


async def read(worker: Worker, in_hand: InHand, composition: Composition | None, own: OwnWords, signal: Signal) -> None:
    """Hear a worker until the end of its socket; WireError. `signal` is set where it may have room for more."""
    while frames := await worker.receive():
        before = in_hand.batches, in_hand.streams, len(in_hand.sequences)
        for frame in frames:
            if frame.kind in OF_WORK:
                in_hand.hear(frame)
            elif frame.kind in OF_COMPOSITION and composition is not None:
                composition.hear(frame)
            else:
                own.hear(frame)
        if (in_hand.batches, in_hand.streams, len(in_hand.sequences)) != before:
            signal.set()


class OwnWords:
    """What a worker says of itself: what it can do, whether it lives, what its handler logs, why it cannot load."""

    def __init__(
        self, end: WorkerEnd, controls: Controls, holding: Holding, log: WorkerLog, *, response_timeout_s: float
    ) -> None:
        self._end = end
        self._controls = controls
        self._holding = holding
        self._log = log
        self._response_timeout_s = response_timeout_s
        self.pulse = Pulse()
        self.ready = trio.Event()
        self.able = Capabilities(infer=False, generate=False)  # until READY says what it can do
        self.checks_health = self.multiplexes = False

    def hear(self, frame: Frame) -> None:
        """Take any frame that is not about work; WireError for what a worker does not say."""
        match frame.kind:
            case Kind.PONG:
                self.pulse.heard()
                limit = self._response_timeout_s
                if wire.read_pong(frame.payload) > limit:
                    self._end.kill(Crashed(f"no answer within response_timeout_s = {limit:g}"))
            case Kind.LOG:
                self._log.relay(wire.read_note(frame.payload))
            case Kind.READY:
                self._hear_ready(wire.read_note(frame.payload))
            case Kind.CONTROLLED:
                self._controls.hear(frame)
            case Kind.MODELS:
                self._holding.hear(frame)
            case Kind.FAILED:
                said = wire.read_note(frame.payload)
                self._end.fail(Crashed(str(said.get("reason")), permanent=bool(said.get("permanent"))))
            case other:
                raise wire.WireError(f"unexpected frame {Kind(other).name}")

    def _hear_ready(self, said: dict[str, Any]) -> None:
        able = (bool(said.get(name)) for name in ("infer", "generate", "continuous", "sequences", "calls"))
        self.able = Capabilities(*able)
        self.checks_health = bool(said.get("checks_health"))
        self.multiplexes = bool(said.get("multiplexes"))
        self.ready.set()
