"""Streams whose readers stopped reading: what they cost their neighbours, and what memory they hold.

A hundred streams of small messages; ten of them are opened by a client that reads nothing. The rate of the other
ninety is compared with ninety alone, in turns. The client is grpcio.aio. What must not live here: slow connections
(attack.py).
"""

from __future__ import annotations

import asyncio
import time

import calls
import grpc  # type: ignore[import-untyped]
from processes import Server, ours
from table import count, median, show

from actorserve.proto.inference_pb2 import PredictionsRequest

READERS = 90
SLOW = 10
CHUNK = b"x" * 16384  # HTTP/2 takes 4 of them unread, the credit is worth 16 more
ENDLESS = str(1_000_000).encode()
SETTLE_S = 3.0  # until those who do not read have all that they will get


def _methods(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamMultiCallable:
    return channel.unary_stream(
        f"{calls.INFERENCE}/StreamPredictions", request_serializer=PredictionsRequest.SerializeToString
    )


async def _turn(server: Server, slow: int, seconds: float) -> tuple[float, float]:
    """Messages a second that the readers get while `slow` others do not read; the tree's memory at the end, MiB."""
    asked = calls.request_of("slow", {"data": CHUNK, "count": ENDLESS})
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]  # windows stay at 64 KiB
    async with (
        grpc.aio.insecure_channel(server.address, options=options) as mine,
        grpc.aio.insecure_channel(server.address, options=options) as theirs,
    ):
        stuck = [_methods(theirs)(asked) for _ in range(slow)]
        for call in stuck:
            await call.read()  # each has begun
        heard = 0

        async def reader() -> None:
            nonlocal heard
            async for _ in _methods(mine)(asked):
                heard += 1

        reading = [asyncio.create_task(reader()) for _ in range(READERS)]
        await asyncio.sleep(SETTLE_S)
        before, began = heard, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (heard - before) / (time.perf_counter() - began)
        memory = server.pss_mib()
        for call in stuck:
            call.cancel()
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    return rate, memory


def run(*, rounds: int, seconds: float) -> None:
    """Ninety alone and ninety beside ten take turns, in changing order."""
    alone, beside = [], []
    with ours("slow_readers.toml") as server:
        server.wait_listening()
        with grpc.insecure_channel(server.address) as channel:
            calls.Health(channel).wait_healthy()
        asyncio.run(_turn(server, 0, seconds))
        for number in range(rounds):
            for slow in (0, SLOW) if number % 2 == 0 else (SLOW, 0):
                (beside if slow else alone).append(asyncio.run(_turn(server, slow, seconds)))
    ratio = median(one / other for (one, _), (other, _) in zip(beside, alone, strict=True))
    rows = [
        (name, count(median(rate for rate, _ in made)), f"{max(memory for _, memory in made):.0f}", shown)
        for name, made, shown in ((f"{READERS} alone", alone, ""), (f"beside {SLOW}", beside, f"{ratio:.3f}"))
    ]
    head = ("readers", "messages/s", "tree, most PSS MiB", "ratio of rates")
    show(f"{SLOW} of {READERS + SLOW} streams do not read; medians of {rounds} rounds", head, rows)
