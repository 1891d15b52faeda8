"""Frames of the worker protocol: their kinds, their header, and how they leave in one write. Pure; both ends use it.

Nothing large is copied that need not be: what packs a large frame gives its parts (`Data`). ADR 7.

What must not live here: what a payload says (wire_items.py, wire_endings.py and their like), reading (wire_reader.py),
sockets, clocks, trio, torch, gRPC.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

MAX_FRAME_BYTES = 1 << 30
CREDIT_CHUNKS = 16
CREDIT_BYTES = 256 * 1024
MAX_PARTS = 1000  # of one sendmsg; Linux takes 1024
LARGE = 65_536
"""From so many bytes on a copy costs more than the calls that avoid it."""

_HEADER = struct.Struct("<BQI")
HEADER_BYTES = _HEADER.size
pack_header, unpack_header = _HEADER.pack, _HEADER.unpack_from  # bound: the methods of an imported name cost more
Data = bytes | list[bytes | memoryview]
"""Frames ready to be written: joined, or, where they are large, in parts that are written one behind the other."""
make = tuple.__new__  # of a NamedTuple, without a call of Python: one a chunk and one an item


class Kind(IntEnum):
    """Frame kinds: below 64 to the worker, from 64 on from it."""

    LOAD = 1
    BATCH = 2
    OPEN = 3
    CREDIT = 4
    CANCEL = 5
    PING = 6
    STOP = 7
    OPEN_SEQUENCE = 8
    ITEM = 9
    END = 10
    DESCRIBE = 11
    OPEN_CALL = 12
    MESSAGE = 13
    CONTROL = 14
    REPLY_INITIAL = 15
    REPLY_CHUNK = 16
    REPLY_ENDED = 17
    REPLY_FAILED = 18
    REPLY_CREDIT = 19
    MAY_LOAD = 20
    READY = 64
    FAILED = 65
    BEGUN = 66
    RESULT = 67
    CHUNK = 68
    DONE = 69
    ERROR = 70
    PONG = 71
    LOG = 72
    FAULT = 73
    INITIAL = 74
    ENDED = 75
    TAKEN = 76
    CALL = 77
    CALL_ITEM = 78
    CALL_END = 79
    CALL_CREDIT = 80
    CALL_CANCEL = 81
    SCHEMA = 82
    CONTROLLED = 83
    MODELS = 84


class WireError(Exception):
    """The other end broke the protocol."""


class Frame(NamedTuple):
    """One frame as it was read; `kind` is a plain int for speed and equals a `Kind`.

    `payload` is a memoryview where the frame was large and its reader (`read_batch` and its like) copies values out.
    """

    kind: int
    id: int
    payload: bytes


def frame(kind: Kind, id: int = 0, payload: bytes = b"") -> bytes:
    """One frame, ready to be written."""
    return pack_header(kind, id, len(payload)) + payload


def chunk(id: int, data: bytes) -> Data:
    """A CHUNK frame: one answer of the stream `id`."""
    size = len(data)
    head = pack_header(Kind.CHUNK, id, size)
    return head + data if size < LARGE else [head, data]


def ready(parts: list[bytes], kind: Kind, id: int) -> Data:
    """Make a frame of its payload's parts: `parts[0]` is the place of its header."""
    size = sum(map(len, parts))
    parts[0] = pack_header(kind, id, size)
    return b"".join(parts) if size < LARGE else gather(parts)


def together(written: Sequence[Data]) -> Data:
    """Several writes as one."""
    if list not in map(type, written):
        return b"".join(written)  # type: ignore[arg-type]  # no list among them
    return gather(part for data in written for part in (data if isinstance(data, list) else (data,)))


def unsent(parts: list[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """What is left of parts of which so many bytes have left."""
    for at, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[at + 1 :]]
        sent -= len(part)
    return []


def gather(parts: Iterable[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join what is small: the same bytes in few parts, of which the large ones were not copied."""
    gathered: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    for part in parts:
        if len(part) < LARGE:
            small.append(part)
            continue
        if small:
            gathered.append(b"".join(small))
            small = []
        gathered.append(part)
    if small:
        gathered.append(b"".join(small))
    return gathered
