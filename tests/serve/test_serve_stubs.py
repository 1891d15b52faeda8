"""Which grpcio the stubs of Ray's schema demand: what pyproject.toml asks for and constraints.txt pins suffices."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
STUBS = "actorserve.serve.generated.serve_pb2_grpc"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def floor():
    """The version of the extra [grpcio]."""
    (requirement,) = EXTRAS["grpcio"]
    return requirement.removeprefix("grpcio>=")


def pinned():
    """The version of constraints.txt."""
    return re.search(r"^grpcio==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def imported(version):
    """How importing the stubs ends where grpcio says that it is of this version."""
    code = f"import grpc; grpc.__version__ = {version!r}; import {STUBS}"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("version", [floor(), pinned()])
def test_what_is_asked_for_suffices(version):
    """With the oldest version that is asked for, and with the pinned one, the import works."""
    done = imported(version)
    assert done.returncode == 0, done.stderr


def test_what_is_older_is_told():
    """The check in the stubs names the version that is needed, which is the one that is asked for."""
    done = imported("1.63.2")
    assert f"depends on grpcio>={floor()}" in done.stderr


def test_what_is_installed():
    """The import works with the version that is here, which is the pinned one or a later one that is asked for."""
    done = subprocess.run([sys.executable, "-c", f"import {STUBS}"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Requirement(EXTRAS["grpcio"][0]).specifier.contains(pinned())


@pytest.mark.parametrize("extra", ["serve", "examples", "test"])
def test_who_brings_it(extra):
    """Whoever writes applications, runs examples or tests gets grpcio with it."""
    needed, seen = [extra], set()
    while needed:
        one = needed.pop()
        seen.add(one)
        needed += [more for line in EXTRAS[one] for more in Requirement(line).extras - seen if "actorserve[" in line]
    assert "grpcio" in seen
