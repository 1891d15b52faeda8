"""One real server with handlers in TorchServe's style, which know nothing of actorserve."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from torchserve_texts import FILES, MODELS

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
LOADER = "actorserve.handlers.torchserve.loader:TorchServeHandler"


class Line(torch.nn.Module):
    """What line.py has, for the files that bring their own code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 10.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum(dim=1)


class Served:
    """The running server, as a client sees it."""

    def __init__(self, folder: Path, channel: grpc.Channel) -> None:
        self.folder = folder
        self.channel = channel

    def future(self, model: str, data: bytes, *, metadata: object = ()) -> grpc.Future:
        """Predictions, begun."""
        call = self.channel.unary_unary(
            f"{SERVICE}/Predictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        return call.future(PredictionsRequest(model_name=model, input={"data": data}), metadata=metadata, timeout=60)

    def predict(self, model: str, data: bytes, *, metadata: object = ()) -> tuple[bytes, dict[str, str]]:
        """Predictions: the answer and the trailers."""
        future = self.future(model, data, metadata=metadata)
        return future.result().prediction, dict(future.trailing_metadata())

    def refused(self, model: str, data: bytes) -> tuple[grpc.StatusCode, str]:
        """Predictions that must fail: status and message."""
        error = self.future(model, data).exception()
        assert error is not None
        return error.code(), error.details()

    def stream(self, model: str, data: bytes) -> grpc.Call:
        """StreamPredictions, begun: an iterator of messages."""
        call = self.channel.unary_stream(
            f"{SERVICE}/StreamPredictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        return call(PredictionsRequest(model_name=model, input={"data": data}), timeout=60)


def fill(folder: Path) -> None:
    """Write the models' folder and the config."""
    models = folder / "models"
    models.mkdir()
    for name, text in FILES.items():
        (models / name).write_text(textwrap.dedent(text))
    line = Line()
    torch.save(line.state_dict(), models / "line.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is old, and what TorchServe's archives have
        torch.jit.save(torch.jit.trace(line, torch.ones(2, 2)), models / "script.pt")
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(
        torch.export.export(line, (torch.ones(3, 2),), dynamic_shapes={"x": {0: batch}}), models / "line.pt2"
    )
    parts = ['[listeners.inference]\naddress = "127.0.0.1:0"\nservices = ["inference", "management"]']
    for name, (options, more) in MODELS.items():
        parts.append(
            f'[models.{name}]\nhandler = "{LOADER}"\nsource = "models"\n{more}\noptions.torchserve = {{ {options} }}'
        )
    (folder / "config.toml").write_text("\n".join(parts))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server with every model of `MODELS` READY."""
    folder = tmp_path_factory.mktemp("torchserve")
    fill(folder)
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
            address = process.stdout.readline().rpartition(" ")[2].strip()
            while "Ctrl-C drains" not in (line := process.stdout.readline()):
                assert line, (folder / "log").read_text()
            with grpc.insecure_channel(address) as channel:
                yield Served(folder, channel)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
