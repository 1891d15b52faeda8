"""Which replica takes a call for a multiplexed model, decided purely."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from actorserve.actors.affinity import CLAIM_S, MODEL_ID, NEVER, WAIT_S, Affinity
from actorserve.actors.leases import Leases, Turn


def envelope(model="", arrival=0.0):
    return SimpleNamespace(message=SimpleNamespace(metadata={MODEL_ID: model} if model else {}), arrival=arrival)


def queue(*models, arrival=0.0):
    return [envelope(model, arrival) for model in models]


def models_of(chosen):
    return [one.message.metadata.get(MODEL_ID, "") for one in chosen.taken]


def test_what_another_holds_is_left_to_it():
    """A replica takes what it holds, what nobody holds and what names none; the holder of the rest is told to look."""
    affinity = Affinity()
    affinity.hold("one", ["a"], [], 0)
    affinity.hold("two", ["b"], [], 0)
    chosen = affinity.choose(queue("a", "b", "", "c"), 9, "one", 0.5)
    assert models_of(chosen) == ["a", "", "c"]
    assert chosen.others == ["two"]
    assert chosen.again == WAIT_S


def test_not_for_ever():
    """What has waited for its holder long enough is anybody's; what its holder still loads is not."""
    affinity = Affinity()
    affinity.hold("one", [], [], 0)
    affinity.hold("two", ["held"], ["coming"], 0)
    chosen = affinity.choose(queue("held", "coming"), 9, "one", WAIT_S)
    assert models_of(chosen) == ["held"]
    assert chosen.again == NEVER


def test_a_claim():
    """Who takes a call for a model has it from then on, whatever it says of itself before it has seen the call."""
    affinity = Affinity()
    affinity.hold("one", [], [], 0)
    affinity.hold("two", [], [], 0)
    assert models_of(affinity.choose(queue("a"), 1, "one", 0)) == ["a"]
    affinity.opened("one", envelope("a"), 7)
    affinity.hold("one", [], [], 0.1, seen=6)
    assert models_of(affinity.choose(queue("a"), 1, "two", 0.2)) == []
    affinity.hold("one", [], [], 0.3, seen=7)
    assert models_of(affinity.choose(queue("a", arrival=0.3), 1, "two", 0.3)) == ["a"]


def test_a_claim_is_forgotten():
    """A call that never reached its worker does not keep its model from others for ever."""
    affinity = Affinity()
    affinity.hold("one", [], [], 0)
    affinity.choose(queue("a"), 1, "one", 0)
    affinity.hold("one", [], [], CLAIM_S, seen=9)
    assert models_of(affinity.choose(queue("a", arrival=CLAIM_S), 1, "two", CLAIM_S)) == ["a"]


def test_who_has_gone_holds_nothing():
    """A replica that takes no more keeps nothing from the others."""
    affinity = Affinity()
    affinity.hold("one", ["a"], ["b"], 0)
    affinity.forget("one")
    assert models_of(affinity.choose(queue("a", "b"), 9, "two", 0)) == ["a", "b"]


@given(st.lists(st.sampled_from(["", "a", "b", "c"])), st.sets(st.sampled_from("abc")), st.integers(0, 5))
def test_order_and_count(models, held, count):
    """Never more than there is room for, and always in order of arrival."""
    affinity = Affinity()
    affinity.hold("one", held, [], 0)
    affinity.hold("two", set("abc") - held, [], 0)
    waiting = queue(*models)
    taken = affinity.choose(waiting, count, "one", 0).taken
    assert len(taken) <= count
    expected = [one for one in waiting if one.message.metadata.get(MODEL_ID, "") in {"", *held}]
    assert taken == expected[:count]


STEPS = st.lists(
    st.tuples(st.sampled_from("ABC"), st.lists(st.tuples(st.sampled_from("xy"), st.integers(1, 4)), max_size=4)),
    max_size=30,
)


@given(STEPS)
def test_turns_to_load(steps):
    """Whoever says and ends whatever: of those who want to load a model exactly one has the turn, nobody loses it to
    another, it goes by who asked first, and it is given once.
    """
    leases, wanted, having = Leases(), {}, {}
    asked = []
    for who, wants in [*steps, *((who, None) for who in "ABC")]:
        begun = leases.gone(who) if wants is None else leases.say(who, wants)
        own = {Turn(who, *one) for one in wants or ()}
        wanted[who] = own
        asked = [turn for turn in asked if turn.who != who or turn in own]
        asked += [turn for turn in dict.fromkeys(Turn(who, *one) for one in wants or ()) if turn not in asked]
        having = {model: turn for model, turn in having.items() if turn in wanted[turn.who]}
        for turn in begun:
            assert turn.model not in having
            having[turn.model] = turn
        assert having == {model: first for model in "xy" for first in [t for t in asked if t.model == model][:1]}
        assert len(leases) == len(asked)
    assert len(leases) == 0
