"""Servers under measurement: started as processes of their own, their process trees' CPU time and memory.

What must not live here: the load (load.py), what is measured (the parts that run.py names).
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

HERE = Path(__file__).parent
STOP_S = 15.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of user and system time, by the part of the server that spent them. A peer is all ingress."""

    ingress: float = 0.0
    worker: float = 0.0
    forkserver: float = 0.0

    @property
    def total(self) -> float:
        """All processes together."""
        return self.ingress + self.worker + self.forkserver

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.ingress - other.ingress, self.worker - other.worker, self.forkserver - other.forkserver)


def seconds_of(process: psutil.Process) -> float:
    """CPU time of one process, its ended children included."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


class Server:
    """One server process and its descendants. Workers are the forkserver's children, and it is the server's."""

    def __init__(self, name: str, arguments: Sequence[str], port: int) -> None:
        self.name = name
        self.port = port
        self.started = time.perf_counter()
        self._popen = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.process = psutil.Process(self._popen.pid)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def check(self) -> None:
        """Fail if it has ended by itself."""
        if self._popen.poll() is not None:
            raise SystemExit(f"{self.name} ended by itself with status {self._popen.returncode}")

    def wait_listening(self, timeout_s: float = 30.0) -> None:
        """Return as soon as it takes connections."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self.check()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.005)
        raise SystemExit(f"{self.name} does not listen on {self.address} after {timeout_s:.0f} s")

    def cpu(self) -> Cpu:
        """CPU time spent so far."""
        forkservers = self.process.children()
        workers = [worker for one in forkservers for worker in one.children(recursive=True)]
        return Cpu(
            ingress=seconds_of(self.process),
            worker=sum(map(seconds_of, workers)),
            forkserver=sum(map(seconds_of, forkservers)),
        )

    def rss_mib(self) -> float:
        """Resident memory of the server process itself, in MiB."""
        return float(self.process.memory_info().rss) / MIB

    def pss_mib(self) -> float:
        """Memory of the whole tree in MiB; a page that several processes share counts once."""
        tree = [self.process, *self.process.children(recursive=True)]
        return float(sum(process.memory_full_info().pss for process in tree)) / MIB

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ours(config: str, *overrides: str, name: str = "actorserve") -> Iterator[Server]:
    """Our server with a config of this folder, all services on one free port; the access log is off by default."""
    port = free_port()
    settings = ["log.access=false", *overrides, f"listeners.all.address=127.0.0.1:{port}"]
    sets = [part for setting in settings for part in ("--set", setting)]
    server = Server(name, ["-m", "actorserve", str(HERE / config), *sets], port)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def peer(which: str) -> Iterator[Server]:
    """A peer of peers.py."""
    port = free_port()
    names = {"grpclib": "grpclib on asyncio", "grpcio": "grpcio.aio", "bare": "our transport"}
    server = Server(names[which], [str(HERE / "peers.py"), which, str(port)], port)
    try:
        yield server
    finally:
        server.stop()
