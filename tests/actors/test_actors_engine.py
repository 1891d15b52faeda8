"""The worker's loop, driven without a process: scripted arrivals in, frames out, a handler that keeps books.

Scripts are played by the inbox itself, so each interleaving of arrivals and handler calls can be had again.
What must not live here: sequences, real handlers, sockets.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorserve.actors import in_hand, wire
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, Frame, FrameReader, Item, Kind, Outcome
from actorserve.actors.worker_batches import Batches, forwards
from actorserve.actors.worker_engine import Engine
from actorserve.actors.worker_items import Arrival, Flags
from actorserve.errors import TooLarge
from actorserve.handlers.base import Request, Step

Action = tuple[Any, ...]
"""("open", length, fails) | ("cancel", which) | ("credit", which, chunks) | ("pause",)"""


def item(id: int, *, deadline_ns: int = 0, **inputs: bytes) -> Item:
    return Item(id, deadline_ns, str(id), inputs, {})


class World:
    """An engine's surroundings: plays a script into it, keeps what it sends. Afterwards every reader reads on."""

    def __init__(self, script: Sequence[Action], *, slow: int = 0) -> None:
        """The first `slow` streams' readers never give credit."""
        self.script = deque(script)
        self.flags = Flags()
        self.sent: dict[int, list[Frame]] = {}
        self.granted: Counter[int] = Counter()
        self.cancelled: set[int] = set()
        self.live: set[int] = set()
        self._slow = slow
        self._frames = FrameReader()
        self._opened = 0

    def send(self, data: wire.Data) -> None:
        for frame in self._frames.feed(b"".join(data) if isinstance(data, list) else data):
            self.sent.setdefault(frame.id, []).append(frame)
            if frame.kind in (Kind.DONE, Kind.ERROR):
                assert frame.id in self.live, "a stream ended twice, or without having been opened"
                self.live.remove(frame.id)

    def empty(self) -> bool:
        """A pause is an inbox that is found empty once."""
        if self.script and self.script[0] == ("pause",):
            self.script.popleft()
            return True
        return not self.script

    def get(self) -> list[Arrival]:
        while self.script:
            action = self.script.popleft()
            if action != ("pause",):
                return self.play(action)
        readers = sorted(id for id in self.live if id > self._slow)
        if readers:
            return [self._credit(id, CREDIT_CHUNKS) for id in readers]
        for id in self.live:
            self.flags.cancel(id)
        return [Arrival(Kind.STOP, 0, b"")]

    def play(self, action: Action) -> list[Arrival]:
        kind, *rest = action
        if kind == "open":
            self._opened += 1
            self.flags.add([self._opened])
            self.live.add(self._opened)
            length, fails = rest
            return [Arrival(Kind.OPEN, self._opened, item(self._opened, length=b"%d" % length, fails=b"%d" % fails))]
        if not self._opened:
            return []
        id = rest[0] % self._opened + 1
        if kind == "cancel":
            if id in self.live:
                self.cancelled.add(id)
            self.flags.cancel(id)
            return [Arrival(Kind.CANCEL, id, b"")]
        return [self._credit(id, rest[1])]

    def _credit(self, id: int, chunks: int) -> Arrival:
        self.granted[id] += chunks
        return Arrival(Kind.CREDIT, id, wire.credit(id, chunks, chunks)[wire.HEADER_BYTES :])

    def cancel_during_call(self) -> None:
        """What the reader thread may do at any moment: set a flag while model code runs."""
        if self.script and self.script[0][0] == "cancel":
            self.script.extend([("pause",)])
            self.play(self.script.popleft())

    def run(self, handler: Any) -> None:
        inbox: Any = self
        Engine(handler, inbox=inbox, flags=self.flags, send=self.send).run()


class _State:
    def __init__(self, request: Request) -> None:
        self.id = int(request.id)
        self.length = int(request.inputs["length"])
        self.fails = int(request.inputs["fails"])
        self.given = 0
        self.released = 0


class Books:
    """A handler of continuous batching that checks, at each call, that it may be made."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.states: list[_State] = []
        self.calls: list[str] = []

    def _give(self, state: _State) -> Step | Exception:
        if state.fails == state.given:
            return ValueError("as it was told")
        state.given += 1
        return Step(b"%d" % state.given, done=state.given == state.length)

    def prefill(self, request: Request) -> tuple[_State, Step]:
        assert not request.cancelled()
        self.calls.append("prefill")
        state = _State(request)
        step = self._give(state)
        if isinstance(step, Exception):
            raise step
        self.states.append(state)
        return state, step

    def step(self, states: Sequence[_State]) -> list[Step | Exception]:
        self.calls.append("step")
        assert len(set(map(id, states))) == len(states)
        for state in states:
            assert not state.released
            assert not self.world.flags.is_cancelled(state.id)
            assert state.given < CREDIT_CHUNKS + self.world.granted[state.id]
        self.world.cancel_during_call()
        return [self._give(state) for state in states]

    def release(self, state: _State) -> None:
        state.released += 1


class Generators:
    """A handler of generators that checks the same."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.states: list[_State] = []

    def generate(self, request: Request) -> Iterator[bytes]:
        state = _State(request)
        self.states.append(state)
        try:
            while state.given < state.length:
                assert not self.world.flags.is_cancelled(state.id)
                assert state.given < CREDIT_CHUNKS + self.world.granted[state.id]
                self.world.cancel_during_call()
                if state.fails == state.given:
                    raise ValueError("as it was told")
                state.given += 1
                yield b"%d" % state.given
        finally:
            state.released += 1


_actions = st.one_of(
    st.tuples(st.just("open"), st.integers(1, 40), st.integers(-1, 20)),
    st.tuples(st.just("cancel"), st.integers(0, 7)),
    st.tuples(st.just("credit"), st.integers(0, 7), st.integers(1, 8)),
    st.just(("pause",)),
)


@pytest.mark.parametrize("kind", [Books, Generators])
@given(script=st.lists(_actions, max_size=40))
def test_every_stream_ends_once_and_is_freed_once(kind: Any, script: list[Action]) -> None:
    """Whatever is cancelled, fails, ends or waits for credit, in any order: one ending, after it nothing.

    Its state is freed exactly once; never stepped when cancelled, freed or without credit; chunks come in order.
    """
    world = World(script)
    handler = kind(world)

    world.run(handler)

    assert not world.live
    assert [state.released for state in handler.states] == [1] * len(handler.states)
    states = {state.id: state for state in handler.states}
    for id, frames in world.sent.items():
        *chunks, last = frames
        assert [chunk.payload for chunk in chunks] == [b"%d" % number for number in range(1, len(chunks) + 1)]
        if last.kind == Kind.DONE:
            assert len(chunks) == states[id].length
            continue
        outcome, _ = wire.read_error(last.payload)
        if outcome == Outcome.CANCELLED:
            assert id in world.cancelled
        else:
            assert outcome == Outcome.RAISED
            assert id not in states or len(chunks) == states[id].fails


def test_one_prefill_between_two_steps() -> None:
    """Newcomers who come together are let in one a round: those who run never wait for two."""
    world = World([*[("open", 40, -1)] * 7, *[("pause",)] * 8, *[("open", 10, -1)] * 5])
    handler = Books(world)

    world.run(handler)

    first = handler.calls.index("step")
    assert "prefill prefill" not in " ".join(handler.calls[first:])
    assert handler.calls.count("prefill") == 12


def test_steps_are_shared_alike() -> None:
    """Who runs takes part in every step: three of 16 tokens, let in one a round, take what the last one needs."""
    world = World([("open", 16, -1), ("open", 16, -1), ("open", 16, -1)])
    handler = Books(world)

    world.run(handler)

    assert handler.calls.count("step") == 2 + 15
    assert all(state.given == 16 for state in handler.states)


def test_a_newcomers_first_word_does_not_wait_for_a_step() -> None:
    """What prefill gave is written before the others' step begins."""
    world = World([("open", 20, -1), ("open", 20, -1)])
    seen: list[list[int]] = []

    class Watching(Books):
        def step(self, states: Sequence[_State]) -> list[Step | Exception]:
            seen.append([len(world.sent.get(state.id, ())) for state in states])
            return super().step(states)

    world.run(Watching(world))

    assert seen[0] == [1]
    assert seen[1] == [2, 1]


@pytest.mark.parametrize("kind", [Books, Generators])
def test_slow_readers_hold_only_their_credit(kind: Any) -> None:
    """Ten of a hundred never read: they get 16 chunks and no more, their neighbours get everything."""
    world = World([("open", 200, -1)] * 100, slow=10)
    handler = kind(world)

    world.run(handler)

    chunks = {id: sum(frame.kind == Kind.CHUNK for frame in frames) for id, frames in world.sent.items()}
    assert [chunks[id] for id in range(1, 11)] == [CREDIT_CHUNKS] * 10
    assert [chunks[id] for id in range(11, 101)] == [200] * 90
    assert all(state.released == 1 for state in handler.states)


def test_large_chunks_are_held_by_their_bytes() -> None:
    """A reader who never reads holds 256 KiB at most, and one chunk whatever its size."""

    class Large(Generators):
        def generate(self, request: Request) -> Iterator[bytes]:
            for _ in super().generate(request):
                yield bytes(100_000)

    world = World([("open", 50, -1)], slow=1)

    world.run(Large(world))

    held = sum(len(frame.payload) for frame in world.sent[1] if frame.kind == Kind.CHUNK)
    assert CREDIT_BYTES <= held < CREDIT_BYTES + 100_000


# --- batches ----------------------------------------------------------------------------------


@given(weights=st.lists(st.integers(0, 20), max_size=40))
def test_forwards_are_light_and_of_one_size(weights: list[int]) -> None:
    """Each index once, lightest first, no forward above the limit, and none that the next one's first would fit."""
    parts = forwards(weights, 20)

    flat = [index for part in parts for index in part]
    assert sorted(flat) == list(range(len(weights)))
    assert [weights[index] for index in flat] == sorted(weights)
    totals = [sum(weights[index] for index in part) for part in parts]
    assert all(total <= 20 for total in totals)
    for total, following in zip(totals, parts[1:], strict=False):
        assert total + weights[following[0]] > 20


class Weighing:
    """A handler of batches that notes each forward; an item weighs what its `data` says."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self.forwards: list[list[int]] = []
        self.cancels: dict[int, int] = {}  # during which forward whose caller goes

    def weight(self, request: Request) -> Any:
        return json.loads(request.inputs["data"])

    def infer(self, batch: Sequence[Request]) -> list[bytes]:
        gone = self.cancels.get(len(self.forwards))
        if gone is not None:
            self.flags.cancel(gone)
        self.forwards.append([int(request.id) for request in batch])
        return [request.id.encode() for request in batch]


def _run(items: Sequence[Item], *, limit: int, **cancels: int) -> tuple[Weighing, dict[int, wire.Result]]:
    flags = Flags()
    flags.add([one.id for one in items])
    handler = Weighing(flags)
    handler.cancels = {int(key.removeprefix("during_")): id for key, id in cancels.items()}
    results = Batches(handler, flags=flags, make=_request, max_weight=limit).run(items)
    assert sorted(result.id for result in results) == sorted(one.id for one in items)
    return handler, {result.id: result for result in results}


def _request(one: Item) -> Request:
    return Request(one.inputs, one.metadata, one.request_id, deadline_ns=one.deadline_ns)


@given(weights=st.lists(st.one_of(st.integers(0, 15), st.sampled_from(["x", -1, True, 1.5])), max_size=20))
def test_each_item_has_its_own_ending(weights: list[Any]) -> None:
    """Too heavy: TOO_LARGE with both sizes, alone. No weight at all: the handler's fault, alone. The others answer."""
    items = [item(id, data=json.dumps(weight).encode()) for id, weight in enumerate(weights, 1)]

    handler, results = _run(items, limit=10)

    for id, weight in enumerate(weights, 1):
        if type(weight) is not int or weight < 0:
            assert results[id].outcome == Outcome.RAISED
        elif weight > 10:
            assert results[id].outcome == Outcome.TOO_LARGE
            assert wire.read_too_large_data(results[id].data) == (weight, 10)
        else:
            assert results[id][1:3] == (Outcome.OK, b"%d" % id)
    assert all(sum(weights[id - 1] for id in forward) <= 10 for forward in handler.forwards)


def test_too_large_names_both_sizes() -> None:
    """The server's half: the error of TOO_LARGE says how heavy the item is, and what the limit is."""
    error = in_hand.failure(Outcome.TOO_LARGE, wire.too_large_data(11, 10))

    assert isinstance(error, TooLarge)
    assert (error.size, error.limit) == (11, 10)
    assert "of 11 units" in str(error)


def test_without_a_limit_nothing_is_weighed() -> None:
    """One forward, in the order of arrival; `weight` is not asked."""
    handler, results = _run([item(1, data=b"9"), item(2, data=b'"x"'), item(3, data=b"1")], limit=0)

    assert handler.forwards == [[1, 2, 3]]
    assert {result.outcome for result in results.values()} == {Outcome.OK}


def test_who_goes_meanwhile_is_left_out_of_the_next_forward() -> None:
    """A caller who goes while the first forward runs costs no second one; who has expired costs none at all."""
    late = time.monotonic_ns() - 1
    items = [item(1, data=b"1"), item(2, data=b"5"), item(3, data=b"5"), item(4, data=b"2", deadline_ns=late)]

    handler, results = _run(items, limit=5, during_0=2)

    assert handler.forwards == [[1], [3]]
    assert results[2].outcome == Outcome.CANCELLED
    assert results[4].outcome == Outcome.EXPIRED
