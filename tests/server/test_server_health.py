"""grpc.health.v1 in virtual time: what each name answers while models load, crash, come and go, and in the drain."""

import hashlib
from pathlib import Path

import pytest
import trio
import trio.testing
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import testing
from actorserve.actors.messages import ModelSpec, ModelView, State, Tree
from actorserve.errors import LoadFailed
from actorserve.proto.grpc_health_v1_grpc import HealthStub
from actorserve.proto.grpc_health_v1_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.proto.management_pb2 import RegisterModelRequest, ScaleWorkerRequest, UnregisterModelRequest
from actorserve.scripted import ScriptedWorker, ScriptedWorkers
from actorserve.services.health import HealthBoard, HealthService

ECHO = "actorserve.handlers.echo:Echo"
SERVICES = ["inference", "management", "health", "reflection"]
INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"
SPEC = ModelSpec("m", "1.0", ECHO, Path())
NAMES = {value: name for name, value in HealthCheckResponse.ServingStatus.items()}


def config(**models):
    return {
        "listeners": {"inference": {"address": "127.0.0.1:0", "services": SERVICES}},
        "models": {name: {"handler": ECHO, **table} for name, table in models.items()},
    }


async def check(channel, name=""):
    return NAMES[(await HealthStub(channel).Check(HealthCheckRequest(service=name))).status]


async def status(watch):
    """The next status of a watch; fails, instead of waiting for ever, where there is none."""
    with trio.fail_after(3600):
        return NAMES[(await watch.recv_message()).status]


async def statuses(channel):
    answer = await HealthStub(channel).List(HealthListRequest())
    return {name: NAMES[one.status] for name, one in answer.statuses.items()}


class Gated(ScriptedWorker):
    """Loads when its model's gate opens; a model named "bad" cannot load."""

    gates: dict[str, trio.Event]

    async def load(self, content):
        name = self.child.model.name
        if name == "bad":
            raise LoadFailed("no such weights")
        if name in self.gates:
            await self.gates[name].wait()


def gated(*names):
    gates = {name: trio.Event() for name in names}
    return ScriptedWorkers(type("Gated", (Gated,), {"gates": gates})), gates


async def test_the_server_serves_once_every_model_has_settled(autojump_clock):
    """While one of two models loads, "" is NOT_SERVING although the other is READY; each model goes by itself."""
    workers, gates = gated("slow")
    serving = testing.serve(config(fast={}, slow={}), workers=workers, wait_loaded=False)
    async with serving as app, app.channel() as channel, HealthStub(channel).Watch.open() as watch:
        await watch.send_message(HealthCheckRequest(service="fast"), end=True)
        seen = [await status(watch)]
        while seen[-1] != "SERVING":
            seen.append(await status(watch))
        loading = await statuses(channel)
        gates["slow"].set()
        await app.wait_loaded()
        loaded = await statuses(channel)
        await watch.cancel()

    models = {"fast": "SERVING", "fast/1.0": "SERVING", "slow": "NOT_SERVING", "slow/1.0": "NOT_SERVING"}
    standing = dict.fromkeys(
        [MANAGEMENT, "grpc.health.v1.Health", *(f"grpc.reflection.{v}.ServerReflection" for v in ("v1", "v1alpha"))],
        "SERVING",
    )
    assert {"": "NOT_SERVING", INFERENCE: "NOT_SERVING", **models, **standing} == loading
    assert dict.fromkeys(loading, "SERVING") == loaded


async def test_one_ready_model_is_enough(autojump_clock):
    """A model that FAILED does not keep the others from being served; its own entry says so."""
    workers, _ = gated()
    async with testing.serve(config(good={}, bad={}), workers=workers) as app, app.channel() as channel:
        assert [await check(channel, name) for name in ("", "good", "bad")] == ["SERVING", "SERVING", "NOT_SERVING"]


async def test_all_failed_is_not_serving(autojump_clock):
    """Where every configured model FAILED, so has the server; a model brought later mends it."""
    workers, _ = gated()
    async with testing.serve(config(bad={}), workers=workers) as app, app.channel() as channel:
        assert await check(channel) == "NOT_SERVING"
        request = RegisterModelRequest(model_name="late", handler=ECHO, initial_workers=1, synchronous=True)
        await ManagementAPIsServiceStub(channel).RegisterModel(request)
        assert await check(channel) == "SERVING"


@pytest.mark.parametrize("models", [{}, {"idle": {"workers": {"min": 0}}}])
async def test_nothing_configured_is_serving(autojump_clock, models):
    """A server that waits for management calls is well."""
    async with testing.serve(config(**models), workers="scripted") as app, app.channel() as channel:
        assert await check(channel) == "SERVING"


async def test_unknown_names(autojump_clock):
    """Check answers NOT_FOUND, naming what was asked; a version that is not there is unknown as well."""
    async with testing.serve(config(one={}), workers="scripted") as app, app.channel() as channel:
        assert await check(channel, "one/1.0") == "SERVING"
        for name in ("two", "one/2.0", "one/", "/", "ONE", "no.such.Service"):
            with pytest.raises(GRPCError, match=name) as caught:
                await check(channel, name)
            assert caught.value.status is Status.NOT_FOUND


async def test_a_listener_knows_its_own_services(autojump_clock):
    """Where inference is not served, its name is unknown; models are known on every listener with health."""
    settings = config(one={})
    settings["listeners"]["probes"] = {"address": "127.0.0.1:0", "services": ["health"]}
    async with testing.serve(settings, workers="scripted") as app, app.channel("probes") as channel:
        assert set(await statuses(channel)) == {"", "grpc.health.v1.Health", "one", "one/1.0"}


async def test_a_token_is_told_of_its_models_only(autojump_clock, tmp_path):
    """A token for one model asks for that one and for services; another model is PERMISSION_DENIED, there or not."""
    digest = hashlib.sha256(b"secret").hexdigest()
    (tmp_path / "tokens.toml").write_text(f'[tokens.one]\nsha256 = "{digest}"\nmodels = ["one"]\n')
    settings = config(one={}, two={})
    settings["listeners"]["inference"]["tokens_file"] = str(tmp_path / "tokens.toml")
    metadata = {"authorization": "Bearer secret"}
    async with testing.serve(settings, workers="scripted") as app, app.channel() as channel:
        stub = HealthStub(channel)
        for name in ("", INFERENCE, "one", "one/1.0"):
            answer = await stub.Check(HealthCheckRequest(service=name), metadata=metadata)
            assert NAMES[answer.status] == "SERVING"
        for name in ("two", "two/1.0", "three"):
            for ask in (stub.Check, stub.Watch):
                with pytest.raises(GRPCError) as caught:
                    await ask(HealthCheckRequest(service=name), metadata=metadata)
                assert caught.value.status is Status.PERMISSION_DENIED
        listed = await stub.List(HealthListRequest(), metadata=metadata)
        assert [name for name in sorted(listed.statuses) if "." not in name or "/" in name] == ["", "one", "one/1.0"]


async def test_watch_follows_a_model_from_unknown_to_unknown(autojump_clock):
    """SERVICE_UNKNOWN, then each change: registered without workers, given one, unregistered."""
    serving = testing.serve(config(other={}), workers="scripted")
    async with serving as app, app.channel() as channel, HealthStub(channel).Watch.open() as watch:
        management = ManagementAPIsServiceStub(channel)
        await watch.send_message(HealthCheckRequest(service="late"), end=True)
        seen = [await status(watch)]
        await management.RegisterModel(RegisterModelRequest(model_name="late", handler=ECHO))
        seen.append(await status(watch))
        await management.ScaleWorker(ScaleWorkerRequest(model_name="late", min_worker=1, synchronous=True))
        seen.append(await status(watch))
        await management.UnregisterModel(UnregisterModelRequest(model_name="late"))
        seen.append(await status(watch))
        await watch.cancel()

    assert seen == ["SERVICE_UNKNOWN", "NOT_SERVING", "SERVING", "SERVICE_UNKNOWN"]


async def test_watch_sees_a_crash(autojump_clock):
    """A model whose only worker dies is NOT_SERVING until the next one is READY."""
    workers, gates = gated("one")
    gates["one"].set()
    serving = testing.serve(config(one={}), workers=workers)
    async with serving as app, app.channel() as channel, HealthStub(channel).Watch.open() as watch:
        await watch.send_message(HealthCheckRequest(service="one"), end=True)
        seen = [await status(watch)]
        app.kill_worker("one")
        seen += [await status(watch) for _ in range(2)]
        await watch.cancel()

    assert seen == ["SERVING", "NOT_SERVING", "SERVING"]


async def test_a_watcher_that_sleeps_gets_the_latest(autojump_clock):
    """However many changes a slow watcher missed, it is told the state as it is, and nothing piles up."""
    board = HealthBoard(lambda: tree[0])
    tree = [Tree(())]
    service = HealthService(board, ())
    sent = []

    class Slow:
        token = None

        async def recv_message(self):
            return HealthCheckRequest(service="m")

        async def send_message(self, message):
            sent.append(NAMES[message.status])
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.Watch, Slow())
        await trio.sleep(1)
        for state in [State.LOADING, State.READY, State.RESTARTING] * 100 + [State.READY]:
            tree[0] = Tree((ModelView(SPEC, is_default=True, state=state, waiting=0, replicas=()),))
            board.refresh()
        await trio.sleep(30)
        nursery.cancel_scope.cancel()

    assert sent == ["SERVICE_UNKNOWN", "SERVING"]


async def test_drain(autojump_clock):
    """While the server drains, watchers hear NOT_SERVING and their calls end UNAVAILABLE, so that none holds it up."""
    seen = []

    async def watch(channel, name, started):
        try:
            async with HealthStub(channel).Watch.open() as stream:
                await stream.send_message(HealthCheckRequest(service=name), end=True)
                async for message in stream:
                    seen.append((name, NAMES[message.status]))
                    started.set()
        except GRPCError as error:
            seen.append((name, error.status.name))

    class Slow(ScriptedWorker):
        async def infer(self, items):
            await trio.sleep(5)
            return await super().infer(items)

    names = ["", "one", INFERENCE, MANAGEMENT, "nothing"]
    serving = testing.serve(config(one={}), workers=ScriptedWorkers(Slow))
    async with serving as app, app.channel() as channel, trio.open_nursery() as nursery:
        for name in names:
            started = trio.Event()
            nursery.start_soon(watch, channel, name, started)
            await started.wait()
        request = PredictionsRequest(model_name="one", input={"data": b"hello"})
        nursery.start_soon(InferenceAPIsServiceStub(channel).Predictions, request)
        await trio.testing.wait_all_tasks_blocked()
        app.server.stop()
        await trio.sleep(1)
        ended = {name: [status for one, status in seen if one == name] for name in names}

    told = ["SERVING", "NOT_SERVING", "UNAVAILABLE"]
    assert ended == {**dict.fromkeys(names, told), "nothing": ["SERVICE_UNKNOWN", "UNAVAILABLE"]}
