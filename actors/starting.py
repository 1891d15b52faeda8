"""How one worker comes: it is spawned, tied to its incarnation, and loaded.

What must not live here: when it is started and how often (supervision.py, child.py), processes (worker_process.py),
what the LOAD says (loading.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

from actorserve.actors import wire
from actorserve.actors.controls import Controls
from actorserve.actors.hearing import OwnWords
from actorserve.actors.holding import Holding
from actorserve.actors.in_hand import InHand
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ChildSpec, Crashed
from actorserve.actors.taking import Taking
from actorserve.actors.wear import Wear
from actorserve.actors.wire import Kind
from actorserve.actors.worker_end import WorkerEnd
from actorserve.actors.worker_log import WorkerLog
from actorserve.actors.worker_process import Spawner, Worker
from actorserve.errors import LoadFailed


@dataclass(frozen=True, slots=True)
class Bond:
    """What ties an incarnation to its worker, from the spawn on."""

    worker: Worker
    in_hand: InHand
    end: WorkerEnd
    controls: Controls
    holding: Holding
    own: OwnWords


async def spawn(spawner: Spawner, spec: ChildSpec) -> Worker | Crashed:
    """A worker that waits for LOAD, or why there is none."""
    limit = spec.model.startup_timeout_s
    try:
        await spawner.prepare(spec)
        with trio.move_on_after(limit):
            return await spawner.spawn(spec)
    except LoadFailed as error:
        return Crashed(str(error), permanent=error.permanent)
    except Exception as error:  # noqa: BLE001  # whatever a spawner raises is a failed start
        return Crashed(f"no worker could be started: {error}")
    return Crashed(f"no process within startup_timeout_s = {limit:g}", timed_out=True)


def bind(
    worker: Worker, mailbox: Mailbox, taking: Taking, log: WorkerLog, in_hand: InHand, *, timeout_s: float
) -> Bond:
    """Tie a worker to what its incarnation has. `timeout_s`: its model's `response_timeout_s`."""
    end, controls = WorkerEnd(worker), Controls(worker.write)
    holding = Holding(mailbox, taking, worker.write)
    own = OwnWords(end, controls, holding, log, response_timeout_s=timeout_s)
    return Bond(worker, in_hand, end, controls, holding, own)


async def load(bond: Bond, content: Mapping[str, Any], wear: Wear, pid: int | None, *, timeout_s: float) -> None:
    """Have it load, and wait until it is READY. One that is late, or too large at once, is killed: never returns."""
    bond.worker.write(wire.note(Kind.LOAD, content))
    with trio.move_on_after(timeout_s) as timeout:
        await bond.own.ready.wait()
    if timeout.cancelled_caught:
        bond.end.kill(Crashed(f"not READY within startup_timeout_s = {timeout_s:g}", timed_out=True))
        await trio.sleep_forever()  # until the reader has found the end of the socket
    if excess := await wear.excess(pid):
        bond.end.kill(Crashed(f"as soon as it is loaded {excess}", permanent=True))
        await trio.sleep_forever()  # as above
