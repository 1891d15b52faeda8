"""What payloads are made of: pairs of names and values, and the care with which all is read. Pure; both ends use it.

Every `read_*` raises `WireError` for a payload that is not exactly what its kind says: what a worker sends may be
anything, and must not hurt the server.

What must not live here: what a frame of one kind says (wire_items.py, wire_endings.py, wire.py, wire_calls.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeVar

from actorserve.actors.messages import Metadata
from actorserve.actors.wire_frames import WireError

_PAIR = struct.Struct("<II")  # a key may be as long as a client likes
_COUNT = struct.Struct("<I")
PAIR_BYTES, COUNT_BYTES = _PAIR.size, _COUNT.size
pack_count, unpack_count = _COUNT.pack, _COUNT.unpack_from  # bound, as pack_header
EMPTY: Mapping[str, Any] = MappingProxyType({})
T = TypeVar("T")
P = TypeVar("P")


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


def pack_pairs(parts: list[bytes], pairs: Mapping[str, str | bytes]) -> None:
    """Add pairs to the parts of a payload; how many there are stands before them, in its own place."""
    for key, value in pairs.items():
        name = key.encode()
        data = value.encode() if isinstance(value, str) else value
        parts += (_PAIR.pack(len(name), len(data)), name, data)


def unpack_pairs(payload: bytes | memoryview, at: int, count: int) -> tuple[dict[str, bytes], int]:
    """So many pairs from a place in a payload, and where they end."""
    pairs: dict[str, bytes] = {}
    for _ in range(count):
        name_length, length = _PAIR.unpack_from(payload, at)
        at += PAIR_BYTES
        name_end = at + name_length
        pairs[str(payload[at:name_end], "utf-8")] = bytes(payload[name_end : name_end + length])
        at = name_end + length
    return pairs, at


def as_metadata(pairs: Mapping[str, bytes]) -> Metadata:
    """Pairs as metadata: what a key that ends in "-bin" has stays bytes."""
    return {key: value if key.endswith("-bin") else value.decode() for key, value in pairs.items()}
