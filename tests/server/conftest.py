"""One real server for the tests that need real workers: `python -m actorserve`, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.proto.management_pb2 import ManagementResponse

ROOT = Path(__file__).resolve().parents[2]
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"

CONFIG = """
[listeners.inference]
address = "127.0.0.1:0"
services = ["inference", "management"]
[models.echo]
handler = "actorserve.handlers.echo:Echo"
[models.digits]
handler = "actorserve.handlers.digits:Digits"
[models.asked]
handler = "asked:Asked"
"""

ASKED = '''
from actorserve.errors import BadInput


class Asked:
    """Does what `data` says."""

    def infer(self, batch):
        return [self.one(request) for request in batch]

    def one(self, request):
        word = request.inputs["data"].decode()
        if word == "metadata":
            return {k: v if isinstance(v, str) else v.hex() for k, v in request.metadata.items()} | {"id": request.id}
        if word == "trailers":
            request.set_trailer("one", "1")
            request.set_trailer("two-bin", b"\\0\\xff")
            return "set"
        if word == "bad trailer":
            request.set_trailer("Not A Key", "1")
            return "set"
        if word == "remaining":
            return request.time_remaining()
        if word == "object":
            return object()
        if word == "long":
            return ValueError("é" * 100_000)
        return BadInput("data", "is not a word that I know")
'''


class Outside:
    """The real server, as a client sees it."""

    def __init__(self, folder: Path, channel: grpc.Channel) -> None:
        self.folder = folder
        self.channel = channel

    def manage(self, rpc: str, request: Any) -> str:
        """One of the management rpcs; gives its text."""
        call = self.channel.unary_unary(
            f"{MANAGEMENT}/{rpc}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=ManagementResponse.FromString,
        )
        return call(request, timeout=60).msg

    def predict(
        self, model: str, data: bytes | None = None, *, metadata: object = (), timeout: float = 60
    ) -> tuple[bytes, dict[str, str | bytes]]:
        """Predictions: the prediction and the trailers."""
        inputs = {} if data is None else {"data": data}
        message = PredictionsRequest(model_name=model, input=inputs).SerializeToString()
        return self.raw("Predictions", message, metadata=metadata, timeout=timeout)

    def raw(
        self, rpc: str, message: bytes, *, metadata: object = (), timeout: float = 60
    ) -> tuple[bytes, dict[str, str | bytes]]:
        """A unary call with these very bytes."""
        call = self.channel.unary_unary(f"{INFERENCE}/{rpc}", response_deserializer=PredictionResponse.FromString)
        answer, outcome = call.with_call(message, metadata=metadata, timeout=timeout)
        return answer.prediction, dict(outcome.trailing_metadata())

    def refused(self, model: str, data: bytes | None = None, **options: object) -> tuple[grpc.StatusCode, str]:
        """Predictions that must fail: status and message."""
        return self.raw_refused(
            "Predictions",
            PredictionsRequest(model_name=model, input={} if data is None else {"data": data}).SerializeToString(),
            **options,
        )

    def raw_refused(self, rpc: str, message: bytes, **options: object) -> tuple[grpc.StatusCode, str]:
        """A unary call with these very bytes that must fail: status and message."""
        with pytest.raises(grpc.RpcError) as error:
            self.raw(rpc, message, **options)
        return error.value.code(), error.value.details()


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """A running server; at the end it drains and has logged no traceback."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "config.toml").write_text(CONFIG)
    (folder / "asked.py").write_text(ASKED)
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "actorserve", "config.toml"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().rpartition(" ")[2].strip()
            while "Ctrl-C drains" not in (line := process.stdout.readline()):
                assert line, (folder / "log").read_text()
            options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
            with grpc.insecure_channel(address, options) as channel:
                yield Outside(folder, channel)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "Traceback" not in (folder / "log").read_text()
