"""The kill -9 campaign against the registry: `python tests/processes/registry_campaign.py --kills 100`.

A life: start the server on the state of the last one, compare what it has with what was acknowledged, send random
management calls from several tasks at once, SIGKILL the server at a random moment. Kept throughout is a ledger of
what each version may be: every change that was acknowledged, and those that were asked and not answered, which may
be done or not. Each task owns a model, so its calls have an order; the models share the server and its registry.
One more task changes the config file and sends SIGHUP: whatever of that was done, the next server has what it says.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from actorserve.client import Channel
from actorserve.proto import management_pb2
from actorserve.proto.management_grpc import ManagementAPIsServiceStub

sys.path.insert(0, str(Path(__file__).parent))
from serving import free_port

ECHO = "actorserve.handlers.echo:Echo"
MODELS = ("a", "b", "c")
FILED = "filed"
VERSIONS = ("1.0", "2.0")
REFUSALS = (Status.NOT_FOUND, Status.ALREADY_EXISTS, Status.FAILED_PRECONDITION)
LOST = (ConnectionError, StreamTerminatedError, OSError)
Shape = tuple[tuple[tuple[str, int, int], ...], str]  # versions with their workers, and the default


@dataclass
class Ledger:
    """What one model may be: every shape that agrees with all answers so far; versions in order of registration."""

    may: set[Shape] = field(default_factory=lambda: {((), "")})

    def asked(self, change: Any) -> set[Shape]:
        """Before a call: it may be done from now on. What it will be once acknowledged."""
        after = {after for shape in self.may if (after := change(shape)) is not None}
        self.may |= after
        return after

    def check(self, name: str, rpc: str) -> None:
        """The answer of this call can be right."""
        assert self.may, (name, rpc)


def registered(version: str, workers: int) -> Any:
    def change(shape: Shape) -> Shape | None:
        versions, default = shape
        if version in {one[0] for one in versions}:
            return None
        return (*versions, (version, workers, workers)), default or version

    return change


def scaled(version: str, workers: int) -> Any:
    def change(shape: Shape) -> Shape | None:
        versions, default = shape
        if version not in {one[0] for one in versions}:
            return None
        return tuple((one[0], workers, workers) if one[0] == version else one for one in versions), default

    return change


def unregistered(version: str) -> Any:
    def change(shape: Shape) -> Shape | None:
        versions, default = shape
        left = tuple(one for one in versions if one[0] != version)
        if left == versions or (left and default == version):
            return None
        return left, default if left else ""

    return change


def chosen(version: str) -> Any:
    def change(shape: Shape) -> Shape | None:
        versions, _ = shape
        return (versions, version) if version in {one[0] for one in versions} else None

    return change


class Campaign:
    """One state folder, many lives."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.dice = dice
        self.port = free_port()
        self.folder = folder
        self.ledgers = {name: Ledger() for name in MODELS}
        self.filed: Shape = (), ""
        self.acknowledged = self.cut_short = self.reloads = 0
        for version in VERSIONS:
            place = folder / "models" / version
            place.mkdir(parents=True)
            (place / "model.toml").write_text(f'handler = "{ECHO}"\nversion = "{version}"\n')
        self._write()

    def _write(self) -> None:
        """Write the config file, with a model, or without: what is there is a whole file at any time."""
        models = ""
        for version, workers, _ in self.filed[0]:
            models = (
                f'[models.{FILED}]\nhandler = "{ECHO}"\nversion = "{version}"\nworkers = {{ min = {workers} }}\n'
                f"options = {{ delay_s = {self.dice.random() / 1000:.6f} }}\n"
            )
        new = self.folder / "config.new"
        new.write_text(
            '[server]\ngrace_s = 1\n[log]\naccess = false\nformat = "json"\n[listeners.all]\n'
            f'address = "127.0.0.1:{self.port}"\nservices = ["inference", "management"]\n{models}'
        )
        new.replace(self.folder / "config.toml")

    async def _rewrite(self, process: subprocess.Popen[bytes]) -> None:
        """Change the file and have it read, until the server is gone."""
        while True:
            version, workers = self.dice.choice(VERSIONS), self.dice.choice((0, 1, 2))
            self.filed = (((version, workers, workers),), version) if self.dice.random() < 0.8 else ((), "")
            self._write()
            process.send_signal(signal.SIGHUP)
            self.reloads += 1
            await trio.sleep(self.dice.expovariate(1 / 0.1))
            if process.poll() is not None:
                return

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "actorserve", str(self.folder / "config.toml")]
            return subprocess.Popen(command, stdout=log, stderr=log)

    async def life(self, *, kill: bool = True) -> None:
        """Start, compare, and unless this is the last look: change, and kill."""
        process = self.start()
        try:
            with trio.fail_after(120):
                await self._compare(process)
                if kill:
                    async with trio.open_nursery() as nursery:
                        for name in MODELS:
                            nursery.start_soon(self._change, name)
                        nursery.start_soon(self._rewrite, process)
                        await trio.sleep(self.dice.expovariate(1 / 0.25))
                        os.kill(process.pid, signal.SIGKILL)
                        process.wait()
        finally:
            process.kill()
            process.wait()

    async def _compare(self, process: subprocess.Popen[bytes]) -> None:
        while True:
            try:
                async with Channel(f"127.0.0.1:{self.port}") as channel:
                    stub = ManagementAPIsServiceStub(channel)
                    assert await self._shape(stub, FILED) == self.filed
                    for name, ledger in self.ledgers.items():
                        shape = await self._shape(stub, name)
                        order = {(tuple(sorted(versions)), default) for versions, default in ledger.may}
                        assert (tuple(sorted(shape[0])), shape[1]) in order, (name, shape, ledger.may)
                        ledger.may = {one for one in ledger.may if (tuple(sorted(one[0])), one[1]) == shape}
                    return
            except GRPCError as error:
                if error.status is not Status.UNAVAILABLE:
                    raise
                assert process.poll() is None, (self.folder / "log").read_text()
                await trio.sleep(0.02)

    async def _shape(self, stub: ManagementAPIsServiceStub, name: str) -> Shape:
        try:
            request = management_pb2.DescribeModelRequest(model_name=name, model_version="all")
            found = json.loads((await stub.DescribeModel(request)).msg)
            default = json.loads((await stub.DescribeModel(management_pb2.DescribeModelRequest(model_name=name))).msg)
        except GRPCError as error:
            if error.status is not Status.NOT_FOUND:
                raise
            return (), ""
        rows = sorted((one["modelVersion"], one["minWorkers"], one["maxWorkers"]) for one in found)
        return tuple(rows), default[0]["modelVersion"]

    def _draw(self, name: str) -> tuple[str, Any, Any]:
        """A call: its rpc, its request, and what it does to the model's shape."""
        version, synchronous = self.dice.choice(VERSIONS), self.dice.random() < 0.5
        workers = self.dice.choice((1, 1, 2))
        match self.dice.choice(("register", "register", "scale", "unregister", "default")):
            case "register":
                workers -= 1
                request = management_pb2.RegisterModelRequest(
                    url=version, model_name=name, initial_workers=workers, synchronous=synchronous
                )
                return "RegisterModel", request, registered(version, workers)
            case "scale":
                request = management_pb2.ScaleWorkerRequest(
                    model_name=name, model_version=version, min_worker=workers, synchronous=synchronous
                )
                return "ScaleWorker", request, scaled(version, workers)
            case "unregister":
                request = management_pb2.UnregisterModelRequest(model_name=name, model_version=version)
                return "UnregisterModel", request, unregistered(version)
            case _:
                return (
                    "SetDefault",
                    management_pb2.SetDefaultRequest(model_name=name, model_version=version),
                    chosen(version),
                )

    async def _change(self, name: str) -> None:
        """Change one model until the server is gone."""
        ledger = self.ledgers[name]
        try:
            async with Channel(f"127.0.0.1:{self.port}") as channel:
                stub = ManagementAPIsServiceStub(channel)
                while True:
                    rpc, request, change = self._draw(name)
                    before = set(ledger.may)
                    after = ledger.asked(change)
                    try:
                        await getattr(stub, rpc)(request)
                    except GRPCError as error:
                        if error.status is Status.UNAVAILABLE:  # the connection is gone: done or not done
                            self.cut_short += 1
                            return
                        if error.status not in REFUSALS:
                            raise
                        ledger.may = {shape for shape in before if change(shape) is None}
                        ledger.check(name, rpc)
                    else:
                        self.acknowledged += 1
                        ledger.may = after
                        ledger.check(name, rpc)
        except LOST:
            self.cut_short += 1


async def campaign(folder: Path, kills: int, seed: int) -> Campaign:
    """That many lives that end by SIGKILL, then a last look."""
    one = Campaign(folder, random.Random(seed))  # noqa: S311  # no secret
    for _ in range(kills):
        await one.life()
    await one.life(kill=False)
    return one


def main() -> None:
    """The long form."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one = trio.run(campaign, Path(folder), options.kills, options.seed)
    counts = f"{one.acknowledged} acknowledged, {one.cut_short} cut short, {one.reloads} reloads"
    print(f"{options.kills} kills: {counts}, none lost, no ghost")


if __name__ == "__main__":
    main()
