"""How one worker ends: asked to, killed, or dead by itself; and why, where its status does not say it.

What must not live here: what the end means for the replica (model_actor.py, child.py), what becomes of the work that
it had in hand (in_hand.py).
"""

from __future__ import annotations

import signal

import trio

from actorserve.actors import wire
from actorserve.actors.messages import Crashed
from actorserve.actors.wire import Kind
from actorserve.actors.worker_process import Worker

REAP_S = 5.0
LAST_WORDS_S = 1.0


class WorkerEnd:
    """See the module's docstring. `failure` is None until something besides the status is known."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.failure: Crashed | None = None
        self._stopping = False
        self._died = False
        self._process_ended = trio.Event()

    def fail(self, why: Crashed) -> None:
        """The worker says why it is about to end."""
        self.failure = why

    def kill(self, why: Crashed) -> None:
        """End a worker that is no good; the reader then reads the socket to its end."""
        if self.failure is None:
            self.failure = why
        self._worker.process.kill()

    async def stop(self, grace_s: float) -> None:
        """Ask the worker to close its handler and end; the reader sees the end of the socket."""
        self._stopping = True
        self._worker.write(wire.frame(Kind.STOP))
        with trio.move_on_after(grace_s):
            await self._process_ended.wait()

    def hear_end(self, scope: trio.CancelScope) -> None:
        """The socket has ended: unless it was asked to, the worker is dead. `scope`: the incarnation's tasks."""
        if not self._stopping:
            self._died = True
            scope.cancel()

    async def await_process(self, scope: trio.CancelScope) -> None:
        """The end of the process ends the incarnation, even where a grandchild holds the socket open."""
        await self._worker.process.wait()
        self._process_ended.set()
        if not self._stopping:
            await trio.sleep(LAST_WORDS_S)  # the reader finds the end of the socket sooner than that
            self._died = True
            scope.cancel()

    async def bury(self) -> int:
        """Make sure that the process is gone; its exit status."""
        await trio.aclose_forcefully(self._worker)
        process = self._worker.process
        if self._died:
            with trio.move_on_after(REAP_S):
                return await process.wait()
        process.kill()
        return await process.wait()


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"it exited with status {status}"
    try:
        return f"it was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"it was killed by signal {-status}"
