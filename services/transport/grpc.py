"""gRPC over HTTP/2: messages with length prefixes, status, timeouts, metadata (the PROTOCOL-HTTP2 document of gRPC).

What lives here: pure functions and `MessageReader`. Failures are `grpclib.GRPCError`, ready to be told to the peer.
What must not: frames, windows, clocks, sockets, trio.
Over 300 lines, because both roles read and write the same few forms, which belong side by side.

Rules
1. A message is a flag octet (compressed: 0 or 1), four octets of length, and the message. Its size is checked when the
   prefix is known, before the message is held. Flag 1 without grpc-encoding is INTERNAL, with one UNIMPLEMENTED.
2. grpc-timeout is at most 8 digits and a unit of HMSmun.
3. grpc-message is percent-encoded: what is outside 0x20..0x7E, and `%`. Decoding never fails.
4. Keys ending in -bin carry base64 on the wire, with or without padding, several values joined by commas allowed;
   others printable ASCII. Keys that begin with `grpc-` or `:`, and te, content-type and user-agent, are not metadata.
5. content-type goes with the first header block, which is the only one of a trailers-only answer.
"""

from __future__ import annotations

import re
import struct
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from grpclib.const import Status
from grpclib.encoding.proto import ProtoStatusDetailsCodec
from grpclib.exceptions import GRPCError
from multidict import MultiDict

from actorserve.services.transport import hpack
from actorserve.services.transport.hpack import Fields, Pairs

PREFIX = struct.Struct(">BL")
PREFIX_SIZE = 5

MetadataLike = Mapping[str, str | bytes] | Collection[tuple[str, str | bytes]]
Metadata = MultiDict[str | bytes]

CONTENT_TYPE = hpack.literal_indexed(hpack.CONTENT_TYPE, b"application/grpc")
HEAD = hpack.STATUS_200 + CONTENT_TYPE  # the usual response headers
TAIL = hpack.literal(b"grpc-status", b"0")  # the usual trailers

_DETAILS = ProtoStatusDetailsCodec()
_STATUS = {str(status.value).encode(): status for status in Status}

# --- messages ----------------------------------------------------------------------------


class MessageReader:
    """Takes messages out of a stream's inbox, chunk by chunk."""

    __slots__ = ("_compressed", "_encoding", "_limit", "_need", "_partial", "taken")

    def __init__(self, limit: int, encoding: bytes | None = None) -> None:
        self._limit = limit
        self._encoding = encoding
        self._need = PREFIX_SIZE
        self._compressed = -1  # -1: the prefix is not known yet
        self._partial = bytearray()
        self.taken = 0  # octets taken and not yet reported; the driver resets it

    @property
    def between_messages(self) -> bool:
        """Whether nothing of a message was taken."""
        return self._compressed < 0 and not self._partial

    def next_message(self, inbox: deque[bytes]) -> bytes | None:
        """Take one message, or all there is of it and give None.

        Raises:
            GRPCError: the message is too large, or compressed.
        """
        if len(inbox) == 1 and self._compressed < 0 and not self._partial:
            chunk = inbox[0]
            if len(chunk) >= PREFIX_SIZE:
                flag, size = PREFIX.unpack_from(chunk)
                if not flag and size == len(chunk) - PREFIX_SIZE and size <= self._limit:
                    inbox.clear()
                    self.taken += len(chunk)
                    return chunk[PREFIX_SIZE:]
        while self._fill(inbox):
            whole = bytes(self._partial)
            self._partial.clear()
            if self._compressed >= 0:
                self._need, self._compressed = PREFIX_SIZE, -1
                return whole
            self._compressed, self._need = PREFIX.unpack(whole)
            self._check()
        return None

    def _fill(self, inbox: deque[bytes]) -> bool:
        partial = self._partial
        while (missing := self._need - len(partial)) and inbox:
            chunk = inbox[0]
            if len(chunk) <= missing:
                inbox.popleft()
                partial += chunk
                self.taken += len(chunk)
            else:
                partial += chunk[:missing]
                inbox[0] = chunk[missing:]
                self.taken += missing
        return not missing

    def _check(self) -> None:
        if self._need > self._limit:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED,
                f"received message of {self._need} bytes is larger than the limit of {self._limit} bytes",
            )
        if self._compressed == 1 and self._encoding not in {None, b"identity"}:
            raise GRPCError(Status.UNIMPLEMENTED, f"grpc-encoding {_show(self._encoding)} is not supported")
        if self._compressed:
            raise GRPCError(Status.INTERNAL, "message is flagged as compressed, but no grpc-encoding was sent")


def frame_message(body: bytes, limit: int) -> bytes:
    """Give the message with its prefix; RESOURCE_EXHAUSTED above the limit."""
    size = len(body)
    if size > limit:
        raise GRPCError(
            Status.RESOURCE_EXHAUSTED,
            f"message to send of {size} bytes is larger than the limit of {limit} bytes",
        )
    return PREFIX.pack(0, size) + body


# --- timeouts ------------------------------------------------------------------------------

_timeout = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def decode_timeout(value: bytes) -> float:
    """Give seconds; ValueError for what rule 2 does not allow."""
    match = _timeout(value)
    if match is None:
        raise ValueError(f"invalid grpc-timeout {_show(value)}")
    return int(match[1]) * _UNITS[match[2]]


def encode_timeout(seconds: float) -> bytes:
    """Give the timeout in the finest unit that holds it, rounded up; never below 0."""
    seconds = max(seconds, 0.0)
    for unit in (b"n", b"u", b"m", b"S", b"M", b"H"):
        count = -int(-seconds // _UNITS[unit])
        if count < 100_000_000:
            return b"%d%s" % (count, unit)
    return b"99999999H"


# --- texts -----------------------------------------------------------------------------------

_needs_percent = re.compile(rb"[^ -$&-~]")
_percent = re.compile(rb"%([0-9A-Fa-f]{2})")


def encode_text(text: str) -> bytes:
    """Give grpc-message (rule 3)."""
    return _needs_percent.sub(lambda match: b"%%%02X" % match[0][0], text.encode(errors="replace"))


def decode_text(value: bytes) -> str:
    """Give the text of a grpc-message; what is not valid stays as it is or becomes U+FFFD."""
    return _percent.sub(lambda match: bytes((int(match[1], 16),)), value).decode(errors="replace")


def _show(value: bytes | None) -> str:
    return repr((value or b"").decode("latin-1"))


# --- metadata ----------------------------------------------------------------------------------

_key_ok = re.compile(r"[0-9a-z_.\-]+").fullmatch
_value_ok = re.compile(r"[ -~]*").fullmatch
_RESERVED = frozenset({"te", "content-type", "user-agent"})


def decode_base64(value: bytes) -> bytes:
    """Give the octets, with or without padding; ValueError if it is no base64."""
    value = value.rstrip(b"=")
    return b64decode(value + b"=" * (-len(value) % 4), validate=True)


def decode_metadata(pairs: Pairs) -> Metadata:
    """Give metadata as a multi-dict; -bin values as bytes. Values that are no base64 are INTERNAL."""
    metadata: Metadata = MultiDict()
    for key, value in pairs:
        name = key.decode("latin-1")
        if name.startswith("grpc-") or name in _RESERVED:
            continue
        if not name.endswith("-bin"):
            metadata.add(name, value.decode("latin-1"))
            continue
        for part in value.split(b","):
            try:
                metadata.add(name, decode_base64(part.strip(b" ")))
            except ValueError:
                raise GRPCError(Status.INTERNAL, f"metadata {name}: not base64") from None
    return metadata


def encode_metadata(metadata: MetadataLike) -> bytes:
    """Give the header block of application metadata; ValueError and TypeError name what is wrong."""
    items: Iterable[tuple[str, str | bytes]] = metadata.items() if isinstance(metadata, Mapping) else metadata
    block = b""
    for key, value in items:
        if key in _RESERVED or key.startswith("grpc-") or not _key_ok(key):
            raise ValueError(f"invalid metadata key {key!r}")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise TypeError(f"metadata {key}: bytes expected, got {value!r}")
            block += hpack.literal(key.encode(), b64encode(value).rstrip(b"="))
            continue
        if not isinstance(value, str):
            raise TypeError(f"metadata {key}: str expected, got {value!r}")
        if not _value_ok(value):
            raise ValueError(f"metadata {key}: printable ASCII expected, got {value!r}")
        block += hpack.literal(key.encode(), value.strip(" ").encode())
    return block


# --- the server's header blocks -------------------------------------------------------------------


class Refusal(Exception):
    """The request cannot become a call: answer with this HTTP status and gRPC status."""

    def __init__(self, http: int, status: Status, text: str) -> None:
        super().__init__(http, status, text)
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
    timeout = fields.get(b"grpc-timeout")
    if timeout is None:
        return None
    try:
        return decode_timeout(timeout)
    except ValueError as error:
        raise Refusal(200, Status.INTERNAL, str(error)) from None


def _is_grpc(content_type: bytes) -> bool:
    base = content_type.partition(b";")[0].strip().lower()
    return base in {b"application/grpc", b"application/grpc+proto"}


def status_block(status: Status, text: str | None, details: Any) -> bytes:
    """Give grpc-status, grpc-message and grpc-status-details-bin."""
    block = hpack.literal(b"grpc-status", b"%d" % status.value)
    if text:
        block += hpack.literal(b"grpc-message", encode_text(text))
    if details is not None:
        packed = _DETAILS.encode(status, text, details)
        block += hpack.literal(b"grpc-status-details-bin", b64encode(packed).rstrip(b"="))
    return block


def refusal_block(refusal: Refusal) -> bytes:
    """Give a trailers-only answer with another HTTP status than 200."""
    status = hpack.STATUS_200 if refusal.http == 200 else hpack.literal_indexed(hpack.STATUS, b"%d" % refusal.http)
    return status + CONTENT_TYPE + status_block(refusal.status, refusal.text, None)


# --- the client's side -----------------------------------------------------------------------------

_FROM_HTTP = {
    b"400": Status.INTERNAL,
    b"401": Status.UNAUTHENTICATED,
    b"403": Status.PERMISSION_DENIED,
    b"404": Status.UNIMPLEMENTED,
    b"429": Status.UNAVAILABLE,
    b"502": Status.UNAVAILABLE,
    b"503": Status.UNAVAILABLE,
    b"504": Status.UNAVAILABLE,
}


def request_block(
    path: str, authority: bytes, user_agent: bytes, timeout: float | None, *, secure: bool = False
) -> bytes:
    """Give a call's request headers without its metadata."""
    block = hpack.METHOD_POST + (hpack.SCHEME_HTTPS if secure else hpack.SCHEME_HTTP)
    block += hpack.literal_indexed(hpack.PATH, path.encode()) + hpack.literal_indexed(hpack.AUTHORITY, authority)
    if timeout is not None:
        block += hpack.literal(b"grpc-timeout", encode_timeout(timeout))
    block += hpack.literal(b"te", b"trailers") + CONTENT_TYPE
    return block + hpack.literal_indexed(hpack.USER_AGENT, user_agent)


def check_answer(fields: Fields) -> None:
    """Raise GRPCError for response headers that are no gRPC answer."""
    if b"grpc-status" in fields:
        return
    http = fields[b":status"]
    if http != b"200":
        raise GRPCError(_FROM_HTTP.get(http, Status.UNKNOWN), f"the server answered with HTTP status {http.decode()}")
    content_type = fields.get(b"content-type", b"")
    if not content_type.startswith(b"application/grpc"):
        raise GRPCError(Status.UNKNOWN, f"the answer has content-type {_show(content_type)}")


def read_status(fields: Fields) -> tuple[Status, str | None, Any]:
    """Give status, message and details of trailers."""
    code = fields.get(b"grpc-status")
    if code is None:
        return Status.UNKNOWN, "the answer has no grpc-status", None
    status = _STATUS.get(code, Status.UNKNOWN)
    if status is Status.OK:
        return status, None, None
    text = decode_text(fields[b"grpc-message"]) if b"grpc-message" in fields else None
    return status, text, _read_details(status, text, fields.get(b"grpc-status-details-bin"))


def _read_details(status: Status, text: str | None, value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return _DETAILS.decode(status, text, decode_base64(value))
    except Exception:  # noqa: BLE001  protobuf raises DecodeError of its own; broken details must not hide the status
        return None
