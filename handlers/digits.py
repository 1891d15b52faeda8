"""Digits: one handwritten digit, read by a small network that was trained on scikit-learn's 8x8 digits.

The weights are committed (weights/digits.safetensors); tools/train_digits.py makes them anew.
A sample is 64 intensities row by row, 0 for paper and 16 for full ink: as scikit-learn has them.
What must not live here: how a picture becomes such a sample (digit_picture.py has that).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from actorserve.errors import BadInput
from actorserve.handlers.base import Answer, Context, Request
from actorserve.handlers.digit_picture import FULL_INK, SIDE, sample_of_picture
from actorserve.handlers.inputs import check_options, main_input, read_each

__all__ = ["DigitNet", "Digits"]

_PIXELS = SIDE * SIDE
_RAW_BYTES = _PIXELS * 4
_WEIGHTS = Path(__file__).parent / "weights" / "digits.safetensors"


class DigitNet(nn.Module):
    """Two convolutions, one pooling, two linear layers: 38 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, samples: Tensor) -> Tensor:
        """Logits of samples [n, 64] of intensities from 0 to 16."""
        scores: Tensor = self.layers((samples / FULL_INK).view(-1, 1, SIDE, SIDE))
        return scores


class Digits:
    """Inputs: `data` (or `body`): a picture of one digit, 64 floats as 256 little-endian bytes, or a JSON list of 64.

    Answers {"digit": 7, "probabilities": [ten numbers]}. Options: none.
    """

    _net: DigitNet
    _device: torch.device

    def load(self, context: Context) -> None:
        """Read the committed weights."""
        check_options(context.options, ())
        self._device = torch.device(context.device)
        self._net = DigitNet()
        self._net.load_state_dict(load_file(_WEIGHTS), assign=True)
        self._net.to(self._device).eval().requires_grad_(requires_grad=False)

    def infer(self, batch: Sequence[Request]) -> Sequence[Answer | Exception]:
        """Read every digit in one forward; an item that is no digit fails alone."""
        samples = _all_raw(batch)
        if samples is not None:
            return self._read(samples)
        rows = read_each(batch, lambda request: sample_of(main_input(request)))
        good = [row for row in rows if not isinstance(row, Exception)]
        answers = iter(self._read(np.stack(good)) if good else ())
        return [row if isinstance(row, Exception) else next(answers) for row in rows]

    def warmup(self) -> Sequence[Mapping[str, bytes]]:
        """One empty sheet."""
        return [{"data": bytes(_RAW_BYTES)}]

    def _read(self, samples: NDArray[np.float32]) -> list[Answer]:
        with torch.inference_mode():
            scores = self._net(torch.from_numpy(samples).to(self._device))
            table = torch.softmax(scores, dim=1).double().cpu().numpy().round(6)
        digits = table.argmax(axis=1).tolist()
        return [{"digit": d, "probabilities": p} for d, p in zip(digits, table.tolist(), strict=True)]


def sample_of(data: bytes) -> NDArray[np.float32]:
    """The 64 intensities that `data` holds, whichever way it was sent."""
    if len(data) == _RAW_BYTES:
        raw = np.frombuffer(data, "<f4").astype(np.float32)
        if _is_sample(raw):
            return raw
    if data.lstrip()[:1] == b"[":
        return _sample_of_json(data)
    if len(data) % 4 == 0 and _looks_like_floats(data):
        raise BadInput("data", f"{len(data) // 4} raw floats, {_wanted()}")
    return sample_of_picture(data)


def _all_raw(batch: Sequence[Request]) -> NDArray[np.float32] | None:
    """The whole batch in one array if each item is 64 good floats, as a benchmark sends them; else None."""
    blobs = [request.inputs.get("data", b"") for request in batch]
    if any(len(blob) != _RAW_BYTES for blob in blobs):
        return None
    samples = np.frombuffer(bytearray(b"".join(blobs)), "<f4").reshape(-1, _PIXELS)
    return samples if _is_sample(samples) else None


def _is_sample(values: NDArray[np.float32]) -> bool:
    # False for NaN too. No PNG, JPEG or JSON list of 256 bytes passes: its last byte makes a float out of range.
    return bool(((values >= 0) & (values <= FULL_INK)).all())


def _sample_of_json(data: bytes) -> NDArray[np.float32]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput("data", f"not a JSON list: {error}") from None
    if len(values) != _PIXELS or not all(type(value) in (int, float) for value in values):
        raise BadInput("data", f"a JSON list of {len(values)} items, {_wanted()}")
    # Judged before it is made an array: a whole number of any length is legal JSON.
    if not all(0 <= value <= FULL_INK for value in values):
        raise BadInput("data", f"an intensity out of range, {_wanted()}")
    return np.array(values, np.float32)


def _looks_like_floats(data: bytes) -> bool:
    values = np.frombuffer(data, "<f4")
    if len(values) == _PIXELS and not data.startswith((b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"RIFF")):
        return True
    return 0 < len(values) <= 4096 and _is_sample(values)  # typed: <f4 of the machine


def _wanted() -> str:
    return f"but 64 numbers between 0 (paper) and {FULL_INK} (full ink) are wanted, or a picture of one digit"
