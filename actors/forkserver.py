"""The server's end of the forkserver: starts it, orders forks, hears of their ends, starts it anew.

The rules stand in forkserver_main.py and design §3. The server itself never forks, only execs:
`subprocess.Popen` in trio's own thread and without preexec_fn, since PR_SET_PDEATHSIG follows the thread
that spawned (a child started from trio's thread pool was killed 10 s later, when the pool's thread idled out).
Workers are waited for and signalled through a pidfd (process.py), never by number.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from itertools import count
from typing import Any

import structlog
import trio

from actorserve.actors.environment import forkserver_environment
from actorserve.actors.process import WorkerProcess
from actorserve.actors.reply import Reply, fail_quietly
from actorserve.errors import ActorserveError

FORK_TIMEOUT_S = 10.0
RESTART_PAUSE_S = 0.5

log = structlog.get_logger("actorserve.forkserver")


class ForkFailed(ActorserveError):
    """No worker could be forked; another try may work."""


class ForkRefused(ActorserveError):
    """The forkserver has more than one thread and must not fork."""


class Forkserver:
    """One forkserver process after the other, and the workers that they forked."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        start: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        """`start`: what a model's environment needs from a process's start; `python`: its venv's interpreter."""
        self._environment = forkserver_environment(os.environ if environment is None else environment, start or {})
        self.python = python
        self._numbers = count(1)
        self._pending: dict[int, Reply[None]] = {}
        self._forks: dict[int, tuple[int, int]] = {}  # forked, not fetched by who ordered it: its pid and pidfd
        self._workers: dict[int, WorkerProcess] = {}
        self._early: dict[int, int | None] = {}  # forked, not adopted yet: its status if it has ended already
        self._sock: trio.socket.SocketType | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._warm: Reply[None] = Reply()
        self._turn = trio.Lock()
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The forkserver's pid while it runs."""
        return None if self._popen is None else self._popen.pid

    async def run(self) -> None:
        """Keep a forkserver running until cancelled; the workers end with it."""
        try:
            while True:
                began = trio.current_time()
                try:
                    await self._run_once()
                except OSError as error:  # out of descriptors or of memory: that may pass, and the server stays
                    log.error("forkserver cannot run", why=str(error))  # noqa: TRY400  # no traceback
                log.error("forkserver ended")
                if trio.current_time() - began < RESTART_PAUSE_S:
                    await trio.sleep(RESTART_PAUSE_S)
        finally:
            self._stop()

    async def _run_once(self) -> None:
        sock = self._start()
        try:
            while True:
                data, ancillary, _flags, _address = await sock.recvmsg(1 << 18, socket.CMSG_SPACE(4))
                if not data:
                    return
                self._hear(json.loads(data), ancillary)
        finally:
            self._stop()

    def _start(self) -> trio.socket.SocketType:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            self.python,
            "-P",
            "-m",
            "actorserve.actors.forkserver_main",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=self._environment,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.starts += 1
        self._sock = trio.socket.from_stdlib_socket(ours)
        log.debug("forkserver started", pid=self._popen.pid)
        return self._sock

    def _stop(self) -> None:
        if self._popen is None:
            return
        self._popen.kill()
        self._popen.wait()  # SIGKILL: does not take long
        self._popen = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        warm, self._warm = self._warm, Reply()
        fail_quietly(warm, ForkFailed("the forkserver died"))
        for reply in self._pending.values():
            fail_quietly(reply, ForkFailed("the forkserver died"))
        self._pending.clear()
        for worker in self._workers.values():
            worker.report(-signal.SIGKILL)  # they die with it, and nobody is left to say how
        self._workers.clear()
        self._early.clear()

    def _hear(self, said: dict[str, Any], ancillary: list[tuple[int, int, bytes]]) -> None:
        match said:
            case {"warm": True}:
                if not self._warm.is_set:
                    self._warm.set(None)
                log.debug("forkserver warm")
            case {"forked": number, "pid": pid} if ancillary:
                self._forked(number, pid, array.array("i", ancillary[0][2])[0])
            case {"forked": number}:  # the worker finds the end of its socket
                self._answer(number, ForkFailed("the server has too many files open"))
            case {"refused": number, "threads": threads}:
                self._answer(number, ForkRefused(f"the forkserver has {threads} threads"))
            case {"failed": number, "why": text}:
                self._answer(number, ForkFailed(f"the forkserver could not fork: {text}"))
            case {"ended": pid, "status": status}:
                worker = self._workers.pop(pid, None)
                if worker is not None:
                    worker.report(status)
                elif pid in self._early:
                    self._early[pid] = status
            case other:
                log.error("the forkserver said what nobody understands", said=other)

    def _answer(self, number: int, error: ActorserveError) -> None:
        reply = self._pending.pop(number, None)
        if reply is not None:
            fail_quietly(reply, error)

    def _forked(self, number: int, pid: int, pidfd: int) -> None:
        reply = self._pending.pop(number, None)
        self._forks[number] = pid, pidfd
        self._early[pid] = None
        if reply is None or reply.abandoned:
            self._disown(number)
        else:
            reply.set(None)

    def _disown(self, number: int) -> None:
        """Nobody fetches this fork any more: end it."""
        pid, pidfd = self._forks.pop(number, (0, -1))
        if pidfd >= 0:
            self._early.pop(pid, None)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)

    async def wait_warm(self) -> None:
        """Wait until torch is imported and forks can be ordered; ForkFailed if it died before."""
        await self._warm.wait()

    async def fork(self, environment: Mapping[str, str], descriptors: tuple[int, int, int]) -> tuple[int, int]:
        """Order a fork that runs a worker on (socket, stdout, stderr); gives (pid, pidfd).

        ForkFailed, ForkRefused. One is ordered at a time, as the forkserver makes them: of hundreds none counts the
        others' time as its own. Not answered within 10 s: the forkserver is killed and started anew.
        Cancelling kills the worker that was ordered.
        """
        async with self._turn:
            await self.wait_warm()
            return await self._order(environment, descriptors)

    async def _order(self, environment: Mapping[str, str], descriptors: tuple[int, int, int]) -> tuple[int, int]:
        if self._sock is None:
            raise ForkFailed("the forkserver died")
        number = next(self._numbers)
        reply: Reply[None] = Reply()
        self._pending[number] = reply
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())]
        try:
            with trio.move_on_after(FORK_TIMEOUT_S):
                await self._sock.sendmsg([json.dumps({"fork": number, "env": dict(environment)}).encode()], rights)
                await reply.wait()
                return self._forks.pop(number)
        except (OSError, trio.ClosedResourceError) as error:
            self._pending.pop(number, None)
            raise ForkFailed(f"the forkserver died: {error}") from error
        finally:
            reply.abandon()
            self._disown(number)  # it may have come in the very moment of a cancellation
        log.error("forkserver did not answer, starting it anew", timeout_s=FORK_TIMEOUT_S)
        if self._popen is not None:
            self._popen.kill()
        raise ForkFailed(f"the forkserver did not answer within {FORK_TIMEOUT_S:.0f} s")

    def adopt(self, worker: WorkerProcess) -> None:
        """Deliver the end of a forked worker to it."""
        assert worker.pid is not None  # noqa: S101  # narrows the type: a forked worker has one
        status = self._early.pop(worker.pid, -signal.SIGKILL)  # not there: its forkserver has died since
        if status is None:
            self._workers[worker.pid] = worker
        else:
            worker.report(status)
