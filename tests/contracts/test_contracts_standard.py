"""Health and reflection on the wire: the same messages, numbers and rpcs as in the modules that grpcio publishes."""

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from actorserve.proto import grpc_health_v1_pb2, grpc_reflection_v1_pb2, grpc_reflection_v1alpha_pb2


def contract(module):
    """What of a file reaches the wire: not its own name, nor the options for other languages."""
    file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    for field in ("name", "options", "source_code_info"):
        file.ClearField(field)
    for service in file.service:
        for method in service.method:
            method.ClearField("options")
    return str(file)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(grpc_health_v1_pb2, health_pb2), (grpc_reflection_v1alpha_pb2, reflection_pb2)]
)
def test_same_contract(ours, theirs):
    """Our stubs were written from the published definitions, and say the same."""
    assert contract(ours) == contract(theirs)


def test_the_two_reflections_are_one():
    """v1 is v1alpha under its new name."""
    names = {"v1": grpc_reflection_v1_pb2, "v1alpha": grpc_reflection_v1alpha_pb2}
    texts = [contract(module).replace(f"grpc.reflection.{name}", "grpc.reflection") for name, module in names.items()]
    assert texts[0] == texts[1]
