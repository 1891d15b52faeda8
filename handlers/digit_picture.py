"""From a picture of one digit to scikit-learn's 8x8 sample of it: 0 for paper, 16 for full ink.

The data set's own rule is the guide: the digit fills the square's height, and a value is how much of a cell is ink.
So the paper's colour is read from the border, the ink is whatever lies farthest from it (dark on light and light on
dark are the same digit), wide margins are cut away, and cells are averages.
What must not live here: torch, or the network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actorserve.errors import BadInput
from actorserve.handlers.image_input import open_picture

__all__ = ["FULL_INK", "SIDE", "sample_of_picture"]

SIDE = 8
FULL_INK = 16

_LONGEST = 512  # a larger picture is shrunk first: its digit has no finer detail that 8x8 could show
_FAINT = 24  # of 255: less contrast than this is paper without ink
_INKED = 0.25  # of full ink: from here on a pixel counts as part of the digit
_MARGIN = 0.7  # a digit that is lower than this part of the picture's height has margins around it


def sample_of_picture(data: bytes) -> NDArray[np.float32]:
    """The 64 intensities of the digit in a PNG, JPEG... of any size."""
    picture = open_picture(data).convert("L")
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX)
    ink = _framed(_ink(np.asarray(picture, dtype=np.float32)))
    cells = Image.fromarray(ink).resize((SIDE, SIDE), Image.Resampling.BOX)
    return (np.asarray(cells, dtype=np.float32) * FULL_INK).clip(0, FULL_INK).reshape(-1)


def _ink(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much ink each pixel has, 0 to 1, whatever the colours of ink and paper."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = float(np.median(border))
    lighter, darker = float(grey.max()) - paper, paper - float(grey.min())
    if max(lighter, darker) < _FAINT:
        raise BadInput("data", "the picture shows no digit: it is of one colour all over")
    signed = (grey - paper) / lighter if lighter >= darker else (paper - grey) / darker
    return signed.clip(0, 1)


def _framed(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut wide margins away, so that the digit stands in the middle of a square and fills its height."""
    height, width = ink.shape
    rows = np.flatnonzero((ink > _INKED).any(axis=1))
    columns = np.flatnonzero((ink > _INKED).any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    if height == width and bottom - top >= _MARGIN * height:
        return ink
    digit = ink[top:bottom, left:right]
    side = max(digit.shape)
    square = np.zeros((side, side), np.float32)
    y, x = (side - digit.shape[0]) // 2, (side - digit.shape[1]) // 2
    square[y : y + digit.shape[0], x : x + digit.shape[1]] = digit
    return square
