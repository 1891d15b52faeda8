"""The program that builds a model's venv, run as the server runs it."""

# ruff: noqa: SIM300  # expected == actual

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from wheels import make_wheel

from actorserve.actors.install_main import COMPLETE, key_of
from actorserve.actors.installing import install
from actorserve.actors.messages import Environment, ModelSpec
from actorserve.testing import descendants


def start(folder):
    """Order a venv with the wheel in `folder`; gives the process."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "actorserve.actors.install_main", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    order = {
        "root": f"{folder}/venvs",
        "requirements": ["./fruit-1.0-py3-none-any.whl"],
        "file": "",
        "base": f"{folder}",
    }
    process.stdin.write(json.dumps(order))
    process.stdin.close()
    process.stdin = None
    return process


def test_two_at_once_build_one(tmp_path):
    """Of two that want the same one builds it, and the other waits for it."""
    make_wheel(tmp_path, "fruit", "1.0")
    (out, err), (other_out, other_err) = [process.communicate() for process in (start(tmp_path), start(tmp_path))]

    assert out == other_out
    assert 1 == (err + other_err).count("building the venv")


def test_half_built_is_built_anew(tmp_path):
    """What was left by one that was killed is removed: nothing of it is found in the whole venv."""
    make_wheel(tmp_path, "fruit", "1.0")
    out, _ = start(tmp_path).communicate()
    venv = Path(json.loads(out)["python"]).parent.parent
    (venv / COMPLETE).unlink()
    (venv / "left.over").write_text("")
    again, err = start(tmp_path).communicate()

    assert (out, True, True) == (again, "building the venv" in err, (venv / COMPLETE).exists())
    assert not (venv / "left.over").exists()


def test_the_name_tells_states_apart(tmp_path):
    """Other lines, or a local file with another content, are another venv; the same are the same."""
    wheel = make_wheel(tmp_path, "fruit", "1.0")
    lines = [f"./{wheel.name}"]
    name = key_of(lines, tmp_path)
    assert name == key_of(lines, tmp_path)
    assert name != key_of([*lines, "nuts"], tmp_path)
    make_wheel(tmp_path, "fruit", "1.0", needs="nuts")
    assert name != key_of(lines, tmp_path)


async def test_no_descriptor_to_watch_it(tmp_path, monkeypatch):
    """An installation that cannot be watched is ended, and leaves neither a process nor a descriptor."""

    def none_left(pid):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    before = len(os.listdir("/proc/self/fd"))
    environment = Environment(requirements=("fruit",), base=str(tmp_path))
    with pytest.raises(OSError, match="Too many"):
        await install(ModelSpec("m", "1", "a:B", tmp_path, environment=environment), tmp_path, os.environ)
    assert before == len(os.listdir("/proc/self/fd"))
    assert not descendants(os.getpid())


def test_a_long_line_is_no_file(tmp_path):
    """A requirement with its hashes may be longer than any file's name."""
    line = "fruit==1.0 " + " ".join(f"--hash=sha256:{n:064}" for n in range(10))
    assert key_of([line], tmp_path) != key_of([line[:-1]], tmp_path)
