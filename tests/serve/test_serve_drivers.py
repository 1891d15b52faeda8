"""Drivers of Ray 2.1: a servicer of the user's own schema on a port of its own; and what must not be."""

from pathlib import Path

import grpc
import pytest
import trio
from test_serve_sums import free_port

from actorserve import testing
from actorserve.errors import ConfigError, LoadFailed, StartFailed
from actorserve.serve.generated import serve_pb2, serve_pb2_grpc

APPS = str(Path(__file__).parent / "apps")


def config(port, **application):
    return {
        "listeners": {"ray": {"address": "127.0.0.1:0", "services": ["ray"]}},
        "applications": {"it": {"path": [APPS], "env": {"DRIVER_PORT": str(port)}, **application}},
    }


async def test_a_driver_with_its_own_schema():
    """A grpcio servicer that is a driver answers on its port, with grpcio's context and awaiting twice."""
    port = free_port()
    async with testing.serve(config(port, import_path="driver:app")) as app:
        assert app.failures == []

        def ask():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = serve_pb2_grpc.UserDefinedServiceStub(channel)
                message = serve_pb2.UserDefinedMessage(name="you", num=30)
                reply, call = stub.Method1.with_call(message, timeout=20)
                assert reply.greeting == "hello you"
                assert dict(call.trailing_metadata())["seen"] == "you"
                assert [one.num_x2 for one in stub.Streaming(message, timeout=20)] == list(range(0, 60, 2))
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Method1(
                        serve_pb2.UserDefinedMessage(foo="abort"), timeout=20, metadata=(("request_id", "mine"),)
                    )
                assert (caught.value.code().name, caught.value.details()) == ("NOT_FOUND", "not here")
                assert dict(caught.value.trailing_metadata())["request_id"] == "mine"
                ray = serve_pb2_grpc.RayServeAPIServiceStub(channel)
                names = ray.ListApplications(serve_pb2.ListApplicationsRequest(), timeout=20)
                assert list(names.application_names) == ["it"]
                assert ray.Healthz(serve_pb2.HealthzRequest(), timeout=20).message == "success"

        await trio.to_thread.run_sync(ask)


async def test_what_cannot_be_imported():
    """An import path that leads nowhere is told, and the server serves what else it has."""
    wrong = {
        "nothing:app": "there is no module nothing",
        "driver:ap": "module 'driver' has no attribute 'ap'",
        "driver:os": "is no application: expected what a deployment's .bind(...) gives",
        "driver:Driver": "is no application: expected what a deployment's .bind(...) gives",
    }
    port = free_port()
    settings = config(port, import_path="driver:app")
    right = settings["applications"]["it"]
    others = {f"app{n}": {**right, "import_path": path} for n, path in enumerate(wrong)}
    settings["applications"] = {**others, "it": right}
    async with testing.serve(settings) as app:
        assert [type(error) for _, error in app.failures] == [LoadFailed] * 4
        for (_, error), (path, said) in zip(app.failures, wrong.items(), strict=True):
            assert f"import_path {path!r}" in str(error)
            assert said in str(error)
        assert {model.spec.name for model in app.tree().models} == {"it:Greeter", "it:Driver"}


async def test_no_workers_no_applications():
    """Where there are no worker processes, an application is refused by name rather than never started."""
    with pytest.raises(ConfigError, match="applications: their code runs in worker processes"):
        async with testing.serve(config(0, import_path="driver:app"), workers="scripted"):
            pass


async def test_scripts_need_a_private_folder(tmp_path):
    """The socket that takes code stands in a folder that nobody else may enter, or the server does not start."""
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "own").mkdir(mode=0o700)
    for folder, fails in (("open", True), ("own", False)):
        address = f"unix:{tmp_path / folder / 'socket'}"
        listeners = {"script": {"address": address, "services": ["applications"]}}
        if fails:
            told = pytest.RaisesExc(StartFailed, match="others may enter")
            with pytest.RaisesGroup(told, flatten_subgroups=True):
                async with testing.serve({"listeners": listeners}):
                    pass
        else:
            async with testing.serve({"listeners": listeners}) as app:
                assert app.address("script") == address
