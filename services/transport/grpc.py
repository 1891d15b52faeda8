"""gRPC's header blocks: requests, answers, status (gRPC's PROTOCOL-HTTP2, named P below).

What lives here: pure functions and tables. Failures are `grpclib.GRPCError`, ready to be told to the peer.
What must not: how a timeout, a text or metadata is written (values.py), messages (messages.py), frames, windows,
clocks, sockets, trio.

Rules
1. content-type goes with the first header block, which is the only one of a trailers-only answer.
2. An encoding that is not known here is UNIMPLEMENTED with grpc-accept-encoding (compression.md). Other answers carry
   grpc-accept-encoding where the request has a grpc-encoding: who does not compress need not know.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any

from grpclib.const import Status
from grpclib.encoding.proto import ProtoStatusDetailsCodec
from grpclib.exceptions import GRPCError

from actorserve.services.transport import compression, hpack, values
from actorserve.services.transport import frames as f
from actorserve.services.transport.hpack import Fields

CONTENT_TYPE = hpack.literal_indexed(hpack.CONTENT_TYPE, b"application/grpc")
HEAD = hpack.STATUS_200 + CONTENT_TYPE  # the usual response headers
TAIL = hpack.literal(b"grpc-status", b"0")  # the usual trailers
ACCEPT = hpack.literal(b"grpc-accept-encoding", compression.ACCEPTED)
HEADS = {  # by the encoding of what follows, for who asked about encodings
    encoding: HEAD + ACCEPT + (hpack.literal(b"grpc-encoding", encoding) if encoding else b"")
    for encoding in (None, *compression.SUPPORTED)
}

_DETAILS = ProtoStatusDetailsCodec()
_STATUS = {str(status.value).encode(): status for status in Status}


def _show(value: bytes | None) -> str:
    return repr((value or b"").decode("latin-1"))


# --- the server's header blocks -------------------------------------------------------------------


class Refusal(Exception):
    """The request cannot become a call: answer with this HTTP status and gRPC status."""

    def __init__(self, http: int, status: Status, text: str, *, extra: bytes = b"") -> None:
        super().__init__(http, status, text)
        self.extra = extra  # more of the header block
        self.http = http
        self.status = status
        self.text = text


def check_call(fields: Fields) -> float | None:
    """Check what gRPC asks of a request's headers; give its timeout in seconds. Raises Refusal."""
    if fields[b":method"] != b"POST":
        raise Refusal(405, Status.INTERNAL, "the method is not POST")
    content_type = fields.get(b"content-type", b"")
    if content_type != b"application/grpc" and not _is_grpc(content_type):
        raise Refusal(415, Status.INTERNAL, f"content-type {_show(content_type)} is not application/grpc")
    if b"te" not in fields:
        raise Refusal(400, Status.INTERNAL, "te: trailers is missing")
    if b"grpc-encoding" in fields and not compression.known(fields[b"grpc-encoding"]):
        name = _show(fields[b"grpc-encoding"])
        text = f"grpc-encoding {name} is not supported; {compression.NAMES} are"
        raise Refusal(200, Status.UNIMPLEMENTED, text, extra=ACCEPT)
    timeout = fields.get(b"grpc-timeout")
    if timeout is None:
        return None
    try:
        return values.decode_timeout(timeout)
    except ValueError as error:
        raise Refusal(200, Status.INTERNAL, str(error)) from None


def _is_grpc(content_type: bytes) -> bool:
    base = content_type.partition(b";")[0].strip().lower()
    return base in {b"application/grpc", b"application/grpc+proto"}


def status_block(status: Status, text: str | None, details: Any) -> bytes:
    """Give grpc-status, grpc-message and grpc-status-details-bin."""
    block = hpack.literal(b"grpc-status", b"%d" % status.value)
    if text:
        block += hpack.literal(b"grpc-message", values.encode_text(text))
    if details is not None:
        packed = _DETAILS.encode(status, text, details)
        block += hpack.literal(b"grpc-status-details-bin", b64encode(packed).rstrip(b"="))
    return block


def refusal_block(refusal: Refusal) -> bytes:
    """Give a trailers-only answer with another HTTP status than 200."""
    status = hpack.STATUS_200 if refusal.http == 200 else hpack.literal_indexed(hpack.STATUS, b"%d" % refusal.http)
    return status + CONTENT_TYPE + refusal.extra + status_block(refusal.status, refusal.text, None)


# --- the client's side -----------------------------------------------------------------------------

_FROM_HTTP = {  # gRPC's http-grpc-status-mapping.md; all others are UNKNOWN
    b"400": Status.INTERNAL,
    b"401": Status.UNAUTHENTICATED,
    b"403": Status.PERMISSION_DENIED,
    b"404": Status.UNIMPLEMENTED,
    b"429": Status.UNAVAILABLE,
    b"502": Status.UNAVAILABLE,
    b"503": Status.UNAVAILABLE,
    b"504": Status.UNAVAILABLE,
}
_FROM_RESET = {  # P, Errors; all others are INTERNAL, as RFC 9113 §7 has unknown codes
    f.REFUSED_STREAM: (Status.UNAVAILABLE, "the call was refused before it began"),
    f.CANCEL: (Status.CANCELLED, "the call was cancelled"),
    f.ENHANCE_YOUR_CALM: (Status.RESOURCE_EXHAUSTED, "the peer has no bandwidth left for this call"),
    f.INADEQUATE_SECURITY: (Status.PERMISSION_DENIED, "the connection is not secure enough for this call"),
}
_CODE_NAMES = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
    *("INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"),
)
_AFTER_PATH = CONTENT_TYPE + hpack.literal(b"te", b"trailers") + ACCEPT
_ENCODINGS = {encoding: hpack.literal(b"grpc-encoding", encoding) for encoding in compression.SUPPORTED}


def code_name(code: int) -> str:
    """Give the name of an HTTP/2 error code (RFC 9113 §7)."""
    return _CODE_NAMES[code] if code < len(_CODE_NAMES) else f"code {code}"


def from_reset(code: int) -> tuple[Status, str]:
    """Give status and text for the code of a RST_STREAM."""
    found = _FROM_RESET.get(code)
    return found or (Status.INTERNAL, f"the stream was reset with {code_name(code)}")


def request_block(
    path: str,
    authority: bytes,
    user_agent: bytes,
    timeout: float | None,
    *,
    secure: bool = False,
    encoding: bytes | None = None,
) -> bytes:
    """Give a call's request headers without its metadata."""
    block = hpack.METHOD_POST + (hpack.SCHEME_HTTPS if secure else hpack.SCHEME_HTTP)
    block += hpack.literal_indexed(hpack.PATH, path.encode()) + hpack.literal_indexed(hpack.AUTHORITY, authority)
    if timeout is not None:
        block += hpack.literal(b"grpc-timeout", values.encode_timeout(timeout))
    block += _AFTER_PATH + hpack.literal_indexed(hpack.USER_AGENT, user_agent)
    return block if encoding is None else block + _ENCODINGS[encoding]


def check_answer(fields: Fields) -> None:
    """Raise GRPCError for response headers that are no gRPC answer."""
    if b"grpc-status" in fields:
        return
    http = fields[b":status"]
    if http != b"200":
        raise GRPCError(_FROM_HTTP.get(http, Status.UNKNOWN), f"the server answered with HTTP status {http.decode()}")
    content_type = fields.get(b"content-type", b"")
    if not _answers_grpc(content_type):
        raise GRPCError(Status.UNKNOWN, f"the answer has content-type {_show(content_type)}")


_answers_grpc = re.compile(rb"application/grpc(\Z|[+; ])", re.IGNORECASE).match


def read_status(fields: Fields) -> tuple[Status, str | None, Any]:
    """Give status, message and details of trailers."""
    code = fields.get(b"grpc-status")
    if code is None:
        return Status.UNKNOWN, "the answer has no grpc-status", None
    status = _STATUS.get(code, Status.UNKNOWN)
    if status is Status.OK:
        return status, None, None
    text = values.decode_text(fields[b"grpc-message"]) if b"grpc-message" in fields else None
    return status, text, _read_details(status, text, fields.get(b"grpc-status-details-bin"))


def _read_details(status: Status, text: str | None, value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return _DETAILS.decode(status, text, values.decode_base64(value))
    except Exception:  # noqa: BLE001  protobuf raises DecodeError of its own; broken details must not hide the status
        return None
