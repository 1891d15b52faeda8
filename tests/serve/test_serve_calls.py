"""What calls of an application do, with real processes: Ray's UserDefinedService, three deployments, grpcio clients."""

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio
from google.rpc.error_details_pb2 import RetryInfo
from test_serve_sums import free_port

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

    async def seen(self):
        """How many calls the deployment at the end has begun and cancelled."""
        return tuple(map(int, (await self.do("seen"))[0].greeting.split()))

    async def until_seen(self, before, begun, cancelled):
        """Ask until it is so many more."""
        await self.until("seen", f"{before[0] + begun} {before[1] + cancelled}")


@asynccontextmanager
async def running(**more):
    async with testing.serve(config(**more)) as app:
        assert app.failures == []
        client = Client(app.address("grpc"))
        try:
            yield app, client
        finally:
            client.channel.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where one server has the application, for the tests that leave it as it was; it ends well."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    text = f"""
log.access = false
server.state_dir = ""
[listeners.grpc]
address = "127.0.0.1:{port}"
services = ["servicers", "ray", "reflection", "health"]
compatibility = "ray"
[[servicers]]
functions = ["{FUNCTIONS}"]
[applications.ops]
import_path = "ops:app"
path = ["{APPS}"]
"""
    (folder / "config.toml").write_text(text)
    command = [sys.executable, "-m", "actorserve", str(folder / "config.toml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(60)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        status = process.wait(30)
        sys.stdout.write((folder / "log").read_text())
    assert status == 0


@pytest.fixture
def client(address):
    """A client of that server."""
    made = Client(address)
    yield made
    made.channel.close()


async def test_methods_of_all_kinds(client):
    """async, plain, streams each way and both: the schema's rpcs by their names, `__call__` too."""
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


async def test_grpc_context(client):
    """The context has id, metadata and peer; trailers and codes that it sets arrive, also when the method raises."""
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


async def test_an_answer_that_is_no_message(client):
    """What cannot be sent is INTERNAL and says what was given."""
    with pytest.raises(grpc.RpcError) as caught:
        await trio.to_thread.run_sync(lambda: client.stub.Method1(Message(foo="wrong"), timeout=20))
    assert caught.value.details() == "TypeError: Front.Method1 must give a protobuf message; it gave int"


async def test_what_goes_wrong_below(client):
    """An exception of another deployment arrives as it is; a method that is not there is named."""
    assert (await client.fail("downstream", "no"))[:2] == ("INTERNAL", "ValueError: no")
    assert (await client.fail("missing"))[:2] == (
        "INTERNAL",
        "AttributeError: deployment Leaf has no method 'nothing'",
    )


async def test_a_request_that_cannot_be_read(client):
    """Bytes that are no message of the schema are the client's fault; so is a method that the application lacks."""
    for method, said in (("Method1", "INVALID_ARGUMENT"), ("Method2", "UNIMPLEMENTED")):
        raw = client.channel.unary_unary(f"/ray.serve.UserDefinedService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            await trio.to_thread.run_sync(lambda raw=raw: raw(b"\xff\xff", timeout=20))
        assert caught.value.code().name == said


async def test_deadlines_go_down(client):
    """Every deployment sees what is left of the client's deadline; when it passes, all of them are cancelled."""
    below, here = map(float, (await client.do("remaining", limit_s=30))[0].greeting.split())
    assert 20 < here <= below <= 31  # grpcio rounds a deadline up as it writes it
    before = await client.seen()
    assert (await client.fail("sleep", num=60, limit_s=1))[0] == "DEADLINE_EXCEEDED"
    await client.until_seen(before, 1, 1)


async def test_a_client_that_goes(client):
    """A client's cancel reaches the deployment at the end of the graph."""
    before = await client.seen()
    future = client.call.future(Message(foo="sleep", num=60))
    await client.until_seen(before, 1, 0)
    future.cancel()
    await client.until_seen(before, 1, 1)


async def test_handles(client):
    """Responses are cancelled, passed on unawaited, streamed and abandoned; ids go down, model ids do not."""
    assert (await client.do("cancel"))[0].greeting == "RequestCancelledError"
    assert (await client.do("pass_on", num=3))[0].greeting == "12"
    assert (await client.do("streams", num=100))[0].greeting == "4950 4950"
    assert (await client.do("abandon"))[0].greeting == "3"
    metadata = (("multiplexed_model_id", "m1"),)
    assert (await client.do("ids", metadata=metadata))[0].greeting == "m1||m7|True"


async def test_multiplexing(tmp_path):
    """Fifty models over two replicas with room for five each, two hundred requests at once: every one is answered, no
    model is loaded twice at once, in one replica or in two, and none has more than five.
    """
    deployments = {"Leaf": {"num_replicas": 2, "max_ongoing_requests": 20}, "Front": {"max_ongoing_requests": 200}}
    async with running(ops=application("ops:app", tmp_path, deployments)) as (_, client):
        answers = []

        async def use(model):
            reply, _ = await client.do("use", model, limit_s=60)
            answers.append(reply.greeting.split())

        limiter = trio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 200
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(use, f"m{number % 50}")
        assert sorted(model for model, *_ in answers) == sorted(f"m{n % 50}" for n in range(200))
        loaded = {pid: max(int(n) for _, one, _, n in answers if one == pid) for _, pid, _, _ in answers}
        assert len(loaded) == 2
        assert sum(loaded.values()) >= 50
        assert max(int(alive) for _, _, alive, _ in answers) <= 5


async def test_a_saturated_holder(tmp_path):
    """A call passes by the holder of its model that is saturated, and the other replica loads the model, too. When the
    first has lost it meanwhile and wants it back, it waits until the other has loaded it.
    """
    async with running(holding=application("holding:app", tmp_path)) as (app, client):
        metadata = (("multiplexed_model_id", "m"),)
        answers = {}

        async def ask(what):
            answers[what] = (await client.do(what, metadata=metadata, limit_s=60))[0].greeting

        async def until(condition):
            while not condition():
                await trio.lowlevel.checkpoint()

        leases = app.server.apps.mailbox_of("holding", "Holder").leases
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, "again")
                await until((tmp_path / "held").exists)
                (tmp_path / "m.kept").touch()
                nursery.start_soon(ask, "once")
                await until((tmp_path / "m.loading").exists)
                (tmp_path / "go").touch()
                await until(lambda: len(leases) == 2 and not (tmp_path / "another.loading").exists())
                assert answers == {}
                (tmp_path / "m.kept").unlink()
        assert len(set(answers.values())) == 2
        assert len(leases) == 0


async def test_autoscaling(tmp_path):
    """autoscaling_config scales a deployment's replicas with its calls, from none and back to none."""
    scaling = {"min_replicas": 0, "max_replicas": 3, "target_ongoing_requests": 1.0, "look_back_period_s": 0.0}
    scaling |= {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0}
    async with running(ops=application("ops:app", tmp_path, {"Leaf": {"autoscaling_config": scaling}})) as (
        app,
        client,
    ):

        async def until(count):
            def replicas():
                return next(len(model.replicas) for model in app.tree().models if model.spec.name == "ops:Leaf")

            with trio.fail_after(30):
                while replicas() != count:
                    await trio.lowlevel.checkpoint()

        await until(0)
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c", "d"):
                nursery.start_soon(client.do, "gated", name)
            await until(3)
            (tmp_path / "open").touch()
        await until(0)


def application(import_path, marks, deployments=None):
    """One of the file, whose workers leave their marks in a folder."""
    return {
        "import_path": import_path,
        "path": [APPS],
        "deployments": deployments or {},
        "env": {"MARKS": str(marks)},
    }


async def test_streams_that_nobody_takes(client):
    """A stream that is left, in async code, in a thread or by a client's cancel, ends at the other end, too."""
    for what in ("forget", "forget_in_thread", "abandon"):
        await client.do(what)
        await client.until("streams_open", "0")
    future = client.call.future(Message(foo="hold"))
    await client.until("streams_open", "1")
    future.cancel()
    await client.until("streams_open", "0")


async def test_a_cancel_of_its_own(client):
    """A CancelledError that user code raises by itself is its fault, and not the caller's."""
    assert (await client.fail("own_cancel"))[:2] == ("INTERNAL", "CancelledError: mine")


async def test_a_full_queue_below():
    """A full queue down the graph is RESOURCE_EXHAUSTED and says when to come again."""
    deployments = {"Leaf": {"max_ongoing_requests": 1, "max_queued_requests": 1}}
    async with running(deployments=deployments) as (_, client):
        code, details, trailers = await client.fail("crowd")
        assert code == "RESOURCE_EXHAUSTED"
        assert "1 requests are waiting already" in details
        assert RetryInfo.DESCRIPTOR.full_name.encode() in trailers["grpc-status-details-bin"]


async def test_a_replica_that_dies():
    """Who asked is told at once and may ask again; a client is told UNAVAILABLE, and why, where nobody catches that."""
    async with running() as (_, client):
        assert (await client.do("die"))[0].greeting == "DeploymentUnavailableError True"
        code, _, trailers = await client.fail("let_die")
        assert code == "UNAVAILABLE"
        assert b"CRASHED" in trailers["grpc-status-details-bin"]
        assert "request_id" in trailers


@pytest.mark.parametrize("victim", ["Leaf", "Middle"])
async def test_kill_under_load(tmp_path, victim):
    """A replica killed under a composition of three: what it had in hand ends with UNAVAILABLE, and nothing else does:
    what healthy replicas have goes on there, what waits is answered, and every call came to one replica only.
    """
    deployments = {
        "Leaf": {"num_replicas": 2, "max_ongoing_requests": 3},
        "Middle": {"num_replicas": 2, "max_ongoing_requests": 7},
    }
    names = [f"r{number}" for number in range(12)]
    ended = []

    def came():
        """Which replica each call has come to, by deployment."""
        found = {"Leaf": {}, "Middle": {}}
        for one in tmp_path.glob("r*"):
            name, where, pid = one.name.split(".")
            found[where].setdefault(name, []).append(pid)
        return found

    async with running(ops=application("ops:app", tmp_path, deployments)) as (_, client):

        async def ask(name):
            try:
                ended.append((name, (await client.do("gated", name, limit_s=60))[0].greeting))
            except grpc.RpcError as error:
                ended.append((name, error.code().name))

        async def until(condition):
            while not condition():
                await trio.lowlevel.checkpoint()

        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(ask, name)
                await until(lambda: [len(one) for one in came().values()] == [6, 12])
                before = came()
                dead = before[victim][next(iter(before["Leaf"]))][0]
                hit = {name for name, pids in before[victim].items() if pids == [dead]}
                os.kill(int(dead), signal.SIGKILL)
                await until(lambda: len(ended) >= len(hit))
                assert sorted(ended) == sorted((name, "UNAVAILABLE") for name in hit)
                (tmp_path / "open").touch()
    answers = dict(ended)
    assert len(ended) == len(answers) == len(names)
    assert 0 < len(hit) < len(names)
    for name in set(names) - hit:
        pids = [came()["Middle"][name], came()["Leaf"][name]]
        assert answers[name].split() == [pid for (pid,) in pids]
        assert pids[1] == before["Leaf"].get(name, pids[1])
        assert dead not in answers[name]


async def test_which_application(client):
    """One application answers whatever is named, as Ray's proxy has it; of several, the named one."""
    one = {"import_path": "ops:app", "path": [APPS]}
    assert (await client.do("echo", "x", metadata=(("application", "other"),)))[0].greeting == "x"
    names = await trio.to_thread.run_sync(client.ray.ListApplications, serve_pb2.ListApplicationsRequest())
    assert list(names.application_names) == ["ops"]
    async with running(first=one, second=one) as (_, client):  # noqa: PLR1704  # the other server's, from here on
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
    wrong = {
        "zero": ({"Front": {"num_replicas": 0}}, "deployments.Front.num_replicas: 0 is wrong"),
        "nobody": ({"Back": {}}, "deployments.Back: the application has no such deployment"),
    }
    told = {"ops": {"Front": {"user_config": {"told": 5}}}, **{name: given for name, (given, _) in wrong.items()}}
    applications = {
        name: {"import_path": "ops:app", "path": [APPS], "deployments": given} for name, given in told.items()
    }
    async with testing.serve(config(**applications)) as app:
        failures = {name: str(error) for name, error in app.failures}
        assert failures.keys() == wrong.keys()
        assert all(said in failures[name] for name, (_, said) in wrong.items())
        client = Client(app.address("grpc"))
        assert (await client.do("told"))[0].greeting == "5"
        client.channel.close()
