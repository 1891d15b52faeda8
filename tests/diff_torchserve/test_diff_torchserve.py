"""TorchServe's recorded answers against ours; and that the comparison can fail. Live: `just diff-torchserve`."""

from __future__ import annotations

import copy
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cases
import cases_registering
import compare
import differences
import peers
import pytest
import run
from compare import differ
from differences import Difference, sort_out

RECORDING = json.loads((Path(__file__).parent / "recording.json").read_text())
LISTING = '{\n  "models": [\n    {\n      "modelName": "a",\n      "modelUrl": "a.mar"\n    }\n  ]\n}'


@pytest.fixture(scope="session")
def mine():
    """Our answers to every case. What waits for most of its time has a server of its own beside the others'."""
    apart = cases_registering.LAST
    rest = tuple(one for one in cases.SCENARIOS if one not in apart)
    with ThreadPoolExecutor() as servers:
        parts = servers.map(lambda some: run.answers(peers.ours, some, say=lambda _: None), (rest, apart))
        return {case: answer for part in parts for case, answer in part.items()}


def _of(name, answers):
    return {case: answer for case, answer in answers.items() if case.startswith(f"{name}/")}


@pytest.mark.parametrize("name", [one.name for one in cases.SCENARIOS])
def test_as_torchserve(name, mine):
    """Our answers are TorchServe's, field by field, but for the listed differences, each of which shows."""
    own = _of(name, mine)
    assert len(own) == len(_of(name, RECORDING["cases"]))
    left, unused = sort_out(run.against(RECORDING, own), own, (*differences.LISTED, *differences.OPEN))
    assert [(one.case, one.field, one.theirs, one.ours) for one in left] == []
    assert unused == []


def test_recording_is_the_tools():
    """The recording has every case, in two takes where they differ in just the fields that it names, and versions."""
    assert list(RECORDING["cases"]) == cases.names()
    assert set(RECORDING["versions"]) >= {"torchserve", "java", "torch", "grpcio", "protobuf", "python", "protocol"}
    for one in RECORDING["cases"].values():
        assert compare.unstable(one["takes"][0], one["takes"][-1]) == one.get("unstable", [])


def test_listed_differences_have_cases():
    """Each entry of the list is about cases that exist, and says why."""
    for entry in (*differences.LISTED, *differences.OPEN):
        assert any(re.fullmatch(entry.cases, name) for name in cases.names()), entry
        assert entry.reason


def test_another_server_differs():
    """A server that answers with its own codes and texts is reported, in exactly the fields that differ."""
    start = partial(peers.ours, more=("--set", 'listeners.inference.compatibility="none"'))
    answers = run.answers(start, [one for one in cases.SCENARIOS if one.name == "names"], say=lambda _: None)
    found = {(one.case, one.field): (one.theirs, one.ours) for one in run.against(RECORDING, answers)}
    assert found["names/unknown", "code"] == ("INTERNAL", "NOT_FOUND")
    assert found["names/unknown version", "code"] == ("INTERNAL", "NOT_FOUND")
    assert not [case for case, _ in found if case == "names/known"]


@pytest.mark.parametrize("name", cases.names())
def test_any_changed_field_is_reported(name):
    """Each recorded answer equals itself; a changed code, text or message, or one too many, is a difference."""
    takes = RECORDING["cases"][name]["takes"]
    assert differ(name, takes, takes[-1]) == []
    for change in ({"code": "TEAPOT"}, {"text": "another"}, {"msg": "another"}, {"messages": [{}] * 99}, {"more": 1}):
        other = copy.deepcopy(takes[0]) | change
        fields = {one.field for one in differ(name, takes, other)}
        assert any(field.split(".")[0] == next(iter(change)) for field in fields), (change, fields)


def test_bodies_are_opened():
    """In a JSON body a value, the keys' order, a missing key and the layout are each told apart."""

    def fields(changed):
        return [one.field for one in differ("", [{"code": "OK", "msg": LISTING}], {"code": "OK", "msg": changed})]

    assert fields(LISTING) == []
    assert fields(LISTING.replace("a.mar", "b.mar")) == ["msg.models.0.modelUrl"]
    assert fields(json.dumps(json.loads(LISTING))) == ["msg.layout"]
    turned = {"models": [{"modelUrl": "a.mar", "modelName": "a"}]}
    assert fields(json.dumps(turned, indent=2)) == ["msg.models.0.keys"]
    assert fields(json.dumps({"models": []}, indent=2)) == [
        *("msg.models.length", "msg.models.0.keys", "msg.models.0.modelName", "msg.models.0.modelUrl")
    ]


@pytest.mark.parametrize(
    ("key", "one", "other", "wrong"),
    [
        ("pid", 17, 99, "17a"),
        ("id", "9000", "9017", "w1"),
        ("memoryUsage", 0, 500, -1),
        ("startTime", "2024-01-01T00:00:00.000Z", "2030-12-31T23:59:59.999Z", "2024-01-01 00:00"),
    ],
)
def test_what_is_normalised_keeps_its_form(key, one, other, wrong):
    """What no two runs share is equal in any value of its form, and differs in another form."""
    bodies = [{"code": "OK", "msg": json.dumps([{key: value}], indent=2)} for value in (one, other, wrong)]
    assert differ("", bodies[:1], bodies[1]) == []
    assert [found.field for found in differ("", bodies[:1], bodies[2])] == [f"msg.0.{key}"]


def test_types_are_fields_too():
    """1, 1.0, true and "1" are four answers."""
    values = [1, 1.0, True, "1"]
    for one in values:
        for other in values:
            found = differ("", [{"x": one}], {"x": other})
            assert bool(found) == (one is not other)


def test_the_list_is_exact():
    """A listed difference covers whole names only; one that does not show is told, unless its cases were left out."""
    found = differ("a/b", [{"code": "OK"}], {"code": "INTERNAL"})
    exact, part, another = (Difference(pattern, "", "why", code="INTERNAL") for pattern in ("a/b", "a", "a/c"))
    assert sort_out(found, ["a/b"], (exact,)) == ([], [])
    assert sort_out(found, ["a/b"], (part,)) == (found, [])
    assert sort_out(found, ["a/b", "a/c"], (exact, another)) == ([], [another])
    assert sort_out(found, ["a/b"], (exact, another)) == ([], [])
    assert sort_out([], ["a/b"], (exact,)) == ([], [exact])


def test_the_list_names_our_code():
    """A code that differs is covered only if it is the one that the entry names."""
    found = differ("a/b", [{"code": "OK", "text": ""}], {"code": "INTERNAL", "text": "x"})
    without, wrong, right = (Difference("a/b", r"text.0|code", "why", code=code) for code in ("", "OK", "INTERNAL"))
    assert [one.field for one in sort_out(found, [], (without,))[0]] == ["code"]
    assert [one.field for one in sort_out(found, [], (wrong,))[0]] == ["code"]
    assert sort_out(found, [], (right,)) == ([], [])
