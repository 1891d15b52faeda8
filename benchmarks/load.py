"""Load: a fixed number of calls with a fixed number in flight, by h2load where it is installed, else by driver.py.

Either way the answers are counted: h2load does not look at grpc-status, so the octets of DATA that came back must be
exactly those of as many right answers. What must not live here: who is measured, and how often.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from calls import INFERENCE
from processes import HERE, Server

CONNECTIONS = {1: 1, 64: 4, 256: 8}  # in flight -> connections; the calls in flight are spread evenly
TIMEOUT_S = 180.0
H2LOAD = shutil.which("h2load")


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked, and what must come back."""

    method: str
    body: bytes
    answer_octets: int  # of one call's messages in all, their 5-octet prefixes included; 0: do not check
    messages: int = 1  # how often a call sends the body
    others: tuple[bytes, ...] = ()  # bodies that take turns with the first; such a load is always driver.py's
    service: str = INFERENCE

    @property
    def path(self) -> str:
        """The path of the method."""
        return f"{self.service}/{self.method}"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a load went. Times in seconds."""

    calls: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


def run(server: Server, job: Job, *, calls: int, in_flight: int) -> Ran:
    """Make the calls; fails if one answer is missing."""
    in_flight = min(in_flight, calls)
    server.check()
    return (_h2load if H2LOAD and not job.others else _driver)(server, job, calls, in_flight)


def percentiles(durations: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    ordered = sorted(durations)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def _h2load(server: Server, job: Job, calls: int, in_flight: int) -> Ran:
    connections = min(CONNECTIONS.get(in_flight, 1), in_flight)
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes((b"\0" + len(job.body).to_bytes(4, "big") + job.body) * job.messages)
        command = [str(H2LOAD), f"--requests={calls}", f"--clients={connections}", "--threads=1"]
        command += [f"--max-concurrent-streams={-(-in_flight // connections)}", f"--data={body}", f"--log-file={log}"]
        command += ["--header=content-type: application/grpc", "--header=te: trailers"]
        done = subprocess.run(
            [*command, f"http://{server.address}{job.path}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        lines = [line.split() for line in log.read_text().splitlines()]
    _check(server, job, calls, done.stdout)
    began = min(int(start) for start, _, _ in lines)
    ended = max(int(start) + int(duration) for start, _, duration in lines)
    p50, p99 = percentiles([int(duration) / 1e6 for _, _, duration in lines])
    return Ran(calls, (ended - began) / 1e6, p50, p99)


def _check(server: Server, job: Job, calls: int, said: str) -> None:
    succeeded = re.search(r"(\d+) succeeded", said)
    octets = re.search(r"\((\d+)\) data", said)
    if succeeded is None or octets is None or int(succeeded[1]) != calls:
        raise SystemExit(f"{server.name}: not every call was answered:\n{said}")
    if job.answer_octets and int(octets[1]) != calls * job.answer_octets:
        raise SystemExit(
            f"{server.name}: {octets[1]} octets of answers, {calls * job.answer_octets} are right:\n{said}"
        )


def _driver(server: Server, job: Job, calls: int, in_flight: int) -> Ran:
    order = {
        "address": server.address,
        "path": job.path,
        "bodies": [body.hex() for body in (job.body, *job.others)],
        "messages": job.messages,
        "answer_octets": job.answer_octets,
        "calls": calls,
        "in_flight": in_flight,
        "connections": min(CONNECTIONS.get(in_flight, 1), in_flight),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "driver.py")],
        input=json.dumps(order),
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    said = json.loads(done.stdout)
    p50, p99 = percentiles(said["durations"])
    return Ran(calls, said["seconds"], p50, p99)
