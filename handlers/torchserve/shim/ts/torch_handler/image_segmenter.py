"""The built-in `image_segmenter`."""

from __future__ import annotations

from typing import Any

import torch

from .vision_handler import VisionHandler, imagenet_transform


class ImageSegmenter(VisionHandler):
    """Answers each picture with [height][width][2]: of each pixel the class and its probability.

    The model's answer has the scores under `out`: [n, classes, height, width].
    """

    image_processing = staticmethod(imagenet_transform())

    def postprocess(self, data: Any) -> list[Any]:
        """The most likely class of each pixel."""
        probabilities = torch.nn.functional.softmax(data["out"], dim=1)
        values, classes = torch.max(probabilities, dim=1)
        return torch.stack((classes.type(values.dtype), values), dim=3).tolist()
