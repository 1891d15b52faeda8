"""A campaign of faults against a real server with real workers: seeded lives of a model each, and the rules of each.

`python tests/campaign/real_lives.py [--lives 200] [--first 0]` is the long form (`just campaign`); the suite runs a
short one. A life registers a model, asks it from many sides, meanwhile kills, stops and breaks what it can, then
looks whether everything has come to rest, and unregisters it. Several lives share one server, which must outlive all.

The rules: every call ends once, with a status of contracts §5, within its deadline + 1 s; at rest every worker is
READY, or FAILED with a reason; afterwards no process of the model and no descriptor of the server is left.
"""

# ruff: noqa: S311, ASYNC109, ASYNC240, PT017  # dice, not secrets; a call's timeout; /proc does not block; checks in an except

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from actorserve.client import Channel
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.proto.management_pb2 import DescribeModelRequest, RegisterModelRequest, UnregisterModelRequest
from actorserve.testing import descendants

HANDLER = Path(__file__).parent / "campaign_handler.py"
AT_ONCE = 4
SERVER_LIMIT_S = 6.0  # request_timeout_s: the deadline of a call that brings none
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
COMMANDS = ["echo hello"] * 14 + ["sleep 0.1", "sleep 0.5", "raise", "segfault", "exit", "memory", "hang"]
LOADS: tuple[dict[str, Any], ...] = (
    *({},) * 10,
    {"load_s": 1.0},
    {"load_s": 30.0},  # longer than startup_timeout_s
    {"weights": "corrupt.safetensors"},
    {"weights": "missing.safetensors"},
    {"dies_loading": True},
)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Victim:
    """The server's process."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.store.mkdir()
        self.port = free_port()
        self._log = folder / "log"
        config = folder / "config.toml"
        config.write_text(
            f'[server]\nmodel_store = "{self.store}"\ngrace_s = 5\n[log]\naccess = false\nformat = "json"\n'
            f'[listeners.all]\naddress = "127.0.0.1:{self.port}"\nservices = ["inference", "management"]\n'
            f"request_timeout_s = {SERVER_LIMIT_S}\n[models.steady]\n"
            'handler = "actorserve.handlers.echo:Echo"\n'
        )
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen([sys.executable, "-m", "actorserve", str(config)], stdout=log, stderr=log)

    def descriptors(self) -> int:
        """How many the server has open."""
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def forkserver(self) -> int | None:
        """The forkserver's pid, if it runs: the one child that leads a session."""
        leaders = [pid for pid in descendants(self.popen.pid) if is_leader(pid)]
        return leaders[0] if leaders else None

    def log(self) -> str:
        """What the server has said."""
        return self._log.read_text(errors="replace")

    def stop(self) -> int:
        """Drain it; its exit status."""
        self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


def is_leader(pid: int) -> bool:
    """Whether a process leads its session; False if it has gone."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def send(pid: int | None, number: int) -> None:
    """Signal a process that may have gone."""
    if pid is not None and pid > 0:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass
class Campaign:
    """What the lives share."""

    victim: Victim
    inference: InferenceAPIsServiceStub
    management: ManagementAPIsServiceStub
    kinds: Counter[str]

    async def workers(self, model: str) -> list[dict[str, Any]]:
        """The workers as DescribeModel shows them."""
        reply = await self.management.DescribeModel(DescribeModelRequest(model_name=model), timeout=10)
        (version,) = json.loads(reply.msg)
        found: list[dict[str, Any]] = version["workers"]
        return found


class Life:
    """One model, from its registration to its end."""

    def __init__(self, seed: int, campaign: Campaign) -> None:
        self.dice = random.Random(seed)
        self.campaign = campaign
        self.name = f"life-{seed}"
        self.workers = self.dice.choice([1, 1, 2])
        self.calls = self.dice.choice([6, 15, 30])
        self.endings: Counter[int] = Counter()

    def write_folder(self) -> None:
        """The model's folder in the store."""
        folder = self.campaign.victim.store / self.name
        folder.mkdir()
        shutil.copy(HANDLER, folder)
        (folder / "corrupt.safetensors").write_bytes(bytes(self.dice.randrange(256) for _ in range(200)))
        load = self.dice.choice(LOADS)
        options = "\n".join(f"{key} = {json.dumps(value)}" for key, value in load.items())
        restarts = self.dice.choice([0, 2] if load else [0, 5, 20, 20])  # so that a load that never ends well gives up
        (folder / "model.toml").write_text(
            'handler = "campaign_handler:Faulty"\nresponse_timeout_s = 1.5\nstartup_timeout_s = 4\n'
            f"max_restarts = {restarts}\nqueue_size = {self.dice.choice([4, 100])}\n"
            f"batch_size = {self.dice.choice([1, 4, 16])}\n[options]\n{options}\n"
        )

    async def run(self) -> None:
        """Live; AssertionError where a rule is broken."""
        self.write_folder()
        request = RegisterModelRequest(url=self.name, model_name=self.name, initial_workers=self.workers)
        await self.campaign.management.RegisterModel(request, timeout=20)
        async with trio.open_nursery() as nursery:
            for number in range(self.calls):
                nursery.start_soon(self.caller, number)
            nursery.start_soon(self.enemy)
        assert self.endings == Counter(range(self.calls))
        await self.come_to_rest()
        pids = [worker["pid"] for worker in await self.campaign.workers(self.name)]
        await self.campaign.management.UnregisterModel(UnregisterModelRequest(model_name=self.name), timeout=30)
        with trio.fail_after(10):
            while any(pid > 0 and Path(f"/proc/{pid}").exists() for pid in pids):
                await trio.sleep(0.05)

    async def caller(self, number: int) -> None:
        """One call, with or without a deadline, perhaps given up half-way."""
        dice = self.dice
        await trio.sleep(dice.uniform(0, 3))
        timeout = dice.choice([None, None, dice.uniform(0.05, 1), dice.uniform(1, 4)])
        patience = dice.choice([math.inf, math.inf, math.inf, dice.uniform(0, 2)])
        streams, command = dice.random() < 0.3, dice.choice(COMMANDS)
        count, pause = dice.choice([0, 3, 60]), dice.choice([0.0, 0.0, 0.05])
        began = trio.current_time()
        kind = "left"
        with trio.move_on_after(patience):
            kind = await (self.stream(count, pause, timeout) if streams else self.ask(command, timeout))
        took = trio.current_time() - began
        self.endings[number] += 1
        self.campaign.kinds[kind] += 1
        bound = min(SERVER_LIMIT_S if timeout is None else timeout, patience)
        assert took <= bound + 1, f"{self.name}: {command} took {took:.2f} s of {bound:.2f} s: {kind}"

    async def ask(self, command: str, timeout: float | None) -> str:
        """A unary call; the name of its status."""
        request = PredictionsRequest(model_name=self.name, input={"data": command.encode()})
        try:
            reply = await self.campaign.inference.Predictions(request, timeout=timeout)
        except GRPCError as error:
            assert error.status in EXPECTED, f"{self.name}: {command}: {error.status} {error.message}"
            return str(error.status.name)
        assert reply.prediction.decode() == command.partition(" ")[2], f"{self.name}: {command}: {reply.prediction!r}"
        return "OK"

    async def stream(self, count: int, pause: float, timeout: float | None) -> str:
        """A stream that is read; the name of its status."""
        request = PredictionsRequest(model_name=self.name, input={"count": str(count).encode()})
        read = 0
        try:
            async with self.campaign.inference.StreamPredictions.open(timeout=timeout) as stream:
                await stream.send_message(request, end=True)
                async for reply in stream:
                    assert reply.prediction == str(read).encode(), f"{self.name}: chunk {read}: {reply.prediction!r}"
                    read += 1
                    await trio.sleep(pause)
        except (GRPCError, StreamTerminatedError) as error:
            status = getattr(error, "status", Status.UNAVAILABLE)
            assert status in EXPECTED, f"{self.name}: stream: {error}"
            return str(status.name)
        assert read == count, f"{self.name}: {read} chunks of {count}"
        return "OK"

    async def enemy(self) -> None:
        """Kill and stop processes at random moments."""
        dice = self.dice
        for _ in range(dice.randrange(4)):
            await trio.sleep(dice.uniform(0, 1.5))
            if dice.random() < 0.1:
                send(self.campaign.victim.forkserver(), signal.SIGKILL)
                continue
            alive = [worker["pid"] for worker in await self.campaign.workers(self.name) if worker["pid"] > 0]
            if alive:
                send(dice.choice(alive), dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP]))

    async def come_to_rest(self) -> None:
        """Every worker READY, or FAILED with a reason. A worker that was stopped is found by asking it something."""
        workers: list[dict[str, Any]] = []
        with trio.move_on_after(REST_S):
            while True:
                workers = await self.campaign.workers(self.name)
                states = {worker["status"] for worker in workers}
                if states == {"FAILED"}:
                    break
                if states <= {"READY", "FAILED"} and await self.ask("echo rest", 2.0) == "OK":
                    break
                await trio.sleep(0.2)
        states = {worker["status"] for worker in workers}
        assert states, f"{self.name}: no workers"
        assert states <= {"READY", "FAILED"}, f"{self.name} is not at rest: {workers}"
        assert all(worker["status"] == "READY" or worker.get("reason") for worker in workers), workers


@asynccontextmanager
async def campaign() -> AsyncIterator[Campaign]:
    """A server to break; it must drain well afterwards, and its log must hold no traceback."""
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim(Path(folder))
        try:
            async with Channel(f"127.0.0.1:{victim.port}") as channel:
                inference, management = InferenceAPIsServiceStub(channel), ManagementAPIsServiceStub(channel)
                one = Campaign(victim, inference, management, Counter())
                await warm(one)
                before = victim.descriptors()
                yield one
                await nothing_left(victim, before)
        finally:
            status = victim.stop()
        assert status == 0, victim.log()[-4000:]
        assert "Traceback" not in victim.log(), victim.log()[-8000:]


async def warm(one: Campaign) -> None:
    """Wait until the server forks and answers."""
    with trio.fail_after(60):
        while True:
            with suppress(GRPCError):
                await one.inference.Predictions(
                    PredictionsRequest(model_name="steady", input={"data": b"x"}), timeout=9
                )
                return
            await trio.sleep(0.1)


async def nothing_left(victim: Victim, descriptors: int) -> None:
    """Only the forkserver and the steady model's worker may be there, and no more descriptors than before."""
    with trio.move_on_after(15):
        while len(descendants(victim.popen.pid)) > 2 or victim.descriptors() > descriptors:
            await trio.sleep(0.1)
    assert len(descendants(victim.popen.pid)) <= 2, descendants(victim.popen.pid)
    assert victim.descriptors() <= descriptors, f"{victim.descriptors()} descriptors, {descriptors} before"
    assert victim.popen.poll() is None


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
