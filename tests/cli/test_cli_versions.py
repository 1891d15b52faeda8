"""Several versions of one model as a person sees them: the screen, progress, and what archives turn out to be."""

import json
import zipfile
from pathlib import Path

import pytest

from actorserve import config, screen
from actorserve.actors.messages import ModelSpec, ModelView, ReplicaView, State, Tree
from actorserve.errors import ConfigError
from actorserve.listening import Bound
from actorserve.server import Server

BOUND = [Bound("a", ("inference",), ("127.0.0.1:1",))]


def view(name, version, state=State.READY, *, is_default=True, reason=""):
    life = {"incarnation": 1, "pid": 1, "restarts": 0, "replaced": 0, "failures_in_a_row": 0, "last_exit": None}
    moment = {"reason": reason, "started_at": 0.0, "in_hand": 0}
    replica = ReplicaView(name=f"{name}/{version}#0", index=0, device="cpu", state=state, **life, **moment)
    return ModelView(ModelSpec(name, version, "mine:H", Path("/")), is_default, state, 0, (replica,))


def test_screen():
    """The table has a row for each version and says which is the default; reasons and the call to try name the version
    where there are several. Of one version alone nothing more is said.
    """
    tree = Tree((view("a", "1.0", State.FAILED, is_default=False, reason="gone"), view("a", "2.0"), view("b", "1.0")))
    text = screen.screen(BOUND, tree, Path("/"))
    assert "  a      1.0            FAILED  0/1" in text
    assert "  a      2.0 (default)  READY   1/1" in text
    assert "  b      1.0            READY   1/1" in text
    assert "  a/1.0: gone\n" in text
    assert text.count("(default)") == 1
    assert 'with model_name = "a".' in text
    only = Tree((view("a", "1.0", is_default=False), view("a", "2.0", State.FAILED)))
    assert 'with model_name = "a" and model_version = "1.0".' in screen.screen(BOUND, only, Path("/"))


def test_progress():
    """What loads is named by its version where there are several."""
    tree = Tree((view("a", "1.0"), view("a", "2.0", State.LOADING, is_default=False), view("b", "1.0", State.LOADING)))
    assert screen.progress(tree, 1.0) == "  1 of 3 models ready after 1.0 s, loading a/2.0, b"


def mar(path, version):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("h.py", "def handle(data, context):\n    return data\n")
        model = {"modelName": "a", "modelVersion": version, "handler": "h.py"}
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))


def parsed(folder, optional=()):
    models = {"a": {"source": "1.mar"}, "b": {"name": "a", "source": "2.mar"}}
    server = {"cache_dir": str(folder / "cache"), "state_dir": ""}
    return config.parse({"server": server, "models": models}, folder=folder, optional=optional)


def test_archives_say_their_versions(tmp_path):
    """Two archives of one name are two versions; where both say the same one, an error names both entries."""
    mar(tmp_path / "1.mar", "1.0")
    mar(tmp_path / "2.mar", "2.0")
    server = Server(parsed(tmp_path))
    assert [spec.key for spec in server.specs] == ["a/1.0", "a/2.0"]
    server.unpacking.close()
    mar(tmp_path / "2.mar", "1.0")
    with pytest.raises(ConfigError, match=r"models: a and b are both a version 1.0"):
        Server(parsed(tmp_path))


@pytest.mark.parametrize("content", ["broken", "twice"])
def test_a_version_that_may_be_left_out(tmp_path, content):
    """Of versions that are there because all of the store is loaded, one that is broken, or that another is too, is
    left out alone, by its own entry; one that was named is not.
    """
    mar(tmp_path / "1.mar", "1.0")
    mar(tmp_path / "2.mar", "1.0")
    if content == "broken":
        (tmp_path / "2.mar").write_bytes(b"PK")
    server = Server(parsed(tmp_path, optional={"a", "b"}))
    assert [spec.key for spec in server.specs] == ["a/1.0"]
    assert list(server.settings.models) == ["a"]
    assert list(server.unpacking.root.iterdir()) == [server.specs[0].model_dir]
    server.unpacking.close()
    with pytest.raises(ConfigError, match="models"):
        Server(parsed(tmp_path, optional={"a"}))
