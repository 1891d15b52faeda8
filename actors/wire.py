"""The worker protocol's bytes: pure framing, used by the server and by the worker alike.

A frame is a 13-byte header (kind u8, id u64, length u32, little-endian) and `length` bytes of payload.
The id is a batch's for BATCH, BEGUN and RESULT, a stream's for OPEN, CHUNK, DONE, ERROR, CREDIT and
CANCEL, an item's for a CANCEL inside a batch (items and streams share one id space), and 0 elsewhere.
DESCRIBE is a stream of one chunk at most: what the handler says of itself.
A sequence is a stream with items: OPEN_SEQUENCE, ITEM and END (half-close) go to the worker; for each item, in
order, a CHUNK comes back, or a FAULT where that item failed alone, and frees the item's place: 16 items or 256 KiB
may wait for theirs.
What a call of a user's own schema says is in wire_calls.py.
An unknown kind ends the connection: `FrameReader` raises `WireError`, and so does every `read_*` for a payload
that is not exactly what its kind says: what a worker sends may be anything, and must not hurt the server.

Nothing large is copied that need not be: what packs a large frame gives its parts (`Data`), and what reads one hands
out the room where the rest of it belongs (`FrameReader.room`). ADR 7.

What must not live here: sockets, clocks, trio, torch, gRPC.
Over 250 lines: what packs a frame stands beside what reads it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from functools import wraps
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from actorserve.actors.messages import Metadata

MAX_FRAME_BYTES = 1 << 30
CREDIT_CHUNKS = 16
CREDIT_BYTES = 256 * 1024
MAX_PARTS = 1000  # of one sendmsg; Linux takes 1024
LARGE = 65_536
"""From so many bytes on a copy costs more than the calls that avoid it."""

_HEADER = struct.Struct("<BQI")
_ITEM = struct.Struct("<QqIII")
_PAIR = struct.Struct("<II")  # a key may be as long as a client likes
_RESULT = struct.Struct("<QBII")
_COUNT = struct.Struct("<I")
_CREDIT = struct.Struct("<II")
_SECONDS = struct.Struct("<d")
_EMPTY: Mapping[str, Any] = MappingProxyType({})
HEADER_BYTES = _HEADER.size
_FIRST_ROOM = 4 << 20  # of a frame that says it is larger no more is held than twice what has come
T = TypeVar("T")
P = TypeVar("P")
Data = bytes | list[bytes | memoryview]
"""Frames ready to be written: joined, or, where they are large, in parts that are written one behind the other."""
_make = tuple.__new__  # of a NamedTuple, without a call of Python: one a chunk and one an item


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


_KINDS = frozenset(int(kind) for kind in Kind)
_COPIED_OUT = frozenset(
    map(
        int,
        (
            *(Kind.BATCH, Kind.OPEN, Kind.OPEN_SEQUENCE, Kind.ITEM, Kind.DESCRIBE, Kind.RESULT),
            *(Kind.OPEN_CALL, Kind.ENDED, Kind.CALL, Kind.REPLY_ENDED),
        ),
    )
)


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


class WireError(Exception):
    """The other end broke the protocol."""


class Frame(NamedTuple):
    """One frame as it was read; `kind` is a plain int for speed and equals a `Kind`.

    `payload` is a memoryview where the frame was large and its reader (`read_batch` and its like) copies values out.
    """

    kind: int
    id: int
    payload: bytes


class Item(NamedTuple):
    """One request on its way to a worker. `deadline_ns`: CLOCK_MONOTONIC, 0 for none."""

    id: int
    deadline_ns: int
    request_id: str
    inputs: Mapping[str, bytes]
    metadata: Metadata


class Result(NamedTuple):
    """One item's ending on its way back. `data` is the answer, or the error as `error_data` packs it."""

    id: int
    outcome: int
    data: bytes
    trailers: Metadata


def frame(kind: Kind, id: int = 0, payload: bytes = b"") -> bytes:
    """One frame, ready to be written."""
    return _HEADER.pack(kind, id, len(payload)) + payload


def chunk(id: int, data: bytes) -> Data:
    """A CHUNK frame: one answer of the stream `id`."""
    size = len(data)
    head = _HEADER.pack(Kind.CHUNK, id, size)
    return head + data if size < LARGE else [head, data]


def _ready(parts: list[bytes], kind: Kind, id: int) -> Data:
    """Make a frame of its payload's parts: `parts[0]` is the place of its header."""
    size = sum(map(len, parts))
    parts[0] = _HEADER.pack(kind, id, size)
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


class FrameReader:
    """Bytes in any split become frames in order.

    Bytes come by `feed`, or, while `room` is not None, into it: then `filled` says how many. Both may take turns.

    What came whole before nonsense is still given (it may say that a batch has begun): `broken` is true then, and
    the next `feed` raises.
    """

    __slots__ = ("_buffer", "_filled", "_large", "broken", "room")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._large = (0, 0, 0)  # kind, id and length of the frame that has a room
        self._filled = 0  # how much of it has come
        self.room: memoryview | None = None
        """Where the next bytes of a large frame belong, while there is one whose header has come."""
        self.broken = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Add what was received; return the frames that are now whole."""
        first: list[Frame] = []
        while self.room is not None and data:
            size = min(len(data), len(self.room))
            self.room[:size] = data[:size]
            first += self.filled(size)
            data = data[size:]
        source: bytes | bytearray = self._buffer
        if not source and isinstance(data, bytes):
            source = data  # the usual case: nothing is left over, so nothing is copied twice
        else:
            self._buffer += data
        frames, start = self._whole(source, first)
        if source is self._buffer:
            del source[:start]
        elif start < len(source):
            self._buffer += source[start:]
        if self._buffer and not self.broken:
            self._make_room()
        return frames

    def _whole(self, source: bytes | bytearray, frames: list[Frame]) -> tuple[list[Frame], int]:
        """Add the frames that are whole, and say where they end."""
        start, end = 0, len(source)
        while end - start >= HEADER_BYTES:
            kind, id, length = _HEADER.unpack_from(source, start)
            if kind not in _KINDS or length > MAX_FRAME_BYTES:
                self.broken = True
                if frames:
                    break
                if kind not in _KINDS:
                    raise WireError(f"unknown frame kind {kind}")
                raise WireError(f"frame of {length} bytes, the limit is {MAX_FRAME_BYTES}")
            stop = start + HEADER_BYTES + length
            if stop > end:
                break
            if isinstance(source, bytes):
                payload = source[start + HEADER_BYTES : stop]
            else:
                with memoryview(source) as view:  # a slice of a bytearray would be copied twice
                    payload = bytes(view[start + HEADER_BYTES : stop])
            frames.append(_make(Frame, (kind, id, payload)))
            start = stop
        return frames, start

    def _make_room(self) -> None:
        """Give the frame that has begun a buffer of its own, if it is large."""
        rest = self._buffer
        if len(rest) < HEADER_BYTES:
            return
        self._large = _HEADER.unpack_from(rest)
        length = self._large[2]
        if length < LARGE:
            return
        self._filled = len(rest) - HEADER_BYTES
        own = bytearray(min(length, max(_FIRST_ROOM, 2 * self._filled)))
        own[: self._filled] = rest[HEADER_BYTES:]
        self._buffer = bytearray()
        self.room = memoryview(own)[self._filled :]

    def filled(self, size: int) -> list[Frame]:
        """So many bytes were received into `room`; return the frame if it is whole now."""
        assert self.room is not None  # noqa: S101  # narrows the type: there was room
        self._filled += size
        own, self.room = self.room.obj, self.room[size:]
        if self.room:
            return []
        kind, id, length = self._large
        whole = memoryview(own)
        if self._filled < length:
            larger = bytearray(min(length, 2 * self._filled))
            larger[: self._filled] = whole
            self.room = memoryview(larger)[self._filled :]
            return []
        self.room, self._filled = None, 0
        return [_make(Frame, (kind, id, whole if kind in _COPIED_OUT else bytes(whole)))]


def strict(read: Callable[[P], T]) -> Callable[[P], T]:
    """Make a reader say WireError for whatever is wrong with a payload."""

    @wraps(read)
    def checked(payload: P) -> T:
        try:
            return read(payload)
        except (struct.error, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise WireError(f"malformed payload: {type(error).__name__}: {error}") from error

    return checked


def at_end(payload: bytes | memoryview, at: int) -> None:
    """WireError where a payload does not end where its lengths say."""
    if at != len(payload):
        raise WireError(f"malformed payload: {len(payload)} bytes where its lengths say {at}")


# --- pairs: inputs, metadata, trailers -----------------------------------------------------


def _pack_pairs(parts: list[bytes], pairs: Mapping[str, str | bytes]) -> None:
    for key, value in pairs.items():
        name = key.encode()
        data = value.encode() if isinstance(value, str) else value
        parts += (_PAIR.pack(len(name), len(data)), name, data)


def _unpack_pairs(payload: bytes | memoryview, at: int, count: int) -> tuple[dict[str, bytes], int]:
    pairs: dict[str, bytes] = {}
    for _ in range(count):
        name_length, length = _PAIR.unpack_from(payload, at)
        at += _PAIR.size
        name_end = at + name_length
        pairs[str(payload[at:name_end], "utf-8")] = bytes(payload[name_end : name_end + length])
        at = name_end + length
    return pairs, at


def _as_metadata(pairs: Mapping[str, bytes]) -> Metadata:
    return {key: value if key.endswith("-bin") else value.decode() for key, value in pairs.items()}


# --- BATCH and OPEN --------------------------------------------------------------------------


def _pack_item(parts: list[bytes], item: Item) -> None:
    request_id = item.request_id.encode()
    parts += (
        _ITEM.pack(item.id, item.deadline_ns, len(request_id), len(item.inputs), len(item.metadata)),
        request_id,
    )
    _pack_pairs(parts, item.inputs)
    if item.metadata:
        _pack_pairs(parts, item.metadata)


def _unpack_item(payload: bytes | memoryview, at: int) -> tuple[Item, int]:
    id, deadline_ns, id_length, inputs, metadata = _ITEM.unpack_from(payload, at)
    at += _ITEM.size + id_length
    request_id = str(payload[at - id_length : at], "utf-8")
    input_pairs, at = _unpack_pairs(payload, at, inputs)
    if not metadata:
        return _make(Item, (id, deadline_ns, request_id, input_pairs, _EMPTY)), at
    metadata_pairs, at = _unpack_pairs(payload, at, metadata)
    return Item(id, deadline_ns, request_id, input_pairs, _as_metadata(metadata_pairs)), at


def size_of(item: Item) -> int:
    """How large an item is at most once it is packed, without packing it."""
    size = _ITEM.size + 4 * len(item.request_id)
    for pairs in (item.inputs, item.metadata):
        for key, value in pairs.items():
            size += _PAIR.size + 4 * len(key) + (len(value) if isinstance(value, bytes) else 4 * len(value))
    return size


def batch(id: int, items: Sequence[Item]) -> Data:
    """A BATCH frame."""
    parts = [b"", _COUNT.pack(len(items))]
    for item in items:
        _pack_item(parts, item)
    return _ready(parts, Kind.BATCH, id)


@strict
def read_batch(payload: bytes | memoryview) -> list[Item]:
    """The items of a BATCH's payload."""
    (count,) = _COUNT.unpack_from(payload)
    at = _COUNT.size
    items = []
    for _ in range(count):
        item, at = _unpack_item(payload, at)
        items.append(item)
    at_end(payload, at)
    return items


def open_stream(item: Item, kind: Kind = Kind.OPEN) -> Data:
    """A frame that opens a stream; its id is the item's. Of OPEN and DESCRIBE, read with `read_open`."""
    parts = [b""]
    _pack_item(parts, item)
    return _ready(parts, kind, item.id)


@strict
def read_open(payload: bytes | memoryview) -> Item:
    """The item of an OPEN's payload."""
    item, at = _unpack_item(payload, 0)
    at_end(payload, at)
    return item


def open_sequence(item: Item) -> Data:
    """An OPEN_SEQUENCE frame; its id is the item's. Read with `read_open`."""
    parts = [b""]
    _pack_item(parts, item)
    return _ready(parts, Kind.OPEN_SEQUENCE, item.id)


def item(id: int, inputs: Mapping[str, bytes]) -> Data:
    """An ITEM frame: one message of the sequence `id`."""
    parts = [b"", _COUNT.pack(len(inputs))]
    _pack_pairs(parts, inputs)
    return _ready(parts, Kind.ITEM, id)


@strict
def read_item(payload: bytes | memoryview) -> dict[str, bytes]:
    """The inputs of an ITEM's payload."""
    (count,) = _COUNT.unpack_from(payload)
    pairs, at = _unpack_pairs(payload, _COUNT.size, count)
    at_end(payload, at)
    return pairs


# --- RESULT, DONE and ERROR ------------------------------------------------------------------


def result(id: int, results: Iterable[Result]) -> Data:
    """A RESULT frame: every item of the batch `id`, each with its own ending."""
    parts = [b"", b""]
    count = 0
    for one in results:
        count += 1
        parts += (_RESULT.pack(one.id, one.outcome, len(one.trailers), len(one.data)), one.data)
        if one.trailers:
            _pack_pairs(parts, one.trailers)
    parts[1] = _COUNT.pack(count)
    return _ready(parts, Kind.RESULT, id)


@strict
def read_result(payload: bytes | memoryview) -> list[Result]:
    """The endings in a RESULT's payload."""
    (count,) = _COUNT.unpack_from(payload)
    at = _COUNT.size
    results = []
    for _ in range(count):
        id, outcome, trailers, length = _RESULT.unpack_from(payload, at)
        at += _RESULT.size
        data = bytes(payload[at : at + length])
        at += length
        metadata = _EMPTY
        if trailers:
            pairs, at = _unpack_pairs(payload, at, trailers)
            metadata = _as_metadata(pairs)
        results.append(_make(Result, (id, outcome, data, metadata)))
    at_end(payload, at)
    return results


def done(id: int, trailers: Metadata = _EMPTY) -> bytes:
    """A DONE frame: the stream `id` ended well."""
    parts = [_COUNT.pack(len(trailers))]
    _pack_pairs(parts, trailers)
    return frame(Kind.DONE, id, b"".join(parts))


@strict
def read_done(payload: bytes) -> Metadata:
    """The trailers in a DONE's payload."""
    (count,) = _COUNT.unpack_from(payload)
    pairs, at = _unpack_pairs(payload, _COUNT.size, count)
    at_end(payload, at)
    return _as_metadata(pairs)


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


# --- the small ones ------------------------------------------------------------------------------


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
