"""Handlers in TorchServe's style and models of every kind, packed by torch-model-archiver, registered and asked by
plain grpcio.
"""

from __future__ import annotations

import io
import json
import warnings

import grpc
import pytest
import safetensors.torch
import torch
from onnx_bytes import weighted_sum
from torchserve_asking import messages
from torchserve_networks import Line
from torchserve_texts import BATCHING, FUNCTION, LINE_HANDLER, MODEL, SERVICE_CLASS, STREAMING


def saved(what, save=torch.save):
    """What `save` writes."""
    buffer = io.BytesIO()
    save(what, buffer)
    return buffer.getvalue()


def weights():
    return saved(Line().state_dict())


def script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is old, and what archives have
        return saved(torch.jit.trace(Line(), torch.ones(2, 2)), torch.jit.save)


def exported():
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Line(), (torch.ones(3, 2),), dynamic_shapes={"x": {0: batch}})
    return saved(program, torch.export.save)


# --- five handlers ------------------------------------------------------------------------------


def test_function(store):
    """A function handler is initialised once, in its archive's folder, and told what the archive says."""
    files = {"function.py": FUNCTION, "c.yaml": "greeting: hi\n"}
    store.serve("a_function", "function.py", files, config_file="c.yaml")
    said = json.loads(store.predict("a_function", b"hello", metadata=[("session-id", "7")])[0])
    assert (said["text"], said["header"], said["model"]) == ("hello", "7", "a_function")
    assert said["yaml"] == {"greeting": "hi"}


def test_class(store):
    """A class handler keeps its state, its codes are the calls' statuses, and its metrics are in the log."""
    store.serve("a_class", "service.py", {"service.py": SERVICE_CLASS})
    assert [store.predict("a_class", b"calls")[0] for _ in range(2)] == [b"1", b"2"]
    assert store.refused("a_class", b"refuse") == (grpc.StatusCode.NOT_FOUND, "not here")
    assert store.refused("a_class", b"status") == (grpc.StatusCode.PERMISSION_DENIED, "members only")
    store.wait_for_log("Calls.Count:4|#Kind:test,ModelName:a_class,Level:Model")


def test_base_handler(store):
    """A subclass of BaseHandler computes with the archive's class and weights."""
    files = {"line_handler.py": LINE_HANDLER, "line.py": MODEL, "line.pt": weights()}
    store.serve("a_subclass", "line_handler.py", files, model_file="line.py", serialized_file="line.pt")
    assert json.loads(store.predict("a_subclass", b"[3.0, 4.0]")[0]) == 43.0


def test_streaming(store):
    """Three intermediate messages and the last one; a unary call gets them in one answer."""
    store.serve("a_stream", "streaming.py", {"streaming.py": STREAMING})
    assert messages(store.stream("a_stream", b"go")) == ["hello 1", "hello 1", "hello 1", "world"]
    assert store.predict("a_stream", b"go")[0] == b"hello 1hello 1hello 1world"


def test_batching(store):
    """In a batch of four, an exception in the list and a status each fail their own item only."""
    fields = {"batch_size": 4, "max_batch_delay": 60_000}
    store.serve("a_batch", "batching.py", {"batching.py": BATCHING}, fields)
    futures = [store.future("a_batch", data) for data in (b"3", b"0", b"-1", b"12")]
    ok = grpc.StatusCode.OK
    assert [future.code() for future in futures] == [
        *(ok, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, ok),
    ]
    assert [json.loads(futures[index].result().prediction) for index in (0, 3)] == [
        {"share": 4.0, "of": 4},
        {"share": 1.0, "of": 4},
    ]


# --- every kind of model ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content"), [("net.pt", script), ("net.pt2", exported)])
def test_a_file_without_an_archive(store, name, content):
    """A TorchScript file or an exported program is registered by its own name, with an installed handler."""
    (store.folder / "store" / name).write_bytes(content())
    (store.folder / "installed" / "line_reader.py").write_text(LINE_HANDLER)
    model = f"alone_{name.partition('.')[2]}"
    store.register(name, handler="line_reader", model_name=model)
    assert json.loads(store.predict(model, b"[3.0, 4.0]")[0]) == 43.0


SAFE_HANDLER = """
from pathlib import Path

import safetensors.torch
import torch

from line_reader import LineHandler


class SafeHandler(LineHandler):
    def initialize(self, context):
        self.context, self.device = context, torch.device("cpu")
        folder = Path(context.system_properties["model_dir"])
        weight = safetensors.torch.load_file(folder / context.manifest["model"]["serializedFile"])["weight"]
        self.model = lambda x: (x * weight).sum(dim=1)
"""


def test_weights_without_an_archive(store):
    """A .safetensors file is registered by its own name, with an installed handler that knows its network."""
    safetensors.torch.save_file(Line().state_dict(), store.folder / "store" / "net.safetensors")
    (store.folder / "installed" / "line_reader.py").write_text(LINE_HANDLER)
    (store.folder / "installed" / "safe_reader.py").write_text(SAFE_HANDLER)
    store.register("net.safetensors", handler="safe_reader", model_name="alone_safetensors")
    assert json.loads(store.predict("alone_safetensors", b"[3.0, 4.0]")[0]) == 43.0


def test_safetensors_of_an_archive(store):
    """BaseHandler loads .safetensors into the archive's class."""
    files = {"h.py": LINE_HANDLER, "line.py": MODEL, "line.safetensors": safetensors.torch.save(Line().state_dict())}
    store.serve("a_safe", "h.py", files, model_file="line.py", serialized_file="line.safetensors")
    assert json.loads(store.predict("a_safe", b"[3.0, 4.0]")[0]) == 43.0


RUN_HANDLER = """
import json

import numpy as np

from ts.torch_handler.base_handler import BaseHandler


class RunHandler(BaseHandler):
    def preprocess(self, data):
        return np.array([json.loads(row["data"]) for row in data], np.float32)

    def inference(self, data):
        return self.model.run(None, {"x": data})[0]

    def postprocess(self, data):
        return [{"y": float(one), "by": type(self.model).__name__} for one in data]
"""


def test_onnx(store):
    """BaseHandler runs an ONNX model by itself, a whole batch at once, with what the network in torch answers."""
    files = {"line_handler.py": LINE_HANDLER, "line.onnx": weighted_sum([1.0, 10.0])}
    fields = {"batch_size": 3, "max_batch_delay": 60_000}
    store.serve("an_onnx", "line_handler.py", files, fields, serialized_file="line.onnx")
    rows = [[3.0, 4.0], [0.5, -1.0], [0.0, 2.0]]
    futures = [store.future("an_onnx", json.dumps(row).encode()) for row in rows]
    answers = [json.loads(future.result().prediction) for future in futures]
    assert answers == pytest.approx(Line()(torch.tensor(rows)).tolist())


def test_onnx_by_its_session(store):
    """A handler whose `inference` runs the session itself, as TorchServe's examples do, is served too."""
    files = {"run_handler.py": RUN_HANDLER, "line.onnx": weighted_sum([1.0, 10.0])}
    store.serve("a_session", "run_handler.py", files, serialized_file="line.onnx")
    assert json.loads(store.predict("a_session", b"[3.0, 4.0]")[0]) == {"y": 43.0, "by": "InferenceSession"}


def test_broken_onnx(store):
    """A file that is no ONNX model fails the registration with what onnxruntime says."""
    files = {"line_handler.py": LINE_HANDLER, "line.onnx": b"not a model"}
    text = store.not_registered(store.pack("a_broken_onnx", "line_handler.py", files, serialized_file="line.onnx"))
    assert "line.onnx" in text


COMPILED_HANDLER = """
import json

import torch

from ts.torch_handler.base_handler import BaseHandler


class CompiledHandler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([json.loads(row["data"]) for row in data])

    def postprocess(self, data):
        return [{"y": y, "by": type(self.model).__name__} for y in data.tolist()]
"""


@pytest.mark.parametrize(
    ("name", "yaml", "kind"),
    [
        ("plain", "handler: {}\n", "Line"),
        ("eager", "pt2: eager\n", "OptimizedModule"),
        ("aot", "pt2:\n  compile:\n    enable: true\n    backend: aot_eager\n", "OptimizedModule"),
        ("off", "pt2:\n  compile:\n    enable: false\n    backend: aot_eager\n", "Line"),
        ("profiled", "handler:\n  profile: true\n", "Line"),
    ],
)
def test_compiled(store, name, yaml, kind):
    """model-config.yaml turns torch.compile and the times of stages on; the answers stay those of the network."""
    files = {"h.py": COMPILED_HANDLER, "line.py": MODEL, "line.pt": weights(), "c.yaml": yaml}
    named = {"model_file": "line.py", "serialized_file": "line.pt", "config_file": "c.yaml"}
    store.serve(f"compiled_{name}", "h.py", files, **named)
    for data, y in ((b"[3.0, 4.0]", 43.0), (b"[1.0, 1.0]", 11.0)):
        assert json.loads(store.predict(f"compiled_{name}", data)[0]) == {"y": y, "by": kind}
    if name == "profiled":
        store.wait_for_log("ts_handler_inference.Milliseconds:")


def test_compiled_without_a_compiler(store):
    """A backend that cannot compile (its C++ compiler is missing) leaves the model as it is, and the log says why."""
    handler = 'import os\nos.environ["CXX"] = "/nonexistent/c++"\n' + COMPILED_HANDLER
    files = {"h.py": handler, "line.py": MODEL, "line.pt": weights(), "c.yaml": "pt2: inductor\n"}
    named = {"model_file": "line.py", "serialized_file": "line.pt", "config_file": "c.yaml"}
    store.serve("compiled_not", "h.py", files, **named)
    assert json.loads(store.predict("compiled_not", b"[3.0, 4.0]")[0])["y"] == 43.0
    store.wait_for_log("No working C++ compiler found")
