"""The bundled load: grpcio.aio, used where h2load is not installed. It costs several times h2load's CPU per call.

Reads one JSON object from stdin (load.py writes it), makes the calls, prints one JSON object. Bodies are sent and
received as bytes; each call's answers are counted. What must not live here: anything of the server's messages.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any

import grpc  # type: ignore[import-untyped]

PREFIX_OCTETS = 5
TIMEOUT_S = 120.0


async def drive(order: dict[str, Any]) -> dict[str, Any]:
    """Keep `in_flight` calls going until `calls` have ended."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(order["address"], options=options) for _ in range(order["connections"])]
    bodies = [bytes.fromhex(body) for body in order["bodies"]]
    numbers = iter(range(order["calls"]))
    durations: list[float] = []

    async def caller(channel: grpc.aio.Channel) -> None:
        method = channel.stream_stream(order["path"])  # of a unary method, streams of one
        for number in numbers:
            body = bodies[number % len(bodies)]
            began = time.perf_counter()
            octets = 0
            async for answer in method(itertools.repeat(body, order["messages"]), timeout=TIMEOUT_S):
                octets += PREFIX_OCTETS + len(answer)
            durations.append(time.perf_counter() - began)
            if order["answer_octets"] and octets != order["answer_octets"]:
                raise SystemExit(f"{octets} octets of answers to a call, {order['answer_octets']} are right")

    began = time.perf_counter()
    callers = itertools.islice(itertools.cycle(channels), order["in_flight"])
    await asyncio.gather(*(caller(channel) for channel in callers))
    seconds = time.perf_counter() - began
    for channel in channels:
        await channel.close()
    return {"seconds": seconds, "durations": durations}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(drive(json.load(sys.stdin)))))
