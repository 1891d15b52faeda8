"""Header blocks: decoding behind one door, encoding without state, and the rules of header lists.

What lives here: `decoder()` over jh2's Rust decoder or python-hyper's, literal encoding (RFC 7541), the checks of
RFC 9113 §8.2 and §8.3, and the split of a list into what protocols read (`fields`) and the rest (`metadata`).
What must not: any other file knows which library decodes; nothing here knows streams, gRPC's meaning, or I/O.

Rules
1. We never fill the peer's dynamic table: each block is made of static indices and literals without indexing, so that
   constant blocks stay valid for ever. The first block of a connection begins with `TABLE_SIZE_ZERO` (RFC 7541 §6.3).
2. A block that does not decode is COMPRESSION_ERROR of the connection (RFC 9113 §4.3), for the table is lost with it.
   A list far above the limit ends the connection too (ENHANCE_YOUR_CALM); one just above it costs its own stream only.
3. Names are lower-case tokens; values hold no control characters but tabs, no white space at their ends (§8.2.1), and
   in requests nothing but ASCII. No field of the connection (§8.2.2); `te` is `trailers` or absent; content-length is
   one number. Pseudo-fields come first, once each, and known (§8.3).
4. A block is walked in Python before the library sees it: jh2's decoder panics on blocks that are cut short, and a
   panic writes to stderr. A block that was good and left the dynamic table alone is remembered, with what `split` made
   of it, until the table changes: most calls of a connection send the same octets, and then cost one look-up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hpack

from actorserve.services.transport.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ConnectionFault

try:
    from jh2 import _hazmat
except ImportError:  # pragma: no cover  no wheel for this platform, or the private name has gone
    _hazmat = None

Fields = dict[bytes, bytes]
Pairs = list[tuple[bytes, bytes]]
Decode = Callable[[bytes], Sequence[Any]]

TABLE_SIZE_ZERO = b"\x20"
TABLE_SIZE = 4096  # of the peer's dynamic table: the default, which we leave as it is (RFC 9113 §6.5.2)
HARD_LIMIT_FACTOR = 4  # how far above the advertised list size a block may go before the connection ends


class Malformed(Exception):
    """The header list breaks a rule of §8.2 or §8.3: a stream error."""


class ListTooLarge(Exception):
    """The header list is above the advertised MAX_HEADER_LIST_SIZE."""


DEFAULT_LIBRARY = "hpack" if _hazmat is None else "jh2"


def walk(block: bytes) -> bool:
    """Give whether a block leaves the dynamic table alone; ConnectionFault where it is no whole block (rule 4)."""
    at, end, pure, fields = 0, len(block), True, False
    try:
        while at < end:
            octet = block[at]
            if octet & 0x80:  # an indexed field (RFC 7541 §6.1)
                fields = True
                index, at = (octet & 0x7F, at + 1) if octet != 0xFF else _integer(block, at, 0x7F)
                if not index:
                    raise ConnectionFault(COMPRESSION_ERROR, "index 0 in a header block")
                continue
            if octet & 0x60 == 0x20:  # a new size of the table (§6.3): before any field, and within what we allow
                size, at = _integer(block, at, 0x1F)
                if size > TABLE_SIZE or fields:
                    raise ConnectionFault(COMPRESSION_ERROR, "a table size that is too large, or late")
                pure = False
                continue
            fields = True
            mask = 0x3F if octet & 0x40 else 0x0F  # a literal, with or without a name (§6.2)
            pure = pure and mask == 0x0F
            index, at = _integer(block, at, mask)
            for _ in range(1 if index else 2):
                size, at = _integer(block, at, 0x7F)
                at += size
    except IndexError:
        at = end + 1
    if at != end:
        raise ConnectionFault(COMPRESSION_ERROR, "header block is cut short")
    return pure


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Give an integer with a prefix (RFC 7541 §5.1), at most 2^28 or so, and where it ends."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in range(0, 28, 7):
        octet = block[at]
        value += (octet & 127) << shift
        at += 1
        if octet < 128:
            return value, at
    raise ConnectionFault(COMPRESSION_ERROR, "an integer without end")


def decoder(max_header_list: int, library: str = DEFAULT_LIBRARY) -> Decode:
    """Give a stateful decoder of header blocks. It raises ConnectionFault and nothing else."""
    hard = max_header_list * HARD_LIMIT_FACTOR
    raw: Callable[[bytes, bool], Any]
    oversized: type[Exception]
    if library == "jh2":
        raw, oversized = _hazmat.Decoder(hard).decode, _hazmat.OversizedHeaderListError
        broken: tuple[type[Exception], ...] = (_hazmat.HPACKError,)
    elif library == "hpack":
        python = hpack.Decoder(hard)
        raw, oversized = python.decode, hpack.OversizedHeaderListError
        broken = (hpack.HPACKError, UnicodeDecodeError, IndexError)
    else:
        raise ValueError(f"unknown HPACK library {library!r}")

    def decode(block: bytes) -> Any:
        try:
            return raw(block, True)
        except oversized as error:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "header list far above the limit") from error
        except broken as error:
            raise ConnectionFault(COMPRESSION_ERROR, "header block does not decode") from error
        except BaseException as error:
            # should a block get past `walk` and make the decoder panic: Rust's panics are no Exception and have no
            # importable name
            if type(error).__name__ != "PanicException":
                raise
            raise ConnectionFault(COMPRESSION_ERROR, "header block does not decode") from None

    return decode


# --- encoding ---------------------------------------------------------------------------


def encode_integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """Give an integer with a prefix of so many bits under the bits of `first` (RFC 7541 §5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_string(text: bytes) -> bytes:
    """Give a string literal without Huffman coding (RFC 7541 §5.2)."""
    return encode_integer(len(text), 7) + text


def literal(name: bytes, value: bytes) -> bytes:
    """Give a literal field without indexing, with a new name (RFC 7541 §6.2.2)."""
    return b"\x00" + encode_string(name) + encode_string(value)


def literal_indexed(index: int, value: bytes) -> bytes:
    """Give a literal field without indexing whose name is in the static table."""
    return encode_integer(index, 4) + encode_string(value)


def encode_pairs(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Give literals for all pairs."""
    return b"".join(literal(name, value) for name, value in pairs)


# Indices of the static table (RFC 7541, appendix A).
STATUS_200 = b"\x88"
METHOD_POST = b"\x83"
SCHEME_HTTP = b"\x86"
SCHEME_HTTPS = b"\x87"
AUTHORITY, PATH, STATUS, CONTENT_TYPE, USER_AGENT = 1, 4, 8, 31, 58

# --- the rules of header lists ------------------------------------------------------------

REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
RESPONSE_PSEUDO = frozenset({b":status"})
NO_PSEUDO: frozenset[bytes] = frozenset()  # a request's trailers
_KNOWN = frozenset(
    {b"content-type", b"user-agent", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-status"}
    | {b"grpc-message", b"grpc-status-details-bin", b"grpc-message-type", b"content-length", b"te"}
)
_FORBIDDEN = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_name_ok = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_ALLOWED = bytes((9, *range(32, 127), *range(128, 256)))  # in values; with bytes.translate: 20 times a regex's speed
_SPACE = frozenset((b" ", b"\t"))

_METADATA, _FIELD, _PSEUDO = range(3)
_checked: dict[Any, tuple[int, int]] = {}  # fields seen before -> kind and size; never metadata, which may be secret
_CHECKED_MAX = 1024


def split(
    block: Sequence[Any], pseudo: frozenset[bytes], limit: int, *, ascii_only: bool = True
) -> tuple[Fields, Pairs]:
    """Check a decoded list and split it: what protocols read by name, and the rest in order.

    Raises:
        Malformed: rule 3 is broken.
        ListTooLarge: the list is above `limit`, counted as in §6.5.2.
    """
    fields: Fields = {}
    metadata: Pairs = []
    regular = False
    total = 0
    for item in block:
        kind, size = _checked.get(item) or _check(item)
        total += size
        if total > limit:  # at once: the rest is not worth a look
            raise ListTooLarge(f"header list above the limit of {limit} octets")
        if kind == _FIELD:
            regular = True
            if item[0] == b"content-length" and fields.get(item[0], item[1]) != item[1]:
                raise Malformed("content-length is said twice, and differently")
            fields[item[0]] = item[1]
        elif kind == _METADATA:
            regular = True
            metadata.append((item[0], item[1]))
        elif regular or item[0] in fields or item[0] not in pseudo:
            raise Malformed(f"pseudo-field {item[0]!r} is unknown, repeated or late")
        else:
            fields[item[0]] = item[1]
        if ascii_only and not item[1].isascii():
            raise Malformed(f"the value of {item[0]!r} is not ASCII")
    return fields, metadata


def _check(item: Any) -> tuple[int, int]:
    """Give a field's kind and its size as §6.5.2 counts it; remember what is not metadata."""
    name, value = item[0], item[1]
    if value.translate(None, _ALLOWED) or value[:1] in _SPACE or value[-1:] in _SPACE:
        raise Malformed(f"the value of {name!r} holds a character that is not allowed")
    size = len(name) + len(value) + 32
    if name[:1] == b":":
        kind = _PSEUDO
    elif name in _KNOWN:
        if name == b"te" and value != b"trailers":
            raise Malformed("te is not trailers")
        kind = _FIELD
    elif name in _FORBIDDEN or not _name_ok(name):
        raise Malformed(f"field name {name!r} is not allowed")
    else:
        return _METADATA, size
    if size < 256:
        if len(_checked) >= _CHECKED_MAX:
            _checked.clear()
        _checked[item] = kind, size
    return kind, size


def check_request(fields: Fields) -> None:
    """Raise Malformed unless the request's pseudo-fields are all there (§8.3.1). CONNECT is not spoken here."""
    if b":method" not in fields or b":scheme" not in fields or b":path" not in fields:
        raise Malformed("a pseudo-field of the request is missing")
    if fields[b":path"][:1] != b"/":
        raise Malformed(":path does not begin with a slash")
    if not _name_ok(fields[b":method"].lower()) or not _name_ok(fields[b":scheme"].lower()):
        raise Malformed(":method or :scheme is no token")


def check_answer(fields: Fields, *, end: bool) -> bool:
    """Give whether an answer's first list is an interim one; raise Malformed where it is neither (§8.1, §8.3.2)."""
    status = fields.get(b":status", b"")
    if len(status) != 3 or not status.isdigit() or status == b"101":
        raise Malformed(":status is missing, or no status of HTTP/2")
    if status[:1] == b"1" and end:
        raise Malformed("an interim answer that ends the stream")
    return status[:1] == b"1"
