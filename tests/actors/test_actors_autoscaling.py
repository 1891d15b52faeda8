"""Autoscaling: the decision by its properties, and what it does to replicas in virtual time with scripted workers."""

# ruff: noqa: SIM300  # expected == actual

import math
from contextlib import suppress

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hypothesis import given
from hypothesis import strategies as st
from universe import universe, until

from actorserve import testing
from actorserve.actors.autoscaler import policy_of
from actorserve.actors.autoscaling import Average, Decision, Held, Load, Policy, decide, desired, turned_away
from actorserve.actors.messages import Infer, OpenSequence, Scale, State
from actorserve.config_defaults import Workers
from actorserve.errors import ActorGone, Expired, LoadFailed, NoWorkers, Overloaded
from actorserve.proto.grpc_health_v1_pb2 import HealthCheckResponse
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.scripted import ScriptedWorker, ScriptedWorkers

# --- the decision -----------------------------------------------------------------------------------

DELAYS = st.sampled_from([0.0, 0.5, 3.0, 10.0])
FACTORS = st.sampled_from([0.1, 0.5, 1.0, 1.5, 7.0])


@st.composite
def policies(draw, least=0, *, factors=False, to_zero=False):
    """Any policy that a configuration allows; `factors`: also with Ray's factors and average."""
    low = draw(st.integers(least, 4))
    return Policy(
        min_replicas=low,
        max_replicas=low + draw(st.integers(0, 5)),
        target_ongoing_requests=draw(st.sampled_from([0.5, 1.0, 2.0, 7.0])),
        upscale_delay_s=draw(DELAYS),
        downscale_delay_s=draw(DELAYS),
        downscale_to_zero_delay_s=draw(st.none() | DELAYS) if to_zero else None,
        upscaling_factor=draw(FACTORS) if factors else 1.0,
        downscaling_factor=draw(FACTORS) if factors else 1.0,
        look_back_period_s=draw(st.sampled_from([0.0, 3.0])) if factors else 0.0,
    )


ANY = policies(factors=True, to_zero=True)
LOADS = st.builds(Load, ongoing=st.integers(0, 60), replicas=st.integers(0, 12), failed=st.integers(0, 3))
HELD = st.none() | st.builds(Held, since=st.floats(0, 100), wanted=st.integers(0, 12))
LOOKS = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 4.0]), st.integers(0, 30)), max_size=60)


def play(policy, looks, replicas):
    """Every look's (time, ongoing, replicas before, replicas after), each decision carried out at once."""
    now, held, history = 0.0, None, []
    for wait, ongoing in looks:
        now += wait
        decision = decide(policy, Load(ongoing, replicas), held, now)
        history.append((now, ongoing, replicas, decision.target))
        replicas, held = decision.target, decision.held
    return history


@given(ANY, LOADS, HELD, st.floats(100, 200))
def test_the_target_is_within_the_bounds(policy, load, held, now):
    """Whatever is asked, held or FAILED: never more than max, never fewer than min, the FAILED counted in both."""
    target = decide(policy, load, held, now).target
    assert 0 <= target <= policy.max_replicas
    if load.replicas or not load.failed:
        assert target + load.failed >= policy.min_replicas or target == policy.max_replicas


@given(ANY, st.tuples(st.integers(0, 60), st.integers(0, 60)), st.integers(0, 12), HELD, st.floats(100, 200))
def test_more_ongoing_never_means_fewer(policy, ongoing, replicas, held, now):
    """All else equal, more requests ongoing never lead to fewer replicas."""
    fewer = decide(policy, Load(min(ongoing), replicas), held, now).target
    more = decide(policy, Load(max(ongoing), replicas), held, now).target
    assert fewer <= more


def lasted(history, index, since, holds):
    """For how long something held without a break up to a look, looking back no further than another."""
    first = index
    while first > since and holds(history[first - 1]):
        first -= 1
    return history[index][0] - history[first][0]


@given(policies(), LOOKS, st.integers(0, 5))
def test_no_change_is_faster_than_its_delay(policy, looks, more):
    """Replicas are added only after they were wanted all through upscale_delay_s, and taken only after they were not
    wanted all through downscale_delay_s, each counted from the last change at the earliest; but from zero at once.
    """

    def wanted(look):
        count = math.ceil(look[1] / policy.target_ongoing_requests)
        return min(max(count, policy.min_replicas), policy.max_replicas)

    history = play(policy, looks, min(policy.min_replicas + more, policy.max_replicas))
    since = 0
    for index, (_, _, before, after) in enumerate(history):
        if before == 0 and after:
            assert after == 1
        elif after > before:
            assert wanted(history[index]) >= after
            assert lasted(history, index, since, lambda look, n=after: wanted(look) >= n) >= policy.upscale_delay_s
        elif after < before:
            assert wanted(history[index]) <= after
            assert lasted(history, index, since, lambda look, n=after: wanted(look) <= n) >= policy.downscale_delay_s
        if after != before:
            since = index + 1


@given(policies(to_zero=True), LOOKS, st.integers(1, 9))
def test_zero_is_reached_only_where_min_is_zero(policy, looks, replicas):
    """A model that may have replicas goes to none only from one, and only if min is 0 and nothing at all was ongoing
    for downscale_to_zero_delay_s, which is downscale_delay_s where it is not given.
    """
    history = play(policy, looks, replicas)
    for index, (_, ongoing, before, after) in enumerate(history):
        if before and not after and policy.max_replicas:
            assert policy.min_replicas == 0
            assert not ongoing
            assert before == 1
            given = policy.downscale_to_zero_delay_s
            delay = policy.downscale_delay_s if given is None else given
            assert lasted(history, index, 0, lambda look: not look[1]) >= delay


@given(policies(), st.integers(0, 60), st.integers(0, 12))
def test_a_steady_load_settles(policy, ongoing, replicas):
    """Under a load that does not change, the replicas become what the load wants, and stay that many."""
    history = play(policy, [(1.0, ongoing)] * 60, replicas)
    wanted = math.ceil(ongoing / policy.target_ongoing_requests)
    assert {min(max(wanted, policy.min_replicas), policy.max_replicas)} == {after for *_, after in history[-20:]}


@given(ANY, LOADS, HELD, st.floats(100, 200))
def test_every_change_has_a_reason(policy, load, held, now):
    """A decision says why exactly if it changes something."""
    decision = decide(policy, load, held, now)
    assert bool(decision.reason) == (decision.target != load.replicas)


@given(ANY, st.integers(0, 60), st.integers(1, 12))
def test_rays_formula(policy, ongoing, replicas):
    """With factors of 1: replicas x ongoing / (target x replicas), rounded up. Others go a part of that way, never the
    other way, and never stand still short of it.
    """
    exact = math.ceil(replicas * (ongoing / (policy.target_ongoing_requests * replicas)) - 1e-9)
    exact = max(exact, 0 if replicas == 1 else 1)
    wanted = desired(policy, ongoing, replicas)
    factor = policy.upscaling_factor if exact > replicas else policy.downscaling_factor
    if factor == 1:
        assert exact == wanted
    elif factor < 1:
        assert min(exact, replicas) <= wanted <= max(exact, replicas)
    assert (wanted > replicas) == (exact > replicas)
    assert (wanted < replicas) == (exact < replicas)


@pytest.mark.parametrize(
    ("ongoing", "replicas", "factors", "wanted"),
    [
        (20, 2, (1, 1), 10),
        (20, 2, (0.5, 1), 6),  # 2 + (10 - 2) / 2
        (20, 2, (2, 1), 18),
        (21, 2, (0.5, 1), 7),  # rounded up
        (4, 10, (1, 0.5), 6),
        (4, 10, (1, 0.01), 9),  # one at the least
        (0, 10, (1, 1), 1),  # the last goes by itself
        (0, 1, (1, 1), 0),
        (9, 0, (1, 1), 1),
        (9, 0, (3, 1), 3),
    ],
)
def test_factors(ongoing, replicas, factors, wanted):
    """A factor is the part of the way from what there is to what is wanted; from zero it is how many begin."""
    assert wanted == desired(
        Policy(0, 100, 2.0, upscaling_factor=factors[0], downscaling_factor=factors[1]), ongoing, replicas
    )


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 4.0]), st.integers(0, 30)), min_size=1, max_size=60))
def test_the_average(looks):
    """What each look found counts for the time since the look before, as far as that lies within the period."""
    average, now, spans = Average(), 50.0, []
    for wait, ongoing in looks:
        began, now = now, now + wait
        spans.append((began if spans else now, now, ongoing))
        found = average.add(ongoing, now, 5.0)
        parts = [(max(end, now - 5) - max(start, now - 5), value) for start, end, value in spans]
        total = sum(length for length, _ in parts)
        expected = sum(length * value for length, value in parts) / total if total else ongoing
        assert found == pytest.approx(expected)
        assert len(average._spans) <= len(looks)
    assert average.add(3, now, 0.0) == 3


def test_with_an_average_the_last_wish_counts():
    """With look_back_period_s the delay still has to pass, and then what the average wants is done, as in Ray."""
    policy = Policy(1, 9, upscale_delay_s=30, look_back_period_s=30)
    held = decide(policy, Load(2.5, 1), None, 0).held
    held = decide(policy, Load(11, 1), held, 29).held
    assert Decision(6, reason="12 ongoing at 2 a replica: 6 wanted for 30.0 s (upscale_delay_s = 30)") == decide(
        policy, Load(12, 1), held, 30
    )
    assert decide(policy, Load(2, 1), held, 30) == Decision(1)


def test_the_least_that_was_wanted_counts():
    """A peak inside the delay starts no more than what was wanted all the time."""
    policy = Policy(1, 9, upscale_delay_s=30)
    first = decide(policy, Load(6, 1), None, 0)
    peak = decide(policy, Load(18, 1), first.held, 20)
    assert [Decision(1, Held(0, 3)), Decision(1, Held(0, 3))] == [first, peak]
    reason = "18 ongoing at 2 a replica: at least 3 wanted for 30.0 s (upscale_delay_s = 30)"
    assert Decision(3, reason=reason) == decide(policy, Load(18, 1), peak.held, 30)


def test_the_most_that_was_wanted_counts():
    """A lull inside the delay ends no more than what was unwanted all the time."""
    policy = Policy(0, 9, downscale_delay_s=600)
    first = decide(policy, Load(6, 5), None, 0)
    lull = decide(policy, Load(0, 5), first.held, 599)
    assert [Decision(5, Held(0, 3)), Decision(5, Held(0, 3))] == [first, lull]
    assert 3 == decide(policy, Load(0, 5), lull.held, 600).target


def test_a_lull_starts_the_delay_anew():
    """One look at which what there is suffices, and the delay counts from the next look at which it does not."""
    policy = Policy(1, 9, upscale_delay_s=30)
    held = decide(policy, Load(6, 1), None, 0).held
    held = decide(policy, Load(2, 1), held, 20).held
    assert held is None
    assert decide(policy, Load(6, 1), held, 31) == Decision(1, Held(31, 3))


@pytest.mark.parametrize(
    ("policy", "load", "target"),
    [
        (Policy(1, 4), Load(40, 0, failed=1), 0),  # given up: nothing is tried
        (Policy(0, 4), Load(40, 0, failed=1), 0),
        (Policy(2, 4), Load(0, 1, failed=1), 1),  # its place is taken
        (Policy(1, 4, upscale_delay_s=0), Load(40, 1, failed=1), 3),
        (Policy(0, 4, downscale_delay_s=0), Load(0, 2, failed=1), 1),  # the last that works stays
        (Policy(0, 1, downscale_delay_s=0), Load(0, 1, failed=1), 1),
    ],
)
def test_a_failed_replica_keeps_its_place(policy, load, target):
    """Nothing is started in the stead of a FAILED replica, and the last that works is not taken away."""
    assert decide(policy, load, None, 0).target == target


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0, 0.5, 1])), max_size=40), st.integers(1, 20))
def test_who_is_turned_away_is_waited_for(looks, most):
    """Those who are refused count as waiting, all of them while no worker is idle, never more than a queue would hold,
    and none any more soon after the last of them.
    """
    counted = 0
    for refused, idle in looks:
        before, counted = counted, turned_away(counted, refused, idle=idle, most=most)
        assert refused <= counted <= before + refused or counted == most
        assert idle or counted == min(before + refused, most)
    for _ in range(20):
        counted = turned_away(counted, 0, idle=1, most=most)
    assert 0 == counted


# --- what it does ------------------------------------------------------------------------------------


class Slow(ScriptedWorker):
    """Takes 1 s to load, and as many seconds for a batch as its first item says."""

    async def load(self, content):
        await trio.sleep(1)

    async def infer(self, items):
        await trio.sleep(float(items[0].inputs["data"]))
        return [item.inputs["data"] for item in items]


def alive(u):
    """How many replicas answer, or will."""
    return sum(state in (State.LOADING, State.READY, State.RESTARTING) for state in u.states())


def reasons(logged):
    """(replicas, target, reason) of every decision that was logged."""
    lines = [line for line in logged if line["event"] == "model scales"]
    return [(line["replicas"], line["target"], line["reason"]) for line in lines]


async def test_on_demand_and_back(autojump_clock, logged):
    """A model with min = 0 starts a worker at the first request, at once, and ends it after downscale_delay_s."""
    async with universe(Slow) as u:
        await u.spawn(workers_min=0, workers_max=2, downscale_delay_s=60)
        assert [] == u.states()
        assert u.model().state is State.NO_WORKERS
        began = trio.current_time()
        assert b"0.5" == await u.ask(b"0.5")
        assert trio.current_time() - began == pytest.approx(1.5)
        await until(lambda: not u.states())
        assert 60 <= trio.current_time() - began <= 65
        assert b"0" == await u.ask(b"0")
        assert 2 == len(u.made)
    assert [(0, 1), (1, 0), (0, 1)] == [change[:2] for change in reasons(logged)]
    assert "1 ongoing and no replica" == reasons(logged)[0][2]
    assert "at most 0 wanted for" in reasons(logged)[1][2]
    assert "(downscale_delay_s = 60)" in reasons(logged)[1][2]


async def test_to_zero_takes_its_own_delay(autojump_clock, logged):
    """Replicas leave down to one after downscale_delay_s, and the last after downscale_to_zero_delay_s; as many as
    workers_initial says begin.
    """
    async with universe(Slow) as u:
        delays = {"downscale_delay_s": 20, "downscale_to_zero_delay_s": 300}
        await u.spawn(workers_min=0, workers_max=4, workers_initial=3, **delays)
        began = trio.current_time()
        assert 3 == alive(u)
        await until(lambda: alive(u) == 1)
        assert 18 <= trio.current_time() - began <= 25
        await until(lambda: not u.states())
        assert 318 <= trio.current_time() - began <= 328
    assert [(3, 1), (1, 0)] == [change[:2] for change in reasons(logged)]
    assert "(downscale_to_zero_delay_s = 300)" in reasons(logged)[1][2]


async def test_an_average_in_virtual_time(autojump_clock, logged):
    """Peaks that last longer than upscale_delay_s start nothing while their average wants nothing; a load that stays
    brings what its average wants when the delay has passed.
    """
    async with universe(Slow) as u, trio.open_nursery() as nursery:
        delays = {"upscale_delay_s": 2, "look_back_period_s": 20}
        await u.spawn(workers_min=1, workers_max=9, batch_size=1, target_ongoing_requests=8, **delays)
        await trio.sleep(20)
        for _ in range(4):  # 4 of 10 s there are 10 ongoing: 4 on average
            async with trio.open_nursery() as four_seconds:
                four_seconds.cancel_scope.deadline = trio.current_time() + 4
                for _ in range(10):
                    four_seconds.start_soon(u.ask, b"100")
            await trio.sleep(6)
        assert 1 == alive(u)
        for _ in range(24):
            nursery.start_soon(u.ask, b"1000")
        await until(lambda: alive(u) > 1)
        nursery.cancel_scope.cancel()
    ((before, target, reason),) = reasons(logged)
    assert before == 1
    assert 2 <= target <= 3
    assert f": {target} wanted for" in reason


async def test_on_demand_with_tickets(autojump_clock):
    """With job tickets nobody waits for the first worker either: who asks first is refused, and has it started."""
    async with universe(Slow) as u:
        await u.spawn(workers_min=0, workers_max=2, downscale_delay_s=60, job_tickets=True)
        with pytest.raises(Overloaded):
            await u.ask(b"0")
        await until(lambda: u.states() == [State.READY])
        await trio.sleep(0.1)
        assert b"0.5" == await u.ask(b"0.5")


@pytest.mark.parametrize(("takes", "every"), [(b"10", 2.0), (b"0.1", 0.02)])
async def test_who_is_refused_for_want_of_a_ticket_counts(autojump_clock, takes, every):
    """With job tickets nobody waits; those who are refused are load all the same, for long and for short requests, and
    none once they come no more.
    """
    async with universe(Slow) as u:
        delays = {"upscale_delay_s": 30, "downscale_delay_s": 60}
        await u.spawn(workers_min=1, workers_max=3, batch_size=1, job_tickets=True, **delays)

        async def ask():
            with suppress(Overloaded):
                await u.ask(takes)

        async with trio.open_nursery() as callers:
            while alive(u) < 3:
                callers.start_soon(ask)
                await trio.sleep(every)
                assert trio.current_time() < 300
        await until(lambda: alive(u) == 1)


async def test_one_refused_now_and_then_starts_nothing(autojump_clock, logged):
    """Two that come at once, a minute apart from the next two: one of them is refused, and one worker stays one."""
    async with universe(Slow) as u:
        await u.spawn(workers_min=1, workers_max=3, batch_size=1, job_tickets=True, upscale_delay_s=5)
        for _ in range(10):
            await trio.sleep(60)
            reply = u.mailbox.ask(Infer({"data": b"1"}))
            with pytest.raises(Overloaded):
                u.mailbox.ask(Infer({"data": b"1"}))
            await reply.wait()
        assert 1 == len(u.made)
    assert [] == reasons(logged)


async def test_a_model_in_use_stays(autojump_clock):
    """Requests that come and go between two looks keep the worker, however short they are."""
    async with universe() as u:
        await u.spawn(workers_min=0, workers_max=1, downscale_delay_s=10)
        for _ in range(30):
            await u.ask()
            await trio.sleep(7.3)
        assert 1 == len(u.made)


async def test_queued_while_the_first_loads(autojump_clock):
    """While the first worker loads, requests queue: the bound of the queue and their deadlines hold."""
    async with universe(Slow) as u:
        await u.spawn(workers_min=0, workers_max=1, queue_size=2)
        with pytest.raises(Expired):
            await u.ask(b"0", timeout=0.5)
        replies = [u.mailbox.ask(Infer({"data": b"0"})) for _ in range(2)]
        with pytest.raises(Overloaded):
            u.mailbox.ask(Infer({"data": b"0"}))
        for reply in replies:
            await reply.wait()
        assert 1 == len(u.made)


async def test_up_after_the_delay(autojump_clock, logged):
    """More workers come once they have been wanted for upscale_delay_s, no more than the load needs, and max bounds."""
    async with universe(Slow) as u, trio.open_nursery() as nursery:
        await u.spawn(workers_min=1, workers_max=3, batch_size=1, target_ongoing_requests=2, upscale_delay_s=30)
        for _ in range(4):
            nursery.start_soon(u.ask, b"100")
        await trio.sleep(29)
        assert 1 == alive(u)
        await trio.sleep(3)
        assert 2 == alive(u)
        for _ in range(20):
            nursery.start_soon(u.ask, b"10")
        await trio.sleep(35)
        assert 3 == alive(u)
        nursery.cancel_scope.cancel()
    assert [(1, 2), (2, 3)] == [change[:2] for change in reasons(logged)]


async def test_a_drained_worker_finishes_a_long_request(autojump_clock):
    """A worker that autoscaling ends while it has work finishes it, long after the server's grace; the model is
    asked meanwhile, and another worker comes.
    """
    async with universe(Slow, grace_s=5) as u, trio.open_nursery() as nursery:
        spec = {"batch_size": 1, "target_ongoing_requests": 8, "downscale_delay_s": 20, "response_timeout_s": 1000}
        await u.spawn(workers_min=1, workers_max=2, upscale_delay_s=0, **spec)
        answers = []

        async def ask(data):
            answers.append(await u.ask(data))

        await u.supervisor.ask(Scale("m", "", 2, 2)).wait()
        nursery.start_soon(ask, b"200")
        nursery.start_soon(ask, b"201")
        await trio.sleep(1)
        await u.supervisor.ask(Scale("m", "", 1, 2)).wait()
        await until(lambda: State.DRAINING in u.states())
        await trio.sleep(50)
        assert [] == answers
        await until(lambda: 2 == len(answers))
        assert [b"200", b"201"] == sorted(answers)
        assert [State.READY] == u.states()


async def test_the_idle_go_first(autojump_clock):
    """Of workers that are READY those with the least in hand are ended."""

    class MiddleIsSlow(ScriptedWorker):
        async def infer(self, items):
            await trio.sleep(100 if self.child.index == 1 else 1)
            return [b""] * len(items)

    async with universe(MiddleIsSlow) as u, trio.open_nursery() as nursery:
        await u.spawn(workers_min=3, workers_max=3, batch_size=1, downscale_delay_s=5)
        for _ in range(3):
            nursery.start_soon(u.ask)
        await trio.sleep(2)
        await u.supervisor.ask(Scale("m", "", 1, 3)).wait()
        await trio.sleep(20)
        assert [(1, State.READY, 1)] == [(one.index, one.state, one.in_hand) for one in u.model().replicas]


async def test_sequences_outlive_the_decision(autojump_clock):
    """A worker that autoscaling ends keeps its open sequences, whose state nobody else has, until their clients end
    them; the other worker gets what is new.
    """

    class Sequences(ScriptedWorker):
        can_sequences = True

        async def feed(self, id, inputs):
            return b"%d" % self.process.pid

    async with universe(Sequences) as u:
        await u.spawn(workers_min=2, workers_max=2, target_ongoing_requests=8, downscale_delay_s=5)
        sequences = [u.mailbox.ask(OpenSequence()) for _ in range(2)]

        async def feed(sequence):
            await sequence.send({"data": b"x"})
            (answer,) = await sequence.receive()
            sequence.taken(1, len(answer))
            return answer

        assert {b"-1", b"-2"} == {await feed(sequence) for sequence in sequences}
        await u.supervisor.ask(Scale("m", "", 1, 2)).wait()
        await until(lambda: State.DRAINING in u.states())
        for _ in range(5):
            await trio.sleep(20)
            assert {b"-1", b"-2"} == {await feed(sequence) for sequence in sequences}
            assert sorted((State.READY, State.DRAINING), key=str) == sorted(u.states(), key=str)
        for sequence in sequences:
            sequence.end()
            assert [] == await sequence.receive()
        await until(lambda: [State.READY] == u.states())


async def test_a_model_that_cannot_load_is_tried_once(autojump_clock):
    """A FAILED model that starts on demand is not started again for each request: the one that woke it and those
    after it get GIVEN_UP at once; ScaleWorker tries again.
    """

    class Broken(ScriptedWorker):
        async def load(self, content):
            await trio.sleep(1)
            raise LoadFailed("no weights")

    async with universe(Broken) as u:
        await u.spawn(workers_min=0, workers_max=3, upscale_delay_s=0)
        with pytest.raises(ActorGone, match="no weights"):
            await u.ask()
        for _ in range(50):
            with pytest.raises(ActorGone, match="no weights"):
                u.mailbox.ask(Infer({"data": b"x"}))
            await trio.sleep(3)
        assert 1 == len(u.made)
        await u.supervisor.ask(Scale("m", "", 0, 3)).wait()
        with pytest.raises(ActorGone):
            await u.ask()
        assert 2 == len(u.made)


async def test_a_failed_replica_is_not_replaced(autojump_clock):
    """Load does not bring a FAILED replica back while others work, and those go on."""

    class SecondFails(Slow):
        async def load(self, content):
            await super().load(content)
            if self.child.index == 1:
                raise LoadFailed("no weights here")

    async with universe(SecondFails) as u, trio.open_nursery() as nursery:
        await u.spawn(workers_min=1, workers_max=2, batch_size=1, upscale_delay_s=5, target_ongoing_requests=1)
        for _ in range(10):
            nursery.start_soon(u.ask, b"10")
        await trio.sleep(90)
        assert [State.READY, State.FAILED] == u.states()
        assert 2 == len(u.made)


async def test_scale_sets_the_bounds(autojump_clock):
    """ScaleWorker's min and max are the bounds from then on; a model that was fixed begins to scale, and back."""
    async with universe(Slow) as u:
        await u.spawn(downscale_delay_s=10)
        await u.supervisor.ask(Scale("m", "", 2, 4)).wait()
        assert 2 == alive(u)
        await u.supervisor.ask(Scale("m", "", 0, 4)).wait()
        assert 2 == alive(u)
        await until(lambda: not u.states())
        await u.supervisor.ask(Scale("m", "", 0, 0)).wait()
        with pytest.raises(NoWorkers):
            await u.ask(b"0")


async def test_a_stop_ends_a_model_that_just_woke(autojump_clock):
    """Unregistering a model whose first worker loads answers what waits within the grace, and nothing stays."""
    async with universe(Slow) as u:
        await u.spawn(workers_min=0, workers_max=1)
        reply = u.mailbox.ask(Infer({"data": b"0"}))
        await trio.sleep(0.5)
        await u.stop()
        assert b"0" == (await reply.wait()).data
        assert () == u.supervisor.observe().models


# --- through the server -----------------------------------------------------------------------------


class SlowToLoad(ScriptedWorker):
    """Takes 1 s to load."""

    async def load(self, content):
        await trio.sleep(1)


async def predict(channel, name):
    """One call; the answer."""
    request = PredictionsRequest(model_name=name, input={"data": b"hello"})
    return (await InferenceAPIsServiceStub(channel).Predictions(request)).prediction


async def test_a_model_on_demand_is_serving(autojump_clock):
    """Health says SERVING for a model that starts on demand, with and without a worker and while one loads, so that
    somebody asks it; a model that nothing starts is NOT_SERVING and refuses at once.
    """
    workers = ScriptedWorkers(SlowToLoad)
    config = {
        "models": {
            "sleeps": {"handler": "a:B", "workers": {"min": 0, "max": 1}, "downscale_delay_s": 5},
            "none": {"handler": "a:B", "workers": {"min": 0}},
        }
    }
    async with testing.serve(config, workers=workers) as app, app.channel() as channel:

        def statuses():
            models = app.server.health.models()
            return models["sleeps"] == HealthCheckResponse.SERVING, models["none"] == HealthCheckResponse.SERVING

        seen = [statuses()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(predict, channel, "sleeps")
            await trio.sleep(0.5)
            assert State.LOADING is app.tree().models[1].state
            seen.append(statuses())
        seen.append(statuses())
        await until(lambda: not app.tree().models[1].replicas)
        seen.append(statuses())
        assert {(True, False)} == set(seen)
        assert b"hello" == await predict(channel, "sleeps")
        with pytest.raises(GRPCError) as refused:
            await predict(channel, "none")
        assert Status.UNAVAILABLE is refused.value.status


async def test_keys_of_the_file(autojump_clock):
    """Every key of `[models.NAME]` that decides reaches the decision, and as many begin as `initial` says."""
    model = {
        "handler": "a:B",
        "workers": {"min": 0, "max": 9, "initial": 3},
        "target_ongoing_requests": 4.0,
        "upscale_delay_s": 1.0,
        "downscale_delay_s": 2.0,
        "downscale_to_zero_delay_s": 3.0,
        "upscaling_factor": 0.5,
        "downscaling_factor": 0.25,
        "look_back_period_s": 5.0,
    }
    async with testing.serve({"models": {"m": model}}, workers=ScriptedWorkers(SlowToLoad)) as app:
        (view,) = app.tree().models
        assert policy_of(view.spec) == Policy(0, 9, 4.0, 1.0, 2.0, 3.0, 0.5, 0.25, 5.0)
        assert len(view.replicas) == 3


def test_initial_is_between():
    """Workers that begin outside of the bounds are an error that names them."""
    with pytest.raises(ValueError, match="initial = 5 is not between min = 0 and max = 2"):
        Workers(min=0, max=2, initial=5)
    with pytest.raises(ValueError, match="initial = 2 is not between min = 1 and max = 1"):
        Workers(initial=2)
