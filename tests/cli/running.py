"""`python -m actorserve` as a person runs it: a subprocess, what it prints, its exit code. Every wait is bounded.

What must not live here: anything that knows the server's insides.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import grpc
from google.protobuf import empty_pb2

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse

PATIENCE_S = 60.0
SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
LISTENER = """
[listeners.inference]
address = "127.0.0.1:0"
services = ["inference", "management"]
"""

HANDLERS = '''
class Gate:
    """Loads, or answers, once somebody writes into a FIFO: the test decides when."""

    def load(self, context):
        self.fifos = context.options
        if "load" in self.fifos:
            open(self.fifos["load"]).read()

    def infer(self, batch):
        if "started" in self.fifos:
            open(self.fifos["started"], "w").close()
        if "infer" in self.fifos:
            open(self.fifos["infer"]).read()
        return [request.inputs["data"] for request in batch]


class Nothing:
    pass


class NoWeights(Gate):
    def load(self, context):
        open(context.model_dir / "weights.safetensors")


class TwoLines(Gate):
    def load(self, context):
        raise ValueError("the first line\\nthe second line")


class Needs(Gate):
    def __init__(self, something):
        pass
'''


class Running:
    """A server that runs: what it has printed so far, by stream."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: dict[str, list[str]] = {"out": [], "err": []}
        self._ended = {"out": False, "err": False}
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=("out", process.stdout)),
            threading.Thread(target=self._read, args=("err", process.stderr)),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self.lines[name].append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended[name] = True
            self._changed.notify_all()

    def text(self, name: str = "out") -> str:
        """Everything that one stream has had."""
        return "".join(self.lines[name])

    def wait_for(self, pattern: str, name: str = "out") -> re.Match[str]:
        """Wait for a pattern in what a stream has had; its end without, or a minute, fails."""

        def found() -> bool:
            return re.search(pattern, self.text(name)) is not None or self._ended[name]

        with self._changed:
            self._changed.wait_for(found, PATIENCE_S)
            match = re.search(pattern, self.text(name))
        assert match is not None, f"no {pattern!r} in\n{self.text('out')}\n{self.text('err')}"
        return match

    def address(self) -> str:
        """Where it listens, from its first line."""
        return self.wait_for(r"^actorserve .* on (127\.0\.0\.1:\d+)")[1]

    def wait_ready(self) -> None:
        """Wait for the last line of the screen."""
        self.wait_for(r"Ctrl-C drains")

    def wait_end(self) -> int:
        """Wait for its end; gives the exit code, once everything it has printed is here."""
        code = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return code


@contextmanager
def running(
    *arguments: str, folder: Path, start: Sequence[str] = ("-m", "actorserve"), env: dict[str, str] | None = None
) -> Iterator[Running]:
    """`python -m actorserve ARGUMENTS` in a folder; killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, *start, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    ) as process:
        server = Running(process)
        try:
            yield server
        finally:
            process.kill()
            server.wait_end()


def configured(folder: Path, models: str, rest: str = "") -> str:
    """Write a config file and the handlers of this module beside it; gives the file's name."""
    (folder / "mine.py").write_text(HANDLERS)
    (folder / "config.toml").write_text(rest + LISTENER + models)
    return "config.toml"


def ping(channel: grpc.Channel) -> str:
    """Ping; gives the health."""
    call = channel.unary_unary(
        f"{SERVICE}/Ping",
        request_serializer=empty_pb2.Empty.SerializeToString,
        response_deserializer=TorchServeHealthResponse.FromString,
    )
    return call(empty_pb2.Empty(), timeout=PATIENCE_S).health


def predict(channel: grpc.Channel, model: str, data: bytes = b"hello") -> grpc.Future:
    """Begin Predictions."""
    call = channel.unary_unary(
        f"{SERVICE}/Predictions",
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    request = PredictionsRequest(model_name=model, input={"data": data})
    return call.future(request, timeout=PATIENCE_S, metadata=(("x-request-id", "the-id"),))
