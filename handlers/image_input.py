"""Bytes to pictures: what every handler that takes a photo does before its own arithmetic.

Only formats that people send are tried (a decoder nobody needs is only a way in), a picture's size is looked at
before its pixels are decoded, and whatever PIL raises on broken bytes becomes a BadInput that says what is wrong.
What must not live here: torch, or what one model does with the pixels. The contract is handlers/base.py.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from actorserve.errors import BadInput

__all__ = ["MAX_PIXELS", "open_picture"]

MAX_PIXELS = 50_000_000
"""Larger pictures are refused unread: a phone's photo has 12 to 48 million pixels, a bomb billions."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def open_picture(data: bytes, field: str = "data", *, enough: int = 0) -> Image.Image:
    """The picture as 8-bit RGB, turned as its EXIF orientation says; transparency lies on white.

    `enough`: no side need be longer than this many pixels, so a large JPEG may be decoded at a half or a quarter.
    """
    if not data:
        raise BadInput(field, "empty: send the bytes of a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns about sizes and metadata that are judged here
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                _check_size(picture, field)
                if enough:
                    picture.draft("RGB", (enough, enough))
                picture.load()
                return _on_white(ImageOps.exif_transpose(picture))
    except BadInput:
        raise
    except UnidentifiedImageError:
        raise BadInput(field, f"not a picture; send the bytes of a {', '.join(_FORMATS)} file") from None
    except Image.DecompressionBombError:
        raise BadInput(field, f"the picture has more than {MAX_PIXELS} pixels; send a smaller one") from None
    except Exception as error:  # noqa: BLE001 - PIL raises OSError, SyntaxError, struct.error... on broken bytes
        raise BadInput(field, f"the picture is broken: {error}") from None


def _check_size(picture: Image.Image, field: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadInput(field, f"the picture is {width} x {height}; send one of at most {MAX_PIXELS} pixels")


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a channel; `convert` would clip to 255
        picture = picture.point(lambda value: value / 256).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture.convert("RGBA"))
    return flat.convert("RGB")
