"""A noop deployment under Ray Serve and under ours: its own microbenchmark's service, 100 calls in flight.

Both run benchmarks/ray/noop.py, of which ours changes the import lines alone (tests/diff_ray/ray_peers.py), and take
turns. Figures are calls a second, and CPU time of all processes of each server a call. Ray Serve is installed from PyPI
into the cache folder. What must not live here: the deployment, starting servers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import load
import psutil  # type: ignore[import-untyped]
from processes import HERE, Server, seconds_of
from table import count, median, microseconds, milliseconds, show

sys.path.append(str(HERE.parent / "tests" / "diff_ray"))
import ray_peers

CACHE = Path.home() / ".cache" / "actorserve"
SERVICE = "/ray.serve.RayServeBenchmarkService"
FUNCTION = "{}.serve.generated.serve_pb2_grpc.add_RayServeBenchmarkServiceServicer_to_server"
IN_FLIGHT = 100
WARM_CALLS = 500
MOST = 1 / 20  # of Ray Serve's CPU a call
HEAD = ("server", "calls/s", "CPU us a call", "ratio", "p50 ms", "p99 ms", "rounds")


class Script(Server):
    """A server that a script has started; every process below the script's is the server's."""

    def __init__(self, name: str, pid: int, port: int) -> None:
        self.name = name
        self.port = port
        self.process = psutil.Process(pid)

    def check(self) -> None:
        """Fail if it has ended by itself."""
        if not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE:
            raise SystemExit(f"{self.name} ended by itself")

    def seconds(self) -> float:
        """CPU time of all processes so far."""
        return sum(map(seconds_of, [self.process, *self.process.children(recursive=True)]))


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn. CPU in seconds a call."""

    ran: load.Ran
    cpu: float


@contextmanager
def started(package: str) -> Iterator[Script]:
    """The script under `ray` or `actorserve`."""
    source = (HERE / "ray" / "noop.py").read_text()
    port, http_port = ray_peers.free_ports(2)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "site").mkdir()
        (folder / "site" / "noop.py").write_text(source if package == "ray" else ray_peers.migrated(source))
        arguments = [str(port), str(http_port), FUNCTION.format(package)]
        cache = CACHE if package == "ray" else None
        with ray_peers.running(folder, "noop.py", arguments, cache=cache) as (process, _):
            yield Script("Ray Serve" if package == "ray" else "actorserve", process.pid, port)


def run(*, rounds: int, seconds: float) -> None:
    """Measure both."""
    with ExitStack() as stack:
        servers = [stack.enter_context(started(package)) for package in ("ray", "actorserve")]
        samples: dict[str, list[Sample]] = {server.name: [] for server in servers}
        jobs = {server.name: _job(server) for server in servers}
        calls = {server.name: _calls(server, jobs[server.name], seconds) for server in servers}
        for number in range(rounds):
            for server in servers if number % 2 == 0 else reversed(servers):
                samples[server.name].append(_turn(server, jobs[server.name], calls[server.name]))
    _show(samples)


def _job(server: Server) -> load.Job:
    """What is asked, once a real client has had an answer."""
    with grpc.insecure_channel(server.address) as channel:
        answer = channel.unary_unary(f"{SERVICE}/call_with_string")(b"", timeout=30, wait_for_ready=True)
    return load.Job("call_with_string", b"", len(answer) + 5, service=SERVICE)


def _calls(server: Server, job: load.Job, seconds: float) -> int:
    """How many calls take about `seconds`, once it is warm."""
    load.run(server, job, calls=WARM_CALLS, in_flight=IN_FLIGHT)
    return max(WARM_CALLS, round(load.run(server, job, calls=WARM_CALLS, in_flight=IN_FLIGHT).rate * seconds))


def _turn(server: Script, job: load.Job, calls: int) -> Sample:
    before = server.seconds()
    ran = load.run(server, job, calls=calls, in_flight=IN_FLIGHT)
    return Sample(ran, (server.seconds() - before) / calls)


def _show(samples: dict[str, list[Sample]]) -> None:
    theirs = median(one.cpu for one in samples["Ray Serve"])
    rows = [
        (
            name,
            count(median(one.ran.rate for one in mine)),
            microseconds(median(one.cpu for one in mine)),
            f"1/{theirs / median(one.cpu for one in mine):.1f}",
            milliseconds(median(one.ran.p50 for one in mine)),
            milliseconds(median(one.ran.p99 for one in mine)),
            str(len(mine)),
        )
        for name, mine in samples.items()
    ]
    show(f"RayServeBenchmarkService/call_with_string, {IN_FLIGHT} in flight; CPU of all processes", HEAD, rows)
    ratio = median(one.cpu for one in samples["actorserve"]) / theirs
    print(
        f"\nCPU a call: {ratio:.4f} of Ray Serve's; at most {MOST} is allowed: {'met' if ratio <= MOST else 'MISSED'}"
    )
