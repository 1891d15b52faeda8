"""Pictures without torchvision: resize, crop, normalise, as its transforms do them."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, per channel of RGB in 0 to 1."""


def open_picture(content: Any, *, limited: bool = True) -> Image.Image:
    """A picture in RGB from bytes, or from base64 text. `limited`: Pillow refuses more pixels than it thinks sane."""
    if isinstance(content, str):
        content = base64.b64decode(content, validate=True)
    before = Image.MAX_IMAGE_PIXELS
    if not limited:
        Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(io.BytesIO(bytes(content))).convert("RGB")
    finally:
        Image.MAX_IMAGE_PIXELS = before


def resize(picture: Image.Image, size: int) -> Image.Image:
    """Scale so that the shorter side has `size` pixels."""
    width, height = picture.size
    short, long = sorted((width, height))
    longer = int(size * long / short)
    target = (size, longer) if width <= height else (longer, size)
    return picture.resize(target, Image.Resampling.BILINEAR)


def center_crop(picture: Image.Image, size: int) -> Image.Image:
    """The square of `size` pixels in the middle; what lies outside of the picture is black."""
    width, height = picture.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """float32 [3, height, width] in 0 to 1."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


def normalise(tensor: torch.Tensor) -> torch.Tensor:
    """Minus ImageNet's mean, divided by its deviation."""
    return (tensor - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
