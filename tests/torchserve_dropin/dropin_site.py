"""A model store of archives that torch-model-archiver made, a real server in front of it, and plain grpcio to ask."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from actorserve.proto import management_pb2
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

ROOT = Path(__file__).resolve().parents[2]
INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"
PATIENCE_S = 120.0
PACK = """
import json, sys
from model_archiver.model_packaging import generate_model_archive
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    generate_model_archive()
"""
CONFIG = """
[server]
model_store = "store"
cache_dir = "cache"
grace_s = {grace_s}
[listeners.inference]
address = "127.0.0.1:0"
services = ["inference"]
[listeners.management]
address = "127.0.0.1:0"
services = ["management"]
"""


def archive(name: str, handler: str, store: Path, *more: str, version: str = "1.0") -> list[str]:
    """The archiver's command line for one archive; stored, for weights do not shrink."""
    return [
        *("--model-name", name, "--version", version, "--handler", handler, "--export-path", str(store)),
        *("--archive-format", "zip-store", "--force", *more),
    ]


def pack(each: Iterable[Sequence[str]], folder: Path) -> None:
    """Run the archiver in `folder` for each of these command lines, in one process.

    It works in the system's folder for temporary files, under names that another run of it may use.
    """
    env = os.environ | {"TMPDIR": str(folder)}
    command = [sys.executable, "-W", "ignore", "-c", PACK, json.dumps([list(one) for one in each])]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr


def write(folder: Path, files: dict[str, str]) -> None:
    """Text files."""
    for name, text in files.items():
        (folder / name).write_text(textwrap.dedent(text))


def wait_for(condition: Callable[[], Any]) -> Any:
    """Poll until something is true; gives it. Bounded."""
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)
    return found


class Site:
    """A running server, as its clients see it."""

    def __init__(self, folder: Path, inference: str, management: str) -> None:
        self.folder = folder
        self.inference = inference
        self.management = management
        self.channel = grpc.insecure_channel(inference)
        self.manager = grpc.insecure_channel(management)
        self.predictions = self.channel.unary_unary(
            INFERENCE + "Predictions", PredictionsRequest.SerializeToString, PredictionResponse.FromString
        )
        self.streams = self.channel.unary_stream(
            INFERENCE + "StreamPredictions", PredictionsRequest.SerializeToString, PredictionResponse.FromString
        )
        self.conversations = self.channel.stream_stream(
            INFERENCE + "StreamPredictions2", PredictionsRequest.SerializeToString, PredictionResponse.FromString
        )

    def ask(self, model: str, data: str = "", *, version: str = "", **options: Any) -> grpc.Future:
        """Predictions, begun."""
        request = PredictionsRequest(model_name=model, model_version=version, input={"data": data.encode()})
        return self.predictions.future(request, timeout=PATIENCE_S, **options)

    def stream(self, model: str, data: str = "") -> grpc.Call:
        """StreamPredictions, begun: an iterator of messages."""
        return self.streams(PredictionsRequest(model_name=model, input={"data": data.encode()}), timeout=PATIENCE_S)

    def talk(self, *messages: PredictionsRequest) -> list[tuple[str, str]]:
        """StreamPredictions2, half-closed at once: each reply's sequence and its text, or its status."""
        replies = self.conversations(iter(messages), timeout=PATIENCE_S)
        return [
            (one.sequence_id, f"{one.status.code} {one.status.message}" if one.HasField("status") else text_of(one))
            for one in replies
        ]

    def manage_later(self, rpc: str, **fields: Any) -> grpc.Future:
        """One of the management rpcs, begun."""
        call = self.manager.unary_unary(
            MANAGEMENT + rpc,
            getattr(management_pb2, f"{rpc}Request").SerializeToString,
            management_pb2.ManagementResponse.FromString,
        )
        return call.future(getattr(management_pb2, f"{rpc}Request")(**fields), timeout=PATIENCE_S)

    def manage(self, rpc: str, **fields: Any) -> str:
        """One of the management rpcs; gives its text."""
        return self.manage_later(rpc, **fields).result().msg

    def register(self, url: str, *, workers: int = 1, **fields: Any) -> str:
        """RegisterModel, answered once its workers are ready."""
        return self.manage("RegisterModel", url=url, initial_workers=workers, synchronous=True, **fields)

    @contextmanager
    def registered(self, url: str, name: str, **fields: Any) -> Iterator[str]:
        """A model that is there inside the block; gives its name."""
        self.register(url, model_name=name, **fields)
        try:
            yield name
        finally:
            self.manage("UnregisterModel", model_name=name)

    def describe(self, model: str, **fields: Any) -> dict[str, Any]:
        """One version's description."""
        (found,) = json.loads(self.manage("DescribeModel", model_name=model, **fields))
        return found

    def close(self) -> None:
        """No more calls."""
        self.channel.close()
        self.manager.close()


def text_of(answer: PredictionResponse) -> str:
    """An answer's text."""
    return answer.prediction.decode()


def message(model: str, sequence: str, data: str, **inputs: bytes) -> PredictionsRequest:
    """One message of a sequence."""
    return PredictionsRequest(model_name=model, sequence_id=sequence, input={"data": data.encode(), **inputs})


@contextmanager
def served(folder: Path, *, grace_s: float = 30) -> Iterator[Site]:
    """A server with the archives of `folder`/store; it drains at the end, and ends well."""
    (folder / "config.toml").write_text(CONFIG.format(grace_s=grace_s))
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "actorserve", "config.toml"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            addresses = re.findall(r" on (127\.0\.0\.1:\d+)", process.stdout.readline())
            site = Site(folder, *addresses)
            yield site
            site.close()
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(PATIENCE_S) == 0, (folder / "log").read_text()[-4000:]
            assert "Traceback" not in (folder / "log").read_text()
        finally:
            process.kill()
