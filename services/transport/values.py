"""The values that gRPC writes into header fields: timeouts, texts, metadata (gRPC's PROTOCOL-HTTP2, named P below).

What lives here: pure functions. Failures are `grpclib.GRPCError` or ValueError, as each says.
What must not: which fields a call has (grpc.py), messages (messages.py), frames, clocks, sockets, trio.

Rules
1. grpc-timeout is at most 8 digits and a unit of HMSmun (P, Requests).
2. grpc-message is percent-encoded: what is outside 0x20..0x7E, and `%`. Decoding never fails (P, Responses).
3. Keys ending in -bin carry base64 on the wire, with or without padding, several values joined by commas allowed;
   others printable ASCII: a value that is not is dropped, as P allows, so that what a service reads it may also send.
   Keys that begin with `grpc-` or `:`, and te, content-type and user-agent, are not metadata.
4. A peer's MAX_HEADER_LIST_SIZE is kept: metadata above it is RESOURCE_EXHAUSTED here, grpc-message is cut.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from multidict import MultiDict

from actorserve.services.transport import hpack
from actorserve.services.transport.hpack import Pairs

MetadataLike = Mapping[str, str | bytes] | Collection[tuple[str, str | bytes]]
Metadata = MultiDict[str | bytes]

_TEXT_LIMIT = 4096  # octets of grpc-message: a peer may refuse trailers above 8 KiB (P, Responses)

# --- timeouts ------------------------------------------------------------------------------

_timeout = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def decode_timeout(value: bytes) -> float:
    """Give seconds; ValueError for what rule 1 does not allow."""
    match = _timeout(value)
    if match is None:
        raise ValueError(f"invalid grpc-timeout {value.decode('latin-1')!r}")
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

_needs_percent = re.compile(rb"[^ -$&-~]|\A | \Z")  # a field's value has no space at its ends (RFC 9113 §8.2.1)
_percent = re.compile(rb"%([0-9A-Fa-f]{2})")


def encode_text(text: str) -> bytes:
    """Give grpc-message (rule 2), cut where it is very long (rule 4)."""
    wire = _needs_percent.sub(lambda match: b"%%%02X" % match[0][0], text.encode(errors="replace"))
    return wire if len(wire) <= _TEXT_LIMIT else _cut_percent(wire[: _TEXT_LIMIT - 3]) + b"..."


def _cut_percent(wire: bytes) -> bytes:
    """Take a broken %XX off the end."""
    at = wire.rfind(b"%", -2)
    return wire if at < 0 else wire[:at]


def decode_text(value: bytes) -> str:
    """Give the text of a grpc-message; what is not valid stays as it is or becomes U+FFFD."""
    return _percent.sub(lambda match: bytes((int(match[1], 16),)), value).decode(errors="replace")


# --- metadata ----------------------------------------------------------------------------------

_key_ok = re.compile(r"[0-9a-z_.\-]+").fullmatch
_value_ok = re.compile(r"[ -~]*").fullmatch
_RESERVED = frozenset({"te", "content-type", "user-agent"})


def decode_base64(value: bytes) -> bytes:
    """Give the octets, with or without padding; ValueError if it is no base64."""
    value = value.rstrip(b"=")
    return b64decode(value + b"=" * (-len(value) % 4), validate=True)


def decode_metadata(pairs: Pairs) -> Metadata:
    """Give metadata as a multi-dict; -bin values as bytes (rule 3). Values that are no base64 are INTERNAL."""
    metadata: Metadata = MultiDict()
    for key, value in pairs:
        name = key.decode("latin-1")
        if name.startswith("grpc-") or name in _RESERVED:
            continue
        if not name.endswith("-bin"):
            if value.isascii():  # rule 3; control characters never come so far, but for the tab
                metadata.add(name, value.decode("ascii").replace("\t", " "))
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
        if not isinstance(key, str):
            raise TypeError(f"metadata key {key!r}: str expected")
        if key in _RESERVED or key.startswith("grpc-"):
            raise ValueError(f"metadata key {key!r} is reserved for gRPC itself")
        if not _key_ok(key):
            raise ValueError(f"invalid metadata key {key!r}: lower-case letters, digits, _ - . expected")
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


def check_size(metadata: MetadataLike, limit: int) -> None:
    """Refuse metadata above the peer's limit, counted as in RFC 9113 §6.5.2; RESOURCE_EXHAUSTED names both sizes."""
    items: Iterable[tuple[str, str | bytes]] = metadata.items() if isinstance(metadata, Mapping) else metadata
    size = sum(
        32 + len(key) + (len(value) if isinstance(value, str) else -(-len(value) * 4 // 3)) for key, value in items
    )
    if size > limit:
        raise GRPCError(
            Status.RESOURCE_EXHAUSTED, f"metadata of {size} bytes is larger than the peer's limit of {limit} bytes"
        )
