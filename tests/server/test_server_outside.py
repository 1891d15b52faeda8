"""The real server from outside: real workers, plain grpcio, and input that no careful client would send.

Each test ends in a good call: whatever was sent, the server answers the next one.
"""

import json
from pathlib import Path

import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc import StatusCode
from grpc_status import rpc_status

from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_pb2 import RegisterModelRequest, UnregisterModelRequest

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "samples"


@pytest.fixture(autouse=True)
def _answers_the_next_call(outside):
    """The server is there after each test, and so are its workers."""
    yield
    assert outside.predict("echo", b"next")[0] == b"next"
    picture = (SAMPLES / "digit_3.png").read_bytes()
    assert json.loads(outside.predict("digits", picture)[0])["digit"] == 3


def test_unknown_model(outside):
    """An unknown model is NOT_FOUND and named."""
    assert outside.refused("nobody", b"x") == (StatusCode.NOT_FOUND, "Model not found: nobody")


@pytest.mark.parametrize("model", ["echo", "digits"])
def test_no_input(outside, model):
    """No input at all is INVALID_ARGUMENT, and the message names the field to fill."""
    status, text = outside.refused(model)
    assert status is StatusCode.INVALID_ARGUMENT
    assert "data" in text


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"\xff\xd8\xff\xe0cut"])
def test_not_an_image(outside, data):
    """Bytes that are no image are INVALID_ARGUMENT, and the message says what would be right."""
    status, text = outside.refused("digits", data)
    assert status is StatusCode.INVALID_ARGUMENT
    assert text.startswith("data: ")
    assert "Traceback" not in text


def test_ten_megabytes_of_text(outside):
    """A message above the limit is RESOURCE_EXHAUSTED and names both sizes."""
    data = b"word " * 2_000_000
    message = PredictionsRequest(model_name="echo", input={"data": data})
    assert outside.refused("echo", data) == (
        StatusCode.RESOURCE_EXHAUSTED,
        f"received message of {message.ByteSize()} bytes is larger than the limit of 6553500 bytes",
    )


def field(number: int, kind: int, payload: bytes) -> bytes:
    """One field on protobuf's wire."""
    return bytes([number << 3 | kind]) + (bytes([len(payload)]) if kind == 2 else b"") + payload


BROKEN = {
    "broken UTF-8 in a string": field(1, 2, b"\xff\xfe"),
    "broken UTF-8 in a map's key": field(3, 2, field(1, 2, b"\xff") + field(2, 2, b"x")),
    "no protobuf": b"this is not protobuf at all",
    "cut": PredictionsRequest(model_name="echo").SerializeToString()[:-1],
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x0f",
    "a group that never ends": b"\x0b",
}


@pytest.mark.parametrize("message", BROKEN.values(), ids=list(BROKEN))
def test_bytes_that_are_not_the_message(outside, message):
    """Bytes that are not the request are INVALID_ARGUMENT, and the message names what was expected."""
    status, text = outside.raw_refused("Predictions", message)
    assert status is StatusCode.INVALID_ARGUMENT
    assert "org.pytorch.serve.grpc.inference.PredictionsRequest" in text


def test_wrong_field_types(outside):
    """A field of another type is one that protobuf does not know: the model's name is then missing."""
    status, text = outside.raw_refused("Predictions", field(1, 0, b"\x05"))
    assert (status, text.split(":")[0]) == (StatusCode.INVALID_ARGUMENT, "model_name")


def test_unknown_method(outside):
    """A method that there is not is UNIMPLEMENTED and named."""
    status, text = outside.raw_refused("Explanations", b"")
    assert (status, "Explanations" in text) == (StatusCode.UNIMPLEMENTED, True)


def test_metadata(outside):
    """Metadata reaches the handler, binary values as bytes, and the request id is the request's id."""
    sent = (("x-request-id", "the-id"), ("one", "1"), ("two-bin", b"\0\xff"))
    answer, trailers = outside.predict("asked", b"metadata", metadata=sent)
    seen = json.loads(answer)
    assert (seen["id"], seen["one"], seen["two-bin"]) == ("the-id", "1", "00ff")
    assert trailers["x-request-id"] == "the-id"


def test_trailers(outside):
    """Trailers that the handler sets reach the client, binary ones as bytes."""
    answer, trailers = outside.predict("asked", b"trailers")
    assert (answer, trailers["one"], trailers["two-bin"]) == (b"set", "1", b"\0\xff")


def test_bad_trailer(outside):
    """A trailer that gRPC cannot carry is the handler's fault: INTERNAL, and the key is named."""
    status, text = outside.refused("asked", b"bad trailer")
    assert (status, "Not A Key" in text) == (StatusCode.INTERNAL, True)


def test_time_remaining(outside):
    """The handler sees how long its caller still waits (grpcio rounds its timeout up by a percent)."""
    answer, _ = outside.predict("asked", b"remaining", timeout=50)
    assert 0 < json.loads(answer) <= 51


def test_answer_that_cannot_travel(outside):
    """An answer that is neither bytes, text nor JSON is INTERNAL and names its type."""
    status, text = outside.refused("asked", b"object")
    assert (status, "object" in text) == (StatusCode.INTERNAL, True)


def test_long_error(outside):
    """An error of any length reaches the client with its own status: it is cut to what trailers can carry."""
    status, text = outside.refused("asked", b"long")
    assert status is StatusCode.INTERNAL
    assert text.startswith("ValueError: ééé")
    assert text.endswith("...")


def test_details(outside):
    """The helper of grpcio-status reads the details: the field and what would be right."""
    with pytest.raises(Exception, match="not a word") as error:
        outside.predict("asked", b"?")
    (packed,) = rpc_status.from_call(error.value).details
    details = BadRequest()
    assert packed.Unpack(details)
    assert details.field_violations[0].field == "data"
    assert details.field_violations[0].description == "is not a word that I know"


UPPER = """
from pathlib import Path


class Upper:
    def load(self, context):
        self.mark = (context.model_dir / "mark.txt").read_text() + context.options["more"]

    def infer(self, batch):
        return [request.inputs["data"].decode().upper() + self.mark for request in batch]
"""


def test_folder_of_the_store(outside):
    """A folder with code, a file and a `model.toml` is registered, answers, goes, and can be registered anew with
    changed code: its worker is a new process.
    """
    folder = outside.folder / "models" / "upper"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text('handler = "upper:Upper"\nworkers = { min = 1 }\noptions = { more = "!" }\n')
    (folder / "mark.txt").write_text("?")
    for code, expected in ((UPPER, b"HELLO?!"), (UPPER.replace("upper()", "capitalize()"), b"Hello?!")):
        (folder / "upper.py").write_text(code)
        text = outside.manage("RegisterModel", RegisterModelRequest(url="upper", synchronous=True))
        assert text == 'Model "upper" Version: 1.0 registered with 1 initial workers'
        assert outside.predict("upper", b"hello")[0] == expected
        assert outside.manage("UnregisterModel", UnregisterModelRequest(model_name="upper"))
        assert outside.refused("upper", b"x") == (StatusCode.NOT_FOUND, "Model not found: upper")
