"""The mailbox: bounded, in order, and nobody is forgotten in it."""

# ruff: noqa: SIM300  # expected == actual

import random
from collections import Counter

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from universe import run_virtually, universe

from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Capabilities, Generate, Infer
from actorserve.actors.waiters import Signal
from actorserve.errors import Expired, NoWorkers, Overloaded
from actorserve.scripted import ScriptedWorker

BOTH = Capabilities(infer=True, generate=True)


def box(limit=5, batch_size=4, max_delay_s=0.0) -> Mailbox:
    return Mailbox("m", limit=limit, batch_size=batch_size, max_delay_s=max_delay_s)


def infer(n: int) -> Infer:
    return Infer({"n": b"%d" % n})


def numbers(envelopes) -> list[int]:
    return [int(envelope.message.inputs["n"]) for envelope in envelopes]


async def test_full_refuses_at_once(autojump_clock):
    """A full mailbox raises Overloaded without waiting, and says when to come back."""
    mailbox = box(limit=2)
    mailbox.ask(infer(0))
    await trio.sleep(3)
    mailbox.ask(infer(1))
    before = trio.current_time()
    with pytest.raises(Overloaded) as refused:
        mailbox.ask(infer(2))

    assert (before, 3.0) == (trio.current_time(), refused.value.retry_after_s)


async def test_with_tickets_nobody_waits():
    """With job tickets a request is taken where a replica is idle, one for each; the next is refused at once."""
    mailbox = Mailbox("m", limit=5, batch_size=4, max_delay_s=0.0, tickets=True)
    with pytest.raises(Overloaded, match="no worker is idle"):
        mailbox.ask(infer(0))
    for _ in range(2):
        mailbox.idle.add(Signal())
    mailbox.ask(infer(1))
    mailbox.ask(infer(2))
    with pytest.raises(Overloaded):
        mailbox.ask(infer(3))

    assert numbers(mailbox.take(mailbox.batch_lane, 4)) == [1, 2]


async def test_both_lanes_share_the_bound():
    """Streams and batches are counted together."""
    mailbox = box(limit=2)
    mailbox.learn(BOTH)
    mailbox.ask(infer(0))
    mailbox.ask(Generate({}))
    with pytest.raises(Overloaded):
        mailbox.ask(Generate({}))


async def test_abandoned_frees_its_place_at_once():
    """Whoever leaves makes room in the same moment."""
    mailbox = box(limit=1)
    mailbox.ask(infer(0)).abandon()
    mailbox.ask(infer(1))

    assert [1] == numbers(mailbox.take(mailbox.batch_lane, 5))


async def test_expired_costs_nothing(autojump_clock):
    """What is past its deadline ends when it would be taken, and does not count as taken."""
    mailbox = box()
    late = mailbox.ask(infer(0), trio.current_time() + 1)
    mailbox.ask(infer(1))
    await trio.sleep(1)

    assert [1] == numbers(mailbox.take(mailbox.batch_lane, 1))
    with pytest.raises(Expired):
        await late.wait()


async def test_refusal_is_at_once():
    """A mailbox that nobody serves refuses with its reason; what was queued gets it too."""
    mailbox = box()
    queued = mailbox.ask(infer(0))
    mailbox.refusal = lambda: NoWorkers("none")
    mailbox.fail_all(mailbox.refusal)
    with pytest.raises(NoWorkers):
        mailbox.ask(infer(1))
    with pytest.raises(NoWorkers):
        await queued.wait()


async def test_a_shut_door_still_hands_out():
    """After close, asking is refused and what is queued is still taken."""
    mailbox = box()
    mailbox.ask(infer(0))
    mailbox.close(lambda: NoWorkers("shut"))
    with pytest.raises(NoWorkers):
        mailbox.ask(infer(1))

    assert [0] == numbers(mailbox.take(mailbox.batch_lane, 5))


async def test_wait_empty(autojump_clock):
    """The owner hears of the last one leaving, whether it was taken or went by itself."""
    for way in ("abandoned", "taken"):
        mailbox = box()
        reply = mailbox.ask(infer(0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mailbox.wait_empty)
            await trio.sleep(1)
            if way == "taken":
                mailbox.take(mailbox.batch_lane, 1)
            else:
                reply.abandon()


async def test_wait_empty_by_two(autojump_clock):
    """A stop and the server's end may both wait: each hears of the last one leaving."""
    mailbox = box()
    reply = mailbox.ask(infer(0))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mailbox.wait_empty)
            nursery.start_soon(mailbox.wait_empty)
            await trio.sleep(1)
            reply.abandon()


LEARN = [
    ("before anybody is READY, all in one lane", None, [0, 1, 2, 3], []),
    ("both: streams apart", BOTH, [0, 2], [1, 3]),
    ("infer alone: streams become batches", Capabilities(infer=True, generate=False), [0, 1, 2, 3], []),
    ("generate alone: all are streams", Capabilities(infer=False, generate=True), [], [0, 1, 2, 3]),
    ("continuous and infer", Capabilities(infer=True, generate=False, continuous=True), [0, 2], [1, 3]),
]


@pytest.mark.parametrize(("can", "batches", "streams"), [row[1:] for row in LEARN], ids=[row[0] for row in LEARN])
async def test_learn_sorts_the_lanes(can, batches, streams):
    """What is queued goes where the handler can answer it, in order of arrival, again and again."""
    mailbox = box()
    for n in range(4):
        mailbox.ask(Generate({"n": b"%d" % n}) if n % 2 else infer(n))
    if can is not None:
        mailbox.learn(BOTH)
        mailbox.learn(can)

    assert (batches, streams) == (numbers(mailbox.batch_lane), numbers(mailbox.stream_lane))


STEPS = st.lists(
    st.one_of(
        st.just(("ask",)),
        st.tuples(st.just("take"), st.integers(1, 5)),
        st.tuples(st.just("abandon"), st.integers(0, 30)),
        st.tuples(st.just("put back"), st.integers(0, 5)),
        st.tuples(st.just("sleep"), st.floats(0, 2)),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(STEPS)
def test_fifo_whatever_happens(steps):
    """The queue is always in order of arrival and arrival times never change, whichever batches come back when."""

    async def main():
        mailbox = box(limit=1000)
        replies, arrivals, out, gone = [], [], [], set()
        for step in steps:
            match step:
                case ("ask",):
                    replies.append(mailbox.ask(infer(len(replies))))
                    arrivals.append(trio.current_time())
                case ("take", count):
                    queued = numbers(mailbox.batch_lane)
                    taken = mailbox.take(mailbox.batch_lane, count)
                    assert queued[:count] == numbers(taken)
                    out.append(taken)
                case ("abandon", n) if n < len(replies):
                    replies[n].abandon()
                    gone.add(n)
                case ("put back", n) if out:
                    mailbox.put_back(out.pop(n % len(out)))
                case ("sleep", seconds):
                    await trio.sleep(seconds)
            queued = numbers(mailbox.batch_lane)
            assert sorted(queued) == queued
            assert gone.isdisjoint(queued)
            assert [arrivals[n] for n in queued] == [envelope.arrival for envelope in mailbox.batch_lane]
        missing = set(range(len(replies))) - gone - set(numbers(mailbox.batch_lane))
        assert missing == set(numbers(envelope for batch in out for envelope in batch)) - gone

    run_virtually(main)


async def test_signal_is_never_lost(autojump_clock):
    """A signal that is set before, during or after a wait that was given up is heard by the next wait."""
    signal = Signal()
    signal.set()
    await signal.wait()
    with trio.move_on_after(1) as scope:
        await signal.wait()
    assert scope.cancelled_caught
    signal.set()
    with trio.fail_after(1):
        await signal.wait()


async def test_who_was_woken_counts_as_idle():
    """A replica that was woken and has not run yet still counts, so that a busy one does not take its batch."""
    mailbox = box(batch_size=2, limit=10)
    idle, busy = Signal(), Signal()
    mailbox.idle.add(idle)
    mailbox.busy.add(busy)
    for n in range(4):
        mailbox.ask(infer(n))

    assert (True, False, 1) == (idle._flag, busy._flag, len(mailbox.idle))


class Recorder(ScriptedWorker):
    """Says what reached it."""

    seen: list[bytes]
    infer_s = 0.0

    async def infer(self, items):
        self.seen.extend(item.inputs["data"] for item in items)
        await trio.sleep(self.infer_s)
        return [item.inputs["data"] for item in items]


async def test_expired_never_reaches_a_worker(autojump_clock):
    """A deadline that passes in the queue never reaches the handler, even where its caller waits on."""

    class Slow(Recorder):
        seen: list[bytes] = []  # noqa: RUF012  # one per test
        infer_s = 10.0

    async with universe(Slow) as u:
        await u.spawn(batch_size=1)
        first = u.mailbox.ask(Infer({"data": b"first"}))
        await trio.sleep(1)
        second = u.mailbox.ask(Infer({"data": b"ahead of time"}))
        late = u.mailbox.ask(Infer({"data": b"late"}), trio.current_time() + 5)
        await first.wait()
        await second.wait()
        with pytest.raises(Expired):
            await late.wait()

        assert [b"first", b"ahead of time"] == Slow.seen


async def test_the_keeper_of_the_delay_may_die(autojump_clock):
    """A batch that one replica was gathering is taken by another when that one dies."""
    async with universe() as u:
        await u.spawn(workers_min=2, workers_max=2, batch_size=8, max_batch_delay_s=2.0)
        replies = [u.mailbox.ask(Infer({"data": b"%d" % n})) for n in range(3)]
        await trio.sleep(1)
        idle_line = list(u.mailbox.idle._line)
        u.made[0].crash()
        await trio.sleep(0.01)
        u.made[1].crash()
        assert 2 == len(idle_line)
        with trio.fail_after(5):
            assert [b"0", b"1", b"2"] == [(await reply.wait()).data for reply in replies]


async def test_a_dead_keeper_hands_over_at_once(autojump_clock):
    """The survivor answers when the delay is over, not when something else comes."""
    for victim in range(2):
        async with universe() as u:
            await u.spawn(workers_min=2, workers_max=2, batch_size=8, max_batch_delay_s=2.0, max_restarts=0)
            replies = [u.mailbox.ask(Infer({"data": b"x"})) for n in range(3)]
            await trio.sleep(1)
            u.made[victim].crash()
            with trio.fail_after(1.5):
                for reply in replies:
                    await reply.wait()


async def test_what_is_left_of_a_burst_goes_to_the_next_idle_one(autojump_clock):
    """With a delay set, the rest of a burst is gathered by another replica while the first one works."""

    class Slow(Recorder):
        seen: list[bytes] = []  # noqa: RUF012  # one per test
        infer_s = 100.0

    async with universe(Slow, grace_s=0) as u:
        await u.spawn(workers_min=2, workers_max=2, batch_size=4, max_batch_delay_s=1.0)
        for n in range(6):
            u.mailbox.ask(Infer({"data": b"%d" % n}))
        await trio.sleep(2)

        assert [b"0", b"1", b"2", b"3", b"4", b"5"] == sorted(Slow.seen)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_every_ask_is_answered(seed):
    """Whatever the replicas, delays, sizes and pauses: every ask is answered, and with its own answer."""
    dice = random.Random(seed)  # noqa: S311  # not a secret

    class Uneven(ScriptedWorker):
        async def infer(self, items):
            await trio.sleep(dice.choice([0, 0, 0.1, 1.0]))
            return [item.inputs["data"] for item in items]

    async def main():
        answers = Counter()

        async def ask(u, n):
            await trio.sleep(dice.choice([0, 0, 0, 0.05, 0.5, 3.0]))
            if dice.random() < 0.3:
                pieces = [chunk async for chunk in u.stream(3, b"%d" % n)]
                assert [b"%d" % n] * 3 == pieces
            else:
                assert b"%d" % n == await u.ask(b"%d" % n)
            answers[n] += 1

        async with universe(Uneven) as u:
            await u.spawn(
                workers_min=dice.randint(1, 4),
                workers_max=4,
                batch_size=dice.choice([1, 2, 3, 8]),
                max_batch_delay_s=dice.choice([0, 0, 0.2, 2.0]),
            )
            with trio.fail_after(500):
                async with trio.open_nursery() as nursery:
                    for n in range(50):
                        nursery.start_soon(ask, u, n)
        assert Counter(range(50)) == answers

    run_virtually(main)
