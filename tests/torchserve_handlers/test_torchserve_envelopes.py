"""Envelopes: what the handler gets of a batch, what each request gets back, and who pays for a malformed one."""

from __future__ import annotations

import json

import pytest
from torchserve_asking import answer

from actorserve.errors import HandlerStatus

DOUBLING = """
def handle(data, context):
    return None if data is None else [one * 2 for one in data]
"""
KINDS = """
def handle(data, context):
    return None if data is None else [
        {key: type(value).__name__ for key, value in one.items()} if isinstance(one, dict) else type(one).__name__
        for one in data
    ]
"""
TENSORS = """
import numpy as np

kinds = {"INT64": np.int64, "FP32": np.float32, "BOOL": bool}


def handle(data, context):
    return None if data is None else [
        one["data"][::-1] if one["datatype"] == "BYTES" else np.array(one["data"], kinds[one["datatype"]]).T
        for one in data
    ]
"""


def test_body(load):
    """`body` hands over what stands under data or body, and returns the answers as they are."""
    assert answer(load("h.py", {"h.py": DOUBLING}, envelope="body"), b"a", b"bc") == [b"aa", b"bcbc"]


def test_json(load):
    """`json` joins the instances of all requests, and gives each as many predictions, on one line."""
    handler = load("h.py", {"h.py": DOUBLING}, envelope="json")
    bodies = [b'{"instances": [1, 2, 3]}', b'{"instances": []}', b'{"instances": ["x"]}']
    assert answer(handler, *bodies) == [
        b'{"predictions": [2, 4, 6]}',
        b'{"predictions": []}',
        b'{"predictions": ["xx"]}',
    ]


def test_base64(load):
    """An instance {"b64": ...} or a value of one becomes bytes; other tables stay what they are."""
    handler = load("h.py", {"h.py": KINDS}, envelope="json")
    body = b'{"instances": [{"b64": "eA=="}, {"picture": {"b64": "eA=="}, "size": 3, "more": {"a": 1}}]}'
    (said,) = answer(handler, body)
    assert json.loads(said)["predictions"] == ["bytes", {"picture": "bytes", "size": "int", "more": "dict"}]


def test_kserve(load):
    """`kserve` answers with predictions, and to a request for an explanation with explanations."""
    handler = load("h.py", {"h.py": DOUBLING}, envelope="kserve")
    body = b'{"instances": [1]}'
    assert json.loads(answer(handler, body)[0]) == {"predictions": [2]}
    assert json.loads(answer(handler, body, explain="True")[0]) == {"explanations": [2]}


def tensor(name, datatype, shape, data):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def test_kserve_2(load):
    """`kservev2` shapes each input, names each output after it, and says id, name, version and numpy's datatypes."""
    handler = load("h.py", {"h.py": TENSORS}, envelope="kservev2")
    first = {"id": "mine", "inputs": [tensor("a", "INT64", [2, 2], [1, 2, 3, 4]), tensor("t", "BYTES", [1], ["xyz"])]}
    second = {"inputs": [tensor("b", "FP32", [2], [0.5, 1.5])]}
    said = [json.loads(one) for one in answer(handler, json.dumps(first).encode(), json.dumps(second).encode())]
    assert said == [
        {
            "id": "mine",
            "model_name": "model",
            "model_version": "1.0",
            "outputs": [tensor("a", "INT64", [4], [1, 3, 2, 4]), tensor("t", "BYTES", [1], ["zyx"])],
        },
        {"id": "1", "model_name": "model", "model_version": "1.0", "outputs": [tensor("b", "FP32", [2], [0.5, 1.5])]},
    ]


@pytest.mark.parametrize(
    ("envelope", "body", "text"),
    [
        ("json", b"?", "Expecting value"),
        ("json", b"[1]", "no JSON object"),
        ("json", b"{}", 'not {"instances": [...]}'),
        ("json", b'{"instances": [{"b64": "x"}]}', "b64 is not base64"),
        ("json", b'{"instances": [{"picture": {"b64": 3}}]}', "b64 is not base64"),
        ("json", b"[" * 100_000, "nested too deeply"),
        ("json", b"\xff", "codec can't decode"),
        ("kserve", b'{"instances": 1}', 'not {"instances": [...]}'),
        ("kservev2", b'{"inputs": []}', 'not {"inputs": [...]}'),
        ("kservev2", b'{"inputs": [{"name": "a"}]}', "inputs[0] has no shape"),
        ("kservev2", b'{"inputs": [{"name": "a", "shape": [1], "datatype": "X", "data": [1]}]}', "datatype is 'X'"),
        ("kservev2", b'{"inputs": [{"name": "a", "shape": [1], "datatype": [], "data": [1]}]}', "datatype is []"),
        ("kservev2", b'{"inputs": [{"name": "a", "shape": {}, "datatype": "INT8", "data": [1]}]}', "of the shape {}"),
        ("kservev2", b'{"inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "data": {}}]}', "is not INT8"),
        (
            "kservev2",
            b'{"inputs": [{"name": "a", "shape": [2], "datatype": "INT64", "data": [1]}]}',
            "of the shape [2]",
        ),
        ("kservev2", b'{"inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "data": [999]}]}', "is not INT8"),
    ],
)
def test_a_malformed_request_fails_alone(load, envelope, body, text):
    """It is its sender's fault, whose error says what is wrong; the others of its batch are answered."""
    good = {"instances": [1]}
    if envelope == "kservev2":
        good = {"inputs": [tensor("a", "INT64", [1], [1])]}
    handler = load("h.py", {"h.py": TENSORS if envelope == "kservev2" else DOUBLING}, envelope=envelope)
    bad, answered = answer(handler, body, json.dumps(good).encode())
    assert isinstance(answered, bytes), answered
    assert isinstance(bad, HandlerStatus)
    assert bad.code == 400
    assert text in str(bad.text)
    (alone,) = answer(handler, body)
    assert isinstance(alone, HandlerStatus)


def test_wrong_number_of_answers(load):
    """A handler that returns another number of answers than it got items fails the batch."""
    handler = load("h.py", {"h.py": "def handle(data, context):\n    return ['x']\n"}, envelope="json")
    errors = answer(handler, b'{"instances": [1, 2]}', b'{"instances": [1]}')
    assert [str(error) for error in errors] == ["number of batch response mismatched"] * 2
