"""One request as a row of TorchServe's `data`, and how what a handler returned for it becomes bytes or an error.

What must not live here: threads, and the order of calls (runs.py).
"""

from __future__ import annotations

import io
import json
import re
import sys
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from actorserve.errors import HandlerStatus
from actorserve.handlers.base import Request

KEY = re.compile(r"[0-9a-z_.-]+")
TEXT = re.compile(r"[\x20-\x7e]*")
RESERVED = frozenset(("content-length", "te", "connection", "transfer-encoding", "upgrade", "host", "trailer"))
ALONE = "explain"
"""A header, "True" where it is set, that changes what a whole call of `handle` answers."""
DESCRIBE = "describe"
OURS = frozenset((DESCRIBE, "ts_request_sequence_id", "ts_request_sequence_start", "ts_request_sequence_end"))
"""Headers that the server alone sets: a client's metadata of these names does not reach the handler."""
NONE: Mapping[str, str] = MappingProxyType({})
NO_TYPE = {"content-type": ""}
"""The header that every input of a request has, as over TorchServe's gRPC."""
CONTENT_TYPE = "response-content-type"
"""The trailer of `set_response_content_type`: gRPC keeps content-type for itself."""


class Row:
    """One request of a call of `handle`: what was sent for it and not yet taken, and how it ended."""

    def __init__(self, request: Request, headers: Mapping[str, str] = NONE) -> None:
        """`headers`: what the server says of it, beside the call's metadata."""
        self.request = request
        self.id = request.id or str(uuid.uuid4())
        self.seen = False  # the handler has had its inputs, in an earlier call
        sent = {**dict.fromkeys(request.inputs, NO_TYPE), **request.metadata}
        self.headers: dict[str, Any] = {**{key: sent[key] for key in sent if key not in OURS}, **headers}
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.error: Exception | None = None
        self.closed = False
        self.run: Any = None

    def add(self, value: Any, limit: int = sys.maxsize) -> None:
        """Keep one part of the answer. With it more than `limit` bytes that nobody took: the row ends with an error."""
        if self.closed or self.error is not None:
            return
        try:
            data = to_bytes(value)
        except Exception as error:  # noqa: BLE001  # the handler's answer, of any class
            self.error = error
            return
        self.size += len(data)
        if self.size > limit:
            self.error = HandlerStatus(
                429, f"{self.size} bytes of the stream wait for the client; the limit is {limit}"
            )
            self.chunks.clear()
            return
        self.chunks.append(data)

    def take(self) -> bytes:
        """The oldest part."""
        data = self.chunks.popleft()
        self.size -= len(data)
        return data

    def whole(self) -> bytes | Exception:
        """Everything at once, for a unary call."""
        return self.error if self.error is not None else b"".join(self.chunks)


def is_alone(row: Row) -> bool:
    """Whether a row must not share its call: it asks for something else than the others."""
    return row.headers.get(ALONE) == "True"


def calls_of(rows: Sequence[Row]) -> list[list[Row]]:
    """The calls of `handle` that answer a batch: one, and one for each row that is alone."""
    together = [row for row in rows if not is_alone(row)]
    return [*([together] if together else []), *([row] for row in rows if is_alone(row))]


def data_of(row: Row) -> dict[str, Any]:
    """The row that the handler gets: values are bytearrays, as over TorchServe's gRPC; empty once it has seen them."""
    return {} if row.seen else {key: bytearray(value) for key, value in row.request.inputs.items()}


def to_bytes(value: Any) -> bytes:
    """An answer's bytes: bytes as they are, str as UTF-8, a tensor by torch.save, all else as indented JSON."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
    try:
        return json.dumps(value, indent=2).encode()
    except (TypeError, ValueError) as error:
        raise TypeError("Unsupported model output data type.") from error


def translated(error: Exception) -> Exception:
    """A handler's PredictionException with its code; every other exception as it is."""
    module = sys.modules.get("ts.utils.util")
    if module is not None and isinstance(error, module.PredictionException):
        return HandlerStatus(_code(error.error_code), str(error.message))
    return error


def settle(rows: Sequence[Row], processors: Sequence[Any], answers: Any) -> None:
    """End each row with its answer, its own exception or its own status; a wrong number of answers fails all."""
    problem: Exception | None = None
    if isinstance(answers, Exception):
        problem = translated(answers)
    elif not isinstance(answers, list):
        problem = TypeError("Invalid model predict output")
    elif len(answers) != len(rows):
        problem = ValueError("number of batch response mismatched")
    for index, (row, processor) in enumerate(zip(rows, processors, strict=True)):
        _end(row, processor, answers[index] if problem is None else problem)


def _end(row: Row, processor: Any, answer: Any) -> None:
    _say_headers(row.request, processor.get_response_headers())
    if isinstance(answer, Exception):
        error = translated(answer)
        if isinstance(error, HandlerStatus) and _is_good(error.code):
            row.add(b"error")  # what TorchServe answers to an exception whose code says that all is well
        else:
            row.error = row.error or error
        return
    code, phrase = _code(processor.get_response_status_code()), processor.get_response_status_phrase()
    if _is_good(code):
        row.add(answer)
    else:
        data = _bytes(answer)
        row.error = row.error or HandlerStatus(code, phrase or _text(data) or f"status {code}", data)


def _say_headers(request: Request, headers: Mapping[str, Any]) -> None:
    """Response headers become trailing metadata; what gRPC cannot carry is left out."""
    for name, value in headers.items():
        key = name.lower()
        key = CONTENT_TYPE if key == "content-type" else key
        if not KEY.fullmatch(key) or key in RESERVED or key.startswith("grpc-"):
            continue
        if key.endswith("-bin"):
            request.set_trailer(key, value if isinstance(value, bytes) else str(value).encode())
        elif TEXT.fullmatch(str(value)):
            request.set_trailer(key, str(value))


def _code(code: Any) -> int:
    try:
        return int(code)
    except (TypeError, ValueError):
        return 500


def _is_good(code: int) -> bool:
    return 200 <= code < 300


def _bytes(answer: Any) -> bytes | None:
    try:
        return to_bytes(answer)
    except TypeError:
        return None


def _text(data: bytes | None) -> str:
    try:
        return (data or b"").decode()
    except UnicodeDecodeError:
        return ""
