"""The frames of calls: rpcs of a user's own schema, whose messages are opaque bytes. Pure; both ends use it.

To the worker: OPEN_CALL (all that is known of a call; with it, for a client that does not stream, its request and the
half-close), MESSAGE and END (what a client streams), CREDIT, CANCEL. From it: INITIAL, CHUNK, ENDED (with it, for a
server that does not stream, the answer), TAKEN (credit for MESSAGEs).
Composition, a call that a worker makes, has ids of its own, chosen by the worker: CALL, CALL_ITEM, CALL_END,
CALL_CREDIT and CALL_CANCEL from the worker; REPLY_INITIAL, REPLY_CHUNK, REPLY_CREDIT, and REPLY_ENDED or REPLY_FAILED
(one of the server's errors: its class and its text) to it.
Multiplexing: MODELS says which models a replica holds and loads, and which turns to load it wants; MAY_LOAD gives one.

What must not live here: sockets, clocks, tasks, gRPC.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from actorserve.actors.messages import Cardinality, Ending, Initial, Pairs
from actorserve.actors.wire import note, read_note
from actorserve.actors.wire_frames import LARGE, Data, Kind, pack_header
from actorserve.actors.wire_values import at_end, strict

_OPEN = struct.Struct("<qBBHHHII")
_CALL = struct.Struct("<H")
_ENDED = struct.Struct("<iBII")
_COUNT = struct.Struct("<H")
_CREDIT = struct.Struct("<II")
_ENCODINGS = ("", "deflate", "gzip")
_CARDINALITIES = tuple(Cardinality)


class Opened(NamedTuple):
    """A call as it reached the worker. `deadline_ns`: CLOCK_MONOTONIC, 0 for none."""

    id: int
    deadline_ns: int
    cardinality: Cardinality
    method: str
    request_id: str
    peer: str
    auth: bytes
    metadata: Pairs
    data: bytes | None


def plain(kind: Kind, id: int, data: bytes) -> Data:
    """A frame whose payload is a message as it is: MESSAGE, CHUNK, CALL_ITEM, REPLY_CHUNK."""
    head = pack_header(kind, id, len(data))
    return head + data if len(data) < LARGE else [head, data]


def credit(kind: Kind, id: int, messages: int, size: int) -> bytes:
    """A frame that gives credit: TAKEN, CALL_CREDIT, REPLY_CREDIT. Read with `wire.read_credit`."""
    return pack_header(kind, id, _CREDIT.size) + _CREDIT.pack(messages, size)


def _whole(kind: Kind, id: int, parts: list[bytes], data: bytes | None) -> Data:
    if not data:
        payload = b"".join(parts)
        return pack_header(kind, id, len(payload)) + payload
    size = sum(map(len, parts)) + len(data)
    parts.insert(0, pack_header(kind, id, size))
    if len(data) < LARGE:
        parts.append(data)
        return b"".join(parts)
    return [b"".join(parts), data]


# --- pairs ---------------------------------------------------------------------------------------


def _pack_pairs(parts: list[bytes], pairs: Iterable[tuple[str, str | bytes]]) -> None:
    """How many texts, how long each is, then all of them."""
    texts: list[bytes] = []
    for key, value in pairs:
        texts.append(key.encode())
        texts.append(value.encode() if isinstance(value, str) else value)
    count = len(texts)
    parts.append(_COUNT.pack(count))
    if count:
        parts.append(struct.pack(f"<{count}I", *map(len, texts)))
        parts += texts


def _unpack_pairs(payload: bytes | memoryview, at: int) -> tuple[Pairs, int]:
    (count,) = _COUNT.unpack_from(payload, at)
    at += _COUNT.size
    if not count:
        return (), at
    if count % 2:
        raise ValueError("a key without a value")
    lengths = struct.unpack_from(f"<{count}I", payload, at)
    at += 4 * count
    pairs: list[tuple[str, str | bytes]] = []
    for number in range(0, count, 2):
        middle = at + lengths[number]
        end = middle + lengths[number + 1]
        key = str(payload[at:middle], "utf-8")
        value = bytes(payload[middle:end])
        pairs.append((key, value if key.endswith("-bin") else str(value, "utf-8")))
        at = end
    return tuple(pairs), at


# --- a call and its ending -------------------------------------------------------------------------


def _open_parts(call: Opened) -> list[bytes]:
    method, request_id, peer = call.method.encode(), call.request_id.encode(), call.peer.encode()
    parts = [
        _OPEN.pack(
            call.deadline_ns,
            call.cardinality,
            call.data is not None,
            len(method),
            len(request_id),
            len(peer),
            len(call.auth),
            0 if call.data is None else len(call.data),
        ),
        method,
        request_id,
        peer,
        call.auth,
    ]
    _pack_pairs(parts, call.metadata)
    return parts


def open_call(call: Opened) -> Data:
    """An OPEN_CALL frame. `struct.error` for a method, an id or an address of more than 65,535 bytes."""
    return _whole(Kind.OPEN_CALL, call.id, _open_parts(call), call.data)


def _read_opened(id: int, payload: bytes | memoryview, at: int) -> Opened:
    deadline_ns, cardinality, has_data, method, request_id, peer, auth, size = _OPEN.unpack_from(payload, at)
    at += _OPEN.size
    texts: list[bytes] = []
    for length in (method, request_id, peer, auth):
        texts.append(bytes(payload[at : at + length]))
        at += length
    metadata, at = _unpack_pairs(payload, at)
    at_end(payload, at + size)
    return Opened(
        id,
        deadline_ns,
        _CARDINALITIES[cardinality],
        texts[0].decode(),
        texts[1].decode(),
        texts[2].decode(),
        texts[3],
        metadata,
        bytes(payload[at:]) if has_data else None,
    )


@strict
def read_open_call(frame: tuple[int, bytes | memoryview]) -> Opened:
    """The call in an OPEN_CALL frame, of its (id, payload)."""
    return _read_opened(frame[0], frame[1], 0)


def call(target: str, opened: Opened) -> Data:
    """A CALL frame: ask the mailbox `target` (a model's name, or name/version)."""
    name = target.encode()
    return _whole(Kind.CALL, opened.id, [_CALL.pack(len(name)), name, *_open_parts(opened)], opened.data)


@strict
def read_call(frame: tuple[int, bytes | memoryview]) -> tuple[str, Opened]:
    """Target and call of a CALL frame, of its (id, payload)."""
    id, payload = frame
    (length,) = _CALL.unpack_from(payload)
    at = _CALL.size + length
    return str(payload[_CALL.size : at], "utf-8"), _read_opened(id, payload, at)


def initial(id: int, said: Initial, kind: Kind = Kind.INITIAL) -> Data:
    """An INITIAL or a REPLY_INITIAL frame."""
    parts = [bytes((_ENCODINGS.index(said.encoding),))]
    _pack_pairs(parts, said.metadata)
    return _whole(kind, id, parts, None)


@strict
def read_initial(payload: bytes) -> Initial:
    """What `initial` packed."""
    encoding = _ENCODINGS[payload[0]]
    pairs, at = _unpack_pairs(payload, 1)
    at_end(payload, at)
    return Initial(pairs, encoding)


def ended(id: int, ending: Ending, kind: Kind = Kind.ENDED) -> Data:
    """An ENDED or a REPLY_ENDED frame."""
    details, data = ending.details.encode(errors="replace"), ending.data
    flags = (data is not None) | ending.reset << 1
    parts = [_ENDED.pack(ending.status, flags, len(details), len(ending.rich)), details, ending.rich]
    _pack_pairs(parts, ending.trailers)
    return _whole(kind, id, parts, data)


@strict
def read_ended(payload: bytes | memoryview) -> Ending:
    """What `ended` packed."""
    status, flags, details, rich = _ENDED.unpack_from(payload)
    middle = _ENDED.size + details
    end = middle + rich
    text = str(payload[_ENDED.size : middle], "utf-8")
    packed = bytes(payload[middle:end])
    trailers, at = _unpack_pairs(payload, end)
    if not flags & 1:
        at_end(payload, at)
    return Ending(status, text, trailers, packed, bytes(payload[at:]) if flags & 1 else None, bool(flags & 2))


def failed(id: int, error: str, text: str, extra: dict[str, Any] | None = None) -> bytes:
    """A REPLY_FAILED frame: the class of the server's error, its text, and what else is known of it."""
    payload = json.dumps([error, text, extra or {}]).encode()
    return pack_header(Kind.REPLY_FAILED, id, len(payload)) + payload


@strict
def read_failed(payload: bytes) -> tuple[str, str, dict[str, Any]]:
    """What `failed` packed."""
    error, text, extra = json.loads(payload)
    return str(error), str(text), dict(extra)


# --- multiplexing -------------------------------------------------------------------------


class Models(NamedTuple):
    """What a replica says of its models, once it has `seen` so many calls. `wants`: turns to load, with numbers."""

    held: list[str]
    loading: list[str]
    seen: int
    wants: list[tuple[str, int]]


def models(said: Models) -> bytes:
    """A MODELS frame."""
    return note(Kind.MODELS, said._asdict())


@strict
def read_models(payload: bytes) -> Models:
    """What `models` packed."""
    said = read_note(payload)
    held, loading = list(map(str, said["held"])), list(map(str, said["loading"]))
    return Models(held, loading, int(said["seen"]), [(str(model), int(number)) for model, number in said["wants"]])


def may_load(number: int) -> bytes:
    """A MAY_LOAD frame: the turn of this number has come."""
    return note(Kind.MAY_LOAD, {"number": number})


@strict
def read_may_load(payload: bytes) -> int:
    """What `may_load` packed."""
    return int(read_note(payload)["number"])
