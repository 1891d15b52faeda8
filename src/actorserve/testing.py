"""The whole server inside a test's nursery: `async with testing.serve(config) as app:`.

    async with testing.serve({"models": {"digits": {"handler": "actorserve.handlers.digits:Digits"}}}) as app:
        async with app.channel("inference") as channel:
            reply = await InferenceAPIsServiceStub(channel).Predictions(request)

With workers="process" the workers are real, and `app.address(listener)` is a TCP address for any client. With
workers="thread" so are the handlers, each in a thread of the test's process, which starts at once. With
workers="scripted" (or a `ScriptedWorkers` of your own) nothing real exists, so a MockClock may jump; real
things are refused under a MockClock, since it would fire every timeout while they work. On exit the server
drains, and the block fails if a process or a descriptor is left.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import trio
import trio.testing

from actorserve import config as configuration
from actorserve.actors.messages import Tree
from actorserve.actors.thread_worker import ThreadSpawner
from actorserve.client import Channel
from actorserve.config_types import UNIX
from actorserve.errors import ActorserveError
from actorserve.scripted import ScriptedProcess, ScriptedWorker, ScriptedWorkers
from actorserve.server import Server
from actorserve.services.transport.memory import memory_pair

__all__ = ["App", "Leak", "ScriptedProcess", "ScriptedWorker", "ScriptedWorkers", "serve"]

LEAK_WAIT_S = 5.0


class Leak(AssertionError):
    """Something of the server is left after its end."""


class App:
    """A server under test."""

    def __init__(self, server: Server, nursery: trio.Nursery) -> None:
        self.server = server
        self.failures: list[tuple[str, ActorserveError]] = []
        self._nursery = nursery

    @asynccontextmanager
    async def channel(self, listener: str = "inference") -> AsyncIterator[Channel]:
        """A channel to a listener, in memory."""
        theirs, ours = memory_pair()
        self._nursery.start_soon(self.server.grpc[listener].serve_connection, ours, "memory")
        async with Channel.over(theirs) as channel:
            yield channel

    def address(self, listener: str = "inference") -> str:
        """The "host:port" of a listener, for a client that was not written here."""
        for bound in self.server.bound:
            if bound.name == listener:
                return bound.addresses[0]
        raise LookupError(
            f"listener {listener!r} has no address: there is none of this name, or the workers are scripted"
        )

    def tree(self) -> Tree:
        """Models, workers, states, as they are now."""
        return self.server.observe()

    def kill_worker(self, name: str) -> int:
        """SIGKILL one READY worker of a model, by `model`, `model/version` or `model/version#index`; its pid."""
        spawner = self.server.spawner
        for model in self.tree().models:
            for replica in model.replicas:
                if isinstance(spawner, ThreadSpawner) and name in (model.spec.name, model.spec.key, replica.name):
                    spawner.living[replica.name].kill()
                    return os.getpid()
                if replica.pid is not None and name in (model.spec.name, model.spec.key, replica.name):
                    _kill(replica.pid, self.server)
                    return replica.pid
        raise LookupError(f"no worker {name!r} is running")

    async def wait_loaded(self) -> None:
        """Wait until every configured model is READY or FAILED; `failures` says which failed."""
        self.failures = await self.server.wait_loaded()


def _kill(pid: int, server: Server) -> None:
    if pid > 0:
        os.kill(pid, 9)
        return
    spawner = server.spawner
    assert isinstance(spawner, ScriptedWorkers)  # noqa: S101  # negative pids are theirs
    spawner.made[-pid - 1].crash()


def _load(config: configuration.Config | Mapping[str, Any] | Path | str | None) -> configuration.Config:
    if isinstance(config, configuration.Config):
        return config
    if isinstance(config, Mapping):
        return configuration.parse(config, folder=Path.cwd())
    return configuration.load(None if config is None else Path(config))


def _on_free_ports(settings: configuration.Config) -> configuration.Config:
    """A free port of loopback for every listener; Unix sockets stay where they are."""
    listeners = {
        name: listener
        if all(address.startswith(UNIX) for address in listener.addresses)
        else listener.model_copy(update={"address": "127.0.0.1:0"})
        for name, listener in settings.listeners.items()
    }
    return settings.model_copy(update={"listeners": listeners})


@asynccontextmanager
async def serve(
    config: configuration.Config | Mapping[str, Any] | Path | str | None = None,
    *,
    services: Iterable[Any] = (),
    workers: Literal["process", "thread", "scripted"] | ScriptedWorkers = "process",
    wait_loaded: bool = True,
) -> AsyncIterator[App]:
    """Run a server until the block ends. `config`: a file, a mapping of one's content, or None for the digits.

    `services` are further grpclib services, on every listener. Every listener gets a free port of loopback.
    `wait_loaded=False` enters while models load. Cancelling kills everything.
    """
    settings = _on_free_ports(_load(config))
    scripted = _scripted(workers)
    if scripted is not None:  # nothing real: what is registered is in memory
        settings = settings.model_copy(update={"server": settings.server.model_copy(update={"state_dir": None})})
    if scripted is None and isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock):
        raise RuntimeError("real workers under a MockClock: it would fire every timeout while they work; use scripted")
    before = set(os.listdir("/proc/self/fd"))
    spawner = ThreadSpawner() if workers == "thread" else scripted
    server = Server(settings, spawner=spawner, extra_services=services)
    family: set[int] = set()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery, trio.open_nursery() as connections:
        if scripted is None:
            await server.open()
        else:
            scripted.nursery = nursery
        await nursery.start(server.run)
        app = App(server, connections)
        if wait_loaded:
            await app.wait_loaded()
        try:
            yield app
        except Exception as error:  # noqa: BLE001  # raised below, as it was: in no group of the nurseries here
            failure = error
        finally:
            family = _family(server)
            server.stop()
            connections.cancel_scope.cancel()
    if failure is not None:
        raise failure
    await _check_leaks(before, family)


def _scripted(workers: str | ScriptedWorkers) -> ScriptedWorkers | None:
    """The scripted workers that were asked for; None: real ones."""
    if isinstance(workers, str):
        return ScriptedWorkers() if workers == "scripted" else None
    return workers


def _family(server: Server) -> set[int]:
    """The server's processes: the forkserver, the workers, and what these have started."""
    roots = {replica.pid for model in server.observe().models for replica in model.replicas}
    if server.forkservers is not None:
        roots |= server.forkservers.pids()
    real = {pid for pid in roots if pid is not None and pid > 0}  # scripted ones are negative
    return real.union(*map(descendants, real))


async def _check_leaks(before: set[str], family: set[int]) -> None:
    """Leak if a worker process or a descriptor is left. The kernel needs a moment to end processes."""
    if family:
        with trio.move_on_after(LEAK_WAIT_S):
            while any(is_alive(pid) for pid in family):
                await trio.sleep(0.01)
    alive = sorted(pid for pid in family if is_alive(pid))
    if alive:
        raise Leak(f"processes {alive} are left")
    left = _new_descriptors(before)
    if left:
        raise Leak(f"descriptors are left: {', '.join(left)}")


def _new_descriptors(before: set[str]) -> list[str]:
    left = []
    for descriptor in set(os.listdir("/proc/self/fd")) - before:
        try:
            left.append(f"{descriptor} ({Path(f'/proc/self/fd/{descriptor}').readlink()})")
        except FileNotFoundError:
            continue  # the listing's own
    return left


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def descendants(pid: int) -> set[int]:
    """Every process below one, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found: set[int] = set()
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found
