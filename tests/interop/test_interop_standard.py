"""Health and reflection by clients that were not written here, against a whole server with a user's service on it."""

import importlib
import subprocess
import sysconfig
from pathlib import Path

import grpc
import trio
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from actorserve import testing

CONFIG = {"models": {"echo": {"handler": "actorserve.handlers.echo:Echo"}}}
USERS = {"listeners": {"user": {"address": "127.0.0.1:0", "services": ["reflection"]}}}
INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
TEST_SERVICE = "grpc.testing.TestService"
SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    TEST_SERVICE,
    INFERENCE,
]


def check(target, name, timeout=1.0):
    """What kubelet does: one Check over a new connection, with a short deadline."""
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=timeout)
        except grpc.RpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def watch(target, name, count, seen, started):
    """Grpcio's Watch: the first `count` statuses."""
    with grpc.insecure_channel(target) as channel:
        for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name)):
            seen.append(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
            trio.from_thread.run_sync(started.set)
            if len(seen) == count:
                return


def reflect(target):
    """Grpcio's reflection client: the services, and a call made with nothing but what reflection told."""
    with grpc.insecure_channel(target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        files = [pool.FindServiceByName(name).file.name for name in SERVICES]
        return sorted(database.get_services()), files, pool.FindMessageTypeByName("grpc.testing.Payload").fields_by_name


def ask(target, requests):
    """Answers of v1alpha to raw requests, on one stream."""
    with grpc.insecure_channel(target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        return list(stub.ServerReflectionInfo(iter(requests), timeout=30))


async def test_grpcios_clients(stubs):
    """Probe, Watch through a crash, reflection of ours and of a user's, errors in-band: by grpcio's clients."""
    service = importlib.import_module("interop_service").TestService()
    in_thread = trio.to_thread.run_sync
    seen = []
    async with testing.serve(CONFIG, services=[service]) as app, trio.open_nursery() as nursery:
        target = app.address()
        names = ["", "echo", "echo/1.0", INFERENCE, TEST_SERVICE, "nothing"]
        health = {name: await in_thread(check, target, name) for name in names}
        started = trio.Event()
        nursery.start_soon(in_thread, watch, target, "echo", 3, seen, started)
        await started.wait()
        app.kill_worker("echo")
        listed, files, fields = await in_thread(reflect, target)
        Request = reflection_pb2.ServerReflectionRequest  # noqa: N806  # a class
        answers = await in_thread(
            ask,
            target,
            [
                Request(file_by_filename="nothing.proto"),
                Request(),
                Request(host="here", all_extension_numbers_of_type="grpc.testing.Payload"),
                Request(file_containing_symbol=f"{TEST_SERVICE}.UnaryCall"),
                Request(file_containing_symbol=f"{TEST_SERVICE}.Nothing"),
                Request(
                    file_containing_extension=reflection_pb2.ExtensionRequest(
                        containing_type="grpc.testing.Payload", extension_number=7
                    )
                ),
            ],
        )

    assert health == {**dict.fromkeys(names, "SERVING"), "nothing": "NOT_FOUND"}
    assert seen == ["SERVING", "NOT_SERVING", "SERVING"]
    assert listed == SERVICES
    assert files[-2:] == ["interop.proto", "actorserve/proto/inference.proto"]
    assert sorted(fields) == ["body", "type"]
    kinds = [answer.WhichOneof("message_response") for answer in answers]
    error, files_answer = "error_response", "file_descriptor_response"
    assert kinds == [error, error, "all_extension_numbers_response", files_answer, error, error]
    assert [answer.error_response.error_code for answer in answers] == [5, 3, 0, 0, 5, 5]
    assert (answers[2].valid_host, answers[2].original_request.host) == ("here", "here")


async def test_grpcurl_calls_a_users_service(stubs):
    """Grpcurl lists, describes and calls a service that it learns of by reflection."""
    grpcurl = Path(sysconfig.get_path("scripts")) / "grpcurl"
    service = importlib.import_module("interop_service").TestService()

    async def run(*arguments):
        command = [str(grpcurl), "-plaintext", *arguments]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        return done.stdout.decode()

    async with testing.serve(USERS, services=[service]) as app:
        target = app.address("user")
        listed = await run(target, "list")
        described = await run(target, "describe", f"{TEST_SERVICE}.FullDuplexCall")
        answer = await run("-d", '{"response_size": 3}', target, f"{TEST_SERVICE}/UnaryCall")

    assert listed.split() == [name for name in SERVICES if "reflection" in name or name == TEST_SERVICE]
    assert "rpc FullDuplexCall ( stream .grpc.testing.StreamingOutputCallRequest )" in described
    assert answer == '{\n  "payload": {\n    "body": "AAAA"\n  }\n}\n'
