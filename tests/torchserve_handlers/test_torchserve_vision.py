"""The handlers of pictures with torchvision's transforms and with our own, on real photos, beside TorchServe's own."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from wheels_of_others import CAPTUM, TORCHSERVE, TORCHVISION

MODEL = """
import torch


class Sorting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.filters = torch.nn.Conv2d(3, 16, 7, stride=4)
        self.scores = torch.nn.Linear(256, 10)

    def forward(self, x):
        pooled = torch.nn.functional.adaptive_avg_pool2d(self.filters(x).relu(), 4)
        return 20 * self.scores(pooled.flatten(1))
"""

TORCHVISIONS = """
import sys

sys.path.append({torchvision!r})
import torch

try:
    torch.ops.load_library({torchvision!r} + "/torchvision/_C.so")
except OSError:
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""torchvision, perhaps made for a torch with CUDA: its transforms need none of the operators that are missing then."""

THEIRS = """
sys.path.append({captum!r})
import ts.torch_handler

ts.torch_handler.__path__.insert(0, {theirs!r})
"""

HANDLER = """
import base64

from ts.torch_handler import image_classifier


class Telling(image_classifier.ImageClassifier):
    def inference(self, data, *args, **kwargs):
        self.seen = data
        return super().inference(data, *args, **kwargs)

    def postprocess(self, data):
        pixels = base64.b64encode(self.seen[0].numpy().tobytes()).decode()
        told = {"by": type(self.image_processing).__module__, "file": image_classifier.__file__, "pixels": pixels}
        return [{"top": top, **told} for top in super().postprocess(data)]
"""


def photo(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


PHOTOS = {
    "wide": lambda: photo(data.chelsea(), "JPEG", quality=90),
    "tall": lambda: photo(np.rot90(data.coffee()).copy()),
    "square": lambda: photo(data.astronaut()),
    "small and odd": lambda: photo(data.astronaut()[:101, :57]),
    "narrow": lambda: photo(data.coffee()[:30]),
}


@pytest.fixture(scope="module")
def places(others):
    """Where the wheels are."""
    return {
        "torchvision": str(others(TORCHVISION)),
        "captum": str(others(CAPTUM)),
        "theirs": str(others(TORCHSERVE) / "ts" / "torch_handler"),
    }


@pytest.fixture(scope="module")
def classifiers(store, places):
    """The image classifier with our transforms, with torchvision's, and TorchServe's own."""
    handlers = {
        "without": HANDLER,
        "with": TORCHVISIONS.format(**places) + HANDLER,
        "theirs": (TORCHVISIONS + THEIRS).format(**places) + HANDLER,
    }
    for name, handler in handlers.items():
        store.serve(f"pictures_{name}", "telling.py", {"telling.py": handler, "m.py": MODEL}, model_file="m.py")
    return lambda name, content: json.loads(store.predict(f"pictures_{name}", content)[0])


def test_which_transforms_run(classifiers, places):
    """Without torchvision our own transforms run, with it torchvision's, and in the third TorchServe's own file."""
    said = {name: classifiers(name, PHOTOS["square"]()) for name in ("without", "with", "theirs")}
    assert [said[name]["by"].partition(".")[0] for name in said] == ["builtins", "torchvision", "torchvision"]
    assert ["/shim/ts/" in said[name]["file"] for name in said] == [True, True, False]
    assert said["theirs"]["file"].startswith(places["theirs"])


@pytest.mark.parametrize("name", PHOTOS)
def test_own_transforms_are_torchvisions(classifiers, name):
    """On a photo our transforms give torchvision's pixels, and all three classifiers the same five classes."""
    said = [classifiers(one, PHOTOS[name]()) for one in ("without", "with", "theirs")]
    own, torchvisions, theirs = (np.frombuffer(base64.b64decode(one["pixels"]), np.float32) for one in said)
    assert own.shape == (3 * 224 * 224,)
    assert np.abs(own - torchvisions).max() < 1e-5
    assert np.abs(own - theirs).max() < 1e-5
    tops = [one["top"] for one in said]
    assert [list(top) for top in tops] == [list(tops[0])] * 3
    assert len(tops[0]) == 5
    for top in tops[1:]:
        assert top == pytest.approx(tops[0], abs=1e-4)


SMALL = """
import numpy as np
import torch

from ts.torch_handler import vision_handler


class Small(vision_handler.VisionHandler):
    @staticmethod
    def image_processing(picture):
        pixels = np.array(picture.convert("RGB").resize((64, 48)), np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255
"""


def test_explanations_are_theirs(store, places):
    """With captum, a picture's explanation has a number for each value, and is TorchServe's for the same class."""
    ours = "import sys\nsys.path.append({captum!r})\n".format(**places) + SMALL
    theirs = (TORCHVISIONS + THEIRS).format(**places) + SMALL
    explained = []
    for name, handler in (("ours", ours), ("theirs", theirs)):
        store.serve(f"explained_{name}", "small.py", {"small.py": handler, "m.py": MODEL}, model_file="m.py")
        call = store.predict(f"explained_{name}", PHOTOS["small and odd"](), metadata=[("explain", "True")])
        explained.append(torch.tensor(json.loads(call[0])))
    assert explained[0].shape == (3, 48, 64)
    assert explained[0].abs().max() > 0
    assert explained[0].allclose(explained[1], atol=1e-5)


SEGMENTER = """
import torch


class Colours(torch.nn.Module):
    def forward(self, x):
        return {"out": x * 3}
"""
DETECTOR = """
import torch


class Corners(torch.nn.Module):
    def forward(self, pictures):
        return [self.found(picture) for picture in pictures]

    def found(self, picture):
        means = picture.mean(dim=(1, 2))
        boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [1.0, 1.0, 5.0, 5.0], [2.0, 2.0, 3.0, 3.0]])
        return {"boxes": boxes * means[:, None], "labels": torch.tensor([1, 2, 1]), "scores": means / means.max() - 0.2}
"""
CALLED = """
import json

import numpy as np

from ts.torch_handler.{module} import {kind}


class Called({kind}):
    def postprocess(self, data):
        return [one if isinstance(one[0], dict) else digest(one) for one in super().postprocess(data)]


def digest(one):
    pixels = np.array(one)
    return {{"shape": pixels.shape, "sums": pixels.sum(axis=1).tolist()}}
"""


@pytest.mark.parametrize(
    ("module", "kind", "model"),
    [("image_segmenter", "ImageSegmenter", SEGMENTER), ("object_detector", "ObjectDetector", DETECTOR)],
)
def test_others_are_theirs(store, places, module, kind, model):
    """Our segmenter and detector, without torchvision, answer what TorchServe's own do."""
    handler = CALLED.format(module=module, kind=kind)
    said = []
    for name, text in (("ours", handler), ("theirs", (TORCHVISIONS + THEIRS).format(**places) + handler)):
        files = {"h.py": text, "m.py": model, "index_to_name.json": json.dumps({"1": "cat", "2": ["n2", "dog"]})}
        store.serve(f"{module}_{name}", "h.py", files, model_file="m.py")
        said.append(json.loads(store.predict(f"{module}_{name}", PHOTOS["square"]())[0]))
    ours, theirs = said
    assert ours
    if module == "object_detector":
        assert [list(one) for one in ours] == [list(one) for one in theirs]
        assert {label for one in ours for label in one} >= {"cat", "score"}
        for one, other in zip(ours, theirs, strict=True):
            for key, value in one.items():
                assert value == pytest.approx(other[key])
    else:
        assert ours["shape"] == theirs["shape"] == [224, 224, 2]
        assert np.allclose(ours["sums"], theirs["sums"])
