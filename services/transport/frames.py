"""HTTP/2 frames as bytes: numbers, layouts, and the two kinds of fault (RFC 9113 §4, §6, §7).

What lives here: constants, encoders of whole frames, parsers of small payloads, `ConnectionFault`, `StreamFault`.
What must not: state of any kind, sockets, clocks, trio, gRPC.

Rules
1. A frame is 9 octets of header (24-bit length, type, flags, reserved bit and 31-bit stream id) and a payload (§4.1).
2. A wrong size is FRAME_SIZE_ERROR, of the connection where the frame could alter its state (§4.2).
3. Unknown frame types, unknown settings and undefined flags are ignored (§4.1, §5.5, §6.5.2).
4. Padding is at most what is left of the payload, else PROTOCOL_ERROR of the connection (§6.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # §3.4

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_SIZE = 9
HEADER = struct.Struct(">HBBBL")  # length / 256, length % 256, type, flags, stream id: one unpack_from a frame
LONG = struct.Struct(">L")
TWO_LONGS = struct.Struct(">LL")
SETTING = struct.Struct(">HL")

MAX_WINDOW = 2**31 - 1
MAX_STREAM_ID = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_MAX_FRAME = 16_384

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

# Error codes (§7).
(
    NO_ERROR,
    PROTOCOL_ERROR,
    INTERNAL_ERROR,
    FLOW_CONTROL_ERROR,
    SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
    INADEQUATE_SECURITY,
    HTTP_1_1_REQUIRED,
) = range(14)


class ConnectionFault(Exception):
    """The peer broke a rule of the whole connection: GOAWAY with `code`, then close (§5.4.1)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


class StreamFault(Exception):
    """The peer broke a rule of one stream: RST_STREAM with `code`, the others go on (§5.4.2)."""

    def __init__(self, stream_id: int, code: int, text: str) -> None:
        super().__init__(stream_id, code, text)
        self.stream_id = stream_id
        self.code = code
        self.text = text


def encode(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Give one whole frame."""
    size = len(payload)
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def encode_headers(stream_id: int, block: bytes, max_frame: int, *, end: bool) -> bytes:
    """Give HEADERS, and CONTINUATION frames where the block is longer than a frame (§6.10)."""
    flags = END_STREAM if end else 0
    if len(block) <= max_frame:
        return encode(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [encode(HEADERS, flags, stream_id, block[:max_frame])]
    for start in range(max_frame, len(block), max_frame):
        last = END_HEADERS if start + max_frame >= len(block) else 0
        parts.append(encode(CONTINUATION, last, stream_id, block[start : start + max_frame]))
    return b"".join(parts)


def encode_settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    """Give a SETTINGS frame (§6.5)."""
    return encode(SETTINGS, 0, 0, b"".join(SETTING.pack(key, value) for key, value in pairs))


def encode_window_update(stream_id: int, increment: int) -> bytes:
    """Give a WINDOW_UPDATE frame (§6.9)."""
    return encode(WINDOW_UPDATE, 0, stream_id, LONG.pack(increment))


def encode_rst_stream(stream_id: int, code: int) -> bytes:
    """Give a RST_STREAM frame (§6.4)."""
    return encode(RST_STREAM, 0, stream_id, LONG.pack(code))


def encode_goaway(last_stream_id: int, code: int, text: str = "") -> bytes:
    """Give a GOAWAY frame; `text` is debug data (§6.8)."""
    return encode(GOAWAY, 0, 0, TWO_LONGS.pack(last_stream_id, code) + text.encode()[:256])


SETTINGS_ACK = encode(SETTINGS, ACK, 0)


def strip(flags: int, payload: bytes) -> bytes:
    """Take padding (§6.1, §6.2) and the ignored priority fields (§5.3.2) off a HEADERS or DATA payload."""
    start, end = 0, len(payload)
    if flags & PADDED:
        if not end:
            raise ConnectionFault(FRAME_SIZE_ERROR, "no room for the pad length")
        start, end = 1, end - payload[0]
    if flags & HAS_PRIORITY:
        start += 5
        if start > len(payload):
            raise ConnectionFault(FRAME_SIZE_ERROR, "no room for the priority fields")
    if start > end:
        raise ConnectionFault(PROTOCOL_ERROR, "padding is longer than the frame")
    return payload[start:end]


def decode_settings(payload: bytes) -> list[tuple[int, int]]:
    """Give the settings in order, each checked for its range (§6.5.2)."""
    if len(payload) % 6:
        raise ConnectionFault(FRAME_SIZE_ERROR, "SETTINGS is not a multiple of 6 octets")
    pairs = list(SETTING.iter_unpack(payload))
    for key, value in pairs:
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFault(PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is above 2^31-1")
        if key == MAX_FRAME_SIZE and not DEFAULT_MAX_FRAME <= value < 2**24:
            raise ConnectionFault(PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
    return pairs


def decode_long(payload: bytes, name: str) -> int:
    """Give the 32-bit number that is all of the payload."""
    if len(payload) != 4:
        raise ConnectionFault(FRAME_SIZE_ERROR, f"{name} is not 4 octets long")
    return int(LONG.unpack(payload)[0])
