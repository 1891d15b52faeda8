"""One store of archives and one real server for the tests of what a TorchServe user brings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from densenet161 import DenseNet161
from dropin_handlers import CLOSING, COUNTDOWN, ECHO, HEADERS, SHARING, TALK
from dropin_site import ROOT, Site, archive, pack, served, write


def documented() -> str:
    """The handler with state that docs/torchserve-handlers.md shows."""
    page = (ROOT / "docs" / "torchserve-handlers.md").read_text()
    return page.partition("## Stateful sequences")[2].partition("```python\n")[2].partition("```")[0]


def add_densenet(sources: Path) -> None:
    """Its code, random weights, and names of a thousand classes."""
    shutil.copy(Path(__file__).parent / "densenet161.py", sources / "model.py")
    torch.manual_seed(161)
    torch.save(DenseNet161().state_dict(), sources / "densenet161.pth")
    (sources / "index_to_name.json").write_text(json.dumps({str(one): f"class {one}" for one in range(1000)}))


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store`, full of archives, and `sources`."""
    folder = tmp_path_factory.mktemp("dropin")
    store, sources = folder / "store", folder / "sources"
    for path in (store, store / "1", store / "2", sources):
        path.mkdir()
    handlers = {"echo.py": ECHO, "talk.py": TALK, "sharing.py": SHARING, "countdown.py": COUNTDOWN}
    configs = {
        "sum.yaml": "sequenceBatching: true\nbatchSize: 4\nmaxBatchDelay: 10\nmaxNumSequence: 4\n",
        "countdown.yaml": "continuousBatching: true\nbatchSize: 4\n",
        "sharing.yaml": "batchSize: 4\nmaxBatchDelay: 1\n",
    }
    write(sources, handlers | configs | {"sum.py": documented(), "closing.py": CLOSING, "headers.py": HEADERS})
    add_densenet(sources)
    densenet = ("--model-file", "model.py", "--serialized-file", "densenet161.pth")
    pack(
        [
            archive("densenet161", "image_classifier", store, *densenet, "--extra-files", "index_to_name.json"),
            archive("echo", "echo.py", store),
            archive("headers", "headers.py", store),
            archive("talk", "talk.py", store / "1"),
            archive("talk", "talk.py", store / "2", version="2.0"),
            archive("sharing", "sharing.py", store, "--config-file", "sharing.yaml"),
            archive("sum", "sum.py", store, "--config-file", "sum.yaml"),
            archive("closing", "closing.py", store, "--config-file", "sum.yaml"),
            archive("countdown", "countdown.py", store, "--config-file", "countdown.yaml"),
        ],
        sources,
    )
    return folder


@pytest.fixture(scope="session")
def site(archives: Path) -> Iterator[Site]:
    """The server."""
    with served(archives) as site:
        yield site
