"""`isolation = "thread"`: workers that are threads of the server's process; and who spawns which worker.

For tests and for tiny models that are trusted. The same frames go over a socketpair as with a process, so all
that is above it is the same. A thread cannot be killed: its socket is shut, which ends it as soon as its handler
returns; one that does not return within `STUCK_S` is `stuck`, and its actor FAILED.
The one place where the server's process may load a handler, and with it torch: worker_thread.py is imported when
the first such worker starts. What must not live here: what the thread runs (worker_thread.py).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import threading
from collections.abc import Callable

import structlog
import trio

from actorserve.actors.messages import ChildSpec
from actorserve.actors.worker_process import Spawner, Worker

STUCK_S = 1.0
RUNS = "actorserve.actors.worker_thread"
ORDER = "CUDA_DEVICE_ORDER"

log = structlog.get_logger("actorserve.worker")


class ThreadProcess:
    """Stands for a worker's process: its thread, as something to wait for and to end."""

    sees_all_devices = True

    def __init__(self, name: str, sock: socket.socket, on_end: Callable[[ThreadProcess], None]) -> None:
        """`on_end` is called once the thread has returned."""
        self.name = name
        self._on_end = on_end
        self.pid: int | None = None
        self.stuck = False
        self._sock = sock
        self._status = 1
        self._killed = False
        self._over = trio.Event()
        self._ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def start(self) -> None:
        """Start the thread. A daemon: one that hangs must not keep the process from its end."""
        threading.Thread(target=self._run, name=f"worker {self.name}", daemon=True).start()

    def _run(self) -> None:
        try:
            run: Callable[[socket.socket], int] = importlib.import_module(RUNS).run
            self._status = run(self._sock)
        except SystemExit:
            log.debug("a worker's thread left", worker=self.name)  # its socket has ended, or its handler called exit
        except Exception:
            log.exception("a worker's thread failed", worker=self.name)
        finally:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end)

    def _end(self) -> None:
        self._ended.set()
        self._over.set()
        self._on_end(self)

    async def wait(self) -> int:
        """See `Process.wait`. A thread that was killed gets `STUCK_S` to return."""
        await self._over.wait()
        with trio.move_on_after(STUCK_S):
            await self._ended.wait()
        if not self._ended.is_set() and not self.stuck:
            self.stuck = True
            log.error("a worker's thread hangs and cannot be killed", worker=self.name)
        return -signal.SIGKILL if self._killed else self._status

    def kill(self) -> None:
        """See `Process.kill`: both ends find the end of the socket."""
        if not self._over.is_set():
            self._killed = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._over.set()

    def outputs(self) -> list[tuple[str, int]]:
        """What it prints is the server's own output."""
        return []


class ThreadSpawner:
    """Workers that are threads; `living` has those that run, by the replica's name."""

    def __init__(self) -> None:
        self.living: dict[str, ThreadProcess] = {}
        self._said = False

    async def prepare(self, child: ChildSpec) -> None:
        """See `Spawner.prepare`: nothing is needed."""
        await trio.lowlevel.checkpoint()

    async def spawn(self, child: ChildSpec) -> Worker:
        """See `Spawner.spawn`."""
        await trio.lowlevel.checkpoint()
        if not self._said:
            self._said = True
            log.warning(
                "a handler runs in a thread of the server, which it can block, crash or stop", model=child.model.key
            )
        if child.placement.visible:
            os.environ[ORDER] = child.placement.environment[ORDER]  # read when CUDA starts: cuda:n as device.py counts
        ours, theirs = socket.socketpair()
        process = self.living[child.name] = ThreadProcess(child.name, theirs, self._forget)
        process.start()
        return Worker(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), process, ours)

    def _forget(self, process: ThreadProcess) -> None:
        if self.living.get(process.name) is process:
            del self.living[process.name]


class SpawnerByIsolation:
    """A process or a thread, as each model says."""

    def __init__(self, processes: Spawner, threads: Spawner) -> None:
        self._processes = processes
        self._threads = threads

    def _of(self, child: ChildSpec) -> Spawner:
        return self._threads if child.model.environment.in_thread else self._processes

    async def prepare(self, child: ChildSpec) -> None:
        """See `Spawner.prepare`."""
        await self._of(child).prepare(child)

    async def spawn(self, child: ChildSpec) -> Worker:
        """See `Spawner.spawn`."""
        return await self._of(child).spawn(child)
