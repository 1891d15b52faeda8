"""The contracts on the wire: every number, type and rpc of TorchServe's two protos, and stubs that are not stale."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from actorserve.proto import inference_grpc, inference_pb2, management_grpc, management_pb2
from actorserve.proto.pool import POOL

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_BOOL: "bool",
}

INFERENCE = "org.pytorch.serve.grpc.inference"
MANAGEMENT = "org.pytorch.serve.grpc.management"

MESSAGES = {
    f"{INFERENCE}.PredictionsRequest": """
        1 model_name string
        2 model_version string
        3 input map<string,bytes>
        4 sequence_id optional string""",
    f"{INFERENCE}.PredictionResponse": """
        1 prediction bytes
        2 sequence_id optional string
        3 status optional google.rpc.Status""",
    f"{INFERENCE}.TorchServeHealthResponse": """
        1 health string""",
    f"{MANAGEMENT}.ManagementResponse": """
        1 msg string""",
    f"{MANAGEMENT}.DescribeModelRequest": """
        1 model_name string
        2 model_version string
        3 customized bool""",
    f"{MANAGEMENT}.ListModelsRequest": """
        1 limit int32
        2 next_page_token int32""",
    f"{MANAGEMENT}.RegisterModelRequest": """
        1 batch_size int32
        2 handler string
        3 initial_workers int32
        4 max_batch_delay int32
        5 model_name string
        6 response_timeout int32
        7 runtime string
        8 synchronous bool
        9 url string
        10 s3_sse_kms bool
        11 startup_timeout int32""",
    f"{MANAGEMENT}.ScaleWorkerRequest": """
        1 model_name string
        2 model_version string
        3 max_worker int32
        4 min_worker int32
        5 number_gpu int32
        6 synchronous bool
        7 timeout int32""",
    f"{MANAGEMENT}.SetDefaultRequest": """
        1 model_name string
        2 model_version string""",
    f"{MANAGEMENT}.UnregisterModelRequest": """
        1 model_name string
        2 model_version string""",
}

MANAGED = f"{MANAGEMENT}.ManagementResponse"
RPCS = {
    f"{INFERENCE}.InferenceAPIsService": {
        "Ping": f"google.protobuf.Empty -> {INFERENCE}.TorchServeHealthResponse",
        "Predictions": f"{INFERENCE}.PredictionsRequest -> {INFERENCE}.PredictionResponse",
        "StreamPredictions": f"{INFERENCE}.PredictionsRequest -> stream {INFERENCE}.PredictionResponse",
        "StreamPredictions2": f"stream {INFERENCE}.PredictionsRequest -> stream {INFERENCE}.PredictionResponse",
    },
    f"{MANAGEMENT}.ManagementAPIsService": {
        "DescribeModel": f"{MANAGEMENT}.DescribeModelRequest -> {MANAGED}",
        "ListModels": f"{MANAGEMENT}.ListModelsRequest -> {MANAGED}",
        "RegisterModel": f"{MANAGEMENT}.RegisterModelRequest -> {MANAGED}",
        "ScaleWorker": f"{MANAGEMENT}.ScaleWorkerRequest -> {MANAGED}",
        "SetDefault": f"{MANAGEMENT}.SetDefaultRequest -> {MANAGED}",
        "UnregisterModel": f"{MANAGEMENT}.UnregisterModelRequest -> {MANAGED}",
    },
}


def describe_field(field):
    kind = field.message_type.full_name if field.message_type else KINDS[field.type]
    if field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        kind = f"map<{KINDS[key.type]},{KINDS[value.type]}>"
    elif field.containing_oneof is not None:
        kind = f"optional {kind}"
    elif field.is_repeated:
        kind = f"repeated {kind}"
    return f"{field.number} {field.name} {kind}"


@pytest.mark.parametrize("name", MESSAGES)
def test_message(name):
    """A message has TorchServe's fields: each number, name and type, and no other."""
    expected = [line.strip() for line in MESSAGES[name].strip().splitlines()]
    assert expected == [describe_field(field) for field in POOL.FindMessageTypeByName(name).fields]


@pytest.mark.parametrize(("module", "package"), [(inference_pb2, INFERENCE), (management_pb2, MANAGEMENT)])
def test_nothing_else(module, package):
    """The files hold those messages and services, in proto3, and no enum or extension."""
    file = module.DESCRIPTOR
    assert package == file.package
    assert {f"{package}.{name}" for name in file.message_types_by_name} == {
        n for n in MESSAGES if n.startswith(package)
    }
    assert [f"{package}.{name}" for name in file.services_by_name] == [n for n in RPCS if n.startswith(package)]
    assert not file.enum_types_by_name
    assert not file.extensions_by_name


@pytest.mark.parametrize("name", RPCS)
def test_service(name):
    """A service has TorchServe's rpcs: each name, request, answer, and which of them stream."""
    found = {
        method.name: f"{'stream ' * method.client_streaming}{method.input_type.full_name}"
        f" -> {'stream ' * method.server_streaming}{method.output_type.full_name}"
        for method in POOL.FindServiceByName(name).methods
    }
    assert RPCS[name] == found


@pytest.mark.parametrize("module", [inference_grpc, management_grpc])
def test_paths(module):
    """The grpclib bases answer at gRPC's paths, one for each rpc."""
    (base,) = (value for name, value in vars(module).items() if name.endswith("Base"))
    empty = type("Empty", (base,), dict.fromkeys(base.__abstractmethods__))
    paths = {f"/{service}/{rpc}" for service, rpcs in RPCS.items() for rpc in rpcs}
    mapping = set(empty().__mapping__())
    assert mapping == {path for path in paths if f".{module.__name__.rpartition('.')[2].partition('_')[0]}." in path}


def test_stubs_are_fresh(tmp_path):
    """The checked-in stubs are, byte for byte, what `just proto` makes of the .proto files with the pinned tools."""
    command = [sys.executable, str(ROOT / "tools" / "generate_stubs.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env={}, timeout=60)
    made = {path.name: path.read_bytes() for path in (tmp_path / "actorserve" / "proto").iterdir()}
    assert sorted(made) == sorted(
        path.name for path in (ROOT / "proto").iterdir() if path.name.endswith(("_pb2.py", "_pb2.pyi", "_grpc.py"))
    )
    stale = [name for name, data in made.items() if (ROOT / "proto" / name).read_bytes() != data]
    grpcio = Path("actorserve", "serve", "generated", "serve_pb2_grpc.py")
    if (tmp_path / grpcio).read_bytes() != (ROOT / "src" / grpcio).read_bytes():
        stale.append(grpcio.name)
    assert stale == [], "run `just proto`"
