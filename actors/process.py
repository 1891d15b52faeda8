"""A process that the server watches through a pidfd: waited for and signalled by it, never by number.

What must not live here: how it comes about (forkserver.py, forkservers.py, installing.py), what it says
(worker_process.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import trio

from actorserve.actors.reply import Reply

STATUS_TIMEOUT_S = 2.0


@dataclass(eq=False)
class WorkerProcess:
    """A process that the forkserver forked, or that was exec'd (`popen`). `on_end` is called once it has ended."""

    pid: int | None
    pidfd: int
    stdout: int
    stderr: int
    popen: subprocess.Popen[bytes] | None = None
    on_end: Callable[[], None] = lambda: None
    stuck = False
    sees_all_devices = False

    def __post_init__(self) -> None:
        self._status: Reply[int] = Reply()

    @classmethod
    def of(
        cls, popen: subprocess.Popen[bytes], stdout: int, stderr: int, on_end: Callable[[], None] = lambda: None
    ) -> WorkerProcess:
        """One that was exec'd. OSError where there is no descriptor left to watch it through: it is ended then."""
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:
            popen.kill()
            popen.wait()  # SIGKILL: does not take long
            raise
        return cls(popen.pid, pidfd, stdout, stderr, popen, on_end)

    def report(self, status: int) -> None:
        """The forkserver has reaped it."""
        if not self._status.is_set:
            self._status.set(status)

    async def wait(self) -> int:
        """See `Process.wait`."""
        if self.pidfd >= 0:
            await trio.lowlevel.wait_readable(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
            if self.popen is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.popen.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
                self.report(self.popen.wait())
            self.on_end()
        with trio.move_on_after(STATUS_TIMEOUT_S):
            return await self._status.wait()
        return -signal.SIGKILL  # the forkserver died with it: PDEATHSIG

    def kill(self) -> None:
        """SIGKILL through the pidfd."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def outputs(self) -> list[tuple[str, int]]:
        """See `Process.outputs`."""
        return [("stdout", self.stdout), ("stderr", self.stderr)]


def pipe(kept: contextlib.ExitStack, given: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends two stacks close: what stays here, and what the worker gets."""
    read, write = os.pipe()
    kept.callback(os.close, read)
    given.callback(os.close, write)
    return read, write
