"""The forkservers of a server: the shared one, and one for each environment of a model's own; and the spawner
that forks workers from them.

An environment is a venv (installing.py), or variables that are read when a process starts. Its forkserver
starts with the first worker that needs it, and is stopped `KEEP_S` after the last: a worker that is restarted
finds it still there, whatever its backoff. What must not live here: what a forkserver is (forkserver.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog
import trio

from actorserve.actors.environment import start_environment, with_venv, worker_environment
from actorserve.actors.forkserver import ForkFailed, ForkRefused, Forkserver
from actorserve.actors.installing import Installer, install
from actorserve.actors.messages import ChildSpec, Environment, ModelSpec
from actorserve.actors.process import WorkerProcess, pipe
from actorserve.actors.reply import Reply, fail_quietly
from actorserve.actors.worker_process import Worker
from actorserve.errors import ActorserveError, LoadFailed

KEEP_S = 40.0
"""Seconds that a model's own forkserver outlives its last worker; the longest backoff is 36 s."""

log = structlog.get_logger("actorserve.forkserver")
Key = tuple[object, ...]


class MakeForkserver(Protocol):
    """Forkserver's constructor, or a test's."""

    def __call__(self, *, environment: Mapping[str, str], start: Mapping[str, str], python: str) -> Forkserver:
        """A forkserver that does not run yet."""


@dataclass(eq=False)
class Lease:
    """The use of one forkserver; its `users` are the workers, and those who wait for it."""

    users: int = 0
    ready: Reply[Forkserver] = field(default_factory=Reply)
    changed: trio.Event = field(default_factory=trio.Event)
    own: bool = True

    def use(self, count: int) -> None:
        """Count one user more (1) or less (-1)."""
        self.users += count
        self.changed.set()
        self.changed = trio.Event()

    async def wait_unused(self, for_s: float) -> None:
        """Until nobody has used it for so long."""
        while True:
            changed = self.changed
            with trio.move_on_after(float("inf") if self.users else for_s):
                await changed.wait()
                continue
            if not self.users:
                return


class Forkservers:
    """See the module's docstring. `run` it before anything is forked. `inherits`: workers see all of `environment`."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        environment: Mapping[str, str] | None = None,
        inherits: bool = False,
        keep_s: float = KEEP_S,
        make: MakeForkserver = Forkserver,
        installer: Installer = install,
    ) -> None:
        self.environment = dict(os.environ if environment is None else environment)
        self.inherits = inherits
        self._cache_dir = cache_dir
        self._keep_s = keep_s
        self._make = make
        self._install = installer
        self._own: dict[Key, Lease] = {}
        self._nursery: trio.Nursery | None = None
        self._start = start_environment(self.environment, Environment(), inherits=inherits)
        self.shared = make(environment=self.environment, start=self._start, python=sys.executable)
        self._shared_lease = Lease(own=False)
        self._shared_lease.ready.set(self.shared)
        self._running = {self.shared}

    def pids(self) -> set[int]:
        """The forkservers that run now."""
        return {forkserver.pid for forkserver in self._running if forkserver.pid is not None}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the forkservers running until cancelled; their workers end with them."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.shared.run)
            task_status.started()

    async def lease(self, model: ModelSpec) -> tuple[Lease, Forkserver]:
        """A model's forkserver, warm or not, counted as used until `lease.use(-1)`.

        A model's own is made for the first who asks, which takes as long as its packages take to install.
        LoadFailed if they cannot be. Cancelling the last who waits ends the installation.
        """
        lease = self._find(model)
        lease.use(1)
        try:
            return lease, await lease.ready.wait()
        except BaseException:
            lease.use(-1)
            raise

    def _find(self, model: ModelSpec) -> Lease:
        environment = model.environment
        start = start_environment(self.environment, environment, inherits=self.inherits)
        if start == self._start and not environment.installs:
            return self._shared_lease
        key: Key = (*start.items(), environment.requirements, environment.requirements_file, environment.base)
        lease = self._own.get(key)
        if lease is None:
            if self._nursery is None:
                raise ForkFailed("the forkservers do not run")
            lease = self._own[key] = Lease()
            self._nursery.start_soon(self._keep, key, lease, model, start)
        return lease

    async def _keep(self, key: Key, lease: Lease, model: ModelSpec, start: Mapping[str, str]) -> None:
        """One environment's life: install, run its forkserver, stop it once it is unused for long enough."""
        try:
            python = await self._python(model, key, lease)
            if python is None:
                return
            forkserver = self._make(environment=self.environment, start=start, python=python)
            self._running.add(forkserver)
            log.info("forkserver of its own", model=model.key, python=python)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forkserver.run)
                lease.ready.set(forkserver)
                await lease.wait_unused(self._keep_s)
                self._forget(key, lease)
                nursery.cancel_scope.cancel()
            self._running.discard(forkserver)
            log.info("forkserver stopped with its last worker", model=model.key)
        except ActorserveError as error:
            fail_quietly(lease.ready, error)
        finally:
            self._forget(key, lease)
            fail_quietly(lease.ready, ForkFailed("the server stops"))

    def _forget(self, key: Key, lease: Lease) -> None:
        """Who comes now gets another."""
        if self._own.get(key) is lease:
            del self._own[key]

    async def _python(self, model: ModelSpec, key: Key, lease: Lease) -> str | None:
        """The interpreter of a model's venv; None if nobody waits for it any more."""
        if not model.environment.installs:
            return sys.executable
        python: Reply[str] = Reply()
        async with trio.open_nursery() as nursery:

            async def install() -> None:
                try:
                    python.set(await self._install(model, self._cache_dir, self.environment))
                except ActorserveError as error:
                    python.fail(error)
                except OSError as error:  # out of descriptors or of memory: that may pass
                    python.fail(LoadFailed(f"its requirements cannot be installed: {error}", permanent=False))
                nursery.cancel_scope.cancel()

            nursery.start_soon(install)
            await lease.wait_unused(0)
            self._forget(key, lease)  # whoever comes while this one is being killed does not wait for it
            nursery.cancel_scope.cancel()
        return await python.wait() if python.is_set else None


class ProcessSpawner:
    """Real workers: forked, or exec'd where the forkserver refuses."""

    def __init__(self, forkservers: Forkservers) -> None:
        self._forkservers = forkservers
        self._said_exec = False

    async def prepare(self, child: ChildSpec) -> None:
        """See `Spawner.prepare`: the model's packages are installed."""
        lease, _ = await self._forkservers.lease(child.model)
        lease.use(-1)

    async def spawn(self, child: ChildSpec) -> Worker:
        """See `Spawner.spawn`. ForkFailed if no worker can be had."""
        lease, forkserver = await self._forkservers.lease(child.model)
        try:
            return await self._spawn(child, forkserver, on_end=lambda: lease.use(-1))
        except BaseException:
            lease.use(-1)
            raise

    def _environment(self, child: ChildSpec, forkserver: Forkserver) -> dict[str, str]:
        model = child.model
        environment = worker_environment(
            self._forkservers.environment,
            model.environment,
            threads=model.threads,
            inherits=self._forkservers.inherits,
        )
        environment |= child.placement.environment
        if model.environment.installs:
            return with_venv(environment, str(Path(forkserver.python).parent))
        return environment

    async def _spawn(self, child: ChildSpec, forkserver: Forkserver, on_end: Callable[[], None]) -> Worker:
        environment = self._environment(child, forkserver)
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as given:
            ours, theirs = socket.socketpair()
            kept.callback(ours.close)
            given.callback(theirs.close)
            out_read, out_write = pipe(kept, given)
            err_read, err_write = pipe(kept, given)
            descriptors = theirs.fileno(), out_write, err_write
            try:
                pid, pidfd = await forkserver.fork(environment, descriptors)
                process = WorkerProcess(pid, pidfd, out_read, err_read, on_end=on_end)
                forkserver.adopt(process)
            except ForkRefused as refusal:
                self._say_exec(refusal)
                popen = _exec(forkserver.python, environment, descriptors)
                process = WorkerProcess.of(popen, out_read, err_read, on_end)
            kept.pop_all()  # they are the worker's now
            return Worker(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), process, ours)

    def _say_exec(self, refusal: ForkRefused) -> None:
        if not self._said_exec:
            self._said_exec = True
            log.warning("workers are exec'd instead of forked, which takes seconds each", why=str(refusal))


def _exec(python: str, environment: Mapping[str, str], descriptors: tuple[int, int, int]) -> subprocess.Popen[bytes]:
    sock, out, err = descriptors
    return subprocess.Popen(
        [python, "-P", "-m", "actorserve.actors.worker_main", str(sock), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        pass_fds=(sock,),
        env=dict(environment),
        process_group=0,
    )
