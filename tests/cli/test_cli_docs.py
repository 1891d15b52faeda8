"""docs/configuration.md: made from the configuration's models, whole, and its example is one that works."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from actorserve import config
from actorserve.config_application import Application
from actorserve.config_listener import Listener, Tls
from actorserve.config_servicer import Replicas, Servicer

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "configuration.md"


def test_page_is_fresh(tmp_path):
    """The page is, byte for byte, what `just docs` writes, whoever runs it."""
    made = tmp_path / "configuration.md"
    tool = [sys.executable, str(ROOT / "tools" / "generate_docs.py"), str(made)]
    subprocess.run(tool, check=True, capture_output=True, env=os.environ | {"HOME": str(tmp_path)}, timeout=60)
    assert made.read_text() == PAGE.read_text(), "run `just docs`"


def test_every_key_is_described():
    """Every key of every table has a row with a type, a default and a description."""
    for heading, model in config.tables():
        section = PAGE.read_text().partition(f"## `{heading}`")[2].partition("\n## ")[0]
        for name in model.model_fields:
            row = re.search(rf"^\| `{name}` \| (.+) \| (.+) \| (.*) \| (.+) \|$", section, re.MULTILINE)
            assert row is not None, f"{heading} {name}"
    listed = {model for _, model in config.tables()}
    known = {config.Server, config.Log, Listener, Tls, config.Model, config.Workers, config.Defaults}
    assert listed == known | {Servicer, Replicas, Application}


def test_units_are_in_the_names():
    """A key that counts seconds, milliseconds or bytes says so in its name, and the page in its column."""
    page = PAGE.read_text()
    assert "| `max_batch_delay_ms` | number; at least 0, at most 600000 | `0` | milliseconds |" in page
    assert "| `grace_s` | number; at least 0, at most 86400 | `30` | seconds |" in page
    assert "| `max_receive_bytes` | whole number; at least 1, at most 1073741824 | `6553500` | bytes |" in page


@pytest.mark.parametrize("source", ["page", "config.toml", "examples/zoo/config.toml"])
def test_examples_are_valid(source):
    """The page's example file, and the two in the repository, are valid configurations."""
    text = PAGE.read_text().partition("```toml\n")[2].partition("```")[0] if source == "page" else None
    content = tomllib.loads((ROOT / source).read_text() if text is None else text)
    settings = config.parse(content, folder=ROOT)
    assert settings.models
