"""Digits, driven directly. What must not live here: a server. The source is handlers/digits.py and digit_picture.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from drive import ask
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actorserve.errors import BadInput
from actorserve.handlers.digits import Digits

_ZEROS = np.zeros(64, "<f4")


@pytest.fixture(scope="module")
def held_out(training: ModuleType) -> tuple[np.ndarray, np.ndarray]:
    """The quarter that was never trained on: samples and their digits."""
    _, samples, _, labels = training.split()
    return samples, labels


def _right(digits: Any, blobs: list[bytes], labels: np.ndarray) -> float:
    answers = ask(digits, *[{"data": blob} for blob in blobs])
    return float(np.mean([answer["digit"] == label for answer, label in zip(answers, labels, strict=True)]))


def test_reads_held_out_samples(digits: Any, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    """Over 98 % of the held-out quarter, sent as raw floats."""
    samples, labels = held_out

    assert _right(digits, [sample.astype("<f4").tobytes() for sample in samples], labels) > 0.98


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("paper", ["black", "white"])
@pytest.mark.parametrize(("side", "margin"), [(8, 0), (64, 0), (100, 0), (64, 30)])
def test_reads_held_out_pictures(  # noqa: PLR0917 - fixtures and parameters
    digits: Any,
    held_out: tuple[np.ndarray, np.ndarray],
    picture: Callable[..., bytes],
    side: int,
    margin: int,
    paper: str,
    kind: str,
) -> None:
    """Over 97 % of the held-out quarter as pictures of any size, with margins or without, ink dark or light."""
    samples, labels = held_out
    blobs = []
    for sample in samples:
        grey = np.round(sample.reshape(8, 8) * 255 / 16).astype(np.uint8)
        scaled = np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC))
        ink = np.pad(scaled, ((margin, margin), (2 * margin, margin)))
        blobs.append(picture(255 - ink if paper == "white" else ink, kind))

    assert _right(digits, blobs, labels) > 0.97


def test_all_ways_of_sending_agree(digits: Any, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    """A sample as floats, as a JSON list and under `body`, alone or among others, gets one answer."""
    sample = held_out[0][0]
    raw, listed = sample.astype("<f4").tobytes(), json.dumps([int(value) for value in sample]).encode()

    (alone,) = ask(digits, {"data": raw})
    together = ask(digits, {"data": raw}, {"data": listed}, {"body": raw}, {"data": b"bad"})[:3]

    for answer in together:
        assert answer["digit"] == alone["digit"]
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_answer_is_json_of_ten_probabilities(digits: Any) -> None:
    """The answer survives JSON; the ten probabilities sum to 1 and the digit is the likeliest."""
    (answer,) = ask(digits, *digits.warmup())
    probabilities = json.loads(json.dumps(answer))["probabilities"]

    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    assert max(probabilities) == probabilities[answer["digit"]]


def test_reads_sample_pictures(digits: Any, samples: Path) -> None:
    """The pictures that the examples send are read as their names say."""
    files = sorted(samples.glob("digit_*.png"))

    answers = ask(digits, *[{"data": file.read_bytes()} for file in files])

    assert [file.stem.removeprefix("digit_") for file in files] == [str(answer["digit"]) for answer in answers]
    assert len(files) == 10


_BAD = {
    "nothing": ({}, "data: missing"),
    "another key": ({"image": b"x"}, "got 'image'"),
    "empty": ({"data": b""}, "data: empty"),
    "no picture": ({"data": b"hello, I am not a picture"}, "data: not a picture"),
    "a broken PNG": ({"data": b"\x89PNG\r\n\x1a\n" + b"\0" * 40}, "data: "),
    "63 floats": ({"data": _ZEROS[:63].tobytes()}, "63 raw floats, but 64"),
    "65 floats": ({"data": bytes(260)}, "65 raw floats, but 64"),
    "NaN": ({"data": np.full(64, np.nan, "<f4").tobytes()}, "but 64 numbers between 0"),
    "infinity": ({"data": np.full(64, np.inf, "<f4").tobytes()}, "but 64 numbers between 0"),
    "above full ink": ({"data": np.full(64, 17, "<f4").tobytes()}, "but 64 numbers between 0"),
    "below paper": ({"data": np.full(64, -1, "<f4").tobytes()}, "but 64 numbers between 0"),
    "a list of two": ({"data": b"[1, 2]"}, "a JSON list of 2 items"),
    "a list of texts": ({"data": json.dumps(["1"] * 64).encode()}, "but 64 numbers"),
    "a list of booleans": ({"data": json.dumps([True] * 64).encode()}, "but 64 numbers"),
    "a list with NaN": ({"data": json.dumps([float("nan")] * 64).encode()}, "out of range"),
    "a huge number": ({"data": f"[{', '.join(['9' * 400] * 64)}]".encode()}, "out of range"),
    "half a list": ({"data": b"[1, 2"}, "not a JSON list"),
    "a deep list": ({"data": b"[" * 100_000}, "not a JSON list"),
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_fails_alone(digits: Digits, case: str) -> None:
    """Each bad input is the caller's fault, says what would be right, and leaves its neighbours alone."""
    inputs, said = _BAD[case]

    before, bad, after = ask(digits, {"data": _ZEROS.tobytes()}, inputs, {"data": _ZEROS.tobytes()})

    assert isinstance(bad, BadInput)
    assert said in str(bad)
    assert before == after
    assert "digit" in before


@given(
    st.binary(max_size=400)
    | st.binary(max_size=80).map(lambda tail: b"\x89PNG\r\n\x1a\n" + tail)
    | st.lists(st.floats(0, 16, width=32), min_size=63, max_size=65).map(lambda row: json.dumps(row).encode())
)
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_answered_or_refused(digits: Digits, data: bytes) -> None:
    """Whatever is sent gets a digit or a BadInput, never another error, alone or beside a good item."""
    for answer in (ask(digits, {"data": data})[0], ask(digits, {"data": _ZEROS.tobytes()}, {"data": data})[1]):
        assert isinstance(answer, BadInput) or 0 <= answer["digit"] <= 9


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (300, 2), (3, 4000), (5000, 1), (7, 9)])
def test_reads_pictures_of_any_shape(digits: Digits, picture: Callable[..., bytes], shape: tuple[int, int]) -> None:
    """However long or small a picture is, it gets a digit or a BadInput."""
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)

    (answer,) = ask(digits, {"data": picture(pixels)})

    assert isinstance(answer, BadInput) or 0 <= answer["digit"] <= 9


def test_blank_paper_is_no_digit(digits: Digits, picture: Callable[..., bytes]) -> None:
    """A picture of one colour is refused rather than guessed at."""
    (bad,) = ask(digits, {"data": picture(np.full((20, 20), 200, np.uint8))})

    assert isinstance(bad, BadInput)
    assert "shows no digit" in str(bad)
