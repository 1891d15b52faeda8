"""What a probe says of a class: its rpcs and their descriptors, without an instance; and of what is no servicer."""

import base64
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from rpc_rig import HERE

from actorserve.errors import LoadFailed
from actorserve.handlers.base import Context
from actorserve.handlers.rpc.servicer import Recorder, ServicerHost

METHODS = {"/diff.Diff/One": 0, "/diff.Diff/Many": 1, "/diff.Diff/Collect": 2, "/diff.Diff/Talk": 3}


@pytest.fixture(autouse=True)
def importable(generated, monkeypatch):
    """The classes of this folder."""
    monkeypatch.syspath_prepend(str(HERE))


def schema(servicer="", functions=()):
    """The schema of what is named."""
    options = {"servicer": servicer, "functions": list(functions)}
    return ServicerHost().schema(Context(device="cpu", model_dir=Path(), options=options, log=None))


@pytest.mark.parametrize(
    "named",
    [
        {"servicer": "blocking_servicer:Servicer"},
        {"servicer": "async_servicer:Mixed"},
        {"servicer": "grpclib_service:Service"},
        {"functions": ["diff_pb2_grpc:add_DiffServicer_to_server"]},
        {"servicer": "busy_servicer:Empty", "functions": ["diff_pb2_grpc:add_DiffServicer_to_server"]},
    ],
)
def test_a_schema_without_an_instance(named):
    """Names, cardinalities and files are the same, whichever way the service is named."""
    said = schema(**named)
    assert (said["services"], said["methods"]) == (["diff.Diff"], METHODS)
    (file,) = (FileDescriptorProto.FromString(base64.b64decode(text)) for text in said["files"])
    assert file.service[0].name == "Diff"


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"servicer": "no_such_module:X"}, "servicer 'no_such_module:X': there is no module no_such_module"),
        ({"servicer": "busy_servicer:Nothing"}, "module busy_servicer has no Nothing"),
        ({"servicer": "busy_servicer:Empty"}, "neither a grpclib service"),
        ({"functions": ["diff_pb2_grpc:nothing"]}, "functions 'diff_pb2_grpc:nothing': module diff_pb2_grpc has no"),
    ],
)
def test_what_is_no_servicer(named, text):
    """LoadFailed says which half is wrong."""
    with pytest.raises(LoadFailed, match=text):
        schema(**named)


def test_both_ways_of_registering():
    """Code generated before grpcio 1.62 makes one of the two calls, later code both: the handlers are the same."""
    import diff_pb2_grpc  # noqa: PLC0415  # generated when the tests run
    import grpc  # noqa: PLC0415

    class Both(diff_pb2_grpc.DiffServicer):
        """Every rpc is UNIMPLEMENTED."""

    whole = Recorder()
    diff_pb2_grpc.add_DiffServicer_to_server(Both(), whole)
    generic = Recorder()
    names = {path.rpartition("/")[2]: handler for path, handler in whole.handlers.items()}
    generic.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("diff.Diff", names),))
    assert generic.handlers == whole.handlers
    assert list(whole.handlers) == list(METHODS)
    with pytest.raises(LoadFailed, match="does not say which methods it has"):
        generic.add_generic_rpc_handlers((object(),))


def test_two_services_of_one_class():
    """All the services whose generated bases a class has."""
    import diff_pb2_grpc  # noqa: PLC0415  # as above

    module = sys.modules["busy_servicer_of_two"] = type(sys)("busy_servicer_of_two")
    try:
        from grpc_health.v1 import health_pb2_grpc  # noqa: PLC0415

        module.Two = type("Two", (diff_pb2_grpc.DiffServicer, health_pb2_grpc.HealthServicer), {})
        said = schema("busy_servicer_of_two:Two")
    finally:
        del sys.modules["busy_servicer_of_two"]
    assert set(said["services"]) == {"diff.Diff", "grpc.health.v1.Health"}
    assert said["methods"].items() > METHODS.items()
