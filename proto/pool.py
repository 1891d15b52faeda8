"""The descriptor pool that every checked-in stub registers in.

A pool of our own lets a user import their own copies of TorchServe's, health's or reflection's stubs in
the same process: in protobuf's default pool the second copy raises "duplicate symbol". A pool must hold
what its files import, so the descriptors of those come first, taken from the installed packages.

`google.rpc.Status` inside our messages is therefore a class of this pool, not the one that
googleapis-common-protos exports; only bytes cross between the two (see services/status.py).
"""

from __future__ import annotations

from google.protobuf import any_pb2, descriptor_pool, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2

__all__ = ["POOL"]

POOL = descriptor_pool.DescriptorPool()

for _module in (any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, status_pb2, error_details_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)
