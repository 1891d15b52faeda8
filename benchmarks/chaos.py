"""Chaos in real time: MiniLM on two workers under steady load, one of them killed every two seconds: `just chaos`.

    python benchmarks/chaos.py [--seconds 60]

Prints how every request ended, the p99 with and without kills, the median restart time, and whether the bars hold:
every request has an ending, every failure is UNAVAILABLE, the model is never FAILED, and the p99 of the survivors is
at most the p99 without kills plus twice the median restart time. Then one message that always segfaults, once a
second among good ones. Exits 1 where a bar is not held.

An open loop: requests begin on the clock, whether or not earlier ones have ended, so that a stall is seen by all who
would have come meanwhile. Latency counts from the moment a request was due.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from processes import Server, ours

from actorserve.client import Channel
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.proto.management_pb2 import DescribeModelRequest

DEADLINE_S = 10.0
KILL_EVERY_S = 2.0
CLOSED_LOOP = 64
SENTENCE = b"The quick brown fox jumps over the lazy dog."


@dataclass
class Ran:
    """How the requests of one phase ended. Latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    begun: int = 0

    @property
    def p99(self) -> float:
        """Of those that were answered."""
        ordered = sorted(self.latencies)
        return ordered[len(ordered) * 99 // 100] if ordered else float("inf")


class Victim:
    """The stubs of the server, and what is asked of them."""

    def __init__(self, channel: Channel) -> None:
        self._inference = InferenceAPIsServiceStub(channel)
        self._management = ManagementAPIsServiceStub(channel)

    async def ask(self, model: str, inputs: Mapping[str, bytes], ran: Ran) -> None:
        """One request that was due now."""
        ran.begun += 1
        due = trio.current_time()
        try:
            await self._inference.Predictions(PredictionsRequest(model_name=model, input=inputs), timeout=DEADLINE_S)
        except GRPCError as error:
            ran.endings[error.status.name] += 1
        else:
            ran.endings["OK"] += 1
            ran.latencies.append(trio.current_time() - due)

    async def workers(self, model: str) -> list[dict[str, Any]]:
        """As DescribeModel shows them."""
        reply = await self._management.DescribeModel(DescribeModelRequest(model_name=model), timeout=10)
        (version,) = json.loads(reply.msg)
        found: list[dict[str, Any]] = version["workers"]
        return found

    async def ready(self, model: str) -> None:
        """Wait until every worker is READY."""
        with trio.fail_after(120):
            while True:
                try:
                    if {worker["status"] for worker in await self.workers(model)} == {"READY"}:
                        return
                except GRPCError:
                    pass
                await trio.sleep(0.1)

    async def capacity(self, seconds: float) -> float:
        """Requests a second in a closed loop."""
        ran = Ran()

        async def loop() -> None:
            while True:
                await self.ask("minilm", {"data": SENTENCE}, ran)

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(CLOSED_LOOP):
                    nursery.start_soon(loop)
        return ran.endings["OK"] / seconds

    async def open_loop(self, model: str, inputs: Mapping[str, bytes], rate: float, seconds: float) -> Ran:
        """Requests on the clock; returns when the last has ended."""
        ran = Ran()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(int(rate * seconds)):
                await trio.sleep_until(began + number / rate)
                nursery.start_soon(self.ask, model, inputs, ran)
        return ran


class Killer:
    """Kills one worker after the other, and watches them come back."""

    def __init__(self, victim: Victim, model: str) -> None:
        self._victim = victim
        self._model = model
        self._dice = random.Random(1)  # noqa: S311  # which worker, not a secret
        self.restarts: list[float] = []
        self.kills = 0
        self.failed = False

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                ready = [worker for worker in await self._victim.workers(self._model) if worker["status"] == "READY"]
                if ready:
                    worker = self._dice.choice(ready)
                    os.kill(worker["pid"], signal.SIGKILL)
                    self.kills += 1
                    nursery.start_soon(self._watch, worker["id"], worker["pid"])
                await trio.sleep(KILL_EVERY_S)

    async def _watch(self, id: str, pid: int) -> None:
        began = trio.current_time()
        while True:
            await trio.sleep(0.02)
            (worker,) = [worker for worker in await self._victim.workers(self._model) if worker["id"] == id]
            self.failed = self.failed or worker["status"] == "FAILED"
            if worker["status"] == "READY" and worker["pid"] != pid:
                self.restarts.append(trio.current_time() - began)
                return


async def kill_workers(victim: Victim, seconds: float) -> bool:
    """The first part; whether its bars hold."""
    await victim.ready("minilm")
    await victim.capacity(3)
    rate = await victim.capacity(8) / 2
    inputs = {"data": SENTENCE}
    quiet = await victim.open_loop("minilm", inputs, rate, seconds / 2)
    killer = Killer(victim, "minilm")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(killer.run)
        loud = await victim.open_loop("minilm", inputs, rate, seconds)
        nursery.cancel_scope.cancel()
    restart = median(killer.restarts)
    bound = quiet.p99 + 2 * restart
    print(f"{rate:.0f} requests/s for {seconds:.0f} s, {killer.kills} kills, median restart {restart * 1000:.0f} ms")
    print(f"endings: {dict(loud.endings)} of {loud.begun}; without kills: {dict(quiet.endings)}")
    print(f"p99 {quiet.p99 * 1000:.0f} ms without kills, {loud.p99 * 1000:.0f} ms with; bound {bound * 1000:.0f} ms")
    return bars(
        {
            "every request has an ending": loud.endings.total() == loud.begun,
            "every failure is UNAVAILABLE": set(loud.endings) <= {"OK", Status.UNAVAILABLE.name},
            "the model was never FAILED": not killer.failed,
            "the survivors' p99 is within the bound": loud.p99 <= bound,
        }
    )


async def send_poison(victim: Victim, seconds: float) -> bool:
    """The second part: one message a second that segfaults."""
    await victim.ready("faulty")
    poison = Ran()
    states: set[str] = set()

    async def poisoner() -> None:
        while True:
            states.update(worker["status"] for worker in await victim.workers("faulty"))
            await victim.ask("faulty", {"data": b"segfault"}, poison)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poisoner)
        good = await victim.open_loop("faulty", {"data": b"echo hello"}, 50, seconds)
        nursery.cancel_scope.cancel()
    print(
        f"a message that segfaults, {poison.begun} times among {good.begun} good ones: {dict(good.endings)}; {states}"
    )
    return bars(
        {
            "the poisoned model was never FAILED": "FAILED" not in states,
            "every good one has an ending": good.endings.total() == good.begun,
            "every failure of a good one is UNAVAILABLE": set(good.endings) <= {"OK", Status.UNAVAILABLE.name},
        }
    )


def bars(held: Mapping[str, bool]) -> bool:
    """Print what holds and what does not; whether all do."""
    for name, well in held.items():
        print(f"  {'PASS' if well else 'FAIL'}  {name}")
    return all(held.values())


async def run(server: Server, seconds: float) -> bool:
    """Both parts."""
    server.wait_listening()
    async with Channel(server.address) as channel:
        victim = Victim(channel)
        first = await kill_workers(victim, seconds)
        return await send_poison(victim, seconds / 2) and first


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the kills")
    options = parser.parse_args()
    with ours("chaos.toml") as server:
        held = trio.run(run, server, options.seconds)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
