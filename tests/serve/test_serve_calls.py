"""What calls of an application do, with real processes: Ray's UserDefinedService, three deployments, grpcio clients."""

import os
import signal
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio
from google.rpc.error_details_pb2 import RetryInfo

from actorserve import testing
from actorserve.serve.generated import serve_pb2, serve_pb2_grpc

APPS = str(Path(__file__).parent / "apps")
FUNCTIONS = "actorserve.serve.generated.serve_pb2_grpc:add_UserDefinedServiceServicer_to_server"
Message = serve_pb2.UserDefinedMessage


def config(compatibility="ray", deployments=None, **applications):
    return {
        "listeners": {
            "grpc": {
                "address": "127.0.0.1:0",
                "services": ["servicers", "ray", "reflection", "health"],
                "compatibility": compatibility,
            }
        },
        "servicers": [{"functions": [FUNCTIONS]}],
        "applications": applications
        or {"ops": {"import_path": "ops:app", "path": [APPS], "deployments": deployments or {}}},
    }


class Client:
    """A grpcio client in threads."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.stub = serve_pb2_grpc.UserDefinedServiceStub(self.channel)
        self.ray = serve_pb2_grpc.RayServeAPIServiceStub(self.channel)
        self.call = getattr(self.stub, "__call__")  # noqa: B004, B009  # the rpc's name

    async def do(self, what, name="", num=0, *, limit_s=20, metadata=()):
        """Answer and trailers of one call."""
        message = Message(name=name, foo=what, num=num)
        reply, call = await trio.to_thread.run_sync(
            lambda: self.call.with_call(message, timeout=limit_s, metadata=metadata), abandon_on_cancel=True
        )
        return reply, dict(call.trailing_metadata())

    async def fail(self, what, name="", num=0, **more):
        """Code, details and trailers of one that fails."""
        with pytest.raises(grpc.RpcError) as caught:
            await self.do(what, name, num, **more)
        error = caught.value
        return error.code().name, error.details(), dict(error.trailing_metadata() or ())

    async def until(self, what, expected):
        """Ask until that is the answer."""
        with trio.fail_after(20):
            while (await self.do(what))[0].greeting != expected:
                await trio.lowlevel.checkpoint()

    async def until_seen(self, expected):
        """Ask until the deployment at the end has begun and cancelled so many calls."""
        await self.until("seen", expected)


@asynccontextmanager
async def running(**more):
    async with testing.serve(config(**more)) as app:
        assert app.failures == []
        client = Client(app.address("grpc"))
        try:
            yield app, client
        finally:
            client.channel.close()


async def test_methods_of_all_kinds():
    """async, plain, streams each way and both: the schema's rpcs by their names, `__call__` too."""
    async with running() as (_, client):
        stub = client.stub
        assert (await client.do("echo", "hi", 4))[0] == serve_pb2.UserDefinedResponse(greeting="hi", num_x2=8)
        many = [Message(num=n) for n in range(50)]

        def others():
            assert stub.Method1(Message(num=3), timeout=20).greeting == "True"
            assert [one.greeting for one in stub.Streaming(Message(num=40), timeout=20)] == list(map(str, range(40)))
            assert stub.ClientStreaming(iter(many), timeout=20).num_x2 == sum(range(50))
            assert [one.num_x2 for one in stub.BidiStreaming(iter(many), timeout=20)] == [2 * n for n in range(50)]

        await trio.to_thread.run_sync(others)


async def test_calls_before_the_schema_is_known():
    """They wait for it: one is answered as any other, a method outside of it has grpcio's own text."""
    async with testing.serve(config(), wait_loaded=False) as app:
        client = Client(app.address("grpc"))

        def others():
            with pytest.raises(grpc.RpcError) as caught:
                client.channel.unary_unary("/nobody/Nothing")(b"", timeout=20)
            return caught.value.code().name, caught.value.details()

        try:
            assert await trio.to_thread.run_sync(others) == ("UNIMPLEMENTED", "Method not found!")
            assert (await client.do("echo", "hi"))[0].greeting == "hi"
        finally:
            client.channel.close()


async def test_grpc_context():
    """The context has id, metadata and peer; trailers and codes that it sets arrive, also when the method raises."""
    async with running() as (_, client):
        metadata = (("request_id", "r1"), ("extra", "x"), ("application", "ops"))
        reply, trailers = await client.do("context", metadata=metadata)
        assert reply.greeting == "r1 x True"
        assert (trailers["seen"], trailers["request_id"]) == ("ops", "r1")
        code, details, trailers = await client.fail("code")
        assert (code, details, trailers["why"]) == ("NOT_FOUND", "not here", "because")
        code, details, trailers = await client.fail("code_and_raise", metadata=metadata)
        assert (code, details) == ("RESOURCE_EXHAUSTED", "too much")
        assert (trailers["why"], trailers["request_id"]) == ("because", "r1")
        code, details, trailers = await client.fail("raise", "x")
        assert (code, details, trailers["why"]) == ("INTERNAL", "KeyError: 'x'", "because")
        assert len(trailers["request_id"]) == 32


async def test_an_answer_that_is_no_message():
    """What cannot be sent is INTERNAL and says what was given."""
    async with running() as (_, client):
        with pytest.raises(grpc.RpcError) as caught:
            await trio.to_thread.run_sync(lambda: client.stub.Method1(Message(foo="wrong"), timeout=20))
        assert caught.value.details() == "TypeError: Front.Method1 must give a protobuf message; it gave int"


async def test_what_goes_wrong_below():
    """An exception of another deployment arrives as it is; a method that is not there is named."""
    async with running() as (_, client):
        assert (await client.fail("downstream", "no"))[:2] == ("INTERNAL", "ValueError: no")
        assert (await client.fail("missing"))[:2] == (
            "INTERNAL",
            "AttributeError: deployment Leaf has no method 'nothing'",
        )


async def test_a_request_that_cannot_be_read():
    """Bytes that are no message of the schema are the client's fault; so is a method that the application lacks."""
    async with running() as (_, client):
        for method, said in (("Method1", "INVALID_ARGUMENT"), ("Method2", "UNIMPLEMENTED")):
            raw = client.channel.unary_unary(f"/ray.serve.UserDefinedService/{method}")
            with pytest.raises(grpc.RpcError) as caught:
                await trio.to_thread.run_sync(lambda raw=raw: raw(b"\xff\xff", timeout=20))
            assert caught.value.code().name == said


async def test_deadlines_go_down():
    """Every deployment sees what is left of the client's deadline; when it passes, all of them are cancelled."""
    async with running() as (_, client):
        below, here = map(float, (await client.do("remaining", limit_s=30))[0].greeting.split())
        assert 20 < here <= below <= 30
        assert (await client.fail("sleep", num=60, limit_s=1))[0] == "DEADLINE_EXCEEDED"
        await client.until_seen("1 1")


async def test_a_client_that_goes():
    """A client's cancel reaches the deployment at the end of the graph."""
    async with running() as (_, client):
        future = client.call.future(Message(foo="sleep", num=60))
        await client.until_seen("1 0")
        future.cancel()
        await client.until_seen("1 1")


async def test_handles():
    """Responses are cancelled, passed on unawaited, streamed and abandoned; ids go down, model ids do not."""
    async with running() as (_, client):
        assert (await client.do("cancel"))[0].greeting == "RequestCancelledError"
        assert (await client.do("pass_on", num=3))[0].greeting == "12"
        assert (await client.do("streams", num=100))[0].greeting == "4950 4950"
        assert (await client.do("abandon"))[0].greeting == "3"
        metadata = (("multiplexed_model_id", "m1"),)
        assert (await client.do("ids", metadata=metadata))[0].greeting == "m1||m7|True"


async def test_multiplexing(tmp_path):
    """Fifty models over two replicas with room for five each: no model is loaded twice at once."""
    deployments = {"Leaf": {"num_replicas": 2, "max_ongoing_requests": 20}}
    application = {
        "import_path": "ops:app",
        "path": [APPS],
        "deployments": deployments,
        "env": {"MARKS": str(tmp_path)},
    }
    async with running(ops=application) as (_, client):
        answers = []

        async def use(model):
            reply, _ = await client.do("use", model, limit_s=60)
            answers.append(reply.greeting)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(use, f"m{number % 50}")
        assert sorted(answer.partition("@")[0] for answer in answers) == sorted(f"m{n % 50}" for n in range(200))
        loads, held = eval((await client.do("loads"))[0].greeting)  # noqa: S307  # a pair of numbers
        assert held <= 5 <= loads


async def test_streams_that_nobody_takes():
    """A stream that is left, in async code, in a thread or by a client's cancel, ends at the other end, too."""
    async with running() as (_, client):
        for what in ("forget", "forget_in_thread", "abandon"):
            await client.do(what)
            await client.until("streams_open", "0")
        future = client.call.future(Message(foo="hold"))
        await client.until("streams_open", "1")
        future.cancel()
        await client.until("streams_open", "0")


async def test_a_cancel_of_its_own():
    """A CancelledError that user code raises by itself is its fault, and not the caller's."""
    async with running() as (_, client):
        assert (await client.fail("own_cancel"))[:2] == ("INTERNAL", "CancelledError: mine")


async def test_a_full_queue_below():
    """A full queue down the graph is RESOURCE_EXHAUSTED and says when to come again; a death below says its reason."""
    deployments = {"Leaf": {"max_ongoing_requests": 1, "max_queued_requests": 1}}
    async with running(deployments=deployments) as (_, client):
        code, details, trailers = await client.fail("crowd")
        assert code == "RESOURCE_EXHAUSTED"
        assert "1 requests are waiting already" in details
        assert RetryInfo.DESCRIPTOR.full_name.encode() in trailers["grpc-status-details-bin"]
    async with running() as (_, client):
        _, _, trailers = await client.fail("let_die")
        assert b"CRASHED" in trailers["grpc-status-details-bin"]


async def test_a_replica_that_dies():
    """Who asked it is told at once and may ask again; a client is told UNAVAILABLE where nobody catches that."""
    async with running() as (_, client):
        assert (await client.do("die"))[0].greeting == "DeploymentUnavailableError True"
        code, _, trailers = await client.fail("let_die")
        assert code == "UNAVAILABLE"
        assert "request_id" in trailers


async def test_kill_under_load():
    """A replica killed under a composition of three: every request ends once, those on healthy replicas well."""
    deployments = {"Leaf": {"num_replicas": 2}, "Middle": {"num_replicas": 2}}
    async with running(deployments=deployments) as (app, client):
        ended = []
        killed = threading.Event()

        async def one():
            try:
                reply, _ = await client.do("sleep", num=1)
                ended.append(("OK", int(reply.greeting)))
            except grpc.RpcError as error:
                ended.append((error.code().name, 0))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)
            with trio.fail_after(20):
                while True:
                    leaves = [
                        replica
                        for model in app.tree().models
                        if model.spec.name == "ops:Leaf"
                        for replica in model.replicas
                    ]
                    if len(leaves) == 2 and all(leaf.in_hand for leaf in leaves):
                        break
                    await trio.lowlevel.checkpoint()
            victim = leaves[0].pid
            os.kill(victim, signal.SIGKILL)
            killed.set()
        assert len(ended) == 8
        assert {code for code, _ in ended} == {"OK", "UNAVAILABLE"}
        assert victim not in {pid for code, pid in ended if code == "OK"}
        assert (await client.do("sleep", num=0))[0].greeting != str(victim)


async def test_which_application():
    """One application answers whatever is named, as Ray's proxy has it; of several, the named one."""
    one = {"import_path": "ops:app", "path": [APPS]}
    async with running() as (_, client):
        assert (await client.do("echo", "x", metadata=(("application", "other"),)))[0].greeting == "x"
        names = await trio.to_thread.run_sync(client.ray.ListApplications, serve_pb2.ListApplicationsRequest())
        assert list(names.application_names) == ["ops"]
    async with running(first=one, second=one) as (_, client):
        metadata = (("application", "second"), ("request_id", "mine"))
        reply, _ = await client.do("context", metadata=metadata)
        ping = "Ping /ray.serve.RayServeAPIService/ListApplications for available applications."
        assert reply.greeting.startswith("mine")
        assert (await client.fail("echo"))[:2] == ("NOT_FOUND", f"Application metadata not set. {ping}")
        code, details, trailers = await client.fail("echo", metadata=(("application", "no"), ("request_id", "mine")))
        assert (code, details) == ("NOT_FOUND", f"Application 'no' not found. {ping}")
        assert trailers["request_id"] == "mine"


async def test_a_wrong_name_elsewhere():
    """Without compatibility = "ray" a name that nobody has is NOT_FOUND, also where one application runs."""
    async with running(compatibility="none") as (_, client):
        code, details, _ = await client.fail("echo", metadata=(("application", "no"),))
        assert (code, details) == ("NOT_FOUND", "Application not found: no; there are ops")
        assert (await client.do("echo", "x"))[0].greeting == "x"


async def test_options_of_the_file():
    """What the file says of a deployment wins over the decorator, user_config too; a wrong option is named."""
    async with running(deployments={"Front": {"user_config": {"told": 5}}}) as (_, client):
        assert (await client.do("told"))[0].greeting == "5"
    for deployments, said in (
        ({"Front": {"num_replicas": 0}}, "deployments.Front.num_replicas: 0 is wrong"),
        ({"Back": {}}, "deployments.Back: the application has no such deployment"),
    ):
        async with testing.serve(config(deployments=deployments)) as app:
            ((name, error),) = app.failures
            assert name == "ops"
            assert said in str(error)
