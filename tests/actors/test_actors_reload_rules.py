"""What a new config.toml makes of the registry of a server that runs: pure rules, against those of a start."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorserve.actors import registry as jobs
from actorserve.actors.messages import ModelSpec
from actorserve.actors.registry_rules import Entry, Row, RowState, default_of, plan, write_spec
from actorserve.actors.reload_rules import Apply, Forget, Remove, steps


def spec(name="m", version="1"):
    return ModelSpec(name, version, "a:B", Path("/folder"))


def entry(name="m", version="1", text="a"):
    return Entry(spec(name, version), text)


def mine(number, version="1", state=RowState.REGISTERED, name="m", **given_):
    return Row(number, name, version, state, write_spec(spec(name, version)), **given_)


def test_nothing_changed():
    """The same entries ask for nothing, whatever the API has made of them."""
    for row in (
        Row(1, "m", "1", text="a", workers=(3, 3)),
        Row(1, "m", "1", RowState.REMOVED, text="a"),
        Row(1, "m", "1", RowState.LEAVING, text="a"),
        mine(1, text="a"),
        mine(1, state=RowState.PENDING, text="a"),
    ):
        assert steps([row, mine(2, "2", RowState.PENDING)], {"m": entry()}) == []


def test_new_changed_removed():
    """A new entry is registered, a changed one is rolled out, a removed one is unregistered."""
    rows = [Row(1, "m", "1", text="a"), Row(2, "n", "1", text="a"), Row(3, "o", "1", text="a")]
    asked = {"m": entry(text="b"), "n": entry("n"), "p": entry("p")}
    assert steps(rows, asked) == [
        Apply(asked["m"], is_new=False),
        Apply(asked["p"], is_new=True),
        Remove("o", "1"),
    ]


def test_another_version():
    """The new version is registered before the old one goes; one that the API has registered already is rolled out."""
    new = entry(version="2", text="b")
    assert steps([Row(1, "m", "1", text="a")], {"m": new}) == [Apply(new, is_new=True, replaces="1")]
    assert steps([Row(1, "m", "1", text="a"), mine(2, "2")], {"m": new}) == [Apply(new, is_new=False, replaces="1")]


@pytest.mark.parametrize("state", [RowState.REMOVED, RowState.LEAVING])
def test_what_was_unregistered_comes_back_with_its_text(state):
    """The API's unregistration holds until the entry's text changes."""
    rows = [Row(1, "m", "1", state, text="a")]
    assert steps(rows, {"m": entry(text="b")}) == [Apply(entry(text="b"), is_new=True)]
    assert steps(rows, {}) == [Forget("m", "1")]


def test_the_api_keeps_its_own():
    """What the API registered in an entry's place stays when the entry goes, and is the entry's when its text changes;
    what it registered beside it is not touched.
    """
    rows = [mine(1, text="a"), mine(2, "2"), mine(3, "3", RowState.PENDING)]
    assert steps(rows, {}) == [Forget("m", "1")]
    assert steps(rows, {"m": entry(text="b")}) == [Apply(entry(text="b"), is_new=False)]


kinds = st.sampled_from(
    [
        *((RowState.REGISTERED, own, text) for own, text in ((True, None), (True, "a"), (True, "b"))),
        *((state, False, text) for state in (RowState.REGISTERED, RowState.REMOVED) for text in "ab"),
    ]
)
rows_drawn = st.lists(
    st.builds(
        lambda name, version, kind: Row(
            0, name, version, kind[0], write_spec(spec(name, version)) if kind[1] else None, kind[2]
        ),
        st.sampled_from("mn"),
        st.sampled_from("123"),
        kinds,
    ),
    unique_by=lambda row: (row.name, row.version),
)
entries_drawn = st.dictionaries(st.sampled_from("mn"), st.tuples(st.sampled_from("123"), st.sampled_from("abc"))).map(
    lambda said: {name: entry(name, version, text) for name, (version, text) in said.items()}
)
chosen_drawn = st.dictionaries(st.sampled_from("mn"), st.sampled_from("123"))


def carried_out(rows, asked):
    """The rows once every step is over."""
    after = {(row.name, row.version): row for row in rows}
    for step in asked:
        key = tuple(step.model.split("/"))
        match step:
            case Apply(entry=one, replaces=old):
                assert step.is_new == (key not in after or after[key].state is not RowState.REGISTERED)
                after[key] = Row(0, *key, text=one.text)
                if old is not None:
                    del after[key[0], old]
            case Remove():
                assert after.pop(key).state is RowState.REGISTERED
            case Forget():
                row = after.pop(key)
                if row.state is RowState.REGISTERED:
                    after[key] = replace(row, text=None)
    return after


@given(rows_drawn, entries_drawn, entries_drawn)
def test_a_reload_comes_to_what_a_start_comes_to(drawn, first, second):
    """Whatever the API has done since: reloading a file, and restarting with it, run the same models; reloading it
    again asks for nothing.
    """
    connection = jobs._connect(":memory:")
    for row in drawn:
        jobs.write(connection, row)
    _, rows, _ = jobs.start(connection, first)
    reloaded = carried_out(rows, steps(rows, second))
    _, started, _ = jobs.start(connection, second)
    connection.close()
    assert {key: replace(row, id=0) for key, row in reloaded.items()} == {
        (row.name, row.version): replace(row, id=0) for row in started
    }
    assert steps(reloaded.values(), second) == []


@given(rows_drawn, entries_drawn, chosen_drawn)
def test_the_default_moves_with_its_entry(drawn, said, chosen):
    """At a start a model whose entry has another version keeps it as its default, if the old one was; else the default
    is what it was, as long as it is there.
    """
    connection = jobs._connect(":memory:")
    for row in drawn:
        jobs.write(connection, row)
    for name, version in chosen.items():
        jobs.set_default(connection, name, version)
    jobs.delete(connection, ())
    before, choice = jobs.rows_of(connection), jobs.defaults_of(connection)
    planned = plan(before, said)
    _, after, chosen_now = jobs.start(connection, said)
    connection.close()
    for name in "mn":
        own = [row for row in before if row.name == name]
        left = [row for row in after if row.name == name]
        old = next((row for row in own if row.version == default_of(own, choice.get(name))), None)
        now = default_of(left, chosen_now.get(name))
        if old is None or not left:
            continue
        moved = old.id in planned.delete and name in said and said[name].spec.version != old.version
        applied = any(row.name == name and row.text is not None for row in planned.write)
        if moved and applied:
            assert now == said[name].spec.version
        elif any(row.id == old.id for row in left):
            assert now == old.version
