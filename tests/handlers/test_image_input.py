"""Bytes to pictures. What must not live here: a model. The source is handlers/image_input.py's own docstring."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from actorserve.errors import BadInput
from actorserve.handlers.image_input import MAX_PIXELS, open_picture


def _png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_000, 60_000, 2**31 - 1])
def test_refuses_bombs_unread(side: int) -> None:
    """A picture that says it is larger than the limit is refused before its pixels are decoded."""
    with pytest.raises(BadInput, match=str(MAX_PIXELS)):
        open_picture(_png_header(side, side))


@pytest.mark.parametrize("data", [b"", b"\0", b"GIF89a", b"\xff\xd8\xff", b"%PDF-1.4", b"BM" + bytes(60)])
def test_refuses_what_is_no_picture(data: bytes) -> None:
    """Bytes that are no picture, or the beginning of one, are the caller's fault."""
    with pytest.raises(BadInput, match=r"^data: "):
        open_picture(data)


def test_refuses_half_a_picture(picture: Callable[..., bytes]) -> None:
    """A truncated file is refused, not shown half grey."""
    whole = picture(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))

    with pytest.raises(BadInput, match="the picture is broken"):
        open_picture(whole[: len(whole) // 2])


def test_turns_as_exif_says(picture: Callable[..., bytes]) -> None:
    """A photo that was taken with the camera on its side stands upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    wide = np.zeros((10, 30, 3), np.uint8)

    assert open_picture(picture(wide, "JPEG", exif=exif)).size == (10, 30)


def test_transparency_lies_on_white(picture: Callable[..., bytes]) -> None:
    """What is transparent shows as white paper."""
    clear = picture(np.zeros((2, 2, 4), np.uint8))

    assert open_picture(clear).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_reads_each_format(picture: Callable[..., bytes], kind: str) -> None:
    """Every format that the error text names is read, as RGB."""
    opened = open_picture(picture(np.full((4, 4, 3), 128, np.uint8), kind))

    assert (opened.mode, opened.size) == ("RGB", (4, 4))
    assert abs(opened.getpixel((1, 1))[0] - 128) <= 2


def test_reads_16_bit_grey() -> None:
    """16 bits a pixel are scaled to 8, not clipped."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(file, "PNG")

    assert open_picture(file.getvalue()).getpixel((0, 0)) == (128, 128, 128)
