"""Handlers in TorchServe's style, unchanged, asked by grpcio through a real server."""

from __future__ import annotations

import json
import time
from pathlib import Path

import grpc
import pytest
from torchserve_asking import messages


def test_function_handler(served):
    """A function gets rows of bytearrays, headers, ids, properties and its YAML, and works in the model's folder."""
    answer, trailers = served.predict("function", b"hi", metadata=[("session-id", "7"), ("x-request-id", "mine")])
    said = json.loads(answer)
    assert said == {
        "types": {"data": "bytearray"},
        "text": "hi",
        "header": "7",
        "id": said["id"],
        "folder": "models",
        "properties": {
            "gpu_id": None,
            "batch_size": 1,
            "server_name": "MMS",
            "server_version": "0.12.0",
            "limit_max_image_pixels": True,
        },
        "yaml": {"greeting": "hi"},
        "model": "function",
    }
    assert said["id"]
    assert answer.decode() == json.dumps(said, indent=2)
    assert trailers["x-rows"] == "1"
    assert trailers["response-content-type"] == "application/json"
    assert "not a key" not in trailers


def test_named_entry_point(served):
    """`file.py:function` calls that function."""
    assert served.predict("entry", b"")[0] == b"from answer"


def test_class_keeps_what_it_puts_on_the_context(served):
    """There is one context in a worker: what a call leaves on it, the next one finds."""
    first = int(served.predict("service", b"calls")[0])
    assert int(served.predict("service", b"calls")[0]) == first + 1


@pytest.mark.parametrize(
    ("word", "code", "text"),
    [
        (b"refuse", grpc.StatusCode.NOT_FOUND, "not here"),
        (b"strange", grpc.StatusCode.UNKNOWN, "moved"),
        (b"status", grpc.StatusCode.PERMISSION_DENIED, "members only"),
        (b"body", grpc.StatusCode.RESOURCE_EXHAUSTED, "try again later"),
        (b"dictionary", grpc.StatusCode.INTERNAL, "TypeError: Invalid model predict output"),
        (b"many", grpc.StatusCode.INTERNAL, "ValueError: number of batch response mismatched"),
        (b"value", grpc.StatusCode.INTERNAL, "TypeError: Unsupported model output data type."),
        (b"error", grpc.StatusCode.INTERNAL, "RuntimeError: broken"),
    ],
)
def test_failures(served, word, code, text):
    """Codes of PredictionException and set_response_status become statuses; wrong answers say what is wrong."""
    assert served.refused("service", word) == (code, text)


def test_codes_that_are_no_errors(served):
    """A status of 2xx is OK; an exception whose code is 200 answers "error", as TorchServe does."""
    assert served.predict("service", b"created")[0] == b"created"
    assert served.predict("service", b"fine")[0] == b"error"


@pytest.mark.parametrize("model", ["line", "script", "exported"])
def test_base_handler(served, model):
    """A subclass of BaseHandler serves a class with a state dict, a TorchScript file and an exported program alike."""
    assert json.loads(served.predict(model, b"[3.0, 4.0]")[0]) == 43.0


def test_stream(served):
    """Each part that the handler sends is a message, what it returns the last, and its headers are trailers."""
    call = served.stream("streaming", b"go")
    assert messages(call) == ["hello 1", "hello 1", "hello 1", "world"]
    assert dict(call.trailing_metadata())["x-last"] == "yes"


def test_unary_call_of_a_streaming_handler(served):
    """A unary call gets all parts in one answer, and the worker lives on."""
    assert served.predict("streaming", b"go")[0] == b"hello 1hello 1hello 1world"
    assert messages(served.stream("streaming", b"go"))[-1] == "world"


def test_stream_of_a_unary_handler(served):
    """A handler that sends nothing on the way answers a stream with one message."""
    assert messages(served.stream("streaming", b"once")) == ["alone"]
    assert messages(served.stream("service", b"created")) == ["created"]


def test_stream_that_fails(served):
    """What was sent before the handler raised has arrived; then comes the error."""
    call = served.stream("streaming", b"break")
    got = []
    with pytest.raises(grpc.RpcError) as error:
        got.extend(message.prediction for message in call)
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert error.value.details() == "ValueError: broken pipe"


def test_cancelled_stream_ends_its_handler(served):
    """Once the caller has gone, the handler's push does not return: its finally blocks run, and others are served."""
    call = served.stream("streaming", b"endless")
    assert next(call).prediction == b"tick"
    call.cancel()
    assert messages(served.stream("streaming", b"once")) == ["alone"]
    assert served.predict("streaming", b"go")[0].endswith(b"world")
    wait_for_line(served.folder / "models" / "finally", "endless")


def wait_for_line(path: Path, line: str) -> None:
    """Return once a file has this line; the test's own limit ends a vain wait."""
    until = time.monotonic() + 60
    while line not in (path.read_text().splitlines() if path.exists() else ()):
        assert time.monotonic() < until, f"{path.name} never said {line}"
        time.sleep(0.02)


def test_endless_streams_side_by_side(served):
    """Two streams that never end are both served, and a unary call beside them too."""
    one, two = served.stream("streaming", b"endless"), served.stream("streaming", b"endless")
    assert [next(one).prediction, next(two).prediction, next(one).prediction] == [b"tick"] * 3
    assert served.predict("streaming", b"once")[0] == b"alone"
    assert next(two).prediction == b"tick"
    one.cancel()
    two.cancel()


def test_items_of_a_batch_fail_alone(served):
    """In one batch of eight, an exception in the list or a status fails its own item; the others are answered."""
    futures = [served.future("batching", data) for data in (b"1", b"0", b"-1", b"2", b"3", b"4", b"6", b"12")]
    codes = [future.code() for future in futures]
    ok = grpc.StatusCode.OK
    assert codes == [ok, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, ok, ok, ok, ok, ok]
    assert [json.loads(futures[index].result().prediction) for index in (0, 7)] == [
        {"share": 12.0, "of": 8},
        {"share": 1.0, "of": 8},
    ]
    assert [futures[index].details() for index in (1, 2)] == ["cannot divide by 0", "negative"]


def test_micro_batches(served):
    """A batch in parts keeps its order."""
    futures = [served.future("micro", word) for word in (b"a", b"b", b"c", b"d", b"e")]
    assert [future.result().prediction for future in futures] == [b"A", b"B", b"C", b"D", b"E"]


def test_async_handler(served):
    """`async def handle` is awaited."""
    assert served.predict("later", b"abc")[0] == b"cba"


def test_json_envelope(served):
    """The handler sees the instances of the whole batch; each request gets as many predictions as it had instances."""
    futures = [served.future("enveloped", body) for body in (b'{"instances": [1, 2, 3]}', b'{"instances": ["x"]}')]
    answers = [json.loads(future.result().prediction) for future in futures]
    assert answers == [{"predictions": [2, 4, 6]}, {"predictions": ["xx"]}]
