"""Schemas and servicers come, go and are replaced while the server runs: routes, reflection and health with them."""

import contextlib

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from rpc_rig import HERE, config

from actorserve import testing
from actorserve.config import parse
from actorserve.config_servicer import Servicer
from actorserve.errors import AlreadyRegistered, ConfigError, LoadFailed, NoSuchModel
from actorserve.proto.grpc_health_v1_grpc import HealthStub
from actorserve.proto.grpc_health_v1_pb2 import HealthCheckRequest, HealthCheckResponse
from actorserve.proto.grpc_reflection_v1_grpc import ServerReflectionStub
from actorserve.proto.grpc_reflection_v1_pb2 import ServerReflectionRequest

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@contextlib.asynccontextmanager
async def server(settings, **keys):
    """A server, and a channel to its users' listener."""
    with trio.fail_after(60):
        async with testing.serve(settings, **keys) as app, app.channel("user") as channel:
            yield app, channel


def servicer(generated, target, **keys):
    """A `[[servicers]]` table."""
    return Servicer(servicer=target, path=(generated, HERE), **keys)


def bare(generated):
    """A server without servicers."""
    return {**config(generated, "busy_servicer:Busy"), "servicers": []}


async def answer(channel, case="echo"):
    """The text that `One` answers, or the status."""
    import diff_grpc  # noqa: PLC0415  # generated when the tests run
    import diff_pb2  # noqa: PLC0415

    try:
        return (await diff_grpc.DiffStub(channel).One(diff_pb2.Ask(case=case), timeout=20)).text
    except GRPCError as error:
        return error.status


async def health(channel, name="diff.Diff"):
    """The status of a service; None: unknown."""
    try:
        return (await HealthStub(channel).Check(HealthCheckRequest(service=name))).status
    except GRPCError:
        return None


async def reflected(channel, **asked):
    """What reflection answers to one question."""
    async with ServerReflectionStub(channel).ServerReflectionInfo.open() as stream:
        await stream.send_message(ServerReflectionRequest(**asked), end=True)
        return await stream.recv_message()


async def services(channel):
    """The services that reflection lists, but for those of gRPC itself."""
    listed = (await reflected(channel, list_services="")).list_services_response.service
    return [one.name for one in listed if not one.name.startswith("grpc.")]


async def test_added_and_removed_while_the_server_runs(generated):
    """From unknown to served to unknown again; calls in hand outlive the removal."""
    async with server(bare(generated)) as (app, channel):
        assert await answer(channel) is Status.UNIMPLEMENTED
        assert (await services(channel), await health(channel)) == ([], None)
        ready = await app.server.add_servicer(servicer(generated, "busy_servicer:Busy"))
        assert await answer(channel) == "echo"  # it waits for the first replica
        await ready.wait()
        assert (await services(channel), await health(channel)) == (["diff.Diff"], SERVING)
        held = []

        async def hold():
            held.append(await answer(channel, "hold"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            while not app.tree().models[0].replicas[0].in_hand:
                await trio.sleep(0.001)
            import diff_pb2, diff_grpc  # noqa: E401, I001, PLC0415  # as above

            stub = diff_grpc.DiffStub(channel)
            call = stub.Talk.open()
            async with call as stream:
                await stream.send_message(diff_pb2.Ask(count=1))
                assert (await stream.recv_message()).number == 1
                gone = await app.server.remove_servicer("busy_servicer:Busy")
                assert await answer(channel) is Status.UNIMPLEMENTED
                assert (await services(channel), await health(channel)) == ([], None)
                await stream.send_message(diff_pb2.Ask(count=2), end=True)
                assert (await stream.recv_message()).number == 2
            await gone.wait()  # kills what is left in its grace's end: the call that holds on
        assert held == [Status.UNAVAILABLE]
        assert app.tree().models == ()


async def test_replaced_without_a_failed_call(generated):
    """Under calls all the time, each is answered, by the old or by the new; afterwards by the new alone."""
    async with server(config(generated, "busy_servicer:Busy")) as (app, channel):
        answers = []

        async def ask():
            while True:
                answers.append(await answer(channel, "pid"))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
            named = servicer(generated, "busy_servicer:AsyncBusy", name="busy_servicer:Busy")
            gone = await app.server.replace_servicer(named)
            await gone.wait()
            before = len(answers)
            while len(answers) < before + 20:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert set(answers[before + 4 :]) == {"pid"}  # its own word; the old one says nothing but its number
        assert set(answers) == {"", "pid"}
        assert [model.spec.version for model in app.tree().models] == ["2"]


async def test_reloaded_with_the_file(generated):
    """SIGHUP's reload adds, replaces and removes what config.toml says; what is wrong leaves what was there."""

    def with_servicers(*servicers):
        tables = [one.model_dump(exclude_unset=True) for one in servicers]
        settings = parse({**bare(generated), "servicers": tables}, folder=HERE)
        return settings.model_copy(update={"listeners": running.listeners})

    async with server(bare(generated)) as (app, channel):
        running = app.server.settings
        await app.server.reload(with_servicers(servicer(generated, "busy_servicer:Busy", name="mine")))
        assert await answer(channel) == "echo"
        assert await answer(channel, "pid") == ""
        await app.server.reload(with_servicers(servicer(generated, "busy_servicer:AsyncBusy", name="mine")))
        assert await answer(channel, "pid") == "pid"
        await app.server.reload(with_servicers(servicer(generated, "busy_servicer:Raises", name="mine")))
        assert await answer(channel, "pid") == "pid"
        assert await services(channel) == ["diff.Diff"]
        await app.server.reload(with_servicers())
        assert await answer(channel) is Status.UNIMPLEMENTED
        assert await services(channel) == []


async def test_what_cannot_be_served_changes_nothing(generated):
    """LoadFailed says why, for code that is missing, no servicer, or cannot be made; the old one stays."""
    async with server(config(generated, "busy_servicer:Busy")) as (app, channel):
        for target, why in (
            ("nowhere.at_all:X", "there is no module nowhere"),
            ("busy_servicer:Nobody", "module busy_servicer has no Nobody"),
            ("busy_servicer:Empty", "neither a grpclib service"),
        ):
            with pytest.raises(LoadFailed, match=why):
                await app.server.add_servicer(servicer(generated, target))
        with pytest.raises(AlreadyRegistered, match=r"/diff.Diff/One is served on listener 'user' already"):
            await app.server.add_servicer(servicer(generated, "busy_servicer:AsyncBusy"))
        with pytest.raises(LoadFailed, match="ValueError: no model here"):
            await app.server.replace_servicer(servicer(generated, "busy_servicer:Raises", name="busy_servicer:Busy"))
        with pytest.raises(NoSuchModel):
            await app.server.remove_servicer("nobody")
        assert await answer(channel) == "echo"
        assert [model.spec.key for model in app.tree().models] == ["busy_servicer:Busy/1"]


async def test_a_servicer_that_cannot_be_made_is_failed(generated):
    """The server runs; its calls are UNAVAILABLE with the reason, and its health says NOT_SERVING."""
    async with server(config(generated, "busy_servicer:Raises")) as (app, channel):
        assert "ValueError: no model here" in str(app.failures[0][1])
        assert await answer(channel) is Status.UNAVAILABLE
        assert await health(channel) == NOT_SERVING


async def test_calls_before_the_schema_is_known_wait(generated):
    """A call that comes as soon as the listener is open is answered; a method that nobody has is refused in the end."""
    async with server(config(generated, "busy_servicer:Busy"), wait_loaded=False) as (_app, channel):
        assert await answer(channel) == "echo"
    async with server(config(generated, "nowhere:X"), wait_loaded=False) as (_app, channel):
        assert await answer(channel) is Status.UNIMPLEMENTED


async def test_reflection_has_the_users_files(generated):
    """The user's own file, with its messages and methods, from a schema of its own."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto  # noqa: PLC0415

    async with server(config(generated, "grpclib_service:Service")) as (_app, channel):
        found = await reflected(channel, file_containing_symbol="diff.Diff.Talk")
        (file,) = map(FileDescriptorProto.FromString, found.file_descriptor_response.file_descriptor_proto)
        assert file.name == "diff.proto"
        assert [method.name for method in file.service[0].method] == ["One", "Many", "Collect", "Talk"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({}, 'servicer is missing: name one as "module:Class"'),
        ({"servicer": "no"}, 'is not "module:name"'),
        ({"servicer": "a:B", "listeners": ["inference"]}, "no listener 'inference' has \"servicers\""),
        ({"servicer": "a:B", "replicas": -1}, "-1 is wrong: it must be 0 to 1024"),
        ({"servicer": "a:B", "replica": 1}, "unknown key; did you mean replicas?"),
        ({"servicer": "a:B", "replicas": {"min": 3, "max": 2}}, "max = 2 is less than min = 3"),
        ({"servicer": "a:B", "device": "gpu"}, '"gpu" is no device'),
    ],
)
def test_wrong_tables(tmp_path, table, text):
    """A wrong `[[servicers]]` is refused with what would be right."""
    listeners = {
        "user": {"address": "127.0.0.1:0", "services": ["servicers"]},
        "inference": {"address": "127.0.0.1:0", "services": ["inference"]},
    }
    with pytest.raises(ConfigError) as wrong:
        parse({"listeners": listeners, "servicers": [table]}, folder=tmp_path)
    assert text in str(wrong.value)
