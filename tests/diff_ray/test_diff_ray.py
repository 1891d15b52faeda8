"""Ray Serve's recorded answers against ours; and that the comparison can fail. Live: `just diff-ray`."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import ray_cases
import ray_differences
import ray_peers
import run_ray
from ray_shared import compare, sort_out

RECORDING = json.loads((Path(__file__).parent / "recording.json").read_text())


@pytest.fixture(scope="session")
def mine():
    """Our answers to every case."""
    return run_ray.answers(ray_peers.ours, ray_cases.SCENARIOS, say=lambda _: None, at_once=True)


def _of(name, answers):
    return {case: answer for case, answer in answers.items() if case.startswith(f"{name}/")}


@pytest.mark.parametrize("name", [one.name for one in ray_cases.SCENARIOS])
def test_as_ray_serve(name, mine):
    """Our answers are Ray Serve's, field by field, but for the listed differences, each of which shows."""
    own = _of(name, mine)
    assert len(own) == len(_of(name, RECORDING["cases"]))
    left, _ = sort_out(run_ray.against(RECORDING, own), own, (*ray_differences.LISTED, *ray_differences.OPEN))
    assert [(one.case, one.field, one.theirs, one.ours) for one in left] == []


def test_every_listed_difference_shows(mine):
    """A list that only grows says nothing: what is listed and does not show is an error."""
    _, unused = sort_out(run_ray.against(RECORDING, mine), mine, (*ray_differences.LISTED, *ray_differences.OPEN))
    assert unused == []


def test_recording_is_the_tools():
    """The recording has every case, in two takes where they differ in just the fields that it names, and versions."""
    assert len(set(ray_cases.names())) == len(ray_cases.names())
    assert list(RECORDING["cases"]) == ray_cases.names()
    assert len(RECORDING["cases"]) > 100
    assert RECORDING["versions"]["ray"] == "2.60.0"
    assert set(RECORDING["versions"]) >= {"grpcio", "protobuf", "python", "protocol", "client's grpcio"}
    for one in RECORDING["cases"].values():
        assert compare.unstable(one["takes"][0], one["takes"][-1]) == one.get("unstable", [])


def test_listed_differences_have_cases():
    """Each entry of the list is about cases that exist, and says why."""
    for entry in (*ray_differences.LISTED, *ray_differences.OPEN):
        assert any(re.fullmatch(entry.cases, name) for name in ray_cases.names()), entry
        assert entry.reason


@pytest.mark.parametrize("name", ray_cases.names())
def test_any_changed_field_is_reported(name):
    """Each recorded answer equals itself; a changed code, text, message or trailer is a difference."""
    takes = RECORDING["cases"][name]["takes"]
    assert compare.differ(name, takes, takes[-1]) == []
    changes = ({"code": "TEAPOT"}, {"text": "another"}, {"messages": [{}] * 999}, {"trailers": {"a": ["b"] * 99}})
    for change in (*changes, {"initial": {"a": ["b"]}}, {"more": 1}):
        other = copy.deepcopy(takes[0]) | change
        fields = {one.field for one in compare.differ(name, takes, other)}
        assert any(field.split(".")[0] == next(iter(change)) for field in fields), (change, fields)


def test_only_the_clients_deadline_is_settled():
    """What a passed deadline says is left out only where the client set one; elsewhere it is compared."""
    passed = {"code": "DEADLINE_EXCEEDED", "text": "theirs", "trailers": {"a": ["b"]}}
    assert run_ray.settled("cancels/deadline", passed) == {
        "code": "DEADLINE_EXCEEDED",
        "text": "(at the client's deadline)",
        "trailers": {},
    }
    assert run_ray.settled("timeouts/unary", passed) == passed
    assert run_ray.settled("cancels/deadline", passed | {"code": "OK"})["text"] == "theirs"


def test_only_imports_change(tmp_path):
    """Ours runs the script and the applications that Ray Serve runs; lines that import from it alone are different."""
    ray_peers.prepared(tmp_path / "theirs", migrate=False)
    ray_peers.prepared(tmp_path / "ours", migrate=True)
    changed = 0
    for path in (tmp_path / "theirs").glob("*.py"):
        theirs, ours = path.read_text().splitlines(), (tmp_path / "ours" / path.name).read_text().splitlines()
        for one, other in zip(theirs, ours, strict=True):
            if one != other:
                assert other == one.replace("from ray", "from actorserve", 1)
                assert one.startswith("from ray")
                changed += 1
        assert not [line for line in ours if re.match(r"\s*(from|import) ray\b", line)]
    assert changed >= 5
