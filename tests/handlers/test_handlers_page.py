"""The code of docs/handlers.md, run as it stands there. What must not live here: another copy of that code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from actorserve.errors import BadInput
from actorserve.handlers.base import missing_methods

_PAGE = Path(__file__).parents[2] / "docs" / "handlers.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", _PAGE.read_text(), re.DOTALL)


@pytest.fixture
def page(tmp_path: Path) -> dict[str, Any]:
    """The page's names after its Python has run, with a folder that holds the weights."""
    torch.save({"weight": torch.tensor([[9.0, 0.0, 0.0]]), "bias": torch.tensor([-4.5])}, tmp_path / "ripeness.pt")
    names: dict[str, Any] = {"folder": tmp_path}
    for block in _blocks("python"):
        exec(block, names)  # noqa: S102 - our own page
    return names


def test_the_example_answers(page: dict[str, Any]) -> None:
    """The page's handler answers the good item and refuses the bad one, as the page's own last lines drive it."""
    good, bad = page["answers"]

    assert good == {"ripe": True}
    assert isinstance(bad, BadInput)
    assert str(bad) == "data: 1 numbers; a colour has 3"
    assert missing_methods(page["model"]) is None


def test_the_config_names_the_example(page: dict[str, Any]) -> None:
    """The page's config is TOML and names the page's class."""
    (model,) = tomllib.loads(_blocks("toml")[0])["models"].values()

    assert model["handler"].partition(":")[2] in page
