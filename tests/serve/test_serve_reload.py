"""Applications that change while the server runs: by the file at SIGHUP, by schemas that come and go, by their source.

Whether a deployment was restarted is read from its replicas' process ids.
"""

import contextlib
import socket
from pathlib import Path

import grpc
import pytest
import structlog
import trio
from test_serve_sums import free_port

from actorserve import testing
from actorserve.config import parse
from actorserve.config_servicer import Servicer
from actorserve.errors import AlreadyRegistered, LoadFailed
from actorserve.proto.grpc_health_v1_grpc import HealthStub
from actorserve.proto.grpc_health_v1_pb2 import HealthCheckRequest, HealthCheckResponse
from actorserve.serve.generated import serve_pb2, serve_pb2_grpc

APPS = Path(__file__).parent / "apps"
FUNCTIONS = "actorserve.serve.generated.serve_pb2_grpc:add_UserDefinedServiceServicer_to_server"
SCHEMA = {"functions": [FUNCTIONS], "name": "schema"}
SERVICE = "ray.serve.UserDefinedService"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING

SHOP = """
from actorserve import serve
from actorserve.serve.generated import serve_pb2
import wording

@serve.deployment(user_config={"greeting": "hello"})
class Word:
    def reconfigure(self, config):
        if config["greeting"] == "bad":
            raise ValueError("no such word")
        self.greeting = config["greeting"]

    def say(self):
        return self.greeting + wording.END

@serve.deployment
class Shop:
    def __init__(self, word):
        self.word = word

    async def Method1(self, message):
        return serve_pb2.UserDefinedResponse(greeting=await self.word.say.remote())

    def Streaming(self, message):
        yield serve_pb2.UserDefinedResponse(greeting="streamed")

@serve.deployment
class Other:
    def Predict(self, request):
        return b""

app = Shop.bind(Word.bind())
other = Other.bind()
"""


@pytest.fixture
def folder(tmp_path):
    """An application's source: a module, and one beside it that it imports."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "wording.py").write_text('END = "!"\n')
    return tmp_path


def application(folder, import_path="shop:app", **keys):
    return {"import_path": import_path, "path": [str(folder)], **keys}


def config(applications, servicers=(SCHEMA,)):
    return {
        "server": {"state_dir": "", "grace_s": 5.0},
        "listeners": {
            "grpc": {"address": "127.0.0.1:0", "services": ["servicers", "health"]},
            "second": {"address": "127.0.0.1:0", "services": ["servicers", "predict", "health"]},
        },
        "servicers": list(servicers),
        "applications": applications,
    }


class Run:
    """A server, what it logs, and calls to it."""

    def __init__(self, app, channel, logged):
        self.app, self.channel, self._logged = app, channel, logged

    async def reload(self, applications, servicers=(SCHEMA,)):
        """SIGHUP with that file; the lines that it logged of applications, servicers and the configuration."""
        settings = parse(config(applications, servicers), folder=Path.cwd())
        settings = settings.model_copy(update={"listeners": self.app.server.settings.listeners})
        self._logged.clear()
        await self.app.server.reload(settings)
        return [
            line for line in self._logged if line["event"].split()[0] in ("application", "servicer", "configuration")
        ]

    def pids(self, name):
        """Who runs a deployment."""
        return {
            replica.pid for model in self.app.tree().models if model.spec.name == name for replica in model.replicas
        }

    async def say(self, method="Method1", **metadata):
        """The greeting, or the status."""
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=serve_pb2.UserDefinedMessage.SerializeToString,
            response_deserializer=serve_pb2.UserDefinedResponse.FromString,
        )

        def ask():
            try:
                return call(serve_pb2.UserDefinedMessage(), timeout=20, metadata=tuple(metadata.items())).greeting
            except grpc.RpcError as error:
                return error.code().name

        return await trio.to_thread.run_sync(ask)

    async def health(self, name, listener="grpc"):
        """What health says of a name; None: it knows none such."""
        async with self.app.channel(listener) as channel:
            with contextlib.suppress(Exception):
                return (await HealthStub(channel).Check(HealthCheckRequest(service=name))).status


@contextlib.asynccontextmanager
async def running(applications, servicers=(SCHEMA,)):
    with trio.fail_after(100), structlog.testing.capture_logs() as logged:
        async with testing.serve(config(applications, servicers)) as app:
            assert app.failures == []
            with grpc.insecure_channel(app.address("grpc")) as channel:
                yield Run(app, channel, logged)


def events(lines, event):
    return [
        {key: value for key, value in line.items() if key not in ("event", "log_level")}
        for line in lines
        if line["event"] == event
    ]


async def test_the_file_changes(folder):
    """An entry that differs is taken up and said in a line: added, in place, rolled over, removed; the rest goes on."""
    one = application(folder)
    async with running({"shop": one}) as run:
        assert await run.say() == "hello!"
        assert await run.reload({"shop": one}) == [{"event": "configuration reloaded", "steps": 0, "log_level": "info"}]
        words, shops = run.pids("shop:Word"), run.pids("shop:Shop")

        two = {**one, "deployments": {"Word": {"user_config": {"greeting": "good day"}, "num_replicas": 2}}}
        lines = await run.reload({"shop": two, "more": one})
        assert events(lines, "configuration changed") == [
            {"key": "applications.shop", "changed": "deployments.Word"},
            {"key": "applications.more", "changed": "new"},
        ]
        assert events(lines, "application changed") == [
            {"application": "shop", "rolled_over": [], "in_place": ["shop:Word"], "gone": []}
        ]
        assert events(lines, "application served") == [{"application": "more", "ingress": "Shop"}]
        assert await run.say(application="shop") == "good day!"
        assert await run.say(application="more") == "hello!"
        assert run.pids("shop:Shop") == shops
        assert (words < run.pids("shop:Word"), len(run.pids("shop:Word"))) == (True, 2)

        three = {**one, "deployments": {"Word": {"max_ongoing_requests": 7}}}
        lines = await run.reload({"shop": three})
        assert events(lines, "application gone") == [{"application": "more"}]
        assert events(lines, "application changed") == [
            {"application": "shop", "rolled_over": ["shop:Word"], "in_place": [], "gone": []}
        ]
        assert run.pids("shop:Shop") == shops
        assert not run.pids("shop:Word") & words
        assert (run.pids("more:Shop"), await run.say()) == (set(), "hello!")

        lines = await run.reload({"shop": application(folder, "shop:other")})
        assert events(lines, "application changed") == [
            {"application": "shop", "rolled_over": ["shop:Other"], "in_place": [], "gone": ["shop:Word", "shop:Shop"]}
        ]
        assert await run.say() == "UNIMPLEMENTED"


async def test_a_file_that_is_wrong_keeps_what_runs(folder):
    """What cannot be imported, or refuses its user_config, leaves the old one, says why, and is tried the next time."""
    one = application(folder)
    async with running({"shop": one}) as run:
        before = run.pids("shop:Word"), run.pids("shop:Shop")
        bad = {**one, "deployments": {"Word": {"user_config": {"greeting": "bad"}}}}
        for wrong, why in (
            (application(folder, "nowhere:app"), "there is no module nowhere"),
            (bad, "no such word"),
            ({**one, "deployments": {"Nobody": {}}}, "the application has no such deployment"),
        ):
            (said,) = events(await run.reload({"shop": wrong}), "application not changed")
            assert (said["application"], why in said["why"]) == ("shop", True)
            assert await run.say() == "hello!"
        (folder / "nowhere.py").write_text("from shop import app")
        await run.reload({"shop": application(folder, "nowhere:app")})
        assert await run.say() == "hello!"
        assert not run.pids("shop:Shop") & before[1]
        (said,) = events(await run.reload({"shop": one, "new": application(folder, "no:x")}), "application not changed")
        assert said["application"] == "new"
        assert events(await run.reload({"shop": one, "new": one}), "application served") == [
            {"application": "new", "ingress": "Shop"}
        ]


async def test_source_tells_what_to_restart(folder):
    """Deployed again, what is as it was goes on; a file that is another, its own or one beside it, rolls over."""
    from actorserve.app_running import source_of  # noqa: PLC0415  # only here

    async with running({"shop": application(folder)}) as run:
        wanted = source_of("shop", run.app.server.settings.applications["shop"], Path.cwd())
        pids = run.pids("shop:Word") | run.pids("shop:Shop")
        await run.app.server.apps.deploy(wanted)
        assert run.pids("shop:Word") | run.pids("shop:Shop") == pids
        for file, text, said in (("wording.py", 'END = "?"', "hello?"), ("shop.py", f"{SHOP}\n# more", "hello?")):
            (folder / file).write_text(text)
            await run.app.server.apps.deploy(wanted)
            assert await run.say() == said
            now = run.pids("shop:Word") | run.pids("shop:Shop")
            assert not now & pids
            pids = now


async def test_schemas_come_and_go(folder):
    """`functions` alone are added, moved and removed with the file: the ingress learns them, the rest goes on."""
    one = {"shop": application(folder)}
    async with running(one, ()) as run:
        assert (await run.say(), await run.health(SERVICE)) == ("UNIMPLEMENTED", None)
        words, shops = run.pids("shop:Word"), run.pids("shop:Shop")
        lines = await run.reload(one, (SCHEMA,))
        assert events(lines, "servicer served") == [
            {"servicer": "schema", "services": [SERVICE], "listeners": ["grpc", "second"]}
        ]
        assert (await run.say(), await run.health(SERVICE)) == ("hello!", SERVING)
        assert (run.pids("shop:Word"), bool(run.pids("shop:Shop") & shops)) == (words, False)
        shops = run.pids("shop:Shop")
        lines = await run.reload(one, ({**SCHEMA, "listeners": ["second"]},))
        assert events(lines, "servicer replaced") == [{"servicer": "schema", "services": [SERVICE]}]
        assert (await run.say(), await run.health(SERVICE), await run.health(SERVICE, "second")) == (
            "UNIMPLEMENTED",
            None,
            SERVING,
        )
        wrong = {**SCHEMA, "functions": ["nowhere:add_X_to_server"]}
        (said,) = events(await run.reload(one, (wrong,)), "servicer not changed")
        assert "there is no module nowhere" in said["why"]
        assert await run.health(SERVICE, "second") == SERVING
        await run.reload(one, ())
        assert await run.health(SERVICE, "second") is None
        await run.reload(one, (SCHEMA,))
        assert await run.say() == "hello!"
        assert (run.pids("shop:Word"), run.pids("shop:Shop")) == (words, shops)


async def test_schemas_by_calls(folder):
    """Server.add_servicer and its siblings do the same; what is served already, or cannot be imported, is refused."""
    async with running({"shop": application(folder)}, ()) as run:
        server = run.app.server
        for wrong, why in ((["nowhere:add_X"], LoadFailed), (["os:getcwd"], LoadFailed)):
            with pytest.raises(why):
                await server.add_servicer(Servicer(functions=tuple(wrong)))
        ready = await server.add_servicer(Servicer(functions=(FUNCTIONS,), name="mine"))
        await ready.wait()
        assert await run.say() == "hello!"
        with pytest.raises(AlreadyRegistered, match="is served on listener 'grpc' already"):
            await server.add_servicer(Servicer(functions=(FUNCTIONS,), name="again"))
        await server.replace_servicer(Servicer(functions=(FUNCTIONS,), name="mine", listeners=("second",)))
        assert await run.say() == "UNIMPLEMENTED"
        await (await server.remove_servicer("mine")).wait()
        assert await run.health(SERVICE, "second") is None


async def test_health_of_what_applications_answer(folder):
    """A schema's service is as well as the ingresses that have a method of it: without one it is NOT_SERVING."""
    shop, other = application(folder), application(folder, "shop:other")
    async with running({"shop": shop, "other": other}) as run:
        predict = "ray.serve.PredictAPIsService"
        assert await run.health(SERVICE) == SERVING
        assert (await run.health(predict, "second"), await run.health(predict)) == (SERVING, None)
        async with run.app.channel("grpc") as channel, HealthStub(channel).Watch.open() as watch:
            await watch.send_message(HealthCheckRequest(service=SERVICE), end=True)
            assert (await watch.recv_message()).status == SERVING
            await run.reload({"other": other})
            assert (await watch.recv_message()).status == NOT_SERVING
            assert await run.health(predict, "second") == SERVING
            await run.reload({"other": other, "shop": shop})
            assert (await watch.recv_message()).status == SERVING
            await watch.cancel()


def predicts(port):
    """Whether a driver answers on a port."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = serve_pb2_grpc.RayServeAPIServiceStub(channel)
        try:
            return stub.Healthz(serve_pb2.HealthzRequest(), timeout=20).message == "success"
        except grpc.RpcError:
            return False


async def test_a_driver_with_another_port():
    """A port that cannot be had stops a change before anything has changed; one that can be had takes over."""

    def sums(port, **more):
        path = [str(APPS)]
        return {"import_path": "sums:app", "path": path, "env": {"SUMS_PORT": str(port)}, **more}

    ports = free_port(), free_port()
    driver = "sums:DefaultgRPCDriver"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        async with running({"sums": sums(ports[0])}, ()) as run:
            before = run.pids(driver) | run.pids("sums:Adder")
            (said,) = events(await run.reload({"sums": sums(number)}, ()), "application not changed")
            assert said["why"].endswith(f"cannot listen on 127.0.0.1:{number}: port {number} is in use")
            assert run.pids(driver) | run.pids("sums:Adder") == before
            assert await trio.to_thread.run_sync(predicts, ports[0])

            await run.reload({"sums": sums(ports[1])}, ())
            assert await trio.to_thread.run_sync(predicts, ports[1])
            with socket.socket() as free:
                free.bind(("127.0.0.1", ports[0]))  # nobody has it any more
            assert not (run.pids(driver) | run.pids("sums:Adder")) & before

            await run.reload({"sums": sums(ports[1], args={"another": 1})}, ())  # its replicas, not its port
            assert await trio.to_thread.run_sync(predicts, ports[1])
