"""Real servers with handlers in TorchServe's style, which know nothing of actorserve."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch
from torchserve_networks import Line
from torchserve_texts import FILES, MODELS
from wheels_of_others import fetch

from actorserve.handlers.base import Context
from actorserve.handlers.torchserve.entry import SHIM
from actorserve.handlers.torchserve.loader import TorchServeHandler
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.proto.management_pb2 import ManagementResponse, RegisterModelRequest

MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
LOADER = "actorserve.handlers.torchserve.loader:TorchServeHandler"


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

    def wait_for_log(self, text: str) -> None:
        """Return once the server's log has this text; the test's own limit ends a vain wait."""
        until = time.monotonic() + 60
        while text not in (self.folder / "log").read_text():
            assert time.monotonic() < until, f"the log never said {text}"
            time.sleep(0.02)


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


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[grpc.Channel]:
    """`python -m actorserve config.toml` in a folder, all models READY; its log is the file `log`."""
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "actorserve", "config.toml"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | environment,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().rpartition(" ")[2].strip()
            while "Ctrl-C drains" not in (line := process.stdout.readline()):
                assert line, (folder / "log").read_text()
            with grpc.insecure_channel(address) as channel:
                yield channel
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server with every model of `MODELS` READY."""
    folder = tmp_path_factory.mktemp("torchserve")
    fill(folder)
    with serving(folder) as channel:
        yield Served(folder, channel)


class Store(Served):
    """A server without models, and the store that it registers archives from."""

    def pack(self, name: str, handler: str, files: Mapping[str, str | bytes], **named: str) -> str:
        """Pack an archive with torch-model-archiver; gives its name in the store.

        `named`: options of the archiver, such as serialized_file; files that none of them names are extra files.
        """
        sources = self.folder / "sources" / name
        sources.mkdir(parents=True)
        for file, content in files.items():
            (sources / file).write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
        extra = [file for file in files if file not in (handler.partition(":")[0], *named.values())]
        named |= {"extra_files": ",".join(extra)} if extra else {}
        options = [part for key, value in named.items() for part in (f"--{key.replace('_', '-')}", value)]
        command = [
            *(sys.executable, "-W", "ignore", "-m", "model_archiver.model_packaging", "--model-name", name),
            *("--version", "1.0", "--handler", handler, "--export-path", str(self.folder / "store"), *options),
        ]
        subprocess.run(command, cwd=sources, check=True, capture_output=True)
        return f"{name}.mar"

    def register(self, url: str, **fields: object) -> str:
        """RegisterModel with one worker, until it is READY; gives the answer's text."""
        request = RegisterModelRequest(**{"url": url, "initial_workers": 1, "synchronous": True} | fields)
        call = self.channel.unary_unary(
            f"{MANAGEMENT}/RegisterModel",
            request_serializer=RegisterModelRequest.SerializeToString,
            response_deserializer=ManagementResponse.FromString,
        )
        return call(request, timeout=120).msg

    def serve(
        self, name: str, handler: str, files: Mapping[str, str | bytes], fields: object = (), **named: str
    ) -> None:
        """Pack an archive and register it; `fields`: what the request says more."""
        self.register(self.pack(name, handler, files, **named), **dict(fields))

    def not_registered(self, url: str, **fields: object) -> str:
        """RegisterModel that must fail, and not because it took too long; gives the message."""
        with pytest.raises(grpc.RpcError) as error:
            self.register(url, **fields)
        assert error.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        return str(error.value.details())


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The server without models. Workers see the modules in its folder `installed`."""
    folder = tmp_path_factory.mktemp("archives")
    for name in ("store", "installed"):
        (folder / name).mkdir()
    (folder / "config.toml").write_text(
        '[server]\nmodel_store = "store"\ncache_dir = "cache"\n'
        '[listeners.inference]\naddress = "127.0.0.1:0"\nservices = ["inference", "management"]\n'
    )
    with serving(folder, PYTHONPATH=str(folder / "installed")) as channel:
        yield Store(folder, channel)


@pytest.fixture(scope="session")
def others(request: pytest.FixtureRequest) -> Callable[[tuple[str, ...]], Path]:
    """Fetches packages that are not the project's: see wheels_of_others.py."""
    cache = request.config.cache.mkdir("wheels")
    return lambda requirements: fetch(cache, requirements)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a handler from files of a folder, as a worker does; what that changes in this process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)

    def load(handler, /, files=(), **options):
        for name, text in dict(files).items():
            (tmp_path / name).write_text(text)
        made = TorchServeHandler()
        table = {"torchserve": {"handler": handler, **options}}
        made.load(Context("cpu", tmp_path, table, logging.getLogger("test"), name="model", version="1.0"))
        return made

    yield load
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("ts", "mine", "model"):
            del sys.modules[name]


@pytest.fixture
def ts(monkeypatch):
    """Import a module of our `ts`, which is gone again afterwards."""
    monkeypatch.syspath_prepend(str(SHIM))
    yield lambda name: importlib.import_module(f"ts.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "ts"]:
        del sys.modules[name]
