"""Reading GGUF files: metadata, the table of tensors, and quantised blocks turned into float32.

Layout (all little-endian): magic "GGUF", version, tensor count, metadata count; metadata as key, type, value; tensors
as name, dimensions (fastest first), type, offset; then, aligned, the data. A quantised type is a run of blocks of 32
weights.
What must not live here: anything about one architecture. The source is the GGUF specification (ggml's docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actorserve.errors import LoadFailed

__all__ = ["Gguf", "read_gguf"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_ALIGNMENT = 32

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            of, count = self.scalar("I"), self.scalar("Q")
            return [self.value(of) for _ in range(count)]
        if kind not in _SCALARS:
            raise LoadFailed(f"broken GGUF: metadata type {kind} at byte {self.at}")
        return self.scalar(_SCALARS[kind])


class Gguf:
    """An open file: `metadata`, the tensors' `names`, and `tensor(name)`."""

    def __init__(
        self, data: mmap.mmap, metadata: Mapping[str, Any], infos: Mapping[str, _TensorInfo], start: int
    ) -> None:
        self._data = data
        self.metadata = metadata
        self._infos = infos
        self._start = start

    @property
    def names(self) -> list[str]:
        """The tensors there are."""
        return list(self._infos)

    def tensor(self, name: str) -> Floats:
        """One tensor as float32, rows first."""
        if name not in self._infos:
            raise LoadFailed(f"the GGUF file has no tensor {name}")
        info = self._infos[name]
        if info.kind not in _TYPES:
            known = ", ".join(kind.name for kind in _TYPES.values())
            raise LoadFailed(f"tensor {name} is of GGUF type {info.kind}; this reader knows {known}")
        kind = _TYPES[info.kind]
        blocks = prod(info.shape) // kind.weights
        start, size = self._start + info.offset, blocks * kind.size
        if start + size > len(self._data):
            raise LoadFailed(f"the GGUF file ends before tensor {name} does")
        raw = np.frombuffer(self._data, np.uint8, size, start)
        return kind.read(raw.reshape(blocks, kind.size)).reshape(info.shape)


def read_gguf(path: Path) -> Gguf:
    """Map the file and read all but its weights."""
    try:
        with path.open("rb") as file:
            cursor = _Cursor(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _read(cursor)
    except (struct.error, ValueError) as error:
        raise LoadFailed(f"{path.name} is not a whole GGUF file: {error}") from error


def _read(cursor: _Cursor) -> Gguf:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("its first bytes are not 'GGUF'")
    cursor.at = 4
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise LoadFailed(f"GGUF version {version}; this reader knows {_VERSIONS}")
    tensors, entries = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(entries):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    infos = {}
    for _ in range(tensors):
        name = cursor.string()
        fastest_first = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]
        infos[name] = _TensorInfo(tuple(reversed(fastest_first)), cursor.scalar("I"), cursor.scalar("Q"))
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    return Gguf(cursor.data, metadata, infos, -(-cursor.at // alignment) * alignment)


def _half(blocks: NDArray[np.uint8], at: int) -> Floats:
    """The block's float16 at byte `at`, as a column."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> Floats:
    """16 bytes are 32 weights: the low halves first, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _f32(blocks: NDArray[np.uint8]) -> Floats:
    return blocks.copy().view("<f4").astype(np.float32)


def _f16(blocks: NDArray[np.uint8]) -> Floats:
    return blocks.copy().view("<f2").astype(np.float32)


def _q4_0(blocks: NDArray[np.uint8]) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _q4_1(blocks: NDArray[np.uint8]) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q8_0(blocks: NDArray[np.uint8]) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    weights: int
    size: int
    read: Callable[[NDArray[np.uint8]], Floats]


_TYPES = {
    0: _Type("F32", 1, 4, _f32),
    1: _Type("F16", 1, 2, _f16),
    2: _Type("Q4_0", 32, 18, _q4_0),
    3: _Type("Q4_1", 32, 20, _q4_1),
    8: _Type("Q8_0", 32, 34, _q8_0),
}
