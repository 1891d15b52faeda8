"""Stateful sequences: pinned to a replica, bounded, ended once; in virtual time, the worker's half by hypothesis."""

# ruff: noqa: SIM300  # expected == actual

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from universe import universe, until

from actorserve.actors import wire
from actorserve.actors.messages import Infer, OpenSequence, Scale, State
from actorserve.actors.wire import CREDIT_CHUNKS, FrameReader, Item, Kind, Outcome
from actorserve.actors.worker_engine import Engine
from actorserve.actors.worker_items import Arrival, Flags
from actorserve.errors import (
    ActorCrashed,
    BadInput,
    Draining,
    NoSuchSequence,
    NotStateful,
    TooManySequences,
    Unsupported,
)
from actorserve.handlers.base import missing_methods
from actorserve.scripted import ScriptedWorker


class Counting(ScriptedWorker):
    """Says which worker it is and how many items it has had of the sequence; `hold` keeps it waiting."""

    can_infer = False
    can_generate = False
    can_sequences = True

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.seen: dict[int, int] = {}
        self.hold = trio.Event()
        self.hold.set()

    async def feed(self, id, inputs):
        """`bad` fails alone, `end` ends the sequence with an error."""
        await self.hold.wait()
        if inputs["data"] == b"bad":
            return BadInput("data", "is bad")
        if inputs["data"] == b"end":
            raise ValueError("no more")
        self.seen[id] = self.seen.get(id, 0) + 1
        return b"%d:%d" % (self.process.pid or 0, self.seen[id])


class Plain(ScriptedWorker):
    """A model without sequences."""


async def say(duplex, *words: bytes) -> list:
    """Send items and take as many replies."""
    for word in words:
        await duplex.send({"data": word})
    return await take(duplex, len(words))


async def take(duplex, count: int) -> list:
    """Take so many replies, and give their credit back."""
    replies: list = []
    while len(replies) < count:
        got = await duplex.receive()
        assert got, replies
        replies += got
        duplex.taken(len(got), sum(len(one) for one in got if isinstance(one, bytes)))
    return replies


async def test_a_sequence_stays_with_its_replica(autojump_clock):
    """Two sequences go to two replicas, and each item of one is answered by the replica that has its state."""
    async with universe(Counting) as world:
        await world.spawn(workers_min=2, workers_max=2)
        one, two = world.mailbox.ask(OpenSequence()), world.mailbox.ask(OpenSequence())
        first = [await say(duplex, b"a") for duplex in (one, two)]
        second = [await say(duplex, b"b", b"c") for duplex in (one, two)]
        assert {b"-1:1", b"-2:1"} == {reply for (reply,) in first}
        for (start,), later in zip(first, second, strict=True):
            assert [start.replace(b":1", b":2"), start.replace(b":1", b":3")] == later
        for duplex in (one, two):
            duplex.end()
            assert [] == await duplex.receive()
        assert 0 == world.mailbox.seats.taken


async def test_an_item_fails_alone(autojump_clock):
    """An item whose answer is an exception gets it as its reply, and the sequence goes on; what is raised ends it."""
    async with universe(Counting) as world:
        await world.spawn()
        duplex = world.mailbox.ask(OpenSequence())
        good, bad, better = await say(duplex, b"a", b"bad", b"b")
        assert (b"-1:1", b"-1:2") == (good, better)
        assert isinstance(bad, BadInput)
        await duplex.send({"data": b"end"})
        with pytest.raises(Exception, match="ValueError: no more"):
            await duplex.receive()
        assert 1 == duplex.unanswered
        with pytest.raises(Exception, match="ValueError: no more"):
            await duplex.send({"data": b"a"})


async def test_sending_is_bounded(autojump_clock):
    """No more than 16 items wait for their answers; the next `send` waits until one is answered."""
    async with universe(Counting) as world:
        await world.spawn()
        duplex = world.mailbox.ask(OpenSequence())
        world.made[0].hold = trio.Event()
        for _ in range(CREDIT_CHUNKS):
            await duplex.send({"data": b"a"})
        with trio.move_on_after(1) as waited:
            await duplex.send({"data": b"a"})
        assert waited.cancelled_caught
        assert CREDIT_CHUNKS == duplex.unanswered
        world.made[0].hold.set()
        assert CREDIT_CHUNKS + 1 == len([*await take(duplex, CREDIT_CHUNKS), *await say(duplex, b"a")])
        duplex.abandon()


async def test_a_large_item_goes_alone(autojump_clock):
    """256 KiB may wait for their answers, and one item however large."""
    async with universe(Counting) as world:
        await world.spawn()
        duplex = world.mailbox.ask(OpenSequence())
        world.made[0].hold = trio.Event()
        await duplex.send({"data": bytes(1 << 20)})
        with trio.move_on_after(1) as waited:
            await duplex.send({"data": b"a"})
        assert waited.cancelled_caught
        assert 1 == duplex.unanswered
        duplex.abandon()
        world.made[0].hold.set()


async def test_who_does_not_read_is_not_answered(autojump_clock):
    """A caller that takes no replies gets 16 of them and no more; the others go on."""
    async with universe(Counting) as world:
        await world.spawn()
        slow, quick = world.mailbox.ask(OpenSequence()), world.mailbox.ask(OpenSequence())
        with trio.move_on_after(1):
            while True:
                await slow.send({"data": b"a"})
        assert CREDIT_CHUNKS == len(await slow.receive())
        assert [b"-1:1"] == await say(quick, b"a")
        slow.abandon()
        quick.abandon()


async def test_a_dead_worker_ends_its_sequences(autojump_clock):
    """A crash ends the sequence with CRASHED, also one with nothing unanswered, and it is not opened elsewhere."""
    async with universe(Counting) as world:
        await world.spawn(workers_min=2, workers_max=2)
        duplex = world.mailbox.ask(OpenSequence())
        (reply,) = await say(duplex, b"a")
        (home,) = [worker for worker in world.made if reply == b"%d:1" % worker.process.pid]
        home.crash()
        with pytest.raises(ActorCrashed):
            await duplex.receive()
        with pytest.raises(ActorCrashed):
            await duplex.send({"data": b"a"})
        assert 0 == world.mailbox.seats.taken
        await until(lambda: len(world.made) == 3)
        assert [{}, {}] == [worker.seen for worker in world.made if worker is not home]


async def test_sequences_are_bounded(autojump_clock):
    """`max_sequences` may be open; one more is refused at once, until one has ended, well or by its caller."""
    async with universe(Counting) as world:
        await world.spawn(max_sequences=2)
        one, two = world.mailbox.ask(OpenSequence()), world.mailbox.ask(OpenSequence())
        with pytest.raises(TooManySequences, match="2 sequences are open already"):
            world.mailbox.ask(OpenSequence())
        one.abandon()
        three = world.mailbox.ask(OpenSequence())
        await say(two, b"a")
        two.end()
        assert [] == await two.receive()
        four = world.mailbox.ask(OpenSequence())
        assert 2 == world.mailbox.seats.taken
        three.abandon()
        four.abandon()


async def test_an_idle_sequence_expires(autojump_clock):
    """Nothing said for `sequence_idle_timeout_s`: NoSuchSequence. Each message begins the time anew."""
    async with universe(Counting) as world:
        await world.spawn(sequence_idle_timeout_s=10)
        duplex = world.mailbox.ask(OpenSequence())
        for _ in range(3):
            await say(duplex, b"a")
            await trio.sleep(8)
        began = trio.current_time()
        with pytest.raises(NoSuchSequence, match="expired after 10 s"):
            await duplex.receive()
        assert 2 <= trio.current_time() - began <= 4
        assert 0 == world.mailbox.seats.taken
        await until(lambda: world.model().replicas[0].in_hand == 0)


async def test_a_slow_answer_is_not_idleness(autojump_clock):
    """A sequence that waits for its worker does not expire."""
    async with universe(Counting) as world:
        await world.spawn(sequence_idle_timeout_s=10)
        duplex = world.mailbox.ask(OpenSequence())
        world.made[0].hold = trio.Event()
        await duplex.send({"data": b"a"})
        await trio.sleep(60)
        world.made[0].hold.set()
        assert [b"-1:1"] == await take(duplex, 1)
        duplex.abandon()


async def test_a_drain_answers_what_was_sent(autojump_clock):
    """A model that stops answers what its sequences have sent, then ends them with DRAINING; none holds it up."""
    async with universe(Counting) as world:
        await world.spawn()
        idle, busy = world.mailbox.ask(OpenSequence()), world.mailbox.ask(OpenSequence())
        await say(idle, b"a")
        world.made[0].hold = trio.Event()
        await busy.send({"data": b"a"})
        began = trio.current_time()
        world.nursery.start_soon(world.stop, 1000)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Draining):
            await busy.send({"data": b"b"})
        world.made[0].hold.set()
        assert [b"-1:1"] == await take(busy, 1)
        for duplex in (idle, busy):
            with pytest.raises(Draining):
                await duplex.receive()
        await until(lambda: world.made[0].process.status is not None)
        assert trio.current_time() - began < 10


async def test_a_stop_ends_the_sequences_of_a_replica_that_retires(autojump_clock):
    """A replica too many lets its sequences go on; once the model stops, that is no reason to wait for the grace."""
    async with universe(Counting) as world:
        await world.spawn(workers_min=2, workers_max=2, downscale_delay_s=1.0, sequence_idle_timeout_s=1000.0)
        both = world.mailbox.ask(OpenSequence()), world.mailbox.ask(OpenSequence())
        for duplex in both:
            await say(duplex, b"a")
        await world.supervisor.ask(Scale("m", "", 1, 2)).wait()
        await until(lambda: State.DRAINING in world.states())
        await trio.sleep(100)
        assert [1, 1] == [replica.in_hand for replica in world.model().replicas]
        began = trio.current_time()
        await world.stop(1000)
        assert trio.current_time() - began < 10
        for duplex in both:
            with pytest.raises(Draining):
                await duplex.receive()


async def test_models_without_sequences(autojump_clock):
    """A model without sequences says so, at once or as soon as its first replica is READY; the other way round too."""
    async with universe(Plain) as world:
        world.nursery.start_soon(world.spawn)
        await until(lambda: "m" in dict(world.directory))
        early = world.mailbox.ask(OpenSequence()) if world.mailbox.capabilities is None else None
        if early is not None:
            with pytest.raises(NotStateful):
                await early.send({"data": b"a"})
        await until(lambda: world.mailbox.capabilities is not None)
        with pytest.raises(NotStateful):
            world.mailbox.ask(OpenSequence())
        assert 0 == world.mailbox.seats.taken
    async with universe(Counting) as world:
        await world.spawn()
        with pytest.raises(Unsupported, match="sequences only"):
            world.mailbox.ask(Infer({}))


@pytest.mark.parametrize(
    ("methods", "lacking"),
    [
        (("open", "feed", "release"), None),
        (("infer", "open", "feed", "release"), None),
        (("feed",), "has feed but lacks open and release"),
        (("infer", "feed", "open"), "has feed but lacks release"),
        (("open", "feed", "prefill", "step", "release"), "has both feed and prefill/step"),
        (("open", "release"), "has release but lacks prefill and step"),
    ],
)
def test_what_a_handler_lacks(methods, lacking):
    """Sequences need open, feed and release; without them loading fails and names what is missing."""
    handler = type("Handler", (), {name: lambda _: None for name in methods})()
    said = missing_methods(handler)
    assert (lacking is None) == (said is None)
    assert (lacking or "") in (said or "")


def test_the_page_shows_a_handler():
    """The handler of docs/sequences.md does what the page says, driven as a worker drives it."""
    page = (Path(__file__).parents[2] / "docs" / "sequences.md").read_text()
    names: dict = {"BadInput": BadInput}
    exec(page.partition("```python")[2].partition("```")[0], names)  # noqa: S102  # our own page
    handler = names["Average"]()
    assert missing_methods(handler) is None
    _, frames = drive([[opening(1), *(item(1, word) for word in (b"1", b"x", b"3")), (Kind.END, 1, b"")]], handler)
    assert [b'{"mean": 1.0}', b'{"mean": 2.0}', b'{"count": 2}'] == [f.payload for f in frames if f.kind == Kind.CHUNK]
    assert [Kind.CHUNK, Kind.FAULT, Kind.CHUNK, Kind.CHUNK, Kind.DONE] == [one.kind for one in frames]


# --- the worker's half ---------------------------------------------------------------------------


class Ledger:
    """A handler that keeps account of its states. An item says what happens to it."""

    def __init__(self) -> None:
        self.opened = 0
        self.live: set[int] = set()
        self.fed: list[tuple[int, ...]] = []

    def open(self, request):
        """A new state."""
        if request.metadata.get("open") == "fails":
            raise ValueError("not opened")
        self.opened += 1
        self.live.add(self.opened)
        return self.opened

    def feed(self, states, requests):
        """Echo, fail alone, or fail all."""
        assert self.live >= set(states)
        assert len(set(states)) == len(states)
        self.fed.append(tuple(states))
        words = [request.inputs["data"] for request in requests]
        if b"raise" in words:
            raise RuntimeError("all of them")
        return [BadInput("data", "bad") if word == b"bad" else object() if word == b"odd" else word for word in words]

    def finish(self, state):
        """A last word."""
        assert state in self.live
        return b"bye"

    def release(self, state):
        """Exactly once: a second time is a KeyError."""
        self.live.remove(state)


def drive(arrivals, handler=None, *, batch_size=32, cancelled=()):
    """Run an engine on groups of arrivals, then STOP; gives the handler and the frames it sent."""
    handler, flags, sent = handler or Ledger(), Flags(), []
    inbox: SimpleQueue = SimpleQueue()
    engine = Engine(handler, inbox=inbox, flags=flags, send=sent.append, batch_size=batch_size)
    for group in arrivals:
        flags.add([id for kind, id, _ in group if kind is Kind.OPEN_SEQUENCE])
        inbox.put([Arrival(*one) for one in group])
    for id in cancelled:
        flags.cancel(id)
    inbox.put([Arrival(Kind.STOP, 0, b"")])
    engine.run()
    return handler, FrameReader().feed(b"".join(sent))


def opening(id, **metadata):
    """An OPEN_SEQUENCE as the reader thread hands it over."""
    return Kind.OPEN_SEQUENCE, id, Item(id, 0, "r", {}, metadata)


def item(id, data):
    """An ITEM."""
    return Kind.ITEM, id, FrameReader().feed(wire.item(id, {"data": data}))[0].payload


def test_items_of_several_sequences_are_one_batch():
    """`feed` gets one item of each sequence at once, in order, and `finish` has the last word."""
    handler, frames = drive([[opening(1), opening(2), item(1, b"a"), item(2, b"b"), item(1, b"c"), (Kind.END, 1, b"")]])
    assert [(1, 2), (1,)] == handler.fed
    assert [b"a", b"c", b"bye"] == [one.payload for one in frames if one.id == 1 and one.kind == Kind.CHUNK]
    assert [Kind.DONE] == [one.kind for one in frames if one.id == 1 and one.kind != Kind.CHUNK]
    assert set() == handler.live


def test_a_batch_is_bounded_and_fair():
    """No more than `batch_size` sequences are fed at once, and those left out are fed next."""
    groups = [[*(opening(id) for id in range(1, 6)), *(item(id, b"a") for id in range(1, 6) for _ in range(2))]]
    handler, _ = drive(groups, batch_size=2)
    assert [(1, 2), (3, 4), (5, 1), (2, 3), (4, 5)] == handler.fed


class Closing(Ledger):
    """Ends every sequence, whichever they are, once one of them says `close`."""

    def feed(self, states, requests):
        """As a Ledger's."""
        self.closing = any(request.inputs["data"] == b"close" for request in requests)
        return super().feed(states, requests)

    def ended(self):
        """All that are open."""
        return sorted(self.live) if self.closing else []


def test_a_handler_ends_sequences():
    """What `feed` answers is still said; then those that the handler names end with ENDED, fed or not, and what they
    had waiting is never fed.
    """
    group = [opening(1), opening(2), opening(3), item(1, b"close"), item(1, b"late"), item(2, b"a")]
    handler, frames = drive([group], Closing())
    assert [(1, 2)] == handler.fed
    assert set() == handler.live
    assert [b"close", b"a"] == [one.payload for one in frames if one.kind == Kind.CHUNK]
    endings = [one.payload[0] for one in frames if one.kind == Kind.ERROR]
    assert [Outcome.ENDED] * 3 == endings


words = st.sampled_from([b"a", b"bad", b"odd", b"raise", b"close"])
ids = st.integers(1, 4)
moves = st.one_of(
    st.tuples(st.just("item"), ids, words),
    st.tuples(st.just("end"), ids, st.just(b"")),
    st.tuples(st.just("credit"), ids, st.just(b"")),
)


@given(
    groups=st.lists(st.lists(moves, max_size=8), max_size=8),
    cancelled=st.sets(ids),
    failing=st.sets(ids),
    batch_size=st.integers(1, 4),
)
def test_every_state_is_released_once(groups, cancelled, failing, batch_size):
    """Whatever comes: each state is released exactly once, each sequence has one ending, and each item at most one
    reply, before the ending.
    """
    opened = [opening(id, open="fails" if id in failing else "well") for id in range(1, 5)]
    given_items: dict[int, int] = dict.fromkeys(range(1, 5), 0)
    arrivals = [opened]
    for group in groups:
        arrivals.append([])
        for what, id, word in group:
            given_items[id] += what == "item"
            arrivals[-1].append(
                item(id, word)
                if what == "item"
                else (Kind.END, id, b"")
                if what == "end"
                else (Kind.CREDIT, id, FrameReader().feed(wire.credit(id, 1, 10))[0].payload)
            )
    handler, frames = drive(arrivals, Closing(), batch_size=batch_size, cancelled=cancelled)
    assert set() == handler.live
    for id in range(1, 5):
        kinds = [one.kind for one in frames if one.id == id]
        assert 1 == sum(kind in (Kind.DONE, Kind.ERROR) for kind in kinds)
        assert kinds[-1] in (Kind.DONE, Kind.ERROR)
        assert len(kinds) - 1 <= given_items[id] + (kinds[-1] == Kind.DONE)
        if id in cancelled:
            assert Outcome.CANCELLED == frames[[one.id for one in frames].index(id)].payload[0]
