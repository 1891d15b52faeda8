"""The weights cache. What must not live here: a model. The rules are those at the top of handlers/weights_cache.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actorserve.errors import LoadFailed
from actorserve.handlers.weights_cache import Converted, converted, read_mapped


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    return path


def _convert(path: Path) -> Converted:
    return {"w": torch.arange(4.0)}, {"read": path.read_text()}


def _never(path: Path) -> Converted:
    raise AssertionError("converted again")


def test_converts_once(source: Path, tmp_path: Path) -> None:
    """The second time the file is there and nothing is converted; only the file and its lock remain."""
    first = converted(source, tmp_path / "cache", "test 1", _convert)

    assert first == converted(source, tmp_path / "cache", "test 1", _never)
    tensors, metadata = read_mapped(first)
    assert tensors["w"].tolist() == [0, 1, 2, 3]
    assert metadata == {"read": "weights"}
    assert {path.suffix for path in first.parent.iterdir()} == {".safetensors", ".lock"}


@pytest.mark.parametrize("changed", ["content", "time", "converter"])
def test_converts_anew_when_something_changed(source: Path, tmp_path: Path, changed: str) -> None:
    """Another source, the same one rewritten, or another converter has a file of its own."""
    first = converted(source, tmp_path / "cache", "test 1", _convert)
    status = source.stat()
    if changed == "content":
        source.write_bytes(b"WEIGHTS")
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif changed == "time":
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    again = converted(source, tmp_path / "cache", "test 2" if changed == "converter" else "test 1", _convert)

    assert first != again
    assert first.exists()


def test_a_killed_conversion_leaves_nothing_in_the_way(source: Path, tmp_path: Path) -> None:
    """What a killed process had begun is no answer, and is overwritten."""

    def killed(path: Path) -> Converted:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(source, tmp_path / "cache", "test 1", killed)
    lock = next((tmp_path / "cache" / "weights").glob("*.lock"))
    lock.with_suffix(".partial").write_bytes(b"half")

    made = converted(source, tmp_path / "cache", "test 1", _convert)

    assert read_mapped(made)[0]["w"].tolist() == [0, 1, 2, 3]


def test_one_process_converts_while_others_wait(source: Path, tmp_path: Path) -> None:
    """Four processes that start at once convert once, and all have the file."""
    code = """
import sys, time, pathlib, torch
from actorserve.handlers.weights_cache import converted, read_mapped
def convert(path):
    print("converting", flush=True)
    time.sleep(0.3)
    return {"w": torch.ones(2)}, {}
source, cache = map(pathlib.Path, sys.argv[1:])
print(read_mapped(converted(source, cache, "test 1", convert))[0]["w"].sum().item())
"""
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [process.communicate(timeout=60)[0] for process in processes]

    assert "".join(printed).count("converting") == 1
    assert all(text.endswith("2.0\n") for text in printed)


def test_a_folder_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    """Where nothing can be kept, the load fails and names the folder and its config key."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(LoadFailed, match=r"cannot keep converted weights in .*file \(cache_dir\)"):
        converted(source, tmp_path / "file", "test 1", _convert)
