"""What goes to a worker: BATCH, OPEN, DESCRIBE, OPEN_SEQUENCE and ITEM, with requests in them. Pure; both ends use it.

What must not live here: how they end (wire_endings.py), calls of a user's own schema (wire_calls.py), sockets, clocks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from actorserve.actors.messages import Metadata
from actorserve.actors.wire_frames import Data, Kind, make, ready
from actorserve.actors.wire_values import (
    COUNT_BYTES,
    EMPTY,
    PAIR_BYTES,
    as_metadata,
    at_end,
    pack_count,
    pack_pairs,
    strict,
    unpack_count,
    unpack_pairs,
)

_ITEM = struct.Struct("<QqIII")


class Item(NamedTuple):
    """One request on its way to a worker. `deadline_ns`: CLOCK_MONOTONIC, 0 for none."""

    id: int
    deadline_ns: int
    request_id: str
    inputs: Mapping[str, bytes]
    metadata: Metadata


def _pack_item(parts: list[bytes], item: Item) -> None:
    request_id = item.request_id.encode()
    parts += (
        _ITEM.pack(item.id, item.deadline_ns, len(request_id), len(item.inputs), len(item.metadata)),
        request_id,
    )
    pack_pairs(parts, item.inputs)
    if item.metadata:
        pack_pairs(parts, item.metadata)


def _unpack_item(payload: bytes | memoryview, at: int) -> tuple[Item, int]:
    id, deadline_ns, id_length, inputs, metadata = _ITEM.unpack_from(payload, at)
    at += _ITEM.size + id_length
    request_id = str(payload[at - id_length : at], "utf-8")
    input_pairs, at = unpack_pairs(payload, at, inputs)
    if not metadata:
        return make(Item, (id, deadline_ns, request_id, input_pairs, EMPTY)), at
    metadata_pairs, at = unpack_pairs(payload, at, metadata)
    return Item(id, deadline_ns, request_id, input_pairs, as_metadata(metadata_pairs)), at


def size_of(item: Item) -> int:
    """How large an item is at most once it is packed, without packing it."""
    size = _ITEM.size + 4 * len(item.request_id)
    for pairs in (item.inputs, item.metadata):
        for key, value in pairs.items():
            size += PAIR_BYTES + 4 * len(key) + (len(value) if isinstance(value, bytes) else 4 * len(value))
    return size


def batch(id: int, items: Sequence[Item]) -> Data:
    """A BATCH frame."""
    parts = [b"", pack_count(len(items))]
    for item in items:
        _pack_item(parts, item)
    return ready(parts, Kind.BATCH, id)


@strict
def read_batch(payload: bytes | memoryview) -> list[Item]:
    """The items of a BATCH's payload."""
    (count,) = unpack_count(payload)
    at = COUNT_BYTES
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
    return ready(parts, kind, item.id)


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
    return ready(parts, Kind.OPEN_SEQUENCE, item.id)


def item(id: int, inputs: Mapping[str, bytes]) -> Data:
    """An ITEM frame: one message of the sequence `id`."""
    parts = [b"", pack_count(len(inputs))]
    pack_pairs(parts, inputs)
    return ready(parts, Kind.ITEM, id)


@strict
def read_item(payload: bytes | memoryview) -> dict[str, bytes]:
    """The inputs of an ITEM's payload."""
    (count,) = unpack_count(payload)
    pairs, at = unpack_pairs(payload, COUNT_BYTES, count)
    at_end(payload, at)
    return pairs
