"""What comes back from a worker: RESULT, DONE, ERROR and FAULT, and what they say of failures. Pure; both ends use it.

What must not live here: what was asked (wire_items.py), how a call of a user's own schema ends (wire_calls.py), which
error of the server a failure is, sockets, clocks.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from actorserve.actors.messages import Metadata
from actorserve.actors.wire_frames import Data, Kind, frame, make, ready
from actorserve.actors.wire_values import (
    COUNT_BYTES,
    EMPTY,
    as_metadata,
    at_end,
    pack_count,
    pack_pairs,
    strict,
    unpack_count,
    unpack_pairs,
)

_RESULT = struct.Struct("<QBII")


class Outcome(IntEnum):
    """How one item ended, in a RESULT or an ERROR."""

    OK = 0
    BAD_INPUT = 1
    RAISED = 2
    EXPIRED = 3
    CANCELLED = 4
    TOO_LARGE = 5
    CODED = 6
    ENDED = 7


class Result(NamedTuple):
    """One item's ending on its way back. `data` is the answer, or the error as `error_data` packs it."""

    id: int
    outcome: int
    data: bytes
    trailers: Metadata


def result(id: int, results: Iterable[Result]) -> Data:
    """A RESULT frame: every item of the batch `id`, each with its own ending."""
    parts = [b"", b""]
    count = 0
    for one in results:
        count += 1
        parts += (_RESULT.pack(one.id, one.outcome, len(one.trailers), len(one.data)), one.data)
        if one.trailers:
            pack_pairs(parts, one.trailers)
    parts[1] = pack_count(count)
    return ready(parts, Kind.RESULT, id)


@strict
def read_result(payload: bytes | memoryview) -> list[Result]:
    """The endings in a RESULT's payload."""
    (count,) = unpack_count(payload)
    at = COUNT_BYTES
    results = []
    for _ in range(count):
        id, outcome, trailers, length = _RESULT.unpack_from(payload, at)
        at += _RESULT.size
        data = bytes(payload[at : at + length])
        at += length
        metadata = EMPTY
        if trailers:
            pairs, at = unpack_pairs(payload, at, trailers)
            metadata = as_metadata(pairs)
        results.append(make(Result, (id, outcome, data, metadata)))
    at_end(payload, at)
    return results


def done(id: int, trailers: Metadata = EMPTY) -> bytes:
    """A DONE frame: the stream `id` ended well."""
    parts = [pack_count(len(trailers))]
    pack_pairs(parts, trailers)
    return frame(Kind.DONE, id, b"".join(parts))


@strict
def read_done(payload: bytes) -> Metadata:
    """The trailers in a DONE's payload."""
    (count,) = unpack_count(payload)
    pairs, at = unpack_pairs(payload, COUNT_BYTES, count)
    at_end(payload, at)
    return as_metadata(pairs)


def error(id: int, outcome: Outcome, data: bytes) -> bytes:
    """An ERROR frame: the stream `id` ended badly; `data` as `error_data` packs it."""
    return frame(Kind.ERROR, id, bytes((outcome,)) + data)


def fault(id: int, outcome: Outcome, data: bytes) -> bytes:
    """A FAULT frame: one item of the sequence `id` failed, the sequence goes on. Read with `read_error`."""
    return frame(Kind.FAULT, id, bytes((outcome,)) + data)


@strict
def read_error(payload: bytes) -> tuple[int, bytes]:
    """Outcome and data of an ERROR's payload."""
    return payload[0], payload[1:]


def error_data(first: str, text: str) -> bytes:
    """Pack a failure: (field, text) for BAD_INPUT, (exception type, text) for RAISED."""
    return json.dumps([first, text]).encode()


@strict
def read_error_data(data: bytes) -> tuple[str, str]:
    """What `error_data` packed."""
    first, text = json.loads(data)
    return str(first), str(text)


def status_data(code: int, text: str, answer: bytes | None) -> bytes:
    """Pack the failure CODED: the handler's code, its text, and its answer all the same, where there is one."""
    return error_data(str(code), text) + (b"" if answer is None else b"\0" + answer)  # JSON has no zero byte


@strict
def read_status_data(data: bytes) -> tuple[int, str, bytes | None]:
    """What `status_data` packed."""
    head, mark, answer = bytes(data).partition(b"\0")
    code, text = json.loads(head)
    return int(code), str(text), answer if mark else None


def too_large_data(weight: int, limit: int) -> bytes:
    """Pack the failure TOO_LARGE: what a handler's `weight` says of an item, and the most that a forward takes."""
    return json.dumps([weight, limit]).encode()


@strict
def read_too_large_data(data: bytes) -> tuple[int, int]:
    """What `too_large_data` packed."""
    weight, limit = json.loads(data)
    return int(weight), int(limit)
