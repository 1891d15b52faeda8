"""Streams of a language model: tokens a second of one and of eight side by side, and a newcomer's first token.

The client is grpcio.aio, at temperature 0, where a piece is a token of the text. What must not live here: unary models
(models.py).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import calls
import grpc  # type: ignore[import-untyped]
from processes import Server, ours
from table import median, milliseconds, show

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

TOKENS = 64
STREAMS = 8
NEWCOMERS = 10
LONG = {"prompt": b"Once upon a time, in a village by the sea,", "max_tokens": b"1000"}
PROMPT = b"Write a short story about a lighthouse keeper who finds a letter in a bottle."  # 36 tokens with its template
SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one round gave; seconds, and tokens a second."""

    one: float
    eight: float
    step: float
    first: float


Method = grpc.aio.UnaryStreamMultiCallable


@asynccontextmanager
async def _method(server: Server) -> AsyncIterator[Method]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel.unary_stream(
            f"{calls.INFERENCE}/StreamPredictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )


async def _times(method: Method, inputs: Mapping[str, bytes]) -> list[float]:
    """When each piece came."""
    asked = calls.request_of("smollm2", inputs | {"temperature": b"0"})
    return [time.perf_counter() async for _ in method(asked, timeout=calls.TIMEOUT_S)]


async def _together(method: Method, streams: int) -> float:
    """Pieces a second of all streams, prompts included."""
    inputs = {"data": PROMPT, "max_tokens": str(TOKENS).encode()}
    began = time.perf_counter()
    ended = await asyncio.gather(*(_times(method, inputs) for _ in range(streams)))
    return sum(map(len, ended)) / (time.perf_counter() - began)


async def _run_on(method: Method, gaps: list[float]) -> None:
    """One of those who are there already: generates again and again, and notes the time between two pieces."""
    while True:
        last = 0.0
        async for _ in method(calls.request_of("smollm2", LONG), timeout=calls.TIMEOUT_S):
            now = time.perf_counter()
            if last:
                gaps.append(now - last)
            last = now


async def _newcomers(method: Method) -> tuple[float, float]:
    """With seven streams running: the median time of a step, and of ten newcomers' first tokens."""
    gaps: list[float] = []
    running = [asyncio.create_task(_run_on(method, gaps)) for _ in range(STREAMS - 1)]
    await asyncio.sleep(SETTLE_S)
    step, steps, firsts = median(gaps[-20:]), [], []
    for _ in range(NEWCOMERS):
        await asyncio.sleep(2 * step)  # nothing of the last newcomer is left
        gaps.clear()
        await asyncio.sleep(random.uniform(2, 4) * step)  # noqa: S311 - any moment of a step
        steps += gaps
        began = time.perf_counter()
        firsts.append((await _times(method, {"data": PROMPT, "max_tokens": b"1"}))[0] - began)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return median(steps), median(firsts)


async def _round(server: Server) -> Round:
    async with _method(server) as method:
        return Round(await _together(method, 1), await _together(method, STREAMS), *await _newcomers(method))


def run(*, rounds: int) -> None:
    """Each round measures all of it, with workers of one thread and of two in turn."""
    head = (
        "threads",
        "tokens/s, 1 stream",
        f"tokens/s, {STREAMS} streams",
        "ratio",
        f"step of {STREAMS - 1}, ms",
        "a newcomer's first token, ms",
        "in steps",
    )
    title = f"SmolLM2-135M, {TOKENS} tokens a stream, prompts included; medians of {rounds} rounds"
    for threads in (1, 2):
        show(f"{title}, newcomers of {NEWCOMERS} each", head, [_row(threads, rounds)])


def _row(threads: int, rounds: int) -> tuple[str, ...]:
    with ours("generation.toml", f"models.smollm2.threads={threads}") as server:
        server.wait_listening()
        with grpc.insecure_channel(server.address) as channel:
            calls.Health(channel).wait_healthy()
        made = [asyncio.run(_round(server)) for _ in range(rounds)]
    return (
        str(threads),
        f"{median(one.one for one in made):.1f}",
        f"{median(one.eight for one in made):.1f}",
        f"{median(one.eight / one.one for one in made):.2f}",
        milliseconds(median(one.step for one in made)),
        milliseconds(median(one.first for one in made)),
        f"{median(one.first / one.step for one in made):.2f}",
    )
