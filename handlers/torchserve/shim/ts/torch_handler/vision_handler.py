"""What the handlers of pictures share: rows become one batch of normalised pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..handler_utils.timer import timed
from .base_handler import BaseHandler
from .explanation import captum_attr
from .picture import center_crop, normalise, open_picture, resize, to_tensor


class VisionHandler(BaseHandler):
    """A row has its picture under `data` or `body`: bytes, base64 text, or a list of numbers as a tensor has them."""

    image_processing: Any = staticmethod(to_tensor)
    """From a picture to a tensor [3, height, width]; a subclass may have a torchvision transform in its place."""

    ig: Any = None

    def initialize(self, context: Any) -> None:
        """As the base handler's."""
        super().initialize(context)
        self.limited = bool(context.system_properties.get("limit_max_image_pixels", True))

    @timed
    def preprocess(self, data: Any) -> Any:
        """The batch [n, 3, height, width] on the device; pictures must end up the same size."""
        return torch.stack([self._tensor(row) for row in data]).to(self.device)

    def get_insights(self, tensor_data: Any, _: Any, target: int = 0) -> list[Any]:
        """How much each value [3, height, width] of each picture spoke for class `target`. Needs captum."""
        if self.ig is None:
            self.ig = captum_attr().IntegratedGradients(self.model)
        return self.ig.attribute(tensor_data, target=target, n_steps=15).tolist()  # type: ignore[no-any-return]

    def _tensor(self, row: Any) -> torch.Tensor:
        content = row.get("data") if row.get("data") is not None else row.get("body")
        if content is None:
            raise ValueError("the request has neither data nor body")
        if isinstance(content, list):
            return torch.tensor(content, dtype=torch.float32)
        made: torch.Tensor = self.image_processing(open_picture(content, limited=self.limited))
        return made


def imagenet_transform() -> Callable[[Any], torch.Tensor]:
    """Resize to 256, crop 224, normalise: torchvision's transforms where it is installed, else our own."""
    try:
        from torchvision import transforms  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  # an extra
    except (ImportError, RuntimeError):  # RuntimeError: its operators do not fit the torch that is installed
        return lambda picture: normalise(to_tensor(center_crop(resize(picture, 256), 224)))
    steps = [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return,unused-ignore]
