"""What else handlers import from `ts`: classes by name, distributed handlers, contexts for their own tests; and what
BaseHandler does beside answering.
"""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch
from torchserve_asking import answer
from torchserve_texts import LINE_HANDLER, MODEL


def test_import_class(ts):
    """A class is found by its full name or below a prefix; what is missing is named."""
    find = ts("handler_utils.utils").import_class
    dimension = ts("metrics.dimension").Dimension
    assert find("ts.metrics.dimension.Dimension") is dimension
    assert find("dimension.Dimension", "ts.metrics") is dimension
    assert find("Dimension", "ts.metrics.dimension") is dimension
    for name, text in (
        ("ts.metrics.dimension.Absent", "'Absent' is not in"),
        ("Alone", "must be named"),
        ("", "named"),
    ):
        with pytest.raises(ImportError, match=text):
            find(name)


def test_sequence_of_backends(ts):
    """Backends of torch.compile are known by name."""
    util = ts("utils.util")
    assert util.check_valid_pt2_backend("inductor")
    assert not util.check_valid_pt2_backend("warp")
    assert util.PT2Backend("aot_eager") is util.PT2Backend.AOT_EAGER


def test_deprecated(ts):
    """A function that is marked as old works and warns, naming its replacement."""
    old = ts("utils.util").deprecated("1.0", "new_place")(lambda value: value + 1)
    with pytest.warns(PendingDeprecationWarning, match="old since 1.0; use new_place"):
        assert old(1) == 2


def test_text_of_a_prediction_exception(ts):
    """Its text has message and code, and both are attributes."""
    error = ts("service").PredictionException("no", 404)
    assert (str(error), error.message, error.error_code) == ("no : 404", "no", 404)


def test_yaml(ts, tmp_path):
    """YAML is read as data: what would make objects is refused."""
    read = ts("utils.util").get_yaml_config
    path = tmp_path / "c.yaml"
    path.write_text("a: [1, 2]\n")
    assert read(path) == {"a": [1, 2]}
    path.write_text("!!python/object/apply:os.getpid []")
    with pytest.raises(Exception, match="could not determine a constructor"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.yaml")


# --- handlers of several processes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "kind", "library"),
    [
        ("base_deepspeed_handler", "BaseDeepSpeedHandler", "deepspeed"),
        ("base_pippy_handler", "BasePippyHandler", "pippy"),
    ],
)
def test_distributed(load, module, kind, library):
    """A handler that spreads its model over processes can be imported; its load names the library that is missing."""
    source = (
        f"from ts.torch_handler.distributed.{module} import {kind}\n"
        "from ts.handler_utils.distributed.deepspeed import get_ds_engine\n"
        "from ts.handler_utils.distributed.pt_pippy import get_pipeline_driver, initialize_rpc_workers\n"
        f"class Mine({kind}):\n    pass\n"
    )
    with pytest.raises(ImportError, match=f"Mine needs {library}, which is not installed"):
        load("mine.py", {"mine.py": source})


def test_distributed_with_its_library(load, tmp_path):
    """Where the library is there, the load says that such models are not served."""
    (tmp_path / "pippy.py").write_text("")
    source = (
        "from ts.torch_handler.distributed.base_pippy_handler import BasePippyHandler\n"
        "class Mine(BasePippyHandler):\n    pass\n"
    )
    with pytest.raises(NotImplementedError, match="one model in several processes"):
        load("mine.py", {"mine.py": source})


# --- base handler -------------------------------------------------------------------------------


def test_mock_context(ts, tmp_path):
    """A handler's own tests initialise and call it with a context that needs no server, and see what it sends."""
    mock = ts("torch_handler.unit_tests.test_utils.mock_context").MockContext
    (tmp_path / "m.py").write_text(MODEL)
    torch.save({"weight": torch.tensor([1.0, 10.0])}, tmp_path / "m.pt")
    (tmp_path / "c.yaml").write_text("handler:\n  profile: true\n")
    context = mock("m.pt", str(tmp_path), "m.py", model_name="mine", model_yaml_config_file="c.yaml")
    handler = ts("torch_handler.base_handler").BaseHandler()
    handler.initialize(context)
    assert handler.handle([[3.0, 4.0]], context) == [43.0]
    timed = [f"gauge:ts_handler_{stage}" for stage in ("preprocess", "inference", "postprocess")]
    assert context.metrics.cache_keys() == [*timed, "gauge:HandlerTime"]
    ts("handler_utils.utils").send_intermediate_predict_response(["x"], context.request_ids, "ok", 200, context)
    assert context.sent == [(["x"], {0: "0"}, "ok", 200)]
    context.explain = True
    assert context.get_request_header(0, "explain") == "True"
    assert (context.get_request_header(0, "other"), context.manifest["model"]["modelName"]) == (None, "mine")


OWN_LOADING = """
import torch

from ts.torch_handler.base_handler import BaseHandler


class Mine(BaseHandler):
    def _load_torchscript_model(self, model_pt_path):
        return torch.nn.Identity()

    def preprocess(self, data):
        return torch.ones(len(data))

    def postprocess(self, data):
        return [f"{one} {self.model.training} {self.get_device()}" for one in data.tolist()]
"""


def test_own_way_of_loading(load, tmp_path):
    """A subclass that loads its file in its own way is asked to, and its model is put into evaluation."""
    (tmp_path / "any.pt").write_bytes(b"of its own kind")
    handler = load("mine.py", {"mine.py": OWN_LOADING}, serialized_file="any.pt")
    assert answer(handler, b"") == [b"1.0 False cpu"]


EXPLAINED = """
from ts.torch_handler.base_handler import BaseHandler


class Mine(BaseHandler):
    def initialize(self, context):
        pass

    def preprocess(self, data):
        return [len(row["data"]) for row in data]

    def get_insights(self, inputs, raw, target):
        return [f"{inputs} {bytes(raw).decode()} {target}"]
"""


@pytest.mark.parametrize(
    ("data", "said"), [(b"text", b"[4] text 0"), (b'{"target": 3}', b'[13] {"target": 3} 3'), (b"[1]", b"[3] [1] 0")]
)
def test_explanations(load, data, said):
    """`get_insights` gets what was prepared, what was sent, and the target that it names."""
    assert answer(load("mine.py", {"mine.py": EXPLAINED}), data, explain="True") == [said]


def test_explanations_that_cannot_be(load):
    """A target that is no number is named; a handler without get_insights says that it explains nothing."""
    (error,) = answer(load("mine.py", {"mine.py": EXPLAINED}), b'{"target": "x"}', explain="True")
    assert str(error) == "target is 'x'; it must be the number of a class"
    sys.modules.pop("mine")
    source = EXPLAINED.replace("get_insights", "get_nothing")
    (error,) = answer(load("mine.py", {"mine.py": source}), b"x", explain="True")
    assert str(error) == "Mine explains nothing: it has no get_insights"


def test_profiler(load, tmp_path, monkeypatch, caplog):
    """ENABLE_TORCH_PROFILER=true writes a trace of each call below the temporary folder, and the answer stays."""
    monkeypatch.setenv("ENABLE_TORCH_PROFILER", "true")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.save({"weight": torch.tensor([1.0, 10.0])}, tmp_path / "m.pt")
    handler = load("h.py", {"h.py": LINE_HANDLER, "m.py": MODEL}, model_file="m.py", serialized_file="m.pt")
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what this machine lacks
        assert answer(handler, b"[3.0, 4.0]") == [b"43.0"]
    (trace,) = (tmp_path / "pytorch_profiler" / "model").iterdir()
    assert trace.name.endswith(".pt.trace.json")
    assert "Self CPU time total" in caplog.text


def test_onnx_without_onnxruntime(load, tmp_path, monkeypatch):
    """A .onnx file where onnxruntime is missing fails the load and names it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "m.onnx").write_bytes(b"?")
    with pytest.raises(ImportError, match="needs onnxruntime"):
        load("base_handler", serialized_file="m.onnx")
