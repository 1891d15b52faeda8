"""The built-in `object_detector`."""

from __future__ import annotations

from typing import Any

import torch

from ..utils.util import map_class_to_label
from .vision_handler import VisionHandler


class ObjectDetector(VisionHandler):
    """Answers each picture with a list of {label: [x1, y1, x2, y2], "score": probability}.

    The model takes a list of pictures of any size, and gives for each a table with `boxes`, `labels` and `scores`.
    """

    threshold = 0.5

    def preprocess(self, data: Any) -> Any:
        """A list of tensors [3, height, width] on the device."""
        return [self._tensor(row).to(self.device) for row in data]

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's tables, without gradients."""
        with torch.inference_mode():
            return self.model(data, *args, **kwargs)

    def postprocess(self, data: Any) -> list[Any]:
        """What is at least as sure as the threshold, in the model's order."""
        return [self._found(table) for table in data]

    def _found(self, table: Any) -> list[dict[str, Any]]:
        kept = table["scores"] >= self.threshold
        boxes, labels = table["boxes"][kept].tolist(), table["labels"][kept].tolist()
        named = map_class_to_label([[box] for box in boxes], self.mapping, [[label] for label in labels])
        return [one | {"score": score} for one, score in zip(named, table["scores"][kept].tolist(), strict=True)]
