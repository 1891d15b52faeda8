"""Replicas that share their weights: one worker becomes four, and what that costs in time and in memory.

The tree's memory is the sum of Pss of the server and of all processes under it: a page that several share counts once.
Private memory is what a worker has to itself. What must not live here: the memory of one worker (footprint.py).
"""

from __future__ import annotations

import asyncio

import calls
import grpc  # type: ignore[import-untyped]
import psutil  # type: ignore[import-untyped]
from processes import MIB, Server, ours
from table import median, show

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

REPLICAS = 4
TOKENS = 32
PROMPT = b"Once upon a time, in a village by the sea,"


def _workers(server: Server) -> list[psutil.Process]:
    return [worker for one in server.process.children() for worker in one.children()]


async def _generate(server: Server, streams: int) -> int:
    """So many streams at once; how many pieces came."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        method = channel.unary_stream(
            f"{calls.INFERENCE}/StreamPredictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        inputs = {"prompt": PROMPT, "max_tokens": str(TOKENS).encode(), "temperature": b"0"}

        async def one() -> int:
            return len([piece async for piece in method(calls.request_of("smollm2", inputs), timeout=calls.TIMEOUT_S)])

        return sum(await asyncio.gather(*(one() for _ in range(streams))))


def _use_all(server: Server) -> None:
    """Until every worker has spent the CPU time of a generation: who gets a stream is the server's choice."""
    before = {worker.pid: worker.cpu_times().user for worker in _workers(server)}
    for _ in range(20):
        asyncio.run(_generate(server, len(before)))
        spent = [worker.cpu_times().user - before[worker.pid] for worker in _workers(server)]
        if min(spent) > max(spent) / 4 and min(spent) > 0.5:
            return
    raise SystemExit(f"some worker generates nothing: {spent}")


def _private(server: Server) -> float:
    """Median of the workers' private memory, MiB."""
    return float(median(worker.memory_full_info().uss for worker in _workers(server))) / MIB


def run() -> None:
    """One replica, then four; the converted weights exist, for the first one has made them."""
    with ours("generation.toml", "models.smollm2.batch_size=1") as server:
        server.wait_listening()
        with grpc.insecure_channel(server.address) as channel:
            calls.Health(channel).wait_healthy()
            _use_all(server)
            one, private_one = server.pss_mib(), _private(server)
            before = server.cpu().total
            seconds = calls.scale(channel, "smollm2", REPLICAS)
            cpu = server.cpu().total - before
            _use_all(server)
            many, private = server.pss_mib(), _private(server)
    each = (many - one) / (REPLICAS - 1)
    head = (
        "replicas",
        "tree, PSS MiB",
        "private MiB of a worker",
        "ScaleWorker, s",
        "its CPU, s",
        "MiB for each further one",
    )
    rows = [("1", f"{one:.0f}", f"{private_one:.0f}", "", "", "")]
    took = (f"{seconds:.2f}", f"{cpu:.2f}")
    rows.append((str(REPLICAS), f"{many:.0f}", f"{private:.0f}", *took, f"{each:.0f}"))
    show(f"SmolLM2-135M on CPU, each replica after {TOKENS} tokens", head, rows)
