"""Handlers that were not written here, unchanged, from the wheels that their projects publish."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
from torchserve_networks import Line
from torchserve_texts import MODEL
from wheels_of_others import MLFLOW, TORCHSERVE

from actorserve.handlers.torchserve.entry import SHIM


@pytest.fixture(scope="module")
def torchserve(others):
    """The folder ts/torch_handler of TorchServe's wheel."""
    return others(TORCHSERVE) / "ts" / "torch_handler"


def test_mlflow(store, others, tmp_path):
    """The handler of mlflow-torchserve, with the state dict that its own script trains, computes what that says."""
    resources = others(MLFLOW) / "tests" / "resources"
    (tmp_path / "tests" / "resources").mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-c", "import torch, linear_model; torch.manual_seed(0); linear_model.main()"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(resources)},
        check=True,
        capture_output=True,
    )
    trained = (tmp_path / "tests" / "resources" / "linear_state_dict.pt").read_bytes()
    files = {name: (resources / name).read_bytes() for name in ("linear_handler.py", "linear_model.py")}
    files["linear_state_dict.pt"] = trained
    named = {"model_file": "linear_model.py", "serialized_file": "linear_state_dict.pt"}
    store.serve("mlflow", "linear_handler.py", files, **named)
    state = torch.load(io.BytesIO(trained), weights_only=True)
    slope, start = state["linear.weight"].item(), state["linear.bias"].item()
    assert (slope, start) == pytest.approx((2, 1), abs=0.3)
    for number in (0, 3, -7.5):
        said = float(store.predict("mlflow", str(number).encode())[0])
        assert said == pytest.approx(slope * number + start, abs=1e-5)


OVER_OURS = """
import json

import torch
import ts.torch_handler

ts.torch_handler.__path__.insert(0, {folder!r})
import ts.handler_utils.timer
import ts.utils.util
from ts.torch_handler import base_handler


class OverOurs(base_handler.BaseHandler):
    def preprocess(self, data):
        return torch.tensor([json.loads(row["data"]) for row in data])

    def postprocess(self, data):
        modules = (base_handler, ts.utils.util, ts.handler_utils.timer)
        return [{{"y": y, "files": [one.__file__ for one in modules]}} for y in data.tolist()]
"""


@pytest.mark.parametrize("yaml", ["handler:\n  profile: true\n", "pt2: eager\n"])
def test_their_base_handler_over_ours(store, torchserve, yaml):
    """TorchServe's own base_handler.py, in the package ts.torch_handler, serves a model over our ts.utils and
    ts.handler_utils.
    """
    name = "theirs_" + yaml.partition(":")[0]
    weights = io.BytesIO()
    torch.save(Line().state_dict(), weights)
    files = {"h.py": OVER_OURS.format(folder=str(torchserve)), "line.py": MODEL, "line.pt": weights.getvalue()}
    named = {"model_file": "line.py", "serialized_file": "line.pt", "config_file": "c.yaml"}
    store.serve(name, "h.py", files | {"c.yaml": yaml}, **named)
    said = json.loads(store.predict(name, b"[3.0, 4.0]")[0])
    assert said["y"] == 43.0
    theirs, *ours = said["files"]
    assert theirs == str(torchserve / "base_handler.py")
    assert [path.partition("/shim/ts/")[2] for path in ours] == ["utils/util.py", "handler_utils/timer.py"]


def test_their_base_handler_under_another_name(store, torchserve):
    """Packed as a custom handler it cannot be loaded, and the error is that of its relative import."""
    content = (torchserve / "base_handler.py").read_bytes()
    text = store.not_registered(store.pack("renamed", "my_base.py", {"my_base.py": content}))
    assert "handler 'my_base.py' cannot be imported: attempted relative import with no known parent package" in text


def test_their_text_classifier_without_captum(store, torchserve):
    """TorchServe's text_classifier.py wants captum, and the error says so, packed as well as in its package."""
    content = (torchserve / "text_classifier.py").read_bytes()
    text = store.not_registered(store.pack("packed_text", "text_classifier.py", {"text_classifier.py": content}))
    assert "handler 'text_classifier.py' cannot be imported: No module named 'captum'" in text
    inside = OVER_OURS.format(folder=str(torchserve)) + "\nfrom ts.torch_handler import text_classifier\n"
    text = store.not_registered(store.pack("inside_text", "h.py", {"h.py": inside}))
    assert "handler 'h.py' cannot be imported: No module named 'captum'" in text


def constant(path, name):
    """A constant of a module, which runs alone."""
    return runpy.run_path(str(path))[name]


def test_their_contractions(torchserve):
    """Ours say in full what TorchServe's do, in the same words."""
    ours = constant(SHIM / "ts" / "torch_handler" / "contractions.py", "CONTRACTION_MAP")
    theirs = constant(torchserve / "contractions.py", "CONTRACTION_MAP")
    differing = {short: full for short, full in theirs.items() if ours[short.lower()] != full.lower()}
    assert differing == {"he'll've": "he he will have"}
