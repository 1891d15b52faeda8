"""What a call gave, written down as JSON.

What must not live here: making calls (calls.py), what two answers may differ in (compare.py).
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo

from actorserve.proto import inference_pb2, management_pb2

NO_ANSWER = "NO ANSWER"
LONGEST = 2000

Answer = dict[str, Any]


def ended(call: Any, answer: Answer) -> Answer:
    """Add how a call ended. grpcio's own deadline means that no answer came in `patience_s`."""
    code, text = call.code(), call.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and text == "Deadline Exceeded":
        return {"code": NO_ANSWER, "text": ""} | answer
    return {"code": code.name, "text": text} | answer


def unary(call: Any) -> Answer:
    """What a call with one answer gave."""
    error = call.exception()
    return ended(call, {} if error is not None else read(call.result()))


def stream(call: Any) -> Answer:
    """Every message of a stream, and its end."""
    messages = []
    try:
        for message in call:
            messages.append(read(message))  # noqa: PERF401 - what came before the error counts
    except grpc.RpcError:
        pass
    return ended(call, {"messages": messages})


def read(message: Any) -> Answer:
    """A response message as JSON."""
    if isinstance(message, management_pb2.ManagementResponse):
        return {"msg": message.msg}
    if isinstance(message, inference_pb2.TorchServeHealthResponse):
        return {"health": message.health}
    answer: Answer = {"prediction": readable(message.prediction)}
    if message.HasField("sequence_id"):
        answer["sequence_id"] = message.sequence_id
    if message.HasField("status"):
        reasons = []
        for detail in message.status.details:
            info = ErrorInfo()
            reasons.append(info.reason if detail.Unpack(info) else detail.type_url)
        answer["status"] = {"code": message.status.code, "message": message.status.message, "details": reasons}
    return answer


def readable(data: bytes) -> Any:
    """Bytes as text, as a tensor's values, or as base64; a digest where they are long."""
    if data.startswith(b"PK\x03\x04") and zipfile.is_zipfile(io.BytesIO(data)):
        import torch  # noqa: PLC0415 - slow, and one case in a hundred needs it

        value = torch.load(io.BytesIO(data), weights_only=True)
        return {"tensor": value.tolist(), "dtype": str(value.dtype)}
    if len(data) > LONGEST:
        return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
