"""What a new config.toml makes of the registry of a server that runs: pure rules, against those of a start."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actorserve.actors import registry_jobs as jobs
from actorserve.actors.messages import ModelSpec
from actorserve.actors.registry import connect
from actorserve.actors.registry_rules import (
    LIVE,
    Entry,
    Row,
    RowState,
    default_of,
    newly_said,
    plan,
    replaced,
    without_text,
    write_spec,
)
from actorserve.actors.reload_rules import Apply, Forget, Mark, Remove, Retire, steps


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
    assert steps([Row(1, "m", "1", text="a")], {"m": new}) == [Apply(new, is_new=True, replaces=("1",))]
    assert steps([Row(1, "m", "1", text="a"), mine(2, "2")], {"m": new}) == [Apply(new, is_new=False, replaces=("1",))]


def test_another_version_while_one_is_under_way():
    """Every version that the entry had before goes, the one that is still loading and the one that serves."""
    rows = [Row(1, "m", "1", text="a"), Row(2, "m", "2", text="b")]
    new = entry(version="3", text="c")
    assert steps(rows, {"m": new}) == [Apply(new, is_new=True, replaces=("1", "2"))]
    assert steps(rows, {}) == [Remove("m", "1"), Remove("m", "2")]


def test_the_same_version_again_while_it_is_under_way():
    """What serves is unregistered once the version that is loading is there, and never before; where the API has
    unregistered that one, at once.
    """
    rows = [Row(1, "m", "1", text="a"), Row(2, "m", "2", text="b")]
    assert steps(rows, {"m": entry(version="2", text="b")}) == [Retire("m", "2", ("1",))]
    rows[1] = Row(2, "m", "2", RowState.REMOVED, text="b")
    assert steps(rows, {"m": entry(version="2", text="b")}) == [Remove("m", "1")]


def test_entries_of_one_name_while_one_is_under_way():
    """Versions go for the heir of their own entry; those whose entry is gone, for a new one that is the last."""
    rows = [Row(1, "m", "1", text="a"), Row(2, "m", "2", text="a", entry="x"), Row(3, "m", "3", text="a", entry="x")]
    assert steps(rows, {"m": entry(), "x": entry(version="3")}) == [Retire("m", "3", ("2",))]
    assert steps(rows, {"x": entry(version="3")}) == [Remove("m", "1"), Retire("m", "3", ("2",))]
    new = entry(version="4", text="b")
    assert steps(rows, {"x": new}) == [Apply(new, is_new=True, replaces=("2", "3"), called="x"), Remove("m", "1")]
    assert steps(rows, {"y": new}) == [Apply(new, is_new=True, replaces=("1", "2", "3"), called="y")]


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


def test_entries_of_one_name():
    """An entry that comes is registered, one that goes is unregistered, one that changes is rolled out: each alone."""
    rows = [Row(1, "m", "1", text="a"), Row(2, "m", "2", text="a", entry="x")]
    one, two = entry(), entry(version="2")
    assert steps(rows[:1], {"m": one, "x": two}) == [Apply(two, is_new=True, called="x")]
    assert steps(rows, {"m": one}) == [Remove("m", "2")]
    assert steps(rows, {"x": two}) == [Remove("m", "1")]
    changed = replace(two, text="b")
    assert steps(rows, {"m": one, "x": changed}) == [Apply(changed, is_new=False, called="x")]
    third = entry(version="3", text="b")
    assert steps(rows, {"m": one, "x": third}) == [Apply(third, is_new=True, replaces=("2",), called="x")]


def test_the_last_version_is_replaced():
    """A new entry takes the place of one that goes only where no other version of the model would serve meanwhile."""
    rows = [Row(1, "m", "1", text="a"), Row(2, "m", "2", text="a", entry="x")]
    two, new = entry(version="2"), entry(version="3", text="b")
    assert steps(rows[:1], {"y": new}) == [Apply(new, is_new=True, replaces=("1",), called="y")]
    assert steps(rows, {"x": two, "y": new}) == [Apply(new, is_new=True, called="y"), Remove("m", "1")]


def test_the_default_that_the_file_says():
    """It is marked, and no worker is touched; of a version that is applied, with that, once it is READY."""
    rows = [Row(1, "m", "1", text="a", is_default=True), Row(2, "m", "2", text="a", entry="x")]
    one, two = entry(), replace(entry(version="2"), is_default=True)
    moved = Mark(replace(rows[1], is_default=True), says=True, counts=True)
    assert steps(rows, {"m": one, "x": two}) == [moved]
    assert steps(rows, {"m": one, "x": entry(version="2")}) == [
        Mark(replace(rows[0], is_default=False), says=False, counts=False)
    ]
    new = replace(entry(version="3", text="b"), is_default=True)
    row = Row(0, "m", "3", text="b", entry="y", is_default=True)
    assert steps(rows, {"m": one, "x": entry(version="2"), "y": new}) == [
        Apply(new, is_new=True, called="y", mark=Mark(row, says=True, counts=True))
    ]


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


def entries_of(said, defaults):
    return {key: replace(entry(name, version, text), is_default=key in defaults) for key, name, version, text in said}


entries_drawn = st.builds(
    entries_of,
    st.lists(
        st.tuples(st.sampled_from("mnxyz"), st.sampled_from("mn"), st.sampled_from("123"), st.sampled_from("abc")),
        unique_by=(lambda one: one[0], lambda one: one[1:3]),
    ),
    st.sets(st.sampled_from("mnxyz"), max_size=1),
)
chosen_drawn = st.dictionaries(st.sampled_from("mn"), st.sampled_from("123"))


def carried_out(rows, asked):
    """The rows once every step is over."""
    after = {(row.name, row.version): row for row in rows}
    for step in asked:
        key = tuple(step.model.split("/"))
        match step:
            case Apply(entry=one, replaces=gone):
                assert step.is_new == (key not in after or after[key].state is not RowState.REGISTERED)
                known = after[key] if not step.is_new else Row(0, *key)
                after[key] = replace(known, spec=None, text=one.text, workers=None, entry=step.called)
                marked(after, step.mark)
                retired(after, step.name, gone)
            case Mark():
                marked(after, step)
            case Retire(versions=gone):
                retired(after, step.name, gone)
            case Remove():
                assert after.pop(key).state is RowState.REGISTERED
            case Forget():
                row = after.pop(key)
                if row.state is RowState.REGISTERED:
                    after[key] = without_text(row)
    return after


def retired(after, name, versions):
    for version in versions:
        del after[name, version]


def marked(after, mark):
    for key, row in after.items() if mark is not None else ():
        if key == (mark.row.name, mark.row.version):
            is_default = row.is_default if mark.says is None else mark.says
            after[key] = replace(row, entry=mark.row.entry, is_default=is_default)
        elif mark.says and key[0] == mark.row.name:
            after[key] = replace(row, is_default=False)


@given(rows_drawn, entries_drawn, entries_drawn)
def test_a_reload_comes_to_what_a_start_comes_to(drawn, first, second):
    """Whatever the API has done since: reloading a file, and restarting with it, run the same models; reloading it
    again asks for nothing.
    """
    connection = connect(":memory:")
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
@example(  # what the API has removed does not stay: the one that goes has an heir of another entry
    [Row(0, "n", "1", text="a"), Row(0, "n", "2", RowState.REMOVED, text="a")],
    entries_of([("m", "n", "3", "a"), ("n", "n", "2", "a")], set()),
    {},
)
def test_the_default_moves_with_its_entry(drawn, said, chosen):
    """At a start the default is what the file says anew; else a model whose entry has another version keeps that as its
    default, if the old one was; else it is what it was, as long as it is there.
    """
    connection = connect(":memory:")
    for row in drawn:
        jobs.write(connection, row)
    for name, version in chosen.items():
        jobs.set_default(connection, name, version)
    jobs.delete(connection, ())
    before, choice = jobs.rows_of(connection), jobs.defaults_of(connection)
    planned = plan(before, said)
    _, after, chosen_now = jobs.start(connection, said)
    connection.close()
    said_by = {(one.spec.name, one.spec.version): key for key, one in said.items()}
    for name in "mn":
        own = [row for row in before if row.name == name]
        left = [row for row in after if row.name == name]
        old = next((row for row in own if row.version == default_of(own, choice.get(name))), None)
        now = default_of(left, chosen_now.get(name))
        if old is None or not left:
            continue
        heirs = [key[1] for key, gone in replaced(before, planned).items() if key[0] == name and old.version in gone]
        new = newly_said(before, planned).get(name)
        if any(row.version == new and row.state is RowState.REGISTERED for row in left):
            assert now == new
        elif heirs:
            assert [now] == heirs
            assert old.said_by == said_by[name, now] or not any(row in before and row.state in LIVE for row in left)
        elif any(row.id == old.id for row in left) and not any(row.is_default for row in (*own, *left)):
            assert now == old.version
