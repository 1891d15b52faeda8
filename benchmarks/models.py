"""Real models: what is served at 64 in flight, divided by the same handler called directly with full batches.

Both sides answer the same input and take turns in alternating rounds. What must not live here: how a handler is
called directly (direct.py).
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import calls
import load
from processes import HERE, Server, ours
from table import count, median, microseconds, milliseconds, show

from actorserve.proto.inference_pb2 import PredictionResponse

IN_FLIGHT = 64
BATCH_SIZE = 32
DIGIT = struct.pack("<64f", *[float(16 * (i % 8 in (3, 4))) for i in range(64)])  # a vertical stroke
SENTENCE = b"The quick brown fox jumps over the lazy dog while nineteen people watch from the old stone bridge."
ECHOED = {"data": b"x" * 256}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Direct:
    """A process of direct.py."""

    def __init__(self, process: subprocess.Popen[str], handler: str, inputs: Sequence[Mapping[str, bytes]]) -> None:
        self._process = process
        listed = [{name: value.hex() for name, value in one.items()} for one in inputs]
        self._ask({"handler": handler, "inputs": listed})

    def _ask(self, order: dict[str, Any]) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the direct loop ended by itself: are the zoo's packages installed?")
        said: dict[str, float] = json.loads(line)
        return said

    def run(self, seconds: float, batch_size: int) -> tuple[float, float]:
        """Items a second, and seconds of CPU an item."""
        said = self._ask({"seconds": seconds, "batch_size": batch_size})
        return said["items"] / said["seconds"], said["cpu"] / said["items"]


@contextmanager
def direct(handler: str, inputs: Sequence[Mapping[str, bytes]]) -> Iterator[Direct]:
    """Start one, end it."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "direct.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    try:
        yield Direct(process, handler, inputs)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Case:
    """One model and what it is asked, again and again in this order."""

    name: str
    model: str
    handler: str
    inputs: Sequence[Mapping[str, bytes]]


EMBEDDING = "actorserve.handlers.text_embedding:TextEmbedding"
WORDS = SENTENCE.decode().rstrip(".").split() * 4
MIXED = [{"data": " ".join(WORDS[: 2 + 13 * number % 62]).encode()} for number in range(62)]
"""Texts of 2 to 63 words, each length once, short and long ones mixed."""
CASES = (
    Case("minilm", "minilm", EMBEDDING, [{"data": SENTENCE}]),
    Case("minilm, mixed lengths", "minilm", EMBEDDING, MIXED),
    Case("digits", "digits", "actorserve.handlers.digits:Digits", [{"data": DIGIT}]),
)


def run(*, rounds: int, seconds: float) -> None:
    """Measure each model."""
    rows = []
    with ExitStack() as stack:
        server = stack.enter_context(ours("models.toml"))
        server.wait_listening()
        for case in CASES:
            with direct(case.handler, case.inputs) as loop:
                rows.append(_row(case, server, loop, rounds, seconds))
    head = (
        "model",
        "served/s",
        "direct/s",
        "ratio",
        "p50 ms",
        "p99 ms",
        "worker CPU us",
        "ingress CPU us",
        "direct CPU us",
    )
    title = f"served at {IN_FLIGHT} in flight, divided by the direct loop, batches of {BATCH_SIZE}"
    show(f"{title}; medians of {rounds} rounds", head, rows)


def _row(case: Case, server: Server, loop: Direct, rounds: int, seconds: float) -> tuple[str, ...]:
    requests = [calls.request_of(case.model, one) for one in case.inputs]
    answer = calls.predict(server, requests[0])
    octets = 5 + PredictionResponse(prediction=answer).ByteSize()
    bodies = [request.SerializeToString() for request in requests]
    job = load.Job("Predictions", bodies[0], 0 if case.model == "minilm" else octets, others=tuple(bodies[1:]))
    load.run(server, job, calls=IN_FLIGHT, in_flight=IN_FLIGHT)
    warm = load.run(server, job, calls=4 * IN_FLIGHT, in_flight=IN_FLIGHT)
    size = max(2 * IN_FLIGHT, round(warm.rate * seconds / BATCH_SIZE) * BATCH_SIZE)
    served, straight, cpus = [], [], []
    for number in range(rounds):
        for which in ("served", "direct") if number % 2 == 0 else ("direct", "served"):
            if which == "direct":
                straight.append(loop.run(seconds, BATCH_SIZE))
            else:
                before = server.cpu()
                served.append(load.run(server, job, calls=size, in_flight=IN_FLIGHT))
                cpus.append(server.cpu() - before)
    return (
        case.name,
        count(median(ran.rate for ran in served)),
        count(median(rate for rate, _ in straight)),
        f"{median(ran.rate / rate for ran, (rate, _) in zip(served, straight, strict=True)):.2f}",
        milliseconds(median(ran.p50 for ran in served)),
        milliseconds(median(ran.p99 for ran in served)),
        microseconds(median(cpu.worker / size for cpu in cpus)),
        microseconds(median(cpu.ingress / size for cpu in cpus)),
        microseconds(median(cpu for _, cpu in straight)),
    )


def overhead(*, rounds: int, seconds: float) -> None:
    """One call in flight: what the server and the wire add to the handler's own time."""
    rows = [
        _overhead("echo.toml", Case("echo", "echo", "actorserve.handlers.echo:Echo", [ECHOED]), rounds, seconds),
        _overhead("models.toml", CASES[0], rounds, seconds),
    ]
    head = ("model", "p50 ms, the client's time included", "called directly ms", "overhead ms")
    show(f"one call in flight; medians of {rounds} rounds", head, rows)


def _overhead(config: str, case: Case, rounds: int, seconds: float) -> tuple[str, ...]:
    """The server and the direct loop take turns."""
    with ours(config) as server, direct(case.handler, case.inputs) as loop:
        server.wait_listening()
        request = calls.request_of(case.model, case.inputs[0])
        octets = PredictionResponse(prediction=calls.predict(server, request)).ByteSize() + 5
        job = load.Job("Predictions", request.SerializeToString(), octets)
        warm = load.run(server, job, calls=100, in_flight=1)
        served, alone = [], []
        for _ in range(rounds):
            served.append(load.run(server, job, calls=round(warm.rate * seconds), in_flight=1).p50)
            alone.append(1 / loop.run(seconds, 1)[0])
    added = median(one - other for one, other in zip(served, alone, strict=True))
    return (case.name, milliseconds(median(served)), milliseconds(median(alone)), milliseconds(added))
