"""Large messages: unary echo of 4 MB, driven by grpcio's own client in a process of its own.

Run as a program it is the client: it reads one JSON order from stdin and prints one JSON object.
What must not live here: starting servers, small messages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import calls
import grpc  # type: ignore[import-untyped]
from echo import alternate
from processes import HERE, Server
from table import median, show

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SIZE = 4_000_000
IN_FLIGHT = 4
TITLE = "unary echo, 4 MB, 4 in flight, by a grpcio client"
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True, slots=True)
class Sample:
    """One server's turn. Megabytes count once for each direction."""

    megabytes_a_second: float
    cpu_ms_a_call: float


def run(servers: Sequence[Server], *, rounds: int, seconds: float) -> None:
    """Measure and print."""
    for server in servers:
        turn(server, 0.3)
    samples = alternate(servers, rounds, lambda server: turn(server, seconds))
    ours = next(iter(samples.values()))
    rows = []
    for name, theirs in samples.items():
        pairs = list(zip(ours, theirs, strict=True))
        speed = median(one.megabytes_a_second / other.megabytes_a_second for one, other in pairs)
        cpu = median(one.cpu_ms_a_call / other.cpu_ms_a_call for one, other in pairs)
        mine = f"{median(sample.megabytes_a_second for sample in theirs):.0f}"
        rows.append((name, mine, f"{speed:.2f}", f"{median(s.cpu_ms_a_call for s in theirs):.2f}", f"{cpu:.2f}"))
    head = ("server", "MB/s, both ways", "ours to it", "CPU ms a call", "ours to it")
    show(f"{TITLE}; medians of {rounds} rounds", head, rows)


def turn(server: Server, seconds: float) -> Sample:
    """One load of about so long."""
    server.check()
    before = server.cpu().total
    done = subprocess.run(
        [sys.executable, str(HERE / "large.py")],
        input=json.dumps({"address": server.address, "seconds": seconds}),
        stdout=subprocess.PIPE,
        text=True,
        timeout=calls.TIMEOUT_S,
        check=True,
    )
    said = json.loads(done.stdout)
    spent = server.cpu().total - before
    return Sample(2 * SIZE * said["calls"] / said["seconds"] / 1e6, spent / said["calls"] * 1e3)


def drive(order: dict[str, Any]) -> dict[str, Any]:
    """Keep IN_FLIGHT calls going, by grpcio's futures; every answer must be what was sent."""
    data = bytes(range(256)) * (SIZE // 256)
    request = PredictionsRequest(model_name="echo", input={"data": data})
    made = 0
    with grpc.insecure_channel(order["address"], options=OPTIONS) as channel:
        method = channel.unary_unary(
            f"{calls.INFERENCE}/Predictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        method(request, timeout=calls.TIMEOUT_S, wait_for_ready=True)
        began = time.perf_counter()
        flying = [method.future(request, timeout=calls.TIMEOUT_S) for _ in range(IN_FLIGHT)]
        while flying:
            if flying.pop(0).result().prediction != data:
                raise SystemExit("an answer is not what was sent")
            made += 1
            if time.perf_counter() - began < order["seconds"]:
                flying.append(method.future(request, timeout=calls.TIMEOUT_S))
        return {"calls": made, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps(drive(json.load(sys.stdin))))
