"""The echo benchmark: unary and streamed echo through a worker process, against two peers that have no worker.

All servers run warm at the same time and take turns in alternating rounds, so that a slow spell of the machine
hits each alike. What must not live here: starting servers (processes.py), load (load.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import calls
import load
from processes import Cpu, Server, ours, peer
from table import count, median, microseconds, milliseconds, show

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

T = TypeVar("T")
PAYLOAD = b"x" * 256
CHUNK = b"x" * 64
CHUNKS = 100
WARM_CALLS = 256
LOGGING = "actorserve, access log on"
REFERENCE = "grpclib on asyncio"
PEER = "grpcio.aio"
BUDGET = 150 / 313  # microseconds of CPU a call for all of our processes, where grpcio.aio's one takes 313
MOST = 1.3 * BUDGET
HEAD = (
    "server",
    "calls/s",
    "ratio",
    "CPU us a call",
    "ingress",
    "worker",
    "forkserver",
    "ingress ratio",
    "p50 ms",
    "p99 ms",
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One table."""

    title: str
    stream: bool
    in_flight: int

    def request(self) -> PredictionsRequest:
        """What is asked."""
        inputs = {"data": CHUNK, "count": str(CHUNKS).encode()} if self.stream else {"data": PAYLOAD}
        return calls.request_of("echo", inputs)

    def job(self, answers: Sequence[bytes]) -> load.Job:
        """What is sent and must come back, given the answers that a real client got."""
        messages = [PredictionResponse(prediction=answer).ByteSize() + 5 for answer in answers]
        method = "StreamPredictions" if self.stream else "Predictions"
        return load.Job(method, self.request().SerializeToString(), sum(messages))


SCENARIOS = (
    *(Scenario(f"unary echo, 256 bytes, {n} in flight", stream=False, in_flight=n) for n in (1, 64, 256)),
    *(Scenario(f"a stream of 100 messages of 64 bytes, {n} in flight", stream=True, in_flight=n) for n in (1, 64)),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One server's turn. CPU in seconds a call."""

    rate: float
    p50: float
    p99: float
    cpu: Cpu


def run(*, rounds: int, seconds: float, only: str = "") -> None:
    """Measure every scenario whose title holds `only`."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(ours("echo.toml")),
            stack.enter_context(ours("echo.toml", "log.access=true", name=LOGGING)),
            stack.enter_context(peer("grpclib")),
            stack.enter_context(peer("grpcio")),
        ]
        for server in servers:
            server.wait_listening()
        for scenario in SCENARIOS:
            if only in scenario.title:
                chosen = [one for one in servers if one.name != LOGGING or scenario.in_flight == 64]
                _show(scenario, _measure(scenario, chosen, rounds, seconds))


def _measure(scenario: Scenario, servers: Sequence[Server], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    jobs = {server.name: checked(scenario, server) for server in servers}
    sizes = {server.name: _size(server, jobs[server.name], scenario.in_flight, seconds) for server in servers}

    def one(server: Server) -> Sample:
        return turn(server, jobs[server.name], calls=sizes[server.name], in_flight=scenario.in_flight)

    return alternate(servers, rounds, one)


def alternate(servers: Sequence[Server], rounds: int, one: Callable[[Server], T]) -> dict[str, list[T]]:
    """Give every server its turn in every round; every other round goes the other way round."""
    samples: dict[str, list[T]] = {server.name: [] for server in servers}
    for number in range(rounds):
        for server in servers if number % 2 == 0 else reversed(servers):
            samples[server.name].append(one(server))
    return samples


def checked(scenario: Scenario, server: Server) -> load.Job:
    """The load for a server, once a real client has had the right answer from it."""
    request = scenario.request()
    answers = calls.stream(server, request) if scenario.stream else [calls.predict(server, request)]
    right = [CHUNK] * CHUNKS if scenario.stream else [PAYLOAD]
    if answers != right:
        raise SystemExit(f"{server.name}: {scenario.title}: {len(answers)} answers, and not those that are right")
    return scenario.job(answers)


def _size(server: Server, job: load.Job, in_flight: int, seconds: float) -> int:
    """How many calls take about `seconds`; found out by two warm loads."""
    load.run(server, job, calls=WARM_CALLS, in_flight=in_flight)
    warm = load.run(server, job, calls=WARM_CALLS, in_flight=in_flight)
    return max(2 * in_flight, round(warm.rate * seconds))


def turn(server: Server, job: load.Job, *, calls: int, in_flight: int) -> Sample:
    """One load, with the CPU time that the server's processes spent on it."""
    before = server.cpu()
    ran = load.run(server, job, calls=calls, in_flight=in_flight)
    spent = server.cpu() - before
    cpu = Cpu(spent.ingress / calls, spent.worker / calls, spent.forkserver / calls)
    return Sample(ran.rate, ran.p50, ran.p99, cpu)


def _show(scenario: Scenario, samples: dict[str, list[Sample]]) -> None:
    reference = samples[REFERENCE]
    rows = [_row(name, mine, reference) for name, mine in samples.items()]
    show(f"{scenario.title}; medians of {len(reference)} rounds; ratios to {REFERENCE}", HEAD, rows)
    if scenario.in_flight == 64 and not scenario.stream:
        _show_budget(samples)


def _show_budget(samples: dict[str, list[Sample]]) -> None:
    pairs = zip(samples["actorserve"], samples[PEER], strict=True)
    ratio = median(ours.cpu.total / theirs.cpu.total for ours, theirs in pairs)
    head = ("CPU of all processes / grpcio.aio's", f"the budget, {BUDGET:.2f}, times", "at most")
    show(
        "CPU a call against its budget; the median of each round's ratio",
        head,
        [
            (f"{ratio:.3f}", f"{ratio / BUDGET:.2f}", f"1.3 ({MOST:.3f})"),
        ],
    )


def _row(name: str, mine: Sequence[Sample], reference: Sequence[Sample]) -> tuple[str, ...]:
    """Ratios are medians of each round's own ratio."""
    parts = [[sample.cpu.ingress for sample in mine], [sample.cpu.worker for sample in mine]]
    parts.append([sample.cpu.forkserver for sample in mine])
    rates = [one.rate / other.rate for one, other in zip(mine, reference, strict=True)]
    ingress = [one.cpu.ingress / max(other.cpu.ingress, 1e-9) for one, other in zip(mine, reference, strict=True)]
    return (
        name,
        count(median(sample.rate for sample in mine)),
        f"{median(rates):.2f}",
        microseconds(median(sample.cpu.total for sample in mine)),
        *(microseconds(median(part)) for part in parts),
        f"{median(ingress):.2f}",
        milliseconds(median(sample.p50 for sample in mine)),
        milliseconds(median(sample.p99 for sample in mine)),
    )
