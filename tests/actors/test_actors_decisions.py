"""The two pure decisions: who goes into a batch, and what happens when a child ends."""

# ruff: noqa: SIM300  # expected == actual

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorserve.actors import batching, supervision
from actorserve.actors.batching import WAIT, Take, WaitUntil, stream_share
from actorserve.actors.messages import Crashed, Drained, Finished, Killed, Restart
from actorserve.actors.overload import DrainRate, who_gives_way
from actorserve.actors.supervision import GiveUp, Gone, RestartAfter, backoff


def decide(**given):
    defaults = {
        "now": 100.0,
        "waiting": 0,
        "oldest_arrival": 100.0,
        "in_hand": 0,
        "others_idle": False,
        "batch_size": 4,
        "max_delay_s": 0.0,
    }
    return batching.decide(**{**defaults, **given})


HEAVY = {"waiting": 3, "weight": 100, "max_weight": 100}
TABLE = [
    ("nothing waits", {}, WAIT),
    ("idle, no delay: what is there", {"waiting": 3}, Take(3)),
    ("idle, no delay: at most a batch", {"waiting": 9}, Take(4)),
    ("idle, delay: not before the oldest is due", {"waiting": 3, "max_delay_s": 5.0}, WaitUntil(105.0)),
    ("idle, delay: counted from arrival", {"waiting": 3, "oldest_arrival": 97.0, "max_delay_s": 5.0}, WaitUntil(102.0)),
    ("idle, delay: due", {"waiting": 3, "oldest_arrival": 95.0, "max_delay_s": 5.0}, Take(3)),
    ("idle, delay: a full batch waits for nobody", {"waiting": 4, "max_delay_s": 5.0}, Take(4)),
    ("busy: not for less than a full one", {"waiting": 3, "in_hand": 1}, WAIT),
    ("busy: no delay makes it take less", {"waiting": 3, "in_hand": 1, "oldest_arrival": 0.0}, WAIT),
    ("busy: a full one ahead of time", {"waiting": 5, "in_hand": 1}, Take(4)),
    ("busy: not while another is idle", {"waiting": 5, "in_hand": 1, "others_idle": True}, WAIT),
    ("one ahead already: no third", {"waiting": 50, "in_hand": 2}, WAIT),
    ("delay: a batch that is full by weight waits for nobody", {**HEAVY, "max_delay_s": 5.0}, Take(3)),
    ("busy: a batch that is full by weight ahead of time", {**HEAVY, "in_hand": 1}, Take(3)),
    ("busy: not while it is light", {**HEAVY, "weight": 99, "in_hand": 1}, WAIT),
    ("no limit of weight", {**HEAVY, "max_weight": 0, "max_delay_s": 5.0}, WaitUntil(105.0)),
]


@pytest.mark.parametrize(("given_", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_decide(given_, expected):
    """The table of batching's rules."""
    assert expected == decide(**given_)


@given(
    now=st.floats(0, 1e6),
    waiting=st.integers(0, 100),
    age=st.floats(0, 100),
    in_hand=st.integers(0, 4),
    others_idle=st.booleans(),
    batch_size=st.integers(1, 40),
    max_delay_s=st.floats(0, 100),
)
def test_decide_keeps_its_rules(*, now, waiting, age, in_hand, others_idle, batch_size, max_delay_s):
    """Never above batch_size or what waits; a prefetch is full, single, never while another is idle; no past alarm."""
    arrival = now - age
    decision = batching.decide(
        now=now,
        waiting=waiting,
        oldest_arrival=arrival,
        in_hand=in_hand,
        others_idle=others_idle,
        batch_size=batch_size,
        max_delay_s=max_delay_s,
    )
    match decision:
        case Take(count):
            assert 1 <= count <= min(batch_size, waiting)
            if in_hand:
                assert (1, batch_size, False) == (in_hand, count, others_idle)
        case WaitUntil(time):
            assert (0, arrival + max_delay_s) == (in_hand, time)
            assert time > now
            assert 0 < waiting < batch_size
        case _:
            assert not waiting or in_hand


@given(st.integers(0, 1000), st.integers(0, 100), st.integers(0, 50))
def test_stream_share(waiting, room, idle_others):
    """A replica takes its share of the streams, never above its room, and the shares cover what waits."""
    share = stream_share(waiting=waiting, room=room, idle_others=idle_others)

    assert 0 <= share <= room
    assert share == room or share * (1 + idle_others) >= waiting


WAYS = [
    ("alone: nobody else to take from", {"a": 4}, "a", 4, None),
    ("a newcomer takes from who has all", {"a": 4}, "b", 4, "a"),
    ("below its share", {"a": 3, "b": 1}, "b", 4, "a"),
    ("at its share", {"a": 2, "b": 2}, "b", 4, None),
    ("it would rise above its share: no to and fro", {"a": 3, "b": 2}, "b", 5, None),
    ("who has most gives way", {"a": 3, "b": 5, "c": 1}, "c", 9, "b"),
    ("more tenants than places: first come", {"a": 1, "b": 1}, "c", 2, None),
]


@pytest.mark.parametrize(("waiting", "who", "limit", "way"), [row[1:] for row in WAYS], ids=[row[0] for row in WAYS])
def test_who_gives_way(waiting, who, limit, way):
    """A place goes from a tenant above queue_size / tenants to one that stays within it."""
    assert way == who_gives_way(waiting, who, limit)


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 30), min_size=1), st.integers(0, 9))
def test_a_place_never_comes_back(waiting, newcomer):
    """Who loses was above the share, who gets is within it; and the loser could not take the place back at once."""
    limit = sum(waiting.values())
    loser = who_gives_way(waiting, newcomer, limit)
    if loser is None:
        return
    after = {**waiting, newcomer: waiting.get(newcomer, 0) + 1}
    share = limit / len(after)
    assert waiting[loser] > share >= after[newcomer]
    after[loser] -= 1
    assert loser != newcomer
    assert newcomer != who_gives_way({name: many for name, many in after.items() if many}, loser, limit)


def test_retry_after_is_the_queue_at_the_measured_rate():
    """4 a second with 100 waiting: 25 s; and the longer nothing is taken, the longer it takes."""
    rate = DrainRate()
    rate.begin(0.0)
    rate.took(8, 92, 1.0)  # nobody knows since when this one could have been taken
    for second in range(1, 40):
        rate.took(8, 92, 1.0 + 2.0 * second)

    assert (25.0, 0.1) == (pytest.approx(rate.retry_after(100, 79.0)), rate.retry_after(0, 79.0))
    assert 25.0 < rate.retry_after(100, 82.0) < 60.0 == rate.retry_after(100, 10_000.0)


def test_what_goes_straight_through_says_nothing_of_the_rate():
    """A worker that was idle a thousand times is no faster for it: only a mailbox that stays filled is measured."""
    rate = DrainRate()
    for n in range(1000):
        rate.begin(n)
        rate.took(1, 0, n + 0.0001)
    rate.begin(1000.0)
    rate.took(1, 9, 1000.0)
    rate.took(1, 8, 1005.0)

    assert 40.0 == pytest.approx(rate.retry_after(8, 1005.0))


def test_the_rate_forgets():
    """Two minutes at a new speed is what counts, whatever went before."""
    rate = DrainRate()
    for n in range(1000):
        rate.took(10, 9, n / 10)
    for n in range(120):
        rate.took(1, 9, 100.0 + n)

    assert 9.0 <= rate.retry_after(10, 219.0) <= 10.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1e5))), st.integers(0, 10**6))
def test_retry_after_is_bounded(takes, waiting):
    """Between 0.1 s and a minute, whatever was measured."""
    rate, now = DrainRate(), 0.0
    for count, left, passed in takes:
        now += passed
        rate.took(count, left, now)

    assert 0.1 <= rate.retry_after(waiting, now + 1) <= 60.0


def judge(exit, **given):
    defaults = {
        "restart": Restart.TRANSIENT,
        "stopping": False,
        "proven": False,
        "failures": 0,
        "max_restarts": 5,
        "luck": 0.5,
    }
    return supervision.judge(exit, **{**defaults, **given})


CRASH = Crashed("boom")
ENDS = [
    ("a stop wins over a crash", CRASH, {"stopping": True}, Gone()),
    ("a stop wins over permanent", Finished(), {"stopping": True, "restart": Restart.PERMANENT}, Gone()),
    ("transient: a good end is the end", Finished(), {}, Gone()),
    ("transient: drained is the end", Drained(), {}, Gone()),
    ("transient: killed is the end", Killed(), {}, Gone()),
    ("temporary: a good end is the end", Finished(), {"restart": Restart.TEMPORARY}, Gone()),
    (
        "permanent: again whatever its end",
        Finished(),
        {"restart": Restart.PERMANENT, "proven": True, "failures": 3},
        RestartAfter(0.0, 0),
    ),
    (
        "permanent: one that ends before it has answered waits",
        Finished(),
        {"restart": Restart.PERMANENT, "failures": 1},
        RestartAfter(0.2, 2),
    ),
    (
        "permanent: not for ever",
        Finished(),
        {"restart": Restart.PERMANENT, "failures": 5},
        GiveUp("6 failures in a row, the last: it ended by itself", 6),
    ),
    ("a stop wins over temporary", CRASH, {"stopping": True, "restart": Restart.TEMPORARY}, Gone()),
    ("temporary: a crash is FAILED", CRASH, {"restart": Restart.TEMPORARY}, GiveUp("boom", 1)),
    ("what no restart can mend: at once", Crashed("no file", permanent=True), {}, GiveUp("no file", 1)),
    ("first failure", CRASH, {}, RestartAfter(0.1, 1)),
    ("third failure", CRASH, {"failures": 2}, RestartAfter(0.4, 3)),
    ("the last that is allowed", CRASH, {"failures": 4}, RestartAfter(1.6, 5)),
    ("one more", CRASH, {"failures": 5}, GiveUp("6 failures in a row, the last: boom", 6)),
    ("no restarts allowed", CRASH, {"max_restarts": 0}, GiveUp("1 failures in a row, the last: boom", 1)),
    ("an answer resets the count", CRASH, {"failures": 5, "proven": True}, RestartAfter(0.1, 0)),
]


@pytest.mark.parametrize(("exit", "given_", "expected"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_judge(exit, given_, expected):
    """The table of supervision's rules."""
    assert expected == judge(exit, **given_)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_bounds(failures, luck):
    """The backoff doubles from 0.1 s to 30 s, 20 % more or less."""
    nominal = min(30.0, 0.1 * 2 ** max(0, min(failures, 20) - 1))

    assert 0.8 * nominal - 1e-9 <= backoff(failures, luck) <= 1.2 * nominal + 1e-9


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 6))
def test_gives_up_exactly_above_max_restarts(answers, max_restarts):
    """FAILED comes with failure number max_restarts + 1 in a row, no sooner, whatever answers came between."""
    failures = in_a_row = 0
    for answered in answers:
        in_a_row = 0 if answered else in_a_row + 1
        verdict = judge(CRASH, failures=failures, proven=answered, max_restarts=max_restarts)
        assert (in_a_row > max_restarts) == isinstance(verdict, GiveUp)
        if isinstance(verdict, GiveUp):
            return
        failures = verdict.failures
