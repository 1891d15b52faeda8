"""A running server takes another configuration up: models, registry, listeners; in virtual time, scripted workers."""

# ruff: noqa: SIM300  # expected == actual

import hashlib
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import trio
from full_disk import full_disk
from grpclib.exceptions import GRPCError
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from universe import run_virtually, until

from actorserve import config, testing
from actorserve.actors import registry_jobs as jobs
from actorserve.actors.messages import Infer, ModelSpec, Replace, Scale, SetDefault, Spawn, State, Stop
from actorserve.actors.registry_rules import Entry, RowState, read_spec, to_spawn
from actorserve.errors import ActorserveError, ConfigError, LoadFailed, NoSuchModel, StateFailed
from actorserve.proto import management_pb2
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.reloading import needs_restart, takes_up, text_of

LISTENERS = {
    "inference": {"address": "127.0.0.1:0", "services": ["inference", "health"]},
    "management": {"address": "127.0.0.1:0", "services": ["management"]},
}


class Slow(testing.ScriptedWorker):
    """Takes 10 s to load and answers with its version and the handler's class; a Bad one does not load."""

    async def load(self, content):
        await trio.sleep(10)
        self.tag = "{version} {handler}".format(**content).encode()
        if content["handler"].endswith("Bad"):
            raise LoadFailed("there are no such weights")

    async def infer(self, items):
        await trio.sleep(0.2)
        return [self.tag] * len(items)


class Quick(testing.ScriptedWorker):
    """Loads at once: for what cannot be in virtual time."""

    async def infer(self, items):
        return [b""] * len(items)


def content(models, **tables):
    return {
        "listeners": LISTENERS,
        "models": {name: {"handler": "a:A", **model} for name, model in models.items()},
        **tables,
    }


def parsed(models, **tables):
    return config.parse(content(models, **tables), folder=Path.cwd())


def serving(models, **tables):
    return testing.serve(content(models, **tables), workers=testing.ScriptedWorkers(Slow))


async def reload(app, models, **tables):
    """Reload; the addresses that the server has are not what is asked about."""
    await app.server.reload(parsed(models, **tables))


async def rows(app):
    found = await app.server.registry.run(jobs.rows_of)
    return {f"{row.name}/{row.version}": row for row in found}


def running(app):
    return {model.spec.key: model.state for model in app.tree().models}


async def ask(app, name="m", version=""):
    return (await app.server.directory.find(name, version).ask(Infer({"data": b"x"})).wait()).data


async def test_a_model_that_may_be_left_out(tmp_path):
    """One that nobody has named and that is broken is left out, at a start and at a reload, and the others change; once
    it is well, the next reload has it.
    """
    models = {"m": {}, "n": {"source": str(tmp_path / "n")}}
    async with testing.serve(content({"m": {}}), workers=testing.ScriptedWorkers(Quick)) as app:
        settings = config.parse(content({**models, "m": {"queue_size": 7}}), folder=tmp_path, optional={"n"})
        await app.server.reload(settings)
        assert {"m/1.0": State.READY} == running(app)
        assert [7] == [model.spec.queue_size for model in app.tree().models]
        assert {"m"} == set(app.server._reloader.settings.models)
        (tmp_path / "n").mkdir()
        await app.server.reload(settings)
        assert {"m/1.0", "n/1.0"} == set(running(app))
        with pytest.raises(ConfigError, match=r"models\.o\.source"):
            await reload(app, {**models, "o": {"source": str(tmp_path / "o")}})


async def ask_for_ever(app, name, answers, errors):
    while True:
        try:
            answers.append(await ask(app, name))
        except ActorserveError as error:
            errors.append(error)
            await trio.sleep(0.1)


@pytest.fixture
def logged(monkeypatch):
    """What is logged, as (event, key or model, level)."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def told(lines, event):
    return [line.get("key", line.get("model")) for line in lines if line["event"] == event]


# --- models -----------------------------------------------------------------------------------


async def test_the_difference_and_no_more(autojump_clock, logged):
    """A new entry is spawned, a removed one is unregistered, a changed one is rolled out; the others' workers stay, as
    do the API's models. Each change is logged.
    """
    async with serving({"m": {}, "n": {}, "o": {}}) as app:
        await app.server.registrar.ask(Spawn(ModelSpec("mine", "1.0", "a:A", Path("/")))).done.wait()
        stay = {
            replica.pid for model in app.tree().models if model.spec.name in ("n", "mine") for replica in model.replicas
        }
        await reload(app, {"m": {"handler": "b:B"}, "n": {}, "p": {"workers": {"min": 2}}})
        assert dict.fromkeys(("m/1.0", "mine/1.0", "n/1.0", "p/1.0"), State.READY) == running(app)
        assert (b"1.0 b:B", b"1.0 a:A") == (await ask(app), await ask(app, "p"))
        assert stay < {replica.pid for model in app.tree().models for replica in model.replicas}
        assert {"m/1.0", "mine/1.0", "n/1.0", "p/1.0"} == set(await rows(app))
    assert ["models.m", "models.o", "models.p"] == sorted(told(logged, "configuration changed"))
    assert ["m/1.0", "o/1.0", "p/1.0"] == sorted(told(logged, "configuration applied"))


async def test_no_request_fails_while_it_changes(autojump_clock):
    """Under load an entry changes its code, then its version, then its number of workers: every call is answered."""
    async with serving({"m": {}}) as app:
        answers, errors = [], []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask_for_ever, app, "m", answers, errors)
            for model in (
                {"handler": "b:B"},
                {"handler": "c:C", "version": "2.0"},
                {"handler": "c:C", "version": "2.0", "workers": {"min": 3}},
            ):
                await trio.sleep(5)
                await reload(app, {"m": model})
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert [] == errors
        assert [b"1.0 a:A", b"1.0 b:B", b"2.0 c:C"] == list(dict.fromkeys(answers))
        assert {"m/2.0": State.READY} == running(app)
        assert ["m/2.0"] == list(await rows(app))


async def test_another_version_beside_the_apis(autojump_clock):
    """An entry's new version is the default if its old one was, also where the API has one of its own; an explicit
    choice of the API's stands.
    """
    async with serving({"m": {}, "n": {}}) as app:
        registrar = app.server.registrar
        for name in "mn":
            await registrar.ask(Spawn(ModelSpec(name, "0.1", "api:Own", Path("/")))).done.wait()
        await registrar.ask(SetDefault("n", "0.1")).done.wait()
        await reload(app, {"m": {"version": "2.0"}, "n": {"version": "2.0"}})
        assert (b"2.0 a:A", b"0.1 api:Own") == (await ask(app), await ask(app, "n"))
        assert {"m/0.1", "m/2.0", "n/0.1", "n/2.0"} == set(running(app))
        await reload(app, {})
        assert (b"0.1 api:Own", b"0.1 api:Own") == (await ask(app), await ask(app, "n"))
        assert {"m/0.1", "n/0.1"} == set(running(app))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
async def test_a_change_that_cannot_be_loaded(autojump_clock, logged, version):
    """What served goes on without a failed call; the tree and one line of the log say why. Reloaded once it is mended,
    the same text is tried again; the registry says all the time what a restart has to do.
    """
    async with serving({"m": {}}) as app:
        before = await rows(app)
        bad = {"m": {"handler": "b:Bad", "version": version}}
        answers, errors = [], []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for_ever, app, "m", answers, errors)
            await reload(app, bad)
            await reload(app, bad)
            nursery.cancel_scope.cancel()
        assert ({b"1.0 a:A"}, []) == (set(answers), errors)
        assert before == await rows(app)
        assert {"m/1.0": State.READY} == running(app)
        (model,) = app.tree().models
        assert "there are no such weights" in model.rollout
        await reload(app, {"m": {"handler": "b:Good", "version": version}})
        assert f"{version} b:Good".encode() == await ask(app)
        assert [f"m/{version}"] == list(running(app)) == list(await rows(app))
        assert "" == app.tree().models[0].rollout
    assert [f"m/{version}"] * 2 == told(logged, "configuration not applied")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
async def test_a_change_that_fails_on_a_full_disk(autojump_clock, logged, version):
    """A change that cannot be loaded, and cannot be taken back in the registry either, is not taken for what runs: the
    next reload that can write has the registry as it was, and tries the same text again.
    """
    async with serving({"m": {}}) as app:
        before = await rows(app)
        bad = {"m": {"handler": "b:Bad", "version": version}}
        async with AsyncExitStack() as full:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reload, app, bad)
                await trio.sleep(5)
                await full.enter_async_context(full_disk(app.server.registry))
            with pytest.raises(StateFailed):
                await reload(app, bad)
        assert (before, {"m/1.0": State.READY}) == (await rows(app), running(app))
        await reload(app, bad)
        assert (before, b"1.0 a:A") == (await rows(app), await ask(app))
    whys = [line["why"] for line in logged if line["event"] == "configuration not applied"]
    assert [True] * 2 == ["there are no such weights" in why for why in whys]


async def test_a_change_of_none_that_cannot_be_loaded(autojump_clock):
    """An entry without workers that is to have some, and cannot: what runs and the registry stay as they were."""
    none = {"m": {"workers": {"min": 0}}}
    async with serving(none) as app:
        before = await rows(app)
        await reload(app, {"m": {"handler": "b:Bad"}})
        assert ({"m/1.0": State.NO_WORKERS}, before) == (running(app), await rows(app))
        await agree(app, parsed(none))
        await reload(app, {"m": {"handler": "b:Good"}})
        assert b"1.0 b:Good" == await ask(app)


async def test_a_new_entry_that_cannot_be_loaded(autojump_clock):
    """It is FAILED and seen, as at a start; another text mends it."""
    async with serving({"m": {}}) as app:
        await reload(app, {"m": {}, "n": {"handler": "b:Bad"}})
        assert {"m/1.0": State.READY, "n/1.0": State.FAILED} == running(app)
        await reload(app, {"m": {}, "n": {"handler": "b:Good"}})
        assert b"1.0 b:Good" == await ask(app, "n")


async def test_the_api_wins_until_the_text_changes(autojump_clock):
    """Scaled, unregistered, or registered anew by the API: a reload leaves it so while the entry stands unchanged."""
    async with serving({"m": {}, "n": {}, "o": {}}) as app:
        registrar = app.server.registrar
        await registrar.ask(Scale("m", "", 2, 3)).done.wait()
        await registrar.ask(Stop("n", "", 1)).done.wait()
        await registrar.ask(Stop("o", "", 1)).done.wait()
        await registrar.ask(Spawn(ModelSpec("o", "1.0", "api:Own", Path("/")))).done.wait()
        await reload(app, {"m": {}, "n": {}, "o": {}, "p": {}})
        assert {"m/1.0", "o/1.0", "p/1.0"} == set(running(app))
        assert (b"1.0 api:Own", 2) == (await ask(app, "o"), len(app.tree().models[0].replicas))
        await reload(app, {name: {"queue_size": 7} for name in "mno"})
        assert {"m/1.0", "n/1.0", "o/1.0"} == set(running(app))
        assert b"1.0 a:A" == await ask(app, "o")
        await until(lambda: len(app.tree().models[0].replicas) == 1)
        assert [None] * 3 == [row.workers for row in (await rows(app)).values()]


async def test_model_defaults(autojump_clock):
    """What `model_defaults` says of an entry is a part of it, and counts for what the API registers from then on."""
    async with serving({"m": {}, "n": {"queue_size": 5}}, model_defaults={"*": {"queue_size": 3}}) as app:
        bounds = {"m": 3, "n": 5}
        assert bounds == {model.spec.name: model.spec.queue_size for model in app.tree().models}
        await reload(app, {"m": {}, "n": {"queue_size": 5}}, model_defaults={"*": {"queue_size": 4}})
        async with app.channel("management") as channel:
            request = management_pb2.RegisterModelRequest(model_name="o", handler="a:A")
            await ManagementAPIsServiceStub(channel).RegisterModel(request)
        assert bounds | {"m": 4, "o": 4} == {model.spec.name: model.spec.queue_size for model in app.tree().models}


async def test_model_defaults_of_a_version(autojump_clock):
    """What `model_defaults` says of a name holds for each of its versions, of a name and a version for that alone."""
    models = {"m": {}, "x": {"name": "m", "version": "2.0"}}

    def sizes(app):
        return [view.spec.queue_size for view in app.tree().models]

    async with serving(models, model_defaults={"m": {"queue_size": 3}}) as app:
        assert [3, 3] == sizes(app)
        before = await rows(app)
        await reload(app, models, model_defaults={"m": {"queue_size": 3}, "m/2.0": {"queue_size": 4}})
        after = await rows(app)
        assert ([3, 4], True) == (sizes(app), before["m/1.0"] == after["m/1.0"])
        await reload(app, models, model_defaults={"x": {"queue_size": 9}})
        assert [100, 100] == sizes(app)


async def test_the_api_in_the_place_of_the_file_s_default(autojump_clock):
    """What the API registers where the default's entry stands does not become the default beside another version."""
    models = {"m": {"version": "2.0", "default": True}}
    async with serving(models) as app:
        ask_ = app.server.registrar.ask
        await ask_(Stop("m", "2.0", 0)).done.wait()
        for version in ("1.0", "2.0"):
            await ask_(Spawn(ModelSpec("m", version, "api:Own", Path("/")))).done.wait()
        assert b"1.0 api:Own" == await ask(app)
        await agree(app, parsed(models))
        await reload(app, models)
        assert b"1.0 api:Own" == await ask(app)
        await reload(app, {})  # the entry goes, and its word with it; the API's models stay
        await agree(app, parsed({}))
        assert {"m/1.0", "m/2.0"} == set(running(app))


async def test_a_new_default_when_it_is_ready(autojump_clock):
    """A new version whose entry says `default = true` takes over once it is READY, and no call waits for that; an old
    one that goes in the same file serves until then.
    """
    async with serving({"m": {}}) as app, trio.open_nursery() as nursery:
        answers, errors = [], []
        nursery.start_soon(ask_for_ever, app, "m", answers, errors)
        new = {"m-2": {"name": "m", "version": "2.0", "default": True}}
        began = trio.current_time()
        nursery.start_soon(reload, app, new)
        await until(lambda: b"2.0 a:A" in answers)
        assert 10.0 <= trio.current_time() - began < 11.0
        await until(lambda: {"m/2.0"} == set(running(app)))
        assert ([], [b"1.0 a:A", b"2.0 a:A"]) == (errors, list(dict.fromkeys(answers)))
        assert len(answers) > 50
        await agree(app, parsed(new))
        nursery.cancel_scope.cancel()


async def test_reloads_at_once(autojump_clock):
    """A reload during the rollout of another: the last one wins, whatever was under way, and all return."""
    async with serving({"m": {}}) as app:
        async with trio.open_nursery() as nursery:
            for handler in ("b:B", "c:C", "d:D", "e:Bad", "f:F"):
                nursery.start_soon(reload, app, {"m": {"handler": handler}, handler[0]: {}})
                await trio.sleep(3)
        assert (b"1.0 f:F", {"f/1.0", "m/1.0"}) == (await ask(app), set(running(app)))
        assert text_of(parsed({"m": {"handler": "f:F"}}), "m", "1.0") == (await rows(app))["m/1.0"].text


@pytest.mark.parametrize("second", ["b:B", "b:Bad"])
@pytest.mark.parametrize("wait_s", [5, 9.9])
async def test_a_third_version_while_the_second_loads(autojump_clock, second, wait_s):
    """The last version that an entry asks for is the one that serves, and the default: every earlier one goes, however
    the change between has ended.
    """
    async with serving({"m": {"version": "1"}}) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload, app, {"m": {"version": "2", "handler": second}})
            await trio.sleep(wait_s)
            nursery.start_soon(reload, app, {"m": {"version": "3"}})
        assert {"m/3": State.READY} == running(app)
        assert (b"3 a:A", ["m/3"]) == (await ask(app), list(await rows(app)))
        await reload(app, {"m": {"version": "3"}})
        assert {"m/3": State.READY} == running(app)


async def test_a_third_version_that_cannot_be_loaded(autojump_clock):
    """Then what it was to replace stays, all of it, until a reload that can be carried out."""
    async with serving({"m": {"version": "1"}}) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload, app, {"m": {"version": "2"}})
            await trio.sleep(5)
            nursery.start_soon(reload, app, {"m": {"version": "3", "handler": "b:Bad"}})
        assert ({"m/1": State.READY, "m/2": State.READY}, b"1 a:A") == (running(app), await ask(app))
        await reload(app, {"m": {"version": "2"}})
        assert ({"m/2": State.READY}, b"2 a:A", ["m/2"]) == (running(app), await ask(app), list(await rows(app)))


@pytest.mark.parametrize("second", ["b:B", "b:Bad"])
@pytest.mark.parametrize("wait_s", [0, 5, 9.99, 10, 10.01])
async def test_the_same_version_again_while_it_loads(autojump_clock, second, wait_s):
    """A second SIGHUP while the new version loads: the old one serves until that is READY, and stays if it fails."""
    async with serving({"m": {"version": "1"}}) as app:
        answers, errors = [], []
        async with trio.open_nursery() as asking:
            asking.start_soon(ask_for_ever, app, "m", answers, errors)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reload, app, {"m": {"version": "2", "handler": second}})
                await trio.sleep(wait_s)
                nursery.start_soon(reload, app, {"m": {"version": "2", "handler": second}})
                await trio.sleep(5)
                assert wait_s > 5 or b"1 a:A" == await ask(app)
            asking.cancel_scope.cancel()
        version = "1" if second == "b:Bad" else "2"
        assert ({f"m/{version}": State.READY}, [f"m/{version}"]) == (running(app), list(await rows(app)))
        assert [] == errors


@pytest.mark.parametrize("wait_s", [5, 9.99, 10, 10.01])
async def test_back_to_the_first_version_while_the_second_loads(autojump_clock, wait_s):
    """Whenever the entry goes back to the version that it had, that one serves, and is the only one."""
    async with serving({"m": {"version": "1"}}) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload, app, {"m": {"version": "2"}})
            await trio.sleep(wait_s)
            nursery.start_soon(reload, app, {"m": {"version": "1"}})
        assert ({"m/1": State.READY}, ["m/1"]) == (running(app), list(await rows(app)))
        assert b"1 a:A" == await ask(app)


ONE, TWO = {"m": {"version": "1"}}, {"x": {"name": "m", "version": "2", "default": True}}


@pytest.mark.parametrize("second", [TWO, {"y": TWO["x"]}], ids=["the same", "called otherwise"])
@pytest.mark.parametrize("first", [TWO, ONE | TWO], ids=["in its place", "beside it"])
@pytest.mark.parametrize("wait_s", [0, 5, 9.99, 10, 10.01])
async def test_the_default_of_another_entry_again_while_it_loads(autojump_clock, first, second, wait_s):
    """A second SIGHUP while another entry's new version loads: what serves stays, and is the default, until that is
    READY.
    """
    async with serving(ONE) as app, trio.open_nursery() as asking:
        answers, errors = [], []
        asking.start_soon(ask_for_ever, app, "m", answers, errors)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload, app, first)
            await trio.sleep(wait_s)
            nursery.start_soon(reload, app, second)
            await until(lambda: b"2 a:A" in answers)
            assert trio.current_time() - began < 11
        assert ({"m/2": State.READY}, ["m/2"], []) == (running(app), list(await rows(app)), errors)
        assert len(answers) > 40
        await agree(app, parsed(second))
        asking.cancel_scope.cancel()


@pytest.mark.parametrize("wait_s", [0, 5, 9.99, 10, 10.01])
@pytest.mark.parametrize(
    "takes_back", [ONE | {"x": {**TWO["x"], "default": False}}, {"m": {**ONE["m"], "default": True}}]
)
async def test_the_default_is_taken_back_while_it_loads(autojump_clock, takes_back, wait_s):
    """A later file that says nothing of a default any more, or says it of what serves, wins over a change under way."""
    takes_back = {"x": {"name": "m", "version": "2"}, **takes_back}
    async with serving(ONE) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload, app, ONE | TWO)
            await trio.sleep(wait_s)
            nursery.start_soon(reload, app, takes_back)
        await agree(app, parsed(takes_back))
        assert {"m/1": State.READY, "m/2": State.READY} == running(app)
        assert b"1 a:A" == await ask(app)


@pytest.mark.parametrize("again", [0, 1])
async def test_the_version_before_while_another_entry_s_cannot_be_loaded(autojump_clock, again):
    """A new version that was to take the place of another entry's and cannot be loaded: that one serves on."""
    bad = {"x": {**TWO["x"], "handler": "b:Bad"}}
    async with serving(ONE) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload, app, bad)
            for _ in range(again):
                await trio.sleep(5)
                nursery.start_soon(reload, app, bad)
        assert ({"m/1": State.READY}, b"1 a:A", ["m/1"]) == (running(app), await ask(app), list(await rows(app)))
        await reload(app, TWO)
        assert ({"m/2": State.READY}, b"2 a:A", ["m/2"]) == (running(app), await ask(app), list(await rows(app)))


async def test_unregistered_while_it_is_rolled_out(autojump_clock):
    """The API's UnregisterModel during a rollout is the later word, and stays so."""
    async with serving({"m": {}}) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload, app, {"m": {"handler": "b:B"}})
            await trio.sleep(5)
            await app.server.registrar.ask(Stop("m", "", 5)).done.wait()
        assert {} == running(app)
        assert RowState.REMOVED is (await rows(app))["m/1.0"].state
        await reload(app, {"m": {"handler": "b:B"}})
        assert {} == running(app)


@pytest.mark.parametrize("handler", ["api:Own", "api:Bad"])
async def test_a_registration_under_way(autojump_clock, handler):
    """An entry that comes for a version which the API is registering takes it over, however that has ended."""
    async with serving({}) as app:
        answer = app.server.registrar.ask(Spawn(ModelSpec("m", "1.0", handler, Path("/")), unregister_on_failure=True))
        await trio.sleep(5)
        await reload(app, {"m": {}})
        assert answer.done.is_set
        assert b"1.0 a:A" == await ask(app)
        assert [(True, RowState.REGISTERED)] == [(row.is_config, row.state) for row in (await rows(app)).values()]


@pytest.mark.parametrize("handler", ["b:Bad", "b:B"])
async def test_a_registration_that_begins_as_its_entry_comes(autojump_clock, monkeypatch, handler):
    """An entry waits for the API's registration from its first moment on: if it cannot be loaded, that stays; its
    version is the default that it was.
    """
    async with serving({}) as app:
        carry_out = app.server.supervisor.carry_out

        async def slowly(message):
            reply = await carry_out(message)
            await trio.sleep(1)
            return reply

        monkeypatch.setattr(app.server.supervisor, "carry_out", slowly)
        own = ModelSpec("m", "1.0", "api:Own", Path("/"))
        answer = app.server.registrar.ask(Spawn(own, unregister_on_failure=True))
        await trio.sleep(0.5)
        assert {"m/1.0": State.LOADING} == running(app)
        second = app.server.registrar.ask(Spawn(replace(own, version="2.0"), unregister_on_failure=True))
        await reload(app, {"m": {"handler": handler}})
        await second.done.wait()
        assert answer.done.is_set
        assert (b"1.0 b:B" if handler == "b:B" else b"1.0 api:Own") == await ask(app)
        await agree(app, parsed({"m": {"handler": handler}}))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("handler", ["api:Own", "api:Bad"])
async def test_a_registration_that_is_queued(autojump_clock, logged, monkeypatch, handler, waits):
    """An entry whose version the API is to register once another change of the model has begun takes it over, however
    that ends: the reload waits for its turn, and is what it finds then.
    """
    async with serving({}) as app:
        carry_out = app.server.supervisor.carry_out

        async def slowly(message):
            reply = await carry_out(message)
            await trio.sleep(1)
            return reply

        monkeypatch.setattr(app.server.supervisor, "carry_out", slowly)
        ask_for = app.server.registrar.ask
        ask_for(Spawn(ModelSpec("m", "2.0", "api:Own", Path("/"))))
        answer = ask_for(Spawn(ModelSpec("m", "1.0", handler, Path("/")), unregister_on_failure=waits))
        await trio.sleep(0.5)
        assert {"m/2.0"} == set(running(app))
        await reload(app, {"m": {"handler": "b:B"}})
        assert answer.done.is_set
        assert (b"1.0 b:B", b"2.0 api:Own") == (await ask(app, version="1.0"), await ask(app))
        await agree(app, parsed({"m": {"handler": "b:B"}}))
    assert [] == told(logged, "configuration not applied")


async def test_a_rollout_that_config_does_not_ask_for(autojump_clock):
    """Replace by the registrar alone: the row is the API's and says what runs, before and after, failed or not."""
    async with serving({"m": {}}) as app:
        registrar, before = app.server.registrar, await rows(app)
        bad = registrar.ask(Replace(ModelSpec("m", "1.0", "api:Bad", Path("/"))))
        await bad.accepted.wait()
        with pytest.raises(LoadFailed):
            await bad.done.wait()
        assert (before, b"1.0 a:A") == (await rows(app), await ask(app))
        await registrar.ask(Replace(ModelSpec("m", "1.0", "api:Own", Path("/")))).done.wait()
        (row,) = (await rows(app)).values()
        assert (b"1.0 api:Own", "api:Own") == (await ask(app), read_spec(row.spec).handler)
        with pytest.raises(NoSuchModel):
            await registrar.ask(Replace(ModelSpec("m", "2.0", "api:Own", Path("/")))).done.wait()


# --- what is wrong changes nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "key"),
    [
        ({"m": {"handler": "b:B"}, "n": {"source": "/there/is/none"}}, "models.n.source"),
        ({"m": {"handler": "b:B"}, "n": {"device": "cuda:77"}}, "models.n.device"),
    ],
)
async def test_a_wrong_entry_changes_nothing(autojump_clock, logged, models, key):
    """One entry that cannot be: its key is named, and no other entry is applied."""
    async with serving({"m": {}}) as app:
        before = await rows(app)
        with pytest.raises(ConfigError) as error:
            await reload(app, models)
        assert (key, before) == (error.value.key, await rows(app))
        assert b"1.0 a:A" == await ask(app)
        await reload(app, {"m": {"handler": "b:B"}})
        assert b"1.0 b:B" == await ask(app)


async def test_a_registry_that_cannot_be_written(autojump_clock, logged):
    """A change that cannot be committed is logged; what served goes on; the next reload tries again."""
    async with serving({"m": {}}) as app:
        connection = app.server.registry._connection
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON models BEGIN SELECT RAISE(ABORT, 'full'); END")
        await reload(app, {"m": {"handler": "b:B"}, "n": {}})
        assert (b"1.0 a:A", {"m/1.0"}) == (await ask(app), set(running(app)))
        connection.execute("DROP TRIGGER full")
        await reload(app, {"m": {"handler": "b:B"}, "n": {}})
        assert (b"1.0 b:B", {"m/1.0", "n/1.0"}) == (await ask(app), set(running(app)))
        await app.server.registry.close()
        with pytest.raises(StateFailed):
            await reload(app, {})
    assert ["m/1.0", "n/1.0"] == sorted(told(logged, "configuration not applied"))


# --- listeners, and what needs a restart ---------------------------------------------------------------


def test_what_needs_a_restart():
    """Every key of [server] and [log], listeners that come or go, and of a listener all but limits and tokens."""
    old = parsed({}, server={"grace_s": 3}, log={"level": "info"})
    listeners = {
        "inference": {**LISTENERS["inference"], "address": "127.0.0.1:9", "max_connections": 5, "tokens_file": "x"},
        "user": LISTENERS["management"],
    }
    new = config.parse(
        {"listeners": listeners, "server": {"grace_s": 4, "state_dir": "s"}, "log": {"level": "debug"}},
        folder=Path.cwd(),
    )
    assert [
        "server.state_dir",
        "server.grace_s",
        "log.level",
        "listeners.inference.address",
        "listeners.inference.tokens_file",
        "listeners.management",
        "listeners.user",
    ] == needs_restart(old, new)
    assert ["max_connections"] == takes_up(old.listeners["inference"], new.listeners["inference"])
    assert [] == needs_restart(old, old)


@pytest.mark.parametrize("own", [{"tokens_file": "tokens.toml"}, {"key_file": "key_file.json"}])
def test_every_key_is_taken_up_or_named(own):
    """Of the keys of a listener that have changed, each is taken up or needs a restart, and none does both."""
    listener = {**LISTENERS["inference"], **own}
    changed = {**listener, "auth_exempt": ["health"], "max_connections": 7, "reuse_port": True}
    old, new = (config.parse({"listeners": {"l": one}}, folder=Path.cwd()) for one in (listener, changed))
    named = [key.removeprefix("listeners.l.") for key in needs_restart(old, new)]
    taken_up = takes_up(old.listeners["l"], new.listeners["l"])
    assert ["auth_exempt", "max_connections", "reuse_port"] == sorted([*named, *taken_up])
    assert "auth_exempt" in (named if "key_file" in own else taken_up)


async def test_needs_a_restart_each_time(autojump_clock, logged):
    """Each key is named in a line of its own, and again at the next reload, as long as it is so."""
    async with serving({"m": {}}, server={"grace_s": 3}) as app:
        for _ in range(2):
            await reload(app, {"m": {}}, server={"grace_s": 4, "stable_after_s": 9})
    keys = [key for key in told(logged, "configuration needs a restart") if not key.endswith(("address", "state_dir"))]
    assert ["server.grace_s", "server.stable_after_s"] * 2 == keys


async def test_limits_and_tokens_at_run_time(tmp_path, autojump_clock, logged):
    """Limits hold for connections that come from then on, tokens for calls that come from then on; a file of tokens
    that is wrong is named, and changes nothing.
    """
    path = tmp_path / "tokens.toml"

    def write(token):
        path.write_text(f'[tokens.one]\nsha256 = "{hashlib.sha256(token).hexdigest()}"\n')

    def given_(streams):
        own = {**LISTENERS["inference"], "tokens_file": str(path), "max_concurrent_streams": streams}
        return {"listeners": {**LISTENERS, "inference": own}}

    write(b"first")
    async with serving({"m": {}}, **given_(7)) as app:
        server = app.server.grpc["inference"]
        (access,) = server.interceptors
        assert access._tokens.find("Bearer first")
        write(b"second")
        await reload(app, {"m": {}}, **given_(9))
        assert (9, None) == (server.limits.max_concurrent_streams, access._tokens.find("Bearer first"))
        assert access._tokens.find("Bearer second")
        path.write_text("")
        with pytest.raises(ConfigError) as error:
            await reload(app, {"m": {}, "n": {}}, **given_(11))
        assert ("listeners.inference.tokens_file", 9) == (error.value.key, server.limits.max_concurrent_streams)
        assert {"m/1.0"} == set(running(app))
    assert "listeners.inference" in told(logged, "configuration changed")


async def test_health_does_not_wait_for_a_new_model(autojump_clock):
    """A server that is SERVING stays so while a new entry loads; without entries it needs none."""
    async with serving({"m": {}}) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload, app, {"m": {}, "n": {}})
            await trio.sleep(5)
            assert app.server.is_serving()
            assert app.server.health.overall() == 1
        await reload(app, {})
        assert app.server.health.overall() == 1


# --- anything at once ------------------------------------------------------------------------------------


async def agree(app, file):
    """What a start would spawn is what runs: versions, defaults, worker counts."""
    registry = app.server.registry
    found = (await rows(app)).values()
    entries = {
        entry: Entry(
            ModelSpec(
                file.name_of(entry),
                model.version,
                model.handler,
                Path.cwd(),
                workers_min=model.workers.min,
                workers_max=model.workers.max or model.workers.min,
            ),
            "",
        )
        for entry, model in file.models.items()
    }
    kept = to_spawn(found, entries, await registry.run(jobs.defaults_of))
    views = {model.spec.key: model for model in app.tree().models}
    assert {one.key: (one.workers_min, one.workers_max, one.handler) for one in kept} == {
        key: (view.spec.workers_min, view.spec.workers_max, view.spec.handler) for key, view in views.items()
    }
    assert {row.state for row in found} <= {RowState.REGISTERED, RowState.REMOVED}
    firsts = {}
    for one in kept:
        firsts.setdefault(one.name, one.version)
    assert firsts == {view.spec.name: view.spec.version for view in views.values() if view.is_default}


calls = st.tuples(
    st.sampled_from(("RegisterModel", "ScaleWorker", "UnregisterModel", "SetDefault")),
    st.booleans(),
    st.integers(0, 3),
    st.floats(0, 30) | st.sampled_from([0.0, 10.0]),
    st.floats(0, 20) | st.just(0.0),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(calls, max_size=15))
def test_a_call_that_is_cancelled_is_done_or_not_done(drawn):
    """Management calls of several clients at once, each cancelled at some moment: whatever became of each, rows and
    models agree in the end, nothing is half done, and the next change finds a model that can be changed.
    """

    async def call(channel, one):
        rpc, synchronous, count, within, later = one
        stub = ManagementAPIsServiceStub(channel)
        given_ = {
            "RegisterModel": {
                "model_name": "m",
                "handler": "a:A",
                "initial_workers": count,
                "synchronous": synchronous,
            },
            "ScaleWorker": {"model_name": "m", "min_worker": count, "synchronous": synchronous},
            "UnregisterModel": {"model_name": "m"},
            "SetDefault": {"model_name": "m", "model_version": "1.0"},
        }[rpc]
        await trio.sleep(later)
        with trio.move_on_after(within):
            with suppress(GRPCError):  # refused: that is an answer
                await getattr(stub, rpc)(getattr(management_pb2, f"{rpc}Request")(**given_))

    async def life():
        async with serving({"c": {}}) as app:
            async with app.channel("management") as channel, trio.open_nursery() as nursery:
                for one in drawn:
                    nursery.start_soon(call, channel, one)
            await trio.sleep(100)
            await agree(app, parsed({"c": {}}))
            done = app.server.registrar.ask(Scale("c", "", 2, 2)).done
            await done.wait()
            await agree(app, parsed({"c": {}}))

    run_virtually(life)


KEYS = ("m", "n", "m-2", "m-3")


def models_drawn(*handlers):
    one = st.tuples(
        st.sampled_from(handlers),
        st.sampled_from(("1.0", "2.0", "3.0")),
        st.integers(0, 2),
        st.integers(7, 8),
        st.booleans(),
    )
    return st.dictionaries(st.sampled_from(KEYS), one)


changes = st.one_of(
    st.tuples(st.just("reload"), models_drawn("a:A", "b:B", "c:Bad")),
    st.tuples(
        st.sampled_from(("spawn", "wait", "stop", "scale", "default")),
        st.tuples(st.sampled_from("mn"), st.sampled_from(("1.0", "2.0", "3.0")), st.integers(0, 3)),
    ),
    st.tuples(st.just("sleep"), st.integers(1, 20)),
)


def as_config(drawn):
    """What of it can stand in one file: versions of m in three entries, one of them the default at most."""
    found, seen = {}, set()
    for entry, (handler, version, count, size, default) in drawn.items():
        name = entry[0]
        if (name, version) in seen:
            continue
        default = default and (name, "default") not in seen  # noqa: PLW2901  # said once
        seen |= {(name, version), (name, "default")} if default else {(name, version)}
        found[entry] = {"handler": handler, "version": version, "workers": {"min": count}, "queue_size": size}
        found[entry] |= {"name": name, "default": default}
    return found


@settings(
    deadline=None, max_examples=60, phases=[Phase.generate]
)  # a failure is short enough to read, and slow to shrink
@given(st.lists(changes, max_size=15), models_drawn("a:A", "b:B"))
def test_reloads_and_the_api_at_once(drawn, last):
    """Any changes of the API and any reloads at the same time: once they are over and the file is reloaded once more,
    what runs is what a restart would bring back, and another reload asks for nothing.
    """

    async def life():
        async with serving({}) as app, trio.open_nursery() as nursery:
            ask_ = app.server.registrar.ask
            for what, rest in drawn:
                match what:
                    case "reload":
                        nursery.start_soon(reload, app, as_config(rest))
                        continue
                    case "sleep":
                        await trio.sleep(rest)
                        continue
                name, version, count = rest
                match what:
                    case "stop":
                        ask_(Stop(name, version, count))
                    case "scale":
                        ask_(Scale(name, version, count, 3))
                    case "default":
                        ask_(SetDefault(name, version))
                    case _:
                        own = ModelSpec(name, version, "api:Own", Path("/"), workers_min=count, workers_max=3)
                        ask_(Spawn(own, unregister_on_failure=what == "wait"))
            await trio.sleep(100)
            await reload(app, as_config(last))
            await trio.sleep(100)
            await agree(app, parsed(as_config(last)))
            before = {model.spec.key: model.replicas for model in app.tree().models}
            await reload(app, as_config(last))
            assert before == {model.spec.key: model.replicas for model in app.tree().models}

    run_virtually(life)


async def test_what_is_not_there(autojump_clock):
    """A removed entry's name is not known any more."""
    async with serving({"m": {}}) as app:
        await reload(app, {})
        with pytest.raises(NoSuchModel):
            await ask(app)
