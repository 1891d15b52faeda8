"""A server in a process of its own, and plain grpcio to call it with."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.proto.management_pb2 import DescribeModelRequest, ManagementResponse
from actorserve.testing import descendants, is_alive

HERE = Path(__file__).parent
INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"
SECRET = "a-secret-that-no-worker-may-see"  # noqa: S105  # bait


def free_port() -> int:
    """One below those that the system gives to clients: none of them takes it before the server has it."""
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311  # a port, no secret
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(condition: Callable[[], Any], within: float = 30.0) -> Any:
    """Poll until something is true; gives it."""
    end = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.02)


class Serving:
    """`python -m actorserve` with these models (TOML text), until `close`."""

    def __init__(
        self, folder: Path, models: str, environment: dict[str, str] | None = None, *, server: str = ""
    ) -> None:
        """`server`: further keys of its table."""
        ports = free_port(), free_port()
        self.port = ports[0]
        self.log_file = folder / "log.jsonl"
        self.config = config = folder / "config.toml"
        self.tables = (
            f'[server]\ngrace_s = 2\n{server}\n[log]\nformat = "json"\nlevel = "debug"\n'
            f'[listeners.inference]\naddress = "127.0.0.1:{ports[0]}"\nservices = ["inference"]\n'
            f'[listeners.management]\naddress = "127.0.0.1:{ports[1]}"\nservices = ["management"]\n'
        )
        config.write_text(self.tables + models)
        with self.log_file.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "actorserve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "A_SECRET": SECRET, **(environment or {})},
            )
        self.channels = [grpc.insecure_channel(f"127.0.0.1:{port}") for port in ports]
        self.predictions = self.channels[0].unary_unary(
            INFERENCE + "Predictions", PredictionsRequest.SerializeToString, PredictionResponse.FromString
        )
        self.streams = self.channels[0].unary_stream(
            INFERENCE + "StreamPredictions", PredictionsRequest.SerializeToString, PredictionResponse.FromString
        )
        self.describes = self.channels[1].unary_unary(
            MANAGEMENT + "DescribeModel", DescribeModelRequest.SerializeToString, ManagementResponse.FromString
        )

    def ask(self, model: str, command: str = "json", **given: Any) -> Any:
        """One answer, as JSON where it is."""
        call = {"timeout": 30.0, "wait_for_ready": True, **given}
        reply = self.predictions(PredictionsRequest(model_name=model, input={"data": command.encode()}), **call)
        try:
            return json.loads(reply.prediction)
        except ValueError:
            return reply.prediction.decode()

    def ask_later(self, model: str, command: str, **given: Any) -> grpc.Future:
        """The same, not waited for."""
        call = {"timeout": 30.0, **given}
        return self.predictions.future(PredictionsRequest(model_name=model, input={"data": command.encode()}), **call)

    def stream(self, model: str, **inputs: str) -> Any:
        """A stream that is read by iterating."""
        data = {key: value.encode() for key, value in inputs.items()}
        return self.streams(PredictionsRequest(model_name=model, input=data), timeout=60)

    def hang_up(self, models: str) -> None:
        """Write the config file with these models, and have the server read it."""
        self.config.write_text(self.tables + models)
        self.popen.send_signal(signal.SIGHUP)

    def workers(self, model: str) -> list[int]:
        """The pids of a model's READY workers."""
        reply = self.describes(DescribeModelRequest(model_name=model), timeout=10, wait_for_ready=True)
        (version,) = json.loads(reply.msg)
        return [worker["pid"] for worker in version["workers"] if worker["status"] == "READY"]

    def forkservers(self) -> list[int]:
        """The pids of the children that lead a session."""
        return [pid for pid in descendants(self.popen.pid) if os.getsid(pid) == pid]

    def forkserver(self) -> int:
        """The forkserver's pid, where there is one."""
        (pid,) = self.forkservers()
        return pid

    def states(self, model: str) -> list[tuple[str, str]]:
        """The state of each worker of a model, and the reason."""
        reply = self.describes(DescribeModelRequest(model_name=model), timeout=10, wait_for_ready=True)
        (version,) = json.loads(reply.msg)
        return [(worker["status"], worker.get("reason", "")) for worker in version["workers"]]

    def log(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        lines = self.log_file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def logged(self, **wanted: Any) -> dict[str, Any]:
        """Wait for a line with these fields; gives it."""
        return wait_for(
            lambda: next((line for line in self.log() if wanted.items() <= line.items()), None),
            within=10,
        )

    def close(self) -> None:
        """Drain; nothing may be left, and the server must have lived until now."""
        for channel in self.channels:
            channel.close()
        assert self.popen.poll() is None, self.log_file.read_text()[-4000:]
        family = descendants(self.popen.pid)
        self.popen.send_signal(signal.SIGTERM)
        status = self.popen.wait(20)
        wait_for(lambda: not any(map(is_alive, family)), within=10)
        assert 0 == status, self.log_file.read_text()[-4000:]  # noqa: SIM300  # expected == actual

    def kill(self) -> None:
        """Make sure that it is gone, after a test that failed too."""
        for channel in self.channels:
            channel.close()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


def code_of(call: grpc.Future) -> grpc.StatusCode:
    """How a call ended, waited for."""
    call.exception()
    return call.code()
