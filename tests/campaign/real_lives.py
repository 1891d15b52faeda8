"""A campaign of faults against a real server with real workers: seeded lives of a model each, and the rules of each.

`python tests/campaign/real_lives.py [--lives 200] [--first 0]` is the long form (`just campaign`); the suite runs a
short one. A life registers a model, or is the guest of one of the config's, asks it from many sides, meanwhile
kills, stops, scales and breaks what it can, then looks whether everything has come to rest, and unregisters it.
Several lives share one server (real_server.py), which must outlive all.

The rules: every call ends once, with a status of contracts §5, within its deadline + 1 s; each message of a
StreamPredictions2 has one reply, in the order of its sequence; at rest every worker is READY, or FAILED with a
reason, or there is none where none is wanted; afterwards no process of the model and no descriptor of the server is
left.
Over 250 lines: a life is read from its birth to its end.
"""

# ruff: noqa: S311, ASYNC109, ASYNC240, PT017  # dice, not secrets; a call's timeout; /proc does not block; checks in an except

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from real_server import APART, HANDLER, LIMITS, SERVER_LIMIT_S, THREADED, Campaign, campaign, send

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.proto.management_pb2 import RegisterModelRequest, ScaleWorkerRequest, UnregisterModelRequest

AT_ONCE = 4
REST_S = 60.0
EXPECTED = frozenset(
    (
        Status.OK,
        Status.UNAVAILABLE,
        Status.DEADLINE_EXCEEDED,
        Status.INTERNAL,  # the handler raised
        Status.RESOURCE_EXHAUSTED,  # the queue was full
    )
)
IN_BAND = EXPECTED | {Status.NOT_FOUND, Status.INVALID_ARGUMENT}  # the sequence has ended; the item was bad
HARMLESS = ["echo hello"] * 24 + ["sleep 0.1", "sleep 0.5", "raise"]
IN_A_THREAD = [*HARMLESS, "hang 2", "hang 4"]  # one that cannot be killed returns in time, or is given up
IN_A_PROCESS = [*HARMLESS, "where", "grow 40", "segfault", "exit", "memory", "hang 600"]
LOADS: tuple[dict[str, Any], ...] = (
    *({},) * 20,
    {"load_s": 1.0},
    {"load_s": 30.0},  # longer than startup_timeout_s
    {"weights": "corrupt.safetensors"},
    {"weights": "missing.safetensors"},
    {"dies_loading": True},
)


class Life:
    """One model, from its registration to its end; or one of the config's for a while."""

    def __init__(self, seed: int, campaign: Campaign) -> None:
        self.dice = random.Random(seed)
        self.campaign = campaign
        self.guest = self.dice.choice(["", "", "", "", THREADED, APART])
        self.name = self.guest or f"life-{seed}"
        self.commands = IN_A_THREAD if self.guest == THREADED else IN_A_PROCESS
        self.least = self.dice.choice([0, 1, 1, 2])
        self.most = self.least + self.dice.choice([0, 1, 2] if self.least else [1, 2])
        self.calls = self.dice.choice([6, 15, 30])
        self.endings: Counter[int] = Counter()

    def write_folder(self) -> None:
        """The model's folder in the store."""
        dice = self.dice
        folder = self.campaign.victim.store / self.name
        folder.mkdir()
        shutil.copy(HANDLER, folder)
        (folder / "corrupt.safetensors").write_bytes(bytes(dice.randrange(256) for _ in range(200)))
        load = dice.choice(LOADS)
        options = "\n".join(f"{key} = {json.dumps(value)}" for key, value in load.items())
        restarts = dice.choice([0, 2] if load else [0, 5, 20, 20])  # so that a load that never ends well gives up
        weight = dice.choice(['"count"', '"count"', '"bytes"\nmax_batch_weight = 64'])
        restart = dice.choice([*["transient"] * 4, "permanent", "permanent", "temporary"])
        replaces = restart != "temporary"
        (folder / "model.toml").write_text(
            f'handler = "campaign_handler:{dice.choice(["Faulty", "Stateful"])}"\n{LIMITS}'
            f"workers = {{ min = {self.least}, max = {self.most} }}\ntarget_ongoing_requests = 1\n"
            f"upscale_delay_s = {dice.choice([0, 0.3])}\ndownscale_delay_s = {dice.choice([0.5, 1.5])}\n"
            f'restart = "{restart}"\nmax_requests_per_worker = {dice.choice([0, 0, 3, 20]) * replaces}\n'
            f"max_worker_memory_mb = {dice.choice([0, 100]) * replaces}\n"
            f'tenant_key = "{dice.choice(["", "who"])}"\nweight = {weight}\nmax_sequences = {dice.choice([2, 100])}\n'
            f"max_restarts = {restarts}\nqueue_size = {dice.choice([4, 100])}\n"
            f'batch_size = {dice.choice([1, 4, 16])}\nenv = {{ CAMPAIGN = "{self.name}" }}\n[options]\n{options}\n'
        )

    async def run(self) -> None:
        """Live; AssertionError where a rule is broken."""
        if not self.guest:
            self.write_folder()
            request = RegisterModelRequest(url=self.name, model_name=self.name)
            await self.campaign.management.RegisterModel(request, timeout=20)
        async with trio.open_nursery() as nursery:
            for number in range(self.calls):
                nursery.start_soon(self.caller, number)
            nursery.start_soon(self.enemy)
        assert self.endings == Counter(range(self.calls))
        if self.guest:
            await self.leave()
            return
        await self.come_to_rest()
        pids = [worker["pid"] for worker in await self.campaign.workers(self.name)]
        await self.campaign.management.UnregisterModel(UnregisterModelRequest(model_name=self.name), timeout=30)
        with trio.fail_after(10):
            while any(pid > 0 and Path(f"/proc/{pid}").exists() for pid in pids):
                await trio.sleep(0.05)

    # --- callers ------------------------------------------------------------------------------

    async def caller(self, number: int) -> None:
        """One call, with or without a deadline, perhaps given up half-way."""
        dice = self.dice
        await trio.sleep(dice.uniform(0, 3))
        timeout = dice.choice([None, None, dice.uniform(0.05, 1), dice.uniform(1, 4)])
        patience = dice.choice([math.inf, math.inf, math.inf, dice.uniform(0, 2)])
        call = dice.choice([self.ask, self.ask, self.stream, self.converse])
        began = trio.current_time()
        kind = "left"
        with trio.move_on_after(patience):
            kind = await call(timeout)
        took = trio.current_time() - began
        self.endings[number] += 1
        self.campaign.kinds[kind] += 1
        bound = min(SERVER_LIMIT_S if timeout is None else timeout, patience)
        assert took <= bound + 1, f"{self.name}: {call.__name__} took {took:.2f} s of {bound:.2f} s: {kind}"

    def claims(self) -> dict[str, str]:
        """A call's metadata."""
        return {"who": self.dice.choice("abc"), "priority": self.dice.choice("0059")}

    def expected(self, command: str) -> str:
        """What a command that does not fail answers."""
        return self.name if command == "where" else command.partition(" ")[2]

    async def ask(self, timeout: float | None, command: str = "") -> str:
        """A unary call; the name of its status."""
        command = command or self.dice.choice(self.commands)
        request = PredictionsRequest(model_name=self.name, input={"data": command.encode()})
        try:
            reply = await self.campaign.inference.Predictions(request, timeout=timeout, metadata=self.claims())
        except GRPCError as error:
            assert error.status in EXPECTED, f"{self.name}: {command}: {error.status} {error.message}"
            return str(error.status.name)
        assert reply.prediction.decode() == self.expected(command), f"{self.name}: {command}: {reply.prediction!r}"
        return "OK"

    async def stream(self, timeout: float | None) -> str:
        """A stream that is read; the name of its status."""
        count, pause = self.dice.choice([0, 3, 60]), self.dice.choice([0.0, 0.0, 0.05])
        request = PredictionsRequest(model_name=self.name, input={"count": str(count).encode()})
        read = 0
        try:
            async with self.campaign.inference.StreamPredictions.open(
                timeout=timeout, metadata=self.claims()
            ) as stream:
                await stream.send_message(request, end=True)
                async for reply in stream:
                    assert reply.prediction == str(read).encode(), f"{self.name}: chunk {read}: {reply.prediction!r}"
                    read += 1
                    await trio.sleep(pause)
        except (GRPCError, StreamTerminatedError) as error:
            return self.status_of(error)
        assert read == count, f"{self.name}: {read} chunks of {count}"
        return "OK"

    def status_of(self, error: GRPCError | StreamTerminatedError) -> str:
        """The name of a stream's status."""
        status = getattr(error, "status", Status.UNAVAILABLE)
        assert status in EXPECTED, f"{self.name}: stream: {error}"
        return str(status.name)

    # --- StreamPredictions2 -------------------------------------------------------------------

    async def converse(self, timeout: float | None) -> str:
        """Some sequences in one call; the name of its status, each reply's is counted as well."""
        sent: dict[str, list[str]] = {"": [], "a": [], "b": []}
        heard: Counter[str] = Counter()
        failure: GRPCError | StreamTerminatedError | None = None
        async with trio.open_nursery() as nursery:
            try:
                async with self.campaign.inference.StreamPredictions2.open(
                    timeout=timeout, metadata=self.claims()
                ) as stream:
                    await stream.send_request()
                    nursery.start_soon(self.say, stream, sent)
                    async for reply in stream:
                        self.hear(reply, sent, heard)
            except (GRPCError, StreamTerminatedError) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            return f"conversation {self.status_of(failure)}"
        assert heard == Counter({id: len(messages) for id, messages in sent.items()}), f"{self.name}: {sent} {heard}"
        return "conversation OK"

    async def say(self, stream: Any, sent: dict[str, list[str]]) -> None:
        """Messages at random moments; then the half-close, or silence until the sequences expire."""
        dice = self.dice
        ids = dice.choice([[""], ["a"], ["", "a", "b"]])
        try:
            for number in range(dice.choice([0, 1, 5, 20])):
                await trio.sleep(dice.choice([0, 0, 0.01, 0.3]))
                id, command = dice.choice(ids), dice.choice([f"echo {number}"] * 30 + ["bad x", *self.commands])
                command = command if " " in command else f"{command} x"
                sent[id].append(command)
                request = PredictionsRequest(model_name=self.name, input={"data": command.encode()})
                if id:
                    request.sequence_id = id
                await stream.send_message(request)
            if dice.random() < 0.8:
                await stream.end()
        except (GRPCError, StreamTerminatedError):
            return  # who reads is told the same

    def hear(self, reply: PredictionResponse, sent: dict[str, list[str]], heard: Counter[str]) -> None:
        """The reply to the next message of its sequence."""
        id = reply.sequence_id if reply.sequence_id in sent else ""
        assert heard[id] < len(sent[id]), f"{self.name}: more replies than messages: {reply}"
        command = sent[id][heard[id]]
        heard[id] += 1
        if reply.HasField("status"):
            status = Status(reply.status.code)
            assert status in IN_BAND, f"{self.name}: {command}: {reply}"
            self.campaign.kinds[f"in-band {status.name}"] += 1
            return
        said, wanted = reply.prediction.decode(), self.expected(command.removesuffix(" x"))
        assert said in (wanted, command.partition(" ")[2] if wanted != self.name else wanted), f"{command}: {said!r}"
        self.campaign.kinds["in-band OK"] += 1

    # --- who means harm ------------------------------------------------------------------------

    async def enemy(self) -> None:
        """Kill, stop and scale at random moments. A worker that is a thread can only be scaled."""
        dice = self.dice
        for _ in range(dice.randrange(4)):
            await trio.sleep(dice.uniform(0, 1.5))
            if dice.random() < 0.15:
                send(dice.choice([None, *self.campaign.victim.forkservers()]), signal.SIGKILL)
                continue
            if not self.guest and dice.random() < 0.2:
                await self.scale(dice.choice([1, 2]), 2)
                continue
            alive = [worker["pid"] for worker in await self.campaign.workers(self.name) if worker["pid"] > 0]
            if alive and self.guest != THREADED:
                send(dice.choice(alive), dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP]))

    async def scale(self, least: int, most: int) -> None:
        """ScaleWorker, which starts FAILED workers anew."""
        self.least = least
        request = ScaleWorkerRequest(model_name=self.name, min_worker=least, max_worker=most)
        await self.campaign.management.ScaleWorker(request, timeout=10)

    # --- in the end ----------------------------------------------------------------------------

    async def come_to_rest(self) -> None:
        """Every worker READY, or FAILED with a reason. A worker that was stopped is found by asking it something."""
        workers = await self.wait_for(self.is_at_rest)
        if self.least == 0 and {worker["status"] for worker in workers} == {"READY"}:
            await self.wait_for(self.has_none)
        assert all(worker["status"] == "READY" or worker.get("reason") for worker in workers), workers

    async def wait_for(self, condition: Callable[..., Any]) -> list[dict[str, Any]]:
        """Wait until the workers are as they should be; gives them."""
        workers: list[dict[str, Any]] = []
        with trio.move_on_after(REST_S):
            while True:
                workers = await self.campaign.workers(self.name)
                if await condition(workers):
                    return workers
                await trio.sleep(0.2)
        raise AssertionError(f"{self.name} is not at rest ({condition.__name__}): {workers}")

    async def is_at_rest(self, workers: list[dict[str, Any]]) -> bool:
        """READY and answering, or FAILED."""
        states = {worker["status"] for worker in workers}
        if states == {"FAILED"}:
            return True
        if not states and self.least:
            return False
        return states <= {"READY", "FAILED"} and await self.ask(2.0, "echo rest") == "OK"

    async def has_none(self, workers: list[dict[str, Any]]) -> bool:
        """Scaled to zero, or FAILED on the way."""
        return not workers or any(worker["status"] == "FAILED" for worker in workers)

    async def leave(self) -> None:
        """A model of the config is as it was; one that was given up is started anew."""
        workers = await self.wait_for(self.is_at_rest)
        if any(worker["status"] == "FAILED" for worker in workers):
            assert all(worker["status"] == "READY" or worker.get("reason") for worker in workers), workers
            count = len(workers)
            await self.scale(count, count)
            await self.campaign.warm(self.name)


async def run(lives: int, first: int = 0) -> Counter[str]:
    """So many lives, a few at once; how often calls ended with each status."""
    async with campaign() as one:
        seeds = iter(range(first, first + lives))

        async def series() -> None:
            for seed in seeds:
                try:
                    await Life(seed, one).run()
                except BaseException as error:
                    error.add_note(f"seed {seed}")
                    raise

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(series)
        return one.kinds


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lives", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    kinds = trio.run(run, options.lives, options.first)
    print(f"{options.lives} lives, {kinds.total()} calls, each ended once: {dict(kinds.most_common())}")


if __name__ == "__main__":
    main()
