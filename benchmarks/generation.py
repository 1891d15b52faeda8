"""Streams of a language model: tokens a second of one and of eight side by side, and the time to the first token.

The client is grpcio.aio. What must not live here: unary models (models.py).
"""

from __future__ import annotations

import asyncio
import time

import calls
import grpc  # type: ignore[import-untyped]
from processes import Server, ours
from table import median, milliseconds, show

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

TOKENS = 32
PROMPT = b"Write a short story about a lighthouse keeper who finds a letter in a bottle."


async def _answer(method: grpc.aio.UnaryStreamMultiCallable) -> tuple[float, int]:
    """Time to the first piece, and how many pieces came."""
    inputs = {"data": PROMPT, "max_tokens": str(TOKENS).encode(), "temperature": b"0"}
    began, first, pieces = time.perf_counter(), 0.0, 0
    async for _ in method(calls.request_of("smollm2", inputs), timeout=calls.TIMEOUT_S):
        first = first or time.perf_counter() - began
        pieces += 1
    return first, pieces


async def _together(server: Server, streams: int) -> tuple[float, float]:
    """Pieces a second of all streams, and the last stream's time to its first piece."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        method = channel.unary_stream(
            f"{calls.INFERENCE}/StreamPredictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        began = time.perf_counter()
        ended = await asyncio.gather(*(_answer(method) for _ in range(streams)))
        seconds = time.perf_counter() - began
    return sum(pieces for _, pieces in ended) / seconds, max(first for first, _ in ended)


def run(*, rounds: int) -> None:
    """One and eight streams take turns."""
    samples: dict[int, list[tuple[float, float]]] = {1: [], 8: []}
    with ours("generation.toml") as server:
        server.wait_listening()
        with grpc.insecure_channel(server.address) as channel:
            calls.Health(channel).wait_healthy()
        for _ in range(rounds):
            for streams, mine in samples.items():
                mine.append(asyncio.run(_together(server, streams)))
    rows = []
    for streams, mine in samples.items():
        rates, firsts = zip(*mine, strict=True)
        rows.append((str(streams), f"{median(rates):.1f}", milliseconds(median(firsts))))
    head = ("streams", "tokens/s in all", "the last stream's first token, ms")
    show(f"SmolLM2-135M, {TOKENS} tokens a stream; medians of {rounds} rounds", head, rows)
