"""Whose files and which arguments make the digest of an application by its import path; what answers a service."""

import sys
import sysconfig
from types import ModuleType

import pytest

from actorserve.handlers.rpc.deployment import services_of
from actorserve.handlers.rpc.source import digest_of, digest_of_arguments, own_files
from actorserve.serve.graph import CallRef, HandleRef


def module(name, file):
    made = ModuleType(name)
    made.__file__ = file
    return name, made


def test_whose_files_count():
    """The application's own and those beside it; no packages, not ours, not Python's, but the package that is named."""
    standard = sysconfig.get_path("stdlib")
    loaded = [
        module("shop", "/apps/shop.py"),
        module("wording.words", "/elsewhere/wording/words.py"),
        module("json.decoder", f"{standard}/json/decoder.py"),
        module("torch", "/x/site-packages/torch/__init__.py"),
        module("packed.app", "/x/site-packages/packed/app.py"),
        module("actorserve.serve", "/src/actorserve/serve/__init__.py"),
        module("__main__", "/apps/main.py"),
        module("namespace", None),
    ]
    own = {"shop", "wording.words"}
    assert {name for name, _ in own_files("shop", loaded)} == own
    assert {name for name, _ in own_files("packed.app", loaded)} == {*own, "packed.app"}


def test_a_file_that_changes(tmp_path, monkeypatch):
    """The digest is of what the files hold, wherever they are; a file that has gone still counts by its name."""
    file = tmp_path / "digested.py"
    monkeypatch.setitem(sys.modules, *module("digested", str(file)))
    found = []
    for text in ("A = 1", "A = 2", "A = 1"):
        file.write_text(text)
        found.append(digest_of("digested"))
    assert found[0] == found[2] != found[1]
    file.unlink()
    gone = digest_of("digested")
    monkeypatch.delitem(sys.modules, "digested")
    assert len({*found, gone, digest_of("digested")}) == 4


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (((1, "a"), {"x": [2.5]}), ((1, "a"), {"x": [2.5]}), True),
        (((1,), {}), ((2,), {}), False),
        (((1,), {}), (("1",), {}), False),
        (((b"a",), {}), ((b"b",), {}), False),
        (([1], {}), ((1,), {}), False),
        (((HandleRef("A"),), {}), ((HandleRef("B"),), {}), False),
        (((CallRef("A", "m", (1,), {}),), {}), ((CallRef("A", "m", (2,), {}),), {}), False),
        (((object(),), {}), ((object(),), {}), True),
        (((object(),), {}), ((ValueError(),), {}), False),
        ((({1: 2},), {}), (({"1": 2},), {}), False),
    ],
)
def test_arguments(one, other, same):
    """Plain data counts by its value, what stands for a deployment by its name, all else by its type."""
    assert (digest_of_arguments(one) == digest_of_arguments(other)) is same


class Has:
    def Two(self): ...  # noqa: N802  # an rpc's name

    def _Hidden(self): ...  # noqa: N802  # as above


class HasAll:
    def __getattr__(self, name): ...


def function(x): ...


@pytest.mark.parametrize(
    ("target", "found"), [(Has, ["a.A"]), (HasAll, ["a.A", "b.B", "c.C"]), (function, ["c.C"]), (int, [])]
)
def test_what_answers(target, found):
    """A service is answered by a class that has one of its methods, or says at run time what it has."""
    assert services_of(target, ["/a.A/One", "/a.A/Two", "/b.B/_Hidden", "/b.B/Three", "/c.C/__call__"]) == found
