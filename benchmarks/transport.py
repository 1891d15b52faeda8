"""The transport alone: no model, no queue, no worker; the answer is made in the service method, as the peers do.

The server is peers.py's `bare`: the service class that grpclib's own server runs, unchanged, on our GrpcServer. All
three run warm at the same time and take turns in alternating rounds. What must not live here: starting servers
(processes.py), load (load.py, large.py), open calls (open_calls.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import calls
import grpc  # type: ignore[import-untyped]
import large
import load
from echo import CHUNK, PAYLOAD, WARM_CALLS, Sample, alternate, turn
from processes import Server, peer
from table import count, median, milliseconds, show

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest


@dataclass(frozen=True, slots=True)
class Scenario:
    """One table."""

    title: str
    method: str
    in_flight: int
    data: bytes = PAYLOAD
    sent: int = 1  # messages a call, from the client
    answers: int = 1  # and to it

    def request(self) -> PredictionsRequest:
        """What each message asks."""
        inputs = {"data": self.data, "count": str(self.answers).encode()} if self.sent < self.answers else {}
        return calls.request_of("echo", {"data": self.data, **inputs})

    def job(self, server: Server) -> load.Job:
        """The load, once a real client has had the right answers."""
        request = self.request()
        with grpc.insecure_channel(server.address) as channel:
            method = channel.stream_stream(
                f"{calls.INFERENCE}/{self.method}",
                request_serializer=PredictionsRequest.SerializeToString,
                response_deserializer=PredictionResponse.FromString,
            )
            answers = list(method(iter([request] * self.sent), timeout=calls.TIMEOUT_S, wait_for_ready=True))
        if [answer.prediction for answer in answers] != [self.data] * self.answers:
            raise SystemExit(f"{server.name}: {self.title}: {len(answers)} answers, and not those that are right")
        octets = sum(answer.ByteSize() + 5 for answer in answers)
        return load.Job(self.method, request.SerializeToString(), octets, self.sent)


SCENARIOS = (
    Scenario("unary echo, 256 bytes, 1 in flight", "Predictions", 1),
    Scenario("unary echo, 256 bytes, 64 in flight", "Predictions", 64),
    Scenario("100 messages of 64 bytes a call, each echoed, 64 in flight", "StreamPredictions2", 64, CHUNK, 100, 100),
    Scenario("a stream of 100 messages of 64 bytes, 64 in flight", "StreamPredictions", 64, CHUNK, 1, 100),
)


def run(*, rounds: int, seconds: float, only: str = "") -> None:
    """Measure every scenario whose title holds `only`, and large messages."""
    with ExitStack() as stack:
        servers = [stack.enter_context(peer(which)) for which in ("bare", "grpclib", "grpcio")]
        for server in servers:
            server.wait_listening()
        for scenario in SCENARIOS:
            if only in scenario.title:
                show_calls(scenario, measure(scenario, servers, rounds, seconds))
        if only in large.TITLE:
            large.run(servers, rounds=rounds, seconds=seconds)


def measure(scenario: Scenario, servers: Sequence[Server], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """Give every server its turns."""
    orders = {server.name: sized(server, scenario, seconds) for server in servers}

    def one(server: Server) -> Sample:
        job, number = orders[server.name]
        return turn(server, job, calls=number, in_flight=scenario.in_flight)

    return alternate(servers, rounds, one)


def sized(server: Server, scenario: Scenario, seconds: float) -> tuple[load.Job, int]:
    """The load, and how many calls take about so long; found out by two warm loads."""
    job = scenario.job(server)
    load.run(server, job, calls=WARM_CALLS, in_flight=scenario.in_flight)
    warm = load.run(server, job, calls=WARM_CALLS, in_flight=scenario.in_flight)
    return job, max(2 * scenario.in_flight, round(warm.rate * seconds))


def show_calls(scenario: Scenario, samples: dict[str, list[Sample]]) -> None:
    """Print the medians; a ratio is the median of each round's own ratio, ours divided by theirs."""
    ours = next(iter(samples.values()))
    rows = []
    for name, theirs in samples.items():
        pairs = list(zip(ours, theirs, strict=True))
        cpu = median(sample.cpu.total for sample in theirs)
        row = [
            name,
            count(median(sample.rate for sample in theirs)),
            f"{cpu * 1e6:.0f}",
            f"{median(one.cpu.total / max(other.cpu.total, 1e-9) for one, other in pairs):.3f}",
        ]
        if scenario.answers > 1:
            row.append(count(scenario.answers / max(cpu, 1e-9)))
            row.append(f"{median(other.cpu.total / max(one.cpu.total, 1e-9) for one, other in pairs):.2f}")
        row += [
            milliseconds(median(sample.p50 for sample in theirs)),
            f"{median(one.p50 / other.p50 for one, other in pairs):.2f}",
        ]
        rows.append([*row, milliseconds(median(sample.p99 for sample in theirs))])
    messages = ("messages a CPU second", "ours to it") if scenario.answers > 1 else ()
    head = ("server", "calls/s", "CPU us a call", "ours to it", *messages, "p50 ms", "ours to it", "p99 ms")
    show(f"{scenario.title}; medians of {len(ours)} rounds", head, rows)
