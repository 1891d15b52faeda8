"""The registry: its rules as pure functions, its transactions, its lock, and the registrar in virtual time."""

import os
import sqlite3
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from full_disk import full_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from actorserve import testing
from actorserve.actors import registry_jobs as jobs
from actorserve.actors.messages import Environment, ModelSpec, Restart, Scale, SetDefault, Spawn, Stop
from actorserve.actors.registry import FILE, Registry, connect
from actorserve.actors.registry_rules import (
    Entry,
    Row,
    RowState,
    default_of,
    plan,
    read_spec,
    relocate,
    to_spawn,
    write_spec,
)
from actorserve.errors import AlreadyRegistered, LoadFailed, NoSuchModel, StartFailed, StateFailed

ECHO = "actorserve.handlers.echo:Echo"


def spec(name="m", version="1.0", **given_):
    return ModelSpec(name, version, ECHO, Path("/folder"), **given_)


def entry(name="m", version="1.0", text="a"):
    return Entry(spec(name, version, loaded_at_startup=True), text)


def api(number, name="m", version="1.0", state=RowState.REGISTERED, **given_):
    return Row(number, name, version, state, write_spec(spec(name, version)), **given_)


# --- the rules --------------------------------------------------------------------------------------


def test_a_spec_survives_its_text():
    """What is read is what was written, with every kind of field."""
    rich = spec(
        devices=("cuda:0", "cuda:1"),
        options={"a": [1, {"b": None}]},
        restart=Restart.PERMANENT,
        environment=Environment(path=("/a",), env={"A": "b"}, requirements=("x==1",), in_thread=True),
    )
    assert read_spec(write_spec(rich)) == rich


def test_a_spec_is_relocated():
    """Every path below the folder of a model that was unpacked anew is in the new one; others stay."""
    old = replace(
        spec(), environment=Environment(path=("/folder/lib", "/other"), requirements_file="/folder/requirements.txt")
    )
    moved = relocate(old, Path('/new "folder"'))
    assert moved.model_dir == Path('/new "folder"')
    assert moved.environment.path == ('/new "folder"/lib', "/other")
    assert moved.environment.requirements_file == '/new "folder"/requirements.txt'


def test_a_first_start_applies_every_entry():
    """Without rows each entry becomes one that config.toml owns."""
    planned = plan([], {"m": entry(), "n": entry("n")})
    assert planned.write == (Row(0, "m", "1.0", text="a"), Row(0, "n", "1.0", text="a"))
    assert planned.delete == ()


def test_what_was_not_finished_is_dropped():
    """A pending registration and one that was leaving go; a registered one stays as it is."""
    rows = [api(1, version="1", state=RowState.PENDING), api(2, version="2", state=RowState.LEAVING), api(3)]
    planned = plan(rows, {})
    assert (planned.delete, planned.write) == ((1, 2), ())
    assert planned.dropped == (rows[0].spec, rows[1].spec)


@pytest.mark.parametrize(
    ("row", "text"),
    [(api(7, text="a"), "b"), (api(7, text="a", state=RowState.PENDING), "a"), (Row(7, "m", "1.0", text="a"), "b")],
)
def test_specs_that_are_dropped(row, text):
    """What the API registered in a config model's place is dropped when the entry comes back; what stays is not."""
    assert plan([row], {"m": entry(text=text)}).dropped == ((row.spec,) if row.spec else ())
    assert plan([api(7, text="a")], {"m": entry()}).dropped == ()


@pytest.mark.parametrize(
    "row",
    [
        Row(7, "m", "1.0", text="a", workers=(3, 4)),
        Row(7, "m", "1.0", RowState.REMOVED, text="a"),
        api(7, text="a"),
    ],
)
def test_the_api_wins_between_changes_of_the_text(row):
    """Scaled, unregistered or registered anew by the API: it stays so while the entry's text stands, not longer."""
    assert plan([row], {"m": entry()}).write == ()
    (applied,) = plan([row], {"m": entry(text="b")}).write
    assert (applied.state, applied.spec, applied.text, applied.workers) == (RowState.REGISTERED, None, "b", None)


def test_an_entry_that_is_removed_takes_its_model_only():
    """A model that config.toml owned goes with its entry; what the API put in its place, or beside it, stays."""
    rows = [Row(1, "m", "1.0", text="a"), api(2, version="2.0"), api(3, "n", text="a")]
    planned = plan(rows, {})
    assert planned.delete == (1,)
    assert planned.write == (replace(rows[2], text=None),)


def test_an_entry_with_another_version_replaces_its_row():
    """The old version of a config's model goes, the new one comes."""
    planned = plan([Row(1, "m", "1.0", text="a")], {"m": entry(version="2.0", text="b")})
    assert planned.delete == (1,)
    assert planned.write == (Row(0, "m", "2.0", text="b"),)


def test_an_unregistration_that_was_cut_short_stays_one():
    """A config's model that was leaving is not brought back by the entry that it came from."""
    (row,) = plan([Row(1, "m", "1.0", RowState.LEAVING, text="a")], {"m": entry()}).write
    assert row.state is RowState.REMOVED


def test_defaults_are_spawned_first():
    """The chosen version comes first, else the first registered; workers are those that the API has set."""
    rows = [api(1, version="1"), api(2, version="2", workers=(5, 6)), api(3, "n", "2"), api(4, "n", "1")]
    found = to_spawn(rows, {}, {"m": "2", "n": "9"})
    assert [one.key for one in found] == ["m/2", "m/1", "n/2", "n/1"]
    assert (found[0].workers_min, found[0].workers_max) == (5, 6)


def test_entries_of_one_name():
    """Versions of one model in several entries are rows of their own; the default is the first entry's, or that of the
    one that says so.
    """
    for said, order in ((None, ["m/1.0", "m/2.0"]), ("x", ["m/2.0", "m/1.0"])):
        entries = {"m": entry(), "x": replace(entry(version="2.0"), is_default=said == "x")}
        planned = plan([], entries)
        assert planned.write == (
            Row(0, "m", "1.0", text="a"),
            Row(0, "m", "2.0", text="a", entry="x", is_default=said == "x"),
        )
        numbered = [replace(row, id=number) for number, row in enumerate(planned.write, 1)]
        assert [one.key for one in to_spawn(numbered, entries, {})] == order


def test_an_entry_goes_alone():
    """Of two entries of one model, the one that is removed, or has another version, touches no row of the other; one
    that is only called otherwise is not applied anew.
    """
    rows = [Row(1, "m", "1.0", text="a"), Row(2, "m", "2.0", text="a", entry="x")]
    assert (plan(rows, {"x": entry(version="2.0")}).delete, plan(rows, {"m": entry()}).delete) == ((1,), (2,))
    planned = plan(rows, {"m": entry(), "x": entry(version="3.0", text="b")})
    assert (planned.delete, planned.write) == ((2,), (Row(0, "m", "3.0", text="b", entry="x"),))
    planned = plan(rows, {"m": entry(), "y": entry(version="2.0")})
    assert (planned.delete, planned.write, planned.changes) == ((), (replace(rows[1], entry="y"),), ())


@pytest.mark.parametrize(
    ("entries", "default"),
    [
        ({"m": entry(), "x": entry(version="2.0")}, "1.0"),  # as it was: the API's choice
        ({"m": entry(), "x": replace(entry(version="2.0"), is_default=True)}, "2.0"),  # the file says so now
        ({"m": entry(text="b"), "x": entry(version="2.0")}, "1.0"),
        ({"x": entry(version="2.0")}, "2.0"),  # the choice has gone
        ({"m": entry(version="3.0", text="b"), "x": entry(version="2.0")}, "3.0"),  # its entry's version is another
    ],
)
def test_set_default_and_the_file(entries, default):
    """What SetDefault chose is the default while the file says nothing new of it and its version is there."""
    connection = connect(":memory:")
    jobs.start(connection, {"x": entry(version="2.0"), "m": entry()})
    jobs.set_default(connection, "m", "1.0")
    for _ in range(2):
        _, rows, chosen = jobs.start(connection, entries)
        assert to_spawn(rows, entries, chosen)[0].version == default
    connection.close()


def test_the_file_s_default_counts_until_the_api_chooses():
    """`default = true`, then SetDefault, then the entry's other text: each time the last word counts."""
    connection = connect(":memory:")
    for text, version in (("a", "2.0"), ("b", "2.0")):
        entries = {"m": entry(), "x": replace(entry(version="2.0", text=text), is_default=True)}
        _, rows, chosen = jobs.start(connection, entries)
        assert default_of(rows, chosen.get("m")) == version
        jobs.set_default(connection, "m", "1.0")
        _, rows, chosen = jobs.start(connection, entries)
        assert default_of(rows, chosen.get("m")) == "1.0"
    connection.close()


async def test_a_registry_of_format_1(tmp_path):
    """Rows from before entries had keys of their own are those of the entries that are called like their models."""
    (tmp_path / "state").mkdir()
    connection = sqlite3.connect(tmp_path / "state" / FILE)
    connection.executescript(
        "CREATE TABLE models (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, version TEXT NOT NULL,"
        " state TEXT NOT NULL, spec TEXT, text TEXT, workers_min INTEGER, workers_max INTEGER, UNIQUE (name, version));"
        "CREATE TABLE defaults (name TEXT PRIMARY KEY, version TEXT NOT NULL);"
        "INSERT INTO models VALUES (3, 'm', '1.0', 'registered', NULL, 'a', 2, 4);"
        "INSERT INTO defaults VALUES ('m', '1.0'); PRAGMA user_version=1;"
    )
    connection.close()
    for _ in range(2):
        registry = Registry(tmp_path / "state")
        await registry.open()
        planned, rows, chosen = await registry.run(partial(jobs.start, entries={"m": entry()}))
        assert (planned.write, planned.delete, chosen) == ((), (), {"m": "1.0"})
        assert rows == [Row(3, "m", "1.0", text="a", workers=(2, 4))]
        await registry.close()


states = st.sampled_from(RowState)
rows_drawn = st.lists(
    st.builds(
        lambda name, version, state, mine, text, workers, said_by, default: Row(
            0,
            name,
            version,
            state,
            write_spec(spec(name, version)) if mine else None,
            text,
            workers,
            "" if said_by == name else said_by,
            default,
        ),
        st.sampled_from("mn"),
        st.sampled_from("12"),
        states,
        st.booleans(),
        st.sampled_from("ab"),
        st.none() | st.just((2, 3)),
        st.sampled_from("mnxy"),
        st.booleans(),
    ),
    unique_by=lambda row: (row.name, row.version),
)
entries_drawn = st.lists(
    st.tuples(st.sampled_from("mnxy"), st.sampled_from("mn"), st.sampled_from("12"), st.sampled_from("ab")),
    unique_by=(
        lambda one: one[0],
        lambda one: one[1:3],
    ),
)


@given(rows_drawn, entries_drawn, st.sets(st.sampled_from("mnxy"), max_size=1))
def test_a_start_is_idempotent(drawn, said, defaults):
    """Whatever the rows: a second start with the same file finds nothing to do, and every row can be spawned."""
    entries = {
        key: replace(entry(name, version, text), is_default=key in defaults) for key, name, version, text in said
    }
    connection = connect(":memory:")
    for row in drawn:
        jobs.write(connection, row)
    _, rows, chosen = jobs.start(connection, entries)
    again, same, _ = jobs.start(connection, entries)
    assert (again.delete, again.write, again.changes) == ((), (), ())
    assert same == rows
    live = {(row.name, row.version) for row in rows if row.state is RowState.REGISTERED}
    assert {(one.name, one.version) for one in to_spawn(rows, entries, chosen)} == live
    assert {row.state for row in rows} <= {RowState.REGISTERED, RowState.REMOVED}
    connection.close()


# --- the file ----------------------------------------------------------------------------------------


async def test_rows_survive_on_disk(tmp_path):
    """What was committed is there after close and open; SQLite says WAL and FULL; the thread is gone after close."""
    registry = Registry(tmp_path / "state")
    await registry.open()
    await registry.run(partial(jobs.write, row=api(0)))
    modes = await registry.run(
        lambda one: (one.execute("PRAGMA journal_mode").fetchone()[0], one.execute("PRAGMA synchronous").fetchone()[0])
    )
    assert modes == ("wal", 2)
    assert "registry" in {thread.name for thread in threading.enumerate()}
    await registry.close()
    assert "registry" not in {thread.name for thread in threading.enumerate()}
    again = Registry(tmp_path / "state")
    await again.open()
    assert await again.run(jobs.rows_of) == [api(1)]
    await again.close()


async def test_a_job_is_one_transaction(tmp_path):
    """A job that raises in its middle has changed nothing, in memory and on disk; SQLite's errors are StateFailed."""

    def half(connection):
        jobs.write(connection, api(0))
        raise NoSuchModel("m")

    for folder in (None, tmp_path):
        registry = Registry(folder)
        await registry.open()
        with pytest.raises(NoSuchModel):
            await registry.run(half)
        with pytest.raises(StateFailed, match="no such table"):
            await registry.run(lambda one: (jobs.write(one, api(0)), one.execute("SELECT * FROM nowhere")))
        assert await registry.run(jobs.rows_of) == []
        await registry.close()
        with pytest.raises(StateFailed, match="closed"):
            await registry.run(jobs.rows_of)


async def test_what_cannot_be_recorded_is_owed(tmp_path):
    """What has happened and cannot be written is written by the next job that can be, before it, or when the registry
    is closed; a job before which it cannot be written changes nothing, and answers nothing.
    """
    for folder in (None, tmp_path):
        registry = Registry(folder)
        await registry.open()
        await registry.run(lambda one: jobs.write(one, api(0)))
        async with full_disk(registry):
            assert not await registry.record(lambda one: jobs.write(one, api(1, workers=(2, 3))))
            for job in (jobs.rows_of, jobs.defaults_of):
                with pytest.raises(StateFailed, match="full; nothing was changed"):
                    await registry.run(job)
        assert await registry.run(jobs.rows_of) == [api(1, workers=(2, 3))]
        assert await registry.record(lambda one: jobs.delete(one, [1]))
        assert await registry.run(jobs.rows_of) == []
        async with full_disk(registry):
            assert not await registry.record(lambda one: jobs.write(one, api(0)))
        await registry.close()
        with pytest.raises(StateFailed, match="closed"):
            await registry.record(jobs.rows_of)
    await registry.open()
    assert [row.version for row in await registry.run(jobs.rows_of)] == ["1.0"]
    await registry.close()


async def test_a_cancelled_job_is_over_when_its_waiter_goes_on(tmp_path):
    """A waiter that is cancelled while its job runs goes on only once the job is committed."""
    registry = Registry(tmp_path)
    await registry.open()
    running, go_on = threading.Event(), threading.Event()

    def slow(connection):
        running.set()
        go_on.wait(30)
        return jobs.write(connection, api(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.run, slow)
        await trio.to_thread.run_sync(running.wait)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert await registry.run(jobs.rows_of) == [api(1)]
    await registry.close()


async def test_one_server_one_folder(tmp_path):
    """A second registry is refused and told who holds the folder; after close it may have it."""
    first, second = Registry(tmp_path), Registry(tmp_path)
    await first.open()
    with pytest.raises(StartFailed, match=rf"state_dir: {tmp_path} is in use by process {os.getpid()}"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


async def test_a_file_that_cannot_be_used(tmp_path):
    """What is no database, and what a newer release wrote, is refused by name, and the lock is given back."""
    (tmp_path / FILE).write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StartFailed, match="cannot be used: file is not a database"):
        await Registry(tmp_path).open()
    (tmp_path / FILE).unlink()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StartFailed, match="newer release"):
        await Registry(tmp_path).open()
    (tmp_path / "file").write_text("")
    with pytest.raises(StartFailed, match="cannot be used: Not a directory"):
        await Registry(tmp_path / "file" / "state").open()


# --- the registrar -----------------------------------------------------------------------------------


class Slow(testing.ScriptedWorker):
    """Takes 10 s to load; one whose handler is bad does not load."""

    async def load(self, content):
        await trio.sleep(10)
        if "bad" in content["handler"]:
            raise LoadFailed("no module named 'bad'")


def serving():
    return testing.serve({"models": {"c": {"handler": ECHO}}}, workers=testing.ScriptedWorkers(Slow))


async def rows(app):
    found = await app.server.registry.run(jobs.rows_of)
    return {f"{row.name}/{row.version}": row for row in found}


async def test_a_registration_that_is_waited_for_is_pending(autojump_clock):
    """Until READY its row says that nobody was told; then that it is registered. A failed one leaves no row."""
    async with serving() as app:
        ask = app.server.registrar.ask
        good, bad = ask(Spawn(spec(), True)), ask(Spawn(replace(spec("n"), handler="bad:Bad"), True))
        await good.accepted.wait()
        await bad.accepted.wait()
        assert {(await rows(app))[key].state for key in ("m/1.0", "n/1.0")} == {RowState.PENDING}
        await good.done.wait()
        with pytest.raises(LoadFailed):
            await bad.done.wait()
        found = await rows(app)
        assert (found["m/1.0"].state, "n/1.0" in found) == (RowState.REGISTERED, False)


async def test_a_registration_that_is_not_waited_for_is_kept(autojump_clock):
    """Accepted is registered: the row says so while the model loads, and where it fails."""
    async with serving() as app:
        answer = app.server.registrar.ask(Spawn(replace(spec(), handler="bad:Bad")))
        await answer.accepted.wait()
        assert (await rows(app))["m/1.0"].state is RowState.REGISTERED
        with pytest.raises(LoadFailed):
            await answer.done.wait()
        assert (await rows(app))["m/1.0"].state is RowState.REGISTERED


async def test_a_registration_that_cannot_be_committed_in_the_end(autojump_clock):
    """READY, but not to be written: the caller is told, and the model is taken away, also where it is the default
    beside others; the first of those is the default then. Its version may be registered again.
    """
    async with serving() as app:
        ask = app.server.registrar.ask
        waited = ask(Spawn(spec(version="1"), True))
        await waited.accepted.wait()
        await ask(Spawn(spec(version="2"))).accepted.wait()
        await trio.sleep(5)
        async with full_disk(app.server.registry):
            with pytest.raises(StateFailed):
                await waited.done.wait()
            assert {model.spec.key: model.is_default for model in app.tree().models} == {"c/1.0": True, "m/2": True}
            assert app.tree().leaving == ()
        assert list(await rows(app)) == ["c/1.0", "m/2"]
        await ask(Spawn(spec(version="1"), True)).done.wait()
        assert list(await rows(app)) == ["c/1.0", "m/2", "m/1"]


async def test_what_follows_one_that_cannot_be_committed_stays(autojump_clock):
    """A registration that cannot be committed in the end, and was unregistered by then, does not take away the one that
    has taken its place.
    """
    async with serving() as app:
        ask, connection = app.server.registrar.ask, app.server.registry._connection
        carry_out = app.server.supervisor.carry_out

        async def slowly(message):
            reply = await carry_out(message)
            if isinstance(message, SetDefault):
                await trio.sleep(5)  # by then the first one is READY, and the changes below are before its end
            if isinstance(message, Spawn):
                connection.execute("PRAGMA query_only=ON")
            return reply

        waited = ask(Spawn(spec(), True))
        await trio.sleep(8)
        app.server.supervisor.carry_out = slowly
        ask(SetDefault("m", ""))
        ask(Stop("m", "", 0))
        new = ask(Spawn(spec()))
        with pytest.raises(StateFailed):
            await waited.done.wait()
        connection.execute("PRAGMA query_only=OFF")
        await new.done.wait()
        assert (await rows(app))["m/1.0"].state is RowState.REGISTERED
        assert "m/1.0" in {model.spec.key for model in app.tree().models}


async def test_every_change_is_in_the_rows(autojump_clock):
    """Scale, SetDefault and Stop are committed when accepted; a config's model leaves its text behind, to stay away."""
    async with serving() as app:
        ask = app.server.registrar.ask
        for version in ("1", "2"):
            await ask(Spawn(spec(version=version))).done.wait()
        await ask(Scale("m", "2", 2, 5)).accepted.wait()
        assert (await rows(app))["m/2"].workers == (2, 5)
        await ask(SetDefault("m", "2")).accepted.wait()
        assert await app.server.registry.run(jobs.defaults_of) == {"m": "2"}
        await ask(Stop("m", "1", 0)).done.wait()
        await ask(Stop("m", "2", 0)).done.wait()
        await ask(Stop("c", "", 0)).done.wait()
        assert [(key, row.state) for key, row in (await rows(app)).items()] == [("c/1.0", RowState.REMOVED)]
        assert await app.server.registry.run(jobs.defaults_of) == {}


async def test_what_is_refused_changes_no_row(autojump_clock):
    """Refused by the rules or by SQLite: rows, defaults and models are as before."""
    async with serving() as app:
        ask, before = app.server.registrar.ask, await rows(app)
        with pytest.raises(AlreadyRegistered):
            await ask(Spawn(spec("c"))).done.wait()
        for message in (Scale("x", "", 1, 1), Stop("c", "9", 0), SetDefault("c", "9")):
            with pytest.raises(NoSuchModel):
                await ask(message).done.wait()
        app.server.registry._connection.execute("PRAGMA query_only=ON")
        for message in (Spawn(spec()), Scale("c", "", 3, 3), Stop("c", "", 0), SetDefault("c", "1.0")):
            with pytest.raises(StateFailed, match="nothing was changed"):
                await ask(message).done.wait()
        app.server.registry._connection.execute("PRAGMA query_only=OFF")
        assert await rows(app) == before
        assert [(model.spec.key, model.spec.workers_min) for model in app.tree().models] == [("c/1.0", 1)]


async def test_registered_anew_while_the_old_one_drains(autojump_clock):
    """The end of the old registration does not take the row of the new one."""
    async with serving() as app:
        ask = app.server.registrar.ask
        loading = ask(Spawn(spec(), True))
        await loading.accepted.wait()
        gone = ask(Stop("m", "", 5))
        new = ask(Spawn(spec(), True))
        await gone.done.wait()
        await new.done.wait()
        assert loading.done.is_set
        assert (await rows(app))["m/1.0"].state is RowState.REGISTERED
        assert "m/1.0" in {model.spec.key for model in app.tree().models}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("spawn", "wait", "bad", "scale", "stop", "default", "sleep", "full")),
            st.sampled_from("12"),
            st.integers(0, 3),
        ),
        max_size=25,
    )
)
def test_rows_and_models_agree(changes):
    """After any changes at once, on a disk that is full for a while or not, what a start would spawn is what runs:
    versions, defaults, worker counts.
    """

    async def life():
        async with serving() as app:
            ask = app.server.registrar.ask
            for what, version, count in changes:
                match what:
                    case "sleep":
                        await trio.sleep(count * 4)
                    case "full":
                        async with full_disk(app.server.registry):
                            await trio.sleep(count * 4)
                    case "scale":
                        ask(Scale("m", version, count, 3))
                    case "stop":
                        ask(Stop("m", version, count))
                    case "default":
                        ask(SetDefault("m", version))
                    case _:
                        handler = "bad:Bad" if what == "bad" else ECHO
                        one = replace(spec(version=version), handler=handler, workers_min=count, workers_max=3)
                        ask(Spawn(one, unregister_on_failure=what != "spawn"))
            await trio.sleep(1000)
            registry = app.server.registry
            found = (await rows(app)).values()
            entries = {"c": entry("c")}
            kept = to_spawn(found, entries, await registry.run(jobs.defaults_of))
            runs = {model.spec.key: model for model in app.tree().models}
            assert {one.key: (one.workers_min, one.workers_max) for one in kept} == {
                key: (model.spec.workers_min, model.spec.workers_max) for key, model in runs.items()
            }
            firsts = {}
            for one in kept:
                firsts.setdefault(one.name, one.version)
            assert firsts == {model.spec.name: model.spec.version for model in runs.values() if model.is_default}

    trio.run(life, clock=trio.testing.MockClock(autojump_threshold=0))
