"""The worker protocol's bytes: pure framing, used by the server and by the worker alike.

A frame is a 13-byte header (kind u8, id u64, length u32, little-endian) and `length` bytes of payload.
The id is a batch's for BATCH, BEGUN and RESULT, a stream's for OPEN, CHUNK, DONE, ERROR, CREDIT and
CANCEL, an item's for a CANCEL inside a batch (items and streams share one id space), and 0 elsewhere.
DESCRIBE is a stream of one chunk at most: what the handler says of itself.
A sequence is a stream with items: OPEN_SEQUENCE, ITEM and END (half-close) go to the worker; for each item, in
order, a CHUNK comes back, or a FAULT where that item failed alone, and frees the item's place: 16 items or 256 KiB
may wait for theirs.
An unknown kind ends the connection: `FrameReader` raises `WireError`, and so does every `read_*` for a payload
that is not exactly what its kind says.

    wire_frames      kinds, headers, what leaves in one write
    wire_reader      bytes become frames
    wire_values      what payloads are made of
    wire_items       what is asked of a worker
    wire_endings     how that ended
    wire_calls       calls of a user's own schema, which has names of its own

Here are notes, credit and signs of life, and the names of all rooms but the last.
What must not live here: sockets, clocks, trio, torch, gRPC.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from actorserve.actors.wire_endings import (
    Outcome,
    Result,
    done,
    error,
    error_data,
    fault,
    read_done,
    read_error,
    read_error_data,
    read_result,
    read_status_data,
    read_too_large_data,
    result,
    status_data,
    too_large_data,
)
from actorserve.actors.wire_frames import (
    CREDIT_BYTES,
    CREDIT_CHUNKS,
    HEADER_BYTES,
    LARGE,
    MAX_FRAME_BYTES,
    MAX_PARTS,
    Data,
    Frame,
    Kind,
    WireError,
    chunk,
    frame,
    together,
    unsent,
)
from actorserve.actors.wire_items import (
    Item,
    batch,
    item,
    open_sequence,
    open_stream,
    read_batch,
    read_item,
    read_open,
    size_of,
)
from actorserve.actors.wire_reader import FrameReader
from actorserve.actors.wire_values import strict

__all__ = [
    "CREDIT_BYTES",
    "CREDIT_CHUNKS",
    "HEADER_BYTES",
    "LARGE",
    "MAX_FRAME_BYTES",
    "MAX_PARTS",
    "Data",
    "Frame",
    "FrameReader",
    "Item",
    "Kind",
    "Outcome",
    "Result",
    "WireError",
    "batch",
    "chunk",
    "credit",
    "done",
    "error",
    "error_data",
    "fault",
    "frame",
    "item",
    "note",
    "open_sequence",
    "open_stream",
    "pong",
    "read_batch",
    "read_credit",
    "read_done",
    "read_error",
    "read_error_data",
    "read_item",
    "read_note",
    "read_open",
    "read_pong",
    "read_result",
    "read_status_data",
    "read_too_large_data",
    "result",
    "size_of",
    "status_data",
    "together",
    "too_large_data",
    "unsent",
]

_CREDIT = struct.Struct("<II")
_SECONDS = struct.Struct("<d")


def note(kind: Kind, content: Mapping[str, Any]) -> bytes:
    """A frame that carries JSON: LOAD, READY, FAILED, LOG."""
    return frame(kind, 0, json.dumps(content).encode())


@strict
def read_note(payload: bytes) -> dict[str, Any]:
    """What `note` packed."""
    content = json.loads(payload)
    if not isinstance(content, dict):
        raise TypeError(f"{type(content).__name__} where an object is due")
    return content


def credit(id: int, chunks: int, size: int) -> bytes:
    """A CREDIT frame: the stream `id` may send so many chunks and bytes more."""
    return frame(Kind.CREDIT, id, _CREDIT.pack(chunks, size))


@strict
def read_credit(payload: bytes) -> tuple[int, int]:
    """Chunks and bytes of a CREDIT's payload."""
    chunks, size = _CREDIT.unpack(payload)
    return chunks, size


def pong(seconds: float) -> bytes:
    """A PONG frame: for how long the main thread has been inside the current handler call."""
    return frame(Kind.PONG, 0, _SECONDS.pack(seconds))


@strict
def read_pong(payload: bytes) -> float:
    """Seconds of a PONG's payload."""
    seconds: float = _SECONDS.unpack(payload)[0]
    return seconds
