"""Rollouts in virtual time: new replicas beside the old ones, and what becomes of requests, order and failures."""

# ruff: noqa: SIM300  # expected == actual

from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from universe import run_virtually, spec, universe, until

from actorserve.actors.claims import Claims
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Generate, Infer, OpenSequence, Replace, Scale, Spawn, State
from actorserve.actors.rollout import IN_PLACE, count_for, needs_workers
from actorserve.actors.tree_text import render
from actorserve.errors import ActorGone, ActorserveError, Draining, LoadFailed, NoSuchModel, Overloaded, WrongState
from actorserve.scripted import ScriptedWorker


class Tagged(ScriptedWorker):
    """Answers with its handler's name; options say how it loads and what it does."""

    can_sequences = True

    async def load(self, content):
        self.log = []
        self.tag = content["handler"].encode()
        options = content["options"]
        self.can_generate = options.get("generates", True)
        self.takes_s = options.get("takes_s", 0.0)
        await trio.sleep(options.get("load_s", 10.0) + 30.0 * (self.process.pid in options.get("slow", ())))
        if self.process.pid in options.get("dies", ()):
            raise LoadFailed("no such weights", permanent=True)
        if options.get("crashes_after_s"):
            trio.lowlevel.spawn_system_task(self._crash_later, options["crashes_after_s"])

    async def _crash_later(self, seconds):
        await trio.sleep(seconds)
        self.crash(-11)

    async def infer(self, items):
        await trio.sleep(self.takes_s)
        self.log += [int(item.inputs["data"]) for item in items]
        return [self.tag] * len(items)

    async def generate(self, item):
        for _ in range(int(item.inputs["count"])):
            await trio.sleep(1)
            yield self.tag

    async def feed(self, id, inputs):
        return self.tag


def rolling(**given):
    return universe(Tagged, **given)


def new(**given):
    return spec(handler="c:D", **given)


async def replace(u, **given):
    await u.supervisor.ask(Replace(new(**given))).wait()


async def ask_for_ever(u, answers, errors, pause):
    for n in range(10**9):
        try:
            answers.append(await u.ask(b"%d" % n, timeout=30))
        except ActorserveError as error:
            errors.append(error)
        await trio.sleep(pause)


# --- what a rollout is ------------------------------------------------------------------------


def test_what_needs_workers():
    """What a worker is told needs a new one; what only the server sees to does not."""
    old = spec()
    assert not needs_workers(old, spec(queue_size=7, workers_min=3, workers_max=9, tenant_key="t"))
    for change in (
        {"handler": "c:D"},
        {"options": {"a": 1}},
        {"batch_size": 3},
        {"threads": 2},
        {"model_dir": Path("/x")},
    ):
        assert needs_workers(old, spec(**change)), change
    assert set(IN_PLACE) <= set(type(old).__dataclass_fields__)


def test_how_many():
    """As many as there are, within the bounds."""
    one = spec(workers_min=2, workers_max=4)
    assert [2, 2, 3, 4, 4] == [count_for(one, alive) for alive in (0, 2, 3, 4, 9)]


@pytest.mark.parametrize("workers", [1, 3])
async def test_no_request_fails(autojump_clock, workers):
    """Under load from several callers every request is answered, by the old replicas until every new one is READY and
    by the new ones from then on; the old ones end well.
    """
    async with rolling() as u:
        await u.spawn(workers_min=workers, workers_max=workers, options={"takes_s": 0.3})
        answers, errors = [], []
        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(ask_for_ever, u, answers, errors, 0.1 * n)
            await trio.sleep(5)
            await replace(u, workers_min=workers, workers_max=workers, options={"takes_s": 0.3, "load_s": 20.0})
            assert {b"a:B"} == set(answers)
            await trio.sleep(1)
            del answers[:]
            await trio.sleep(20)
            nursery.cancel_scope.cancel()
        assert ({b"c:D"}, []) == (set(answers), errors)
        assert [State.READY] * workers == u.states()
        assert [0] * workers == [worker.process.status for worker in u.made[:workers]]
        assert (2 * workers, "c:D", "") == (len(u.made), u.model().spec.handler, u.model().rollout)


async def test_queued_requests_keep_their_order(autojump_clock):
    """What waits when the new replicas take over is answered by them, in the order in which it came."""
    async with rolling() as u:
        await u.spawn(batch_size=1, options={"takes_s": 1.0}, queue_size=1000)
        replies = [u.mailbox.ask(Infer({"data": b"%d" % n})) for n in range(100)]
        await replace(u, batch_size=4, options={"takes_s": 1.0}, queue_size=5)
        with pytest.raises(Overloaded):
            u.mailbox.ask(Infer({"data": b"0"}))
        answers = [(await reply.wait()).data for reply in replies]
        assert sorted(answers) == answers
        assert 85 <= answers.count(b"c:D") <= 90
        for worker in u.made:
            assert sorted(worker.log) == worker.log


async def test_what_is_in_hand_is_finished(autojump_clock):
    """A stream and a sequence stay with the replica that they have until they end; it ends after them."""
    async with rolling() as u:
        await u.spawn()
        stream = u.mailbox.ask(Generate({"count": b"60"}))
        sequence = u.mailbox.ask(OpenSequence())
        await trio.sleep(1)
        await replace(u)
        assert b"c:D" == await u.ask(b"0")
        assert [State.DRAINING, State.READY] == u.states()
        await sequence.send({"data": b"x"})
        assert [b"a:B"] == await sequence.receive()
        sequence.taken(1, 3)
        heard = b""
        while chunks := await stream.receive():
            heard += b"".join(chunks)
            stream.taken(len(chunks), 3 * len(chunks))
        assert b"a:B" * 60 == heard
        assert u.made[0].process.status is None
        sequence.end()
        assert [] == await sequence.receive()
        await until(lambda: u.made[0].process.status == 0)
        assert [State.READY] == u.states()


async def test_what_a_handler_can_do_changes_with_it(autojump_clock):
    """Until the new replicas take over, calls go by what the old handler can do: a held one has no say."""
    async with rolling() as u:
        await u.spawn(options={"load_s": 0.0})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: replace(u, workers_min=2, workers_max=2, options={"generates": False, "load_s": 5})
            )
            await trio.sleep(4.9)
            assert u.mailbox.capabilities.generate
            assert [b"a:B"] * 3 == [chunk async for chunk in u.stream(3)]
        assert not u.mailbox.capabilities.generate
        assert [b"c:D"] == [chunk async for chunk in u.stream(3, b"0")]


# --- in place ---------------------------------------------------------------------------------


async def test_a_change_that_no_worker_sees(autojump_clock):
    """The queue's bound and the workers' number change at once, and the workers stay."""
    async with rolling() as u:
        await u.spawn(options={"takes_s": 1.0})
        await u.supervisor.ask(
            Replace(spec(options={"takes_s": 1.0}, queue_size=2, workers_min=2, workers_max=3))
        ).wait()
        assert (2, None, 2) == (len(u.made), u.made[0].process.status, u.mailbox.limit)
        assert (2, 3) == (u.model().spec.workers_min, u.model().spec.workers_max)


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"options": {"dies": (-2, -3, -4)}}, "no such weights"),
        ({"options": {"dies": (-4,)}}, "no such weights"),
        ({"options": {"load_s": 1e9}, "max_restarts": 0, "startup_timeout_s": 30.0}, "startup_timeout_s = 30"),
    ],
)
async def test_a_rollout_that_fails_changes_nothing(autojump_clock, given, why):
    """If one of the new replicas cannot be loaded, none takes over: no request fails, the tree says why, and nothing
    of the new ones is left. The next one may succeed.
    """
    async with rolling() as u:
        await u.spawn(workers_min=2, workers_max=2)
        answers, errors = [], []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for_ever, u, answers, errors, 0.5)
            with pytest.raises(ActorserveError, match=why):
                await replace(u, workers_min=2, workers_max=2, **given)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert ({b"a:B"}, []) == (set(answers), errors)
        assert [State.READY] * 2 == u.states()
        assert why in u.model().rollout
        assert f"rollout: {u.model().rollout}" in render(u.supervisor.observe())
        assert "a:B" == u.model().spec.handler
        assert [None, None] == [worker.process.status for worker in u.made[:2]]
        assert None not in [worker.process.status for worker in u.made[2:]]
        await replace(u)
        assert (b"c:D", "") == (await u.ask(b"0"), u.model().rollout)


async def test_one_that_dies_while_it_is_held(autojump_clock):
    """A new replica that was READY and died before it took over is awaited again: all take over, or none."""
    async with rolling() as u:
        await u.spawn(workers_min=2, workers_max=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: replace(u, workers_min=2, workers_max=2, options={"slow": (-4,)}))
            await until(lambda: u.states().count(State.READY) == 3)
            u.made[2].crash()
            await until(lambda: u.states().count(State.READY) == 2)
            await until(lambda: u.states().count(State.READY) == 3)
            assert b"a:B" == await u.ask(b"0")
        assert b"c:D" == await u.ask(b"0")
        assert 5 == len(u.made)


async def test_the_old_ones_may_die_meanwhile(autojump_clock):
    """Old replicas that are given up during a rollout leave the queue to the new ones, instead of refusing calls."""
    async with rolling() as u:
        await u.spawn(max_restarts=0, options={"load_s": 0.0})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace, u)
            await trio.sleep(1)
            u.made[0].crash()
            await trio.sleep(1)
            assert State.LOADING is u.model().state
            assert b"c:D" == await u.ask(b"0", timeout=20)
        assert [State.READY] == u.states()


async def test_a_failed_model_starts_over(autojump_clock):
    """A model that is FAILED, or has no workers, has nothing to keep: it loads anew, and calls wait for that."""
    async with rolling() as u:
        with pytest.raises(LoadFailed):
            await u.spawn(options={"dies": (-1,)})
        with pytest.raises(ActorGone):
            await u.ask(b"0")
        rolled = u.supervisor.ask(Replace(new()))
        await trio.sleep(1)
        assert b"c:D" == await u.ask(b"0", timeout=20)
        await rolled.wait()
        assert [State.READY] == u.states()
        await u.scale(0)
        await replace(u, options={"x": 1})
        assert [State.READY] == u.states()


@pytest.mark.parametrize("before", [State.NO_WORKERS, State.FAILED])
async def test_without_workers_it_is_done_when_it_is_ready(autojump_clock, before):
    """A rollout over a model without a worker is done once its own are READY; if they cannot be loaded the model is
    what it was, and the next rollout may succeed.
    """
    async with rolling() as u:
        if before is State.FAILED:
            with pytest.raises(LoadFailed):
                await u.spawn(options={"dies": (-1,)})
        else:
            await u.spawn(workers_min=0)
        old = u.model().spec
        rolled = u.supervisor.ask(Replace(new(options={"dies": (-1, -2), "load_s": 3}, workers_min=1)))
        await trio.sleep(1)
        assert (old, "under way", State.LOADING) == (u.model().spec, u.model().rollout, u.model().state)
        with pytest.raises(LoadFailed, match="no such weights"):
            await rolled.wait()
        await trio.sleep(1)
        assert (old, before) == (u.model().spec, u.model().state)
        assert "no such weights" in u.model().rollout
        await replace(u, workers_min=1)
        assert (b"c:D", [State.READY]) == (await u.ask(b"0"), u.states())


async def test_to_none(autojump_clock):
    """A change to no workers retires those that there are."""
    async with rolling() as u:
        await u.spawn()
        await replace(u, workers_min=0, workers_max=0)
        await until(lambda: u.states() == [])
        assert State.NO_WORKERS is u.model().state


# --- other changes at the same time --------------------------------------------------------------


async def test_the_latest_change_wins(autojump_clock):
    """A second rollout ends one that is under way, whose caller is told; nothing of the first is left."""
    async with rolling() as u:
        await u.spawn()
        first = u.supervisor.ask(Replace(spec(handler="first:F", options={"load_s": 50.0})))
        await trio.sleep(20)
        await replace(u)
        with pytest.raises(WrongState, match="another change of model m version 1 came"):
            await first.wait()
        assert b"c:D" == await u.ask(b"0")
        await until(lambda: u.states() == [State.READY])
        await until(lambda: [0, -9] == [worker.process.status for worker in u.made[:2]])


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)])
async def test_scaled_meanwhile(autojump_clock, before, after):
    """ScaleWorker counts during a rollout, for the old replicas and for the new ones."""
    async with rolling() as u:
        await u.spawn(workers_min=before, workers_max=before)
        rolled = u.supervisor.ask(Replace(new(workers_min=before, workers_max=before, options={"load_s": 30.0})))
        await trio.sleep(5)
        await u.supervisor.ask(Scale("m", "", after, after)).wait()
        await rolled.wait()
        assert b"c:D" == await u.ask(b"0")
        await until(lambda: u.states() == [State.READY] * after)
        assert (after, after) == (u.model().spec.workers_min, u.model().spec.workers_max)


@pytest.mark.parametrize("dies", [False, True])
async def test_scaled_as_it_takes_over(autojump_clock, dies):
    """A Scale is answered when as many as it asked for are READY, also where the new replicas take over before those
    that it has started beside the old ones are: then there are as many of the new.
    """
    async with rolling() as u:
        await u.spawn()
        rolled = u.supervisor.ask(Replace(new(options={"load_s": 12.0})))
        await trio.sleep(5)
        scaled = u.supervisor.ask(Scale("m", "", 3, 3))
        await rolled.wait()
        assert 1 == u.states().count(State.READY)
        await trio.sleep(1)
        if dies:
            u.made[-1].crash()
        await scaled.wait()
        assert [State.READY] * 3 == u.states()
        assert b"c:D" == await u.ask(b"0")


async def test_scaled_again_before_the_first_is_done(autojump_clock):
    """A Scale whose workers leave again before they are READY, since another has followed, is answered with that."""
    async with rolling() as u:
        await u.spawn()
        first = u.supervisor.ask(Scale("m", "", 3, 3))
        await trio.sleep(5)
        await u.scale(1)
        await first.wait()
        await until(lambda: u.states() == [State.READY])


@pytest.mark.parametrize("held", [False, True])
async def test_unregistered_meanwhile(autojump_clock, held):
    """Unregistering ends a rollout with the model, also where some of its replicas are READY and held."""
    async with rolling() as u:
        await u.spawn(options={"takes_s": 3.0})
        rolled = u.supervisor.ask(Replace(new(workers_min=2, workers_max=2, options={"slow": (-3,)})))
        await until(lambda: len(u.made) == 3)
        if held:
            await until(lambda: u.states().count(State.READY) == 2)
        reply = u.mailbox.ask(Infer({"data": b"0"}))
        await u.stop()
        assert b"a:B" == (await reply.wait()).data
        with pytest.raises(Draining):
            await rolled.wait()
        assert ((), ()) == (u.supervisor.observe().models, u.supervisor.observe().leaving)
        assert None not in [worker.process.status for worker in u.made]


async def test_the_server_stops_meanwhile(autojump_clock):
    """A drain of the whole server ends a rollout and everything of it (the universe checks what is left)."""
    async with rolling() as u:
        await u.spawn()
        rolled = u.supervisor.ask(Replace(new(options={"load_s": 100.0})))
        await trio.sleep(5)
    with pytest.raises(Draining):
        await rolled.wait()


async def test_a_registration_that_is_replaced_is_not_taken_back(autojump_clock):
    """A registration that waits for READY and fails only because a rollout took over leaves the model as it is."""
    async with rolling() as u:
        waiting = u.supervisor.ask(Spawn(spec(options={"load_s": 50.0}), unregister_on_failure=True))
        await trio.sleep(1)
        await replace(u)
        with pytest.raises(ActorserveError):
            await waiting.wait()
        await trio.sleep(1)
        assert b"c:D" == await u.ask(b"0")


async def test_no_such_model(autojump_clock):
    """Only a version that is registered can be rolled out."""
    async with rolling() as u:
        with pytest.raises(NoSuchModel):
            await replace(u)
        await u.spawn()
        with pytest.raises(NoSuchModel):
            await replace(u, version="2")


# --- the mailbox under other rules -----------------------------------------------------------------

rules = st.builds(
    dict,
    limit=st.integers(1, 20),
    batch_size=st.integers(1, 8),
    max_delay_s=st.just(0.0),
    max_sequences=st.just(5),
    claims=st.sampled_from(
        [Claims(), Claims("tenant"), Claims("", "metadata:w", 7), Claims("tenant", "bytes", 3), Claims("", "bytes", 2)]
    ),
)
asks = st.tuples(
    st.just("ask"), st.sampled_from("ab"), st.sampled_from(["1", "9", "x"]), st.integers(0, 9), st.integers(1, 5)
)
takes = st.tuples(st.just("take"), st.integers(1, 9), st.booleans())


@settings(deadline=None, max_examples=150)
@given(rules, st.lists(asks | takes | st.tuples(st.just("change"), rules), max_size=40))
def test_a_mailbox_changes_its_rules(first, steps):
    """Whatever the rules become: who was let in is taken exactly once, unless he gives way to another tenant as the
    rules have it; what is put back under other rules than it was taken by, too.
    """

    async def life():
        box = Mailbox("m", **first)
        let_in, taken = {}, []
        for what, *rest in steps:
            match what:
                case "ask":
                    tenant, weight, priority, size = rest
                    metadata = {"tenant": tenant, "w": weight, "priority": str(priority)}
                    try:
                        id = str(len(let_in))
                        let_in[id] = box.ask(Infer({"data": b"x" * size}, metadata, id))
                    except ActorserveError:
                        continue
                case "take":
                    count, returned = rest
                    envelopes = box.take(box.batch_lane, count)
                    if returned:
                        box.put_back(envelopes)
                    else:
                        taken += envelopes
                case _:
                    kept = list(box.batch_lane.take(2, 0.0)[0]) if box.batch_lane.count else []
                    box.change(tickets=False, **rest[0])
                    box.put_back(kept)
            gave_way = {id for id, reply in let_in.items() if reply.is_set}
            assert len(let_in) == len(taken) + box.waiting + len(gave_way)
        box.change(tickets=False, **{**first, "claims": Claims()})
        while box.waiting:
            taken += box.take(box.batch_lane, 3)
        ended = [envelope.message.id for envelope in taken] + [id for id, reply in let_in.items() if reply.is_set]
        assert sorted(let_in) == sorted(ended)

    run_virtually(life)
