"""The server's memory, and how long it takes to start: to the first Ping, to READY, and to fork one more worker.

What must not live here: throughput (echo.py, models.py).
"""

from __future__ import annotations

import time

import calls
import echo
import grpc  # type: ignore[import-untyped]
import load
from processes import Server, ours
from table import median, milliseconds, show

IN_FLIGHT = 64
SETTLE_S = 10.0
FORKS = 5


def memory(*, seconds: float) -> None:
    """Idle after READY, and again a while after echo at 64 in flight."""
    with ours("echo.toml") as server:
        server.wait_listening()
        with grpc.insecure_channel(server.address) as channel:
            calls.Health(channel).wait_healthy()
        idle = server.rss_mib(), server.pss_mib()
        made = _load(server, seconds)
        busy = server.rss_mib(), server.pss_mib()
        time.sleep(SETTLE_S)
        after = server.rss_mib(), server.pss_mib()
    moments = (
        ("idle after READY", idle),
        (f"right after {seconds:.0f} s of echo at {IN_FLIGHT} in flight ({made:,} calls)", busy),
        (f"{SETTLE_S:.0f} s later", after),
    )
    head = ("when", "server process, RSS MiB", "all processes, PSS MiB")
    show("memory, echo, one worker", head, [(when, f"{rss:.1f}", f"{pss:.1f}") for when, (rss, pss) in moments])


def _load(server: Server, seconds: float) -> int:
    job = echo.checked(echo.SCENARIOS[1], server)
    until = time.monotonic() + seconds
    warm = load.run(server, job, calls=1000, in_flight=IN_FLIGHT)
    made = warm.calls
    while time.monotonic() < until:
        part = max(IN_FLIGHT, round(min(until - time.monotonic(), 10.0) * warm.rate))
        made += load.run(server, job, calls=part, in_flight=IN_FLIGHT).calls
    return made


def start(*, rounds: int) -> None:
    """Each round is a server of its own. CPU beside the time: on a busy machine it is the steadier."""
    pings, readies, forks = [], [], []
    for _ in range(rounds):
        with ours("echo.toml") as server:
            server.wait_listening()
            with grpc.insecure_channel(server.address) as channel:
                health = calls.Health(channel)
                health.is_healthy()
                pings.append((time.perf_counter() - server.started, server.cpu().ingress))
                health.wait_healthy()
                readies.append((time.perf_counter() - server.started, server.cpu().total))
                for workers in range(2, 2 + FORKS):
                    before = server.cpu().total
                    forks.append((calls.scale(channel, "echo", workers), server.cpu().total - before))
    rows = [
        _times("from the command to the first answered Ping; CPU of the server process", pings),
        _times("from the command to READY (echo); CPU of all processes, importing torch included", readies),
        _times("one more worker: ScaleWorker to READY (echo, warm forkserver); CPU of all processes", forks),
    ]
    show("start", ("what", "median ms", "least ms", "most ms", "median CPU ms", "times"), rows)


def _times(what: str, samples: list[tuple[float, float]]) -> tuple[str, ...]:
    times = [seconds for seconds, _ in samples]
    shown = [milliseconds(value) for value in (median(times), min(times), max(times))]
    return (what, *shown, milliseconds(median(cpu for _, cpu in samples)), str(len(times)))
