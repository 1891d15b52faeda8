"""What is loaded, what is refused, and the built-in handlers, in this process."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchserve_asking import answer

from actorserve.errors import LoadFailed
from actorserve.handlers.torchserve.entry import SHIM


@pytest.mark.parametrize(
    ("handler", "text", "files"),
    [
        ("vllm_handler", "this built-in of TorchServe is not served here", {}),
        ("dali_image_classifier", "this built-in of TorchServe is not served here", {}),
        ("image_clasifier", "no built-in has this name", {}),
        ("absent.py", "the model's folder has no absent.py", {}),
        ("mine.py", "attempted relative import", {"mine.py": "from ..utils.util import x"}),
        ("mine.py", "No module named 'nowhere'", {"mine.py": "import nowhere"}),
        ("mine.py", "it has A, B", {"mine.py": "class A: pass\nclass B: pass"}),
        ("mine.py", "it has none", {"mine.py": "from pathlib import Path"}),
        ("mine.py", "class A has no method handle", {"mine.py": "class A: pass"}),
        ("mine.py:other", "mine.py has no function other", {"mine.py": "def handle(data, context): pass"}),
    ],
)
def test_refusals(load, handler, text, files):
    """What cannot be loaded says what is wrong: the name, the import, or the classes that were found."""
    with pytest.raises(LoadFailed) as error:
        load(handler, files)
    assert handler.partition(":")[0] in str(error.value)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batchsize": 1}, "options.torchserve.batchsize: unknown"),
        ({"batch_size": 0}, "options.torchserve.batch_size is 0"),
        ({"stream_buffer_bytes": "1"}, "options.torchserve.stream_buffer_bytes is '1'"),
        (
            {"model_yaml_config": {"continuousBatching": True, "sequenceBatching": True}},
            "continuousBatching and sequenceBatching are not served together",
        ),
        ({"envelope": "kservev3"}, "envelope 'kservev3': must be one of body, json, kserve, kservev2"),
    ],
)
def test_options(load, options, text):
    """A wrong option is named."""
    with pytest.raises(LoadFailed, match=text):
        load("mine.py", {"mine.py": "def handle(data, context): pass"}, **options)


def test_a_thread_is_refused(load):
    """A worker that shares its process may not change the working folder."""
    failures = []

    def body():
        try:
            load("mine.py")
        except LoadFailed as error:
            failures.append(str(error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert failures == ["a handler in TorchServe's style needs a worker process: it changes the working folder"]


def test_handle_is_bound_before_initialize(load):
    """What `initialize` puts in the place of `handle` is not called."""
    source = """
class Mine:
    def initialize(self, context):
        self.handle = None

    def handle(self, data, context):
        return ["first"]
"""
    assert answer(load("mine.py", {"mine.py": source}), b"") == [b"first"]


def test_code_in_weights_does_not_run(load, tmp_path):
    """A state dict that would run code when it is read is refused."""

    class Evil:
        def __reduce__(self):
            return (print, ("evil",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    model = "import torch\nclass Line(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(1, 1)\n"
    with pytest.raises(Exception, match="Weights only load failed"):
        load("base_handler", {"model.py": model}, model_file="model.py", serialized_file="evil.pt")


@pytest.mark.parametrize("serialized", [None, "absent.pt", "weights.bin"])
def test_no_weights(load, tmp_path, serialized):
    """Without a file that can be read, the load says so."""
    (tmp_path / "weights.bin").write_bytes(b"?")
    with pytest.raises(RuntimeError, match="No model weights could be loaded"):
        load("base_handler", serialized_file=serialized)


def test_unknown_compile_backend(load, caplog):
    """A model whose `pt2` names an unknown backend runs as it is, with a warning; a known one compiles it."""
    model = "import torch\nclass Line(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(1, 1)\n"
    source = (
        "from ts.torch_handler.base_handler import BaseHandler\n"
        "class Mine(BaseHandler):\n"
        "    def preprocess(self, data):\n        return super().preprocess([[1.0]] * len(data))\n"
        "    def postprocess(self, data):\n        return [type(self.model).__name__] * len(data)\n"
    )
    files = {"model.py": model, "mine.py": source}
    with caplog.at_level(logging.WARNING):
        plain = load("mine.py", files, model_file="model.py", model_yaml_config={"pt2": "warp"})
    assert answer(plain, b"") == [b"Line"]
    assert "backend 'warp' is not known" in caplog.text
    sys.modules.pop("mine")
    table = {"pt2": {"compile": {"enable": True, "backend": "eager"}}}
    compiled = load("mine.py", files, model_file="model.py", model_yaml_config=table)
    assert answer(compiled, b"") == [b"OptimizedModule"]


def picture(colour, size=(300, 260)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


VISION = """
import torch


class Model(torch.nn.Module):
    def forward(self, x):
        means = x.mean(dim=(2, 3)) if isinstance(x, torch.Tensor) else None
        {body}
"""


def vision(load, tmp_path, handler, body):
    (tmp_path / "index_to_name.json").write_text(json.dumps({"0": "red", "1": ["n1", "green"], "2": "blue"}))
    return load(handler, {"model.py": VISION.format(body=body)}, model_file="model.py")


def test_image_classifier(load, tmp_path):
    """Pictures of one batch are named each by their most likely classes, in order, most likely first."""
    handler = vision(load, tmp_path, "image_classifier", "return means * 10")
    red, blue = (json.loads(one) for one in answer(handler, picture("red"), picture("blue", (256, 500))))
    assert next(iter(red)) == "red"
    assert next(iter(blue)) == "blue"
    assert set(red) == {"red", "green", "blue"}
    assert sum(red.values()) == pytest.approx(1)


def test_image_segmenter(load, tmp_path):
    """Each pixel of the crop has its class and its probability."""
    handler = vision(load, tmp_path, "image_segmenter", 'return {"out": x * 10}')
    pixels = np.array(json.loads(answer(handler, picture("lime"))[0]))
    assert pixels.shape == (224, 224, 2)
    assert set(pixels[..., 0].flatten()) == {1.0}
    assert pixels[..., 1].min() > 0.99


def test_object_detector(load, tmp_path):
    """What is sure enough is listed with its label, box and score; pictures keep their own sizes."""
    body = (
        'return [{"boxes": torch.tensor([[0, 0, p.shape[2], p.shape[1]], [1, 1, 2, 2]]).float(),'
        ' "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.75, 0.25])} for p in x]'
    )
    handler = vision(load, tmp_path, "object_detector", body)
    small, large = (json.loads(one) for one in answer(handler, picture("red", (20, 10)), picture("red", (40, 30))))
    assert small == [{"green": [0.0, 0.0, 20.0, 10.0], "score": 0.75}]
    assert large == [{"green": [0.0, 0.0, 40.0, 30.0], "score": 0.75}]


def test_own_transforms(load, monkeypatch):
    """Resize keeps the shape and takes the shorter side, the crop is the middle, a pixel is normalised per channel."""
    monkeypatch.syspath_prepend(str(SHIM))
    load("mine.py", {"mine.py": "def handle(data, context): pass"})
    from ts.torch_handler import picture as own  # noqa: PLC0415  # importable only here

    stripes = np.zeros((100, 300, 3), np.uint8)
    stripes[:, 100:200] = 255
    image = Image.fromarray(stripes)
    assert own.resize(image, 50).size == (150, 50)
    assert own.resize(image.transpose(Image.Transpose.ROTATE_90), 50).size == (50, 150)
    middle = own.to_tensor(own.center_crop(image, 100))
    assert middle.shape == (3, 100, 100)
    assert middle.min() == 1.0
    white = own.normalise(middle)[:, 0, 0].tolist()
    assert white == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
