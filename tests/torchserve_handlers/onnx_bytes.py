"""A model in ONNX's format, written byte by byte: no package that exports such models is needed.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

FLOAT = 1
IR_VERSION = 8
OPSET = 13


def varint(value: int) -> bytes:
    """A number, seven bits a byte."""
    more, last = value >> 7, value & 0x7F
    return bytes([last | 0x80]) + varint(more) if more else bytes([last])


def field(number: int, value: int | str | bytes) -> bytes:
    """A field of protobuf: a number, or text, bytes or a message with its length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def value_info(name: str, dims: Sequence[int | str]) -> bytes:
    """A float tensor with its shape; a dimension with a name is free."""
    shape = b"".join(field(1, field(1 if isinstance(dim, int) else 2, dim)) for dim in dims)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, shape)))


def weighted_sum(weights: Sequence[float]) -> bytes:
    """The model y[batch] = x[batch, n] @ weights[n]."""
    tensor = (
        field(1, len(weights)) + field(2, FLOAT) + field(8, "w") + field(9, struct.pack(f"<{len(weights)}f", *weights))
    )
    node = field(1, "x") + field(1, "w") + field(2, "y") + field(4, "MatMul")
    graph = [
        *(field(1, node), field(2, "weighted_sum"), field(5, tensor)),
        *(field(11, value_info("x", ["batch", len(weights)])), field(12, value_info("y", ["batch"]))),
    ]
    return field(1, IR_VERSION) + field(7, b"".join(graph)) + field(8, field(1, "") + field(2, OPSET))
