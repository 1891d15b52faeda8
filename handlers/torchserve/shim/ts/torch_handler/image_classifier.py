"""The built-in `image_classifier`."""

from __future__ import annotations

from typing import Any

import torch

from ..handler_utils.timer import timed
from ..utils.util import map_class_to_label
from .vision_handler import VisionHandler, imagenet_transform


class ImageClassifier(VisionHandler):
    """Answers each picture with its `topk` (5) most likely classes as {label: probability}."""

    topk = 5
    image_processing = staticmethod(imagenet_transform())

    def set_max_result_classes(self, topk: int) -> None:
        """How many classes an answer has."""
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """How many classes an answer has."""
        return self.topk

    @timed
    def postprocess(self, data: Any) -> list[Any]:
        """Labels of index_to_name.json, or else the classes' numbers."""
        probabilities = torch.nn.functional.softmax(data, dim=1)
        values, classes = torch.topk(probabilities, min(self.topk, data.shape[1]), dim=1)
        return map_class_to_label(values.tolist(), self.mapping, classes.tolist())
