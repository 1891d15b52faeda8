"""A real server to break: its process, the models that it always has, and what must be left of it in the end.

What must not live here: what is done to it (real_lives.py).
"""

# /proc does not block

from __future__ import annotations

import json
import os
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
from grpclib.exceptions import GRPCError

from actorserve.client import Channel
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.proto.management_pb2 import DescribeModelRequest
from actorserve.testing import descendants

HANDLER = Path(__file__).parent / "campaign_handler.py"
SERVER_LIMIT_S = 6.0  # request_timeout_s: the deadline of a call that brings none
LIMITS = "response_timeout_s = 1.5\nstartup_timeout_s = 4\nsequence_idle_timeout_s = 1\n"
THREADED, APART = "threaded", "apart"  # a model in a thread of the server; one with a forkserver of its own
MODELS = f"""
[models.steady]
handler = "actorserve.handlers.echo:Echo"
[models.{THREADED}]
source = "guests"
handler = "campaign_handler:Stateful"
isolation = "thread"
max_restarts = 1000
{LIMITS}
[models.{APART}]
source = "guests"
handler = "campaign_handler:Stateful"
env = {{ CAMPAIGN = "{APART}", MALLOC_ARENA_MAX = "1" }}
workers = {{ min = 2 }}
max_restarts = 1000
max_requests_per_worker = 50
{LIMITS}
"""


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
            f"request_timeout_s = {SERVER_LIMIT_S}\n{MODELS}"
        )
        (folder / "guests").mkdir()
        shutil.copy(HANDLER, folder / "guests")
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen([sys.executable, "-m", "actorserve", str(config)], stdout=log, stderr=log)

    def descriptors(self) -> int:
        """How many the server has open."""
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def forkservers(self) -> list[int]:
        """Those that run: the children that lead a session."""
        return [pid for pid in descendants(self.popen.pid) if is_leader(pid)]

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

    async def warm(self, model: str) -> None:
        """Wait until a model of the config answers, and every worker of it is READY."""
        request = PredictionsRequest(model_name=model, input={"data": b"echo x"})
        with trio.fail_after(60):
            while True:
                with suppress(GRPCError):
                    await self.inference.Predictions(request, timeout=9)
                    if {worker["status"] for worker in await self.workers(model)} == {"READY"}:
                        return
                await trio.sleep(0.1)


@asynccontextmanager
async def campaign() -> AsyncIterator[Campaign]:
    """A server to break; it must drain well afterwards, and its log must hold no traceback."""
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim(Path(folder))
        try:
            async with Channel(f"127.0.0.1:{victim.port}") as channel:
                inference, management = InferenceAPIsServiceStub(channel), ManagementAPIsServiceStub(channel)
                one = Campaign(victim, inference, management, Counter())
                for model in ("steady", THREADED, APART):
                    await one.warm(model)
                before = len(descendants(victim.popen.pid)), victim.descriptors()
                yield one
                await nothing_left(victim, *before)
        finally:
            status = victim.stop()
        log = victim.log()
        assert status == 0, log[-4000:]
        for word in ("Traceback", "BROKEN", "bug in the server"):
            assert word not in log, log[max(0, log.index(word) - 2000) :][:8000]


async def nothing_left(victim: Victim, processes: int, descriptors: int) -> None:
    """No more processes and descriptors than before."""
    with trio.move_on_after(15):
        while len(descendants(victim.popen.pid)) > processes or victim.descriptors() > descriptors:
            await trio.sleep(0.1)
    assert len(descendants(victim.popen.pid)) <= processes, descendants(victim.popen.pid)
    assert victim.descriptors() <= descriptors, f"{victim.descriptors()} descriptors, {descriptors} before"
    assert victim.popen.poll() is None
