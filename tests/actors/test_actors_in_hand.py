"""What a worker has in hand: exactly one ending each, credit at half, and nothing that a worker says can hurt."""

# ruff: noqa: SIM300  # expected == actual

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from universe import run_virtually

from actorserve.actors import in_hand, wire
from actorserve.actors.in_hand import InHand
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Generate, Infer, OpenSequence
from actorserve.actors.wire import CREDIT_CHUNKS, FrameReader, Kind, Outcome, Result, WireError
from actorserve.errors import ActorCrashed, BadInput, Expired, HandlerRaised, TooLarge


class Books:
    """An InHand, the mailbox that feeds it, and the frames that it has written."""

    def __init__(self, gather_limit: int = 1000) -> None:
        self.written: list[bytes] = []
        self.mailbox = Mailbox("m", limit=100, batch_size=10, max_delay_s=0.0)
        self.hand = InHand(self.written.append, gather_limit=gather_limit)

    def frames(self) -> list[wire.Frame]:
        """What was written since this was last asked."""
        frames = FrameReader().feed(b"".join(self.written))
        self.written.clear()
        return frames

    def ask_batch(self, count: int, **given):
        """A batch of so many, sent: the replies, the batch's id, the items' ids."""
        replies = [self.mailbox.ask(Infer({"n": b"%d" % n}), **given) for n in range(count)]
        self.hand.send_batch(self.mailbox.take(self.mailbox.batch_lane, count))
        (frame,) = self.frames()
        return replies, frame.id, [item.id for item in wire.read_batch(frame.payload)]

    def ask_stream(self, message=None):
        """A stream, opened: the reply and its id."""
        reply = self.mailbox.ask(message or Generate({}))
        self.hand.open_stream(self.mailbox.take(self.mailbox.batch_lane, 1)[0])
        (frame,) = self.frames()
        return reply, frame.id

    def hear(self, data: bytes) -> None:
        """What the worker says."""
        for frame in FrameReader().feed(data):
            self.hand.hear(frame)


def crashed() -> ActorCrashed:
    return ActorCrashed("it died")


async def test_each_item_has_its_own_ending():
    """A batch ends item by item, each with its answer or its error; one that is not named fails too."""
    books = Books()
    replies, batch, ids = books.ask_batch(6)
    books.hear(wire.frame(Kind.BEGUN, batch))
    books.hear(
        wire.result(
            batch,
            [
                Result(ids[0], Outcome.OK, b"yes", {"t": "v"}),
                Result(ids[1], Outcome.BAD_INPUT, wire.error_data("data", "no"), {}),
                Result(ids[2], Outcome.RAISED, wire.error_data("ValueError", "no"), {}),
                Result(ids[3], Outcome.EXPIRED, b"", {}),
                Result(ids[4], Outcome.CANCELLED, b"", {}),
            ],
        )
    )
    answer = await replies[0].wait()

    assert (b"yes", {"t": "v"}, 0) == (answer.data, answer.trailers, books.hand.items)
    for reply, error in zip(replies[1:], [BadInput, HandlerRaised, Expired, Expired, HandlerRaised], strict=True):
        with pytest.raises(error):
            await reply.wait()


async def test_begun_fails_and_unbegun_goes_back(autojump_clock):
    """When the worker dies, a batch in hand fails and one that it had not begun comes back with its old arrival."""
    books = Books()
    begun, first, _ = books.ask_batch(2)
    await trio.sleep(1)
    arrival = trio.current_time()
    waiting, _, _ = books.ask_batch(2)
    await trio.sleep(1)
    books.hear(wire.frame(Kind.BEGUN, first))
    back = books.hand.abandon_all(crashed)

    assert ([arrival] * 2, [False] * 2, 0) == (
        [envelope.arrival for envelope in back],
        [reply.is_set for reply in waiting],
        books.hand.items,
    )
    for reply in begun:
        with pytest.raises(ActorCrashed):
            await reply.wait()


async def test_abandoned_does_not_come_back():
    """Whoever has left a batch that was not begun is forgotten."""
    books = Books()
    replies, _, ids = books.ask_batch(2)
    replies[0].abandon()

    assert [(Kind.CANCEL, ids[0])] == [(frame.kind, frame.id) for frame in books.frames()]
    assert [replies[1]] == [envelope.reply for envelope in books.hand.abandon_all(crashed)]


async def test_nothing_is_written_for_a_dead_worker():
    """Whoever leaves, or takes chunks, after the worker's death writes nothing."""
    books = Books()
    replies, _, _ = books.ask_batch(1)
    stream, id = books.ask_stream()
    books.hear(wire.frame(Kind.CHUNK, id, b"x"))
    books.hand.abandon_all(crashed)
    replies[0].abandon()
    stream.taken(16, 16)
    stream.abandon()

    assert [] == books.written


@pytest.mark.parametrize(("chunks", "size"), [(16, 1), (4, 64 * 1024)])
async def test_credit_comes_back_at_half(chunks, size):
    """Credit is given back when half of the chunks or half of the bytes have been taken, in one frame."""
    books = Books()
    stream, _ = books.ask_stream()
    said = []
    for _ in range(chunks):
        stream.taken(1, size)
        said += [wire.read_credit(frame.payload) for frame in books.frames()]

    assert [(chunks // 2, chunks // 2 * size)] * 2 == said


@given(st.lists(st.integers(0, 300_000), max_size=60))
def test_credit_never_runs_dry(sizes):
    """Once everything was taken, the worker may go on: no stream stalls for want of credit, whatever the sizes."""

    async def main():
        books = Books()
        stream, _ = books.ask_stream()
        chunks, left = wire.CREDIT_CHUNKS, wire.CREDIT_BYTES
        for size in sizes:
            assert chunks > 0
            assert left > 0
            chunks, left = chunks - 1, left - size
            stream.taken(1, size)
            for frame in books.frames():
                more, more_bytes = wire.read_credit(frame.payload)
                chunks, left = chunks + more, left + more_bytes

    run_virtually(main)


async def test_unary_gathers_a_stream():
    """A unary call of a streaming handler gets the chunks concatenated in order, with credit for its own reading."""
    books = Books()
    reply, id = books.ask_stream(Infer({}))
    for n in range(8):
        books.hear(wire.frame(Kind.CHUNK, id, b"%d" % n))
    credit = [wire.read_credit(frame.payload) for frame in books.frames()]
    books.hear(wire.done(id, {"t": "v"}))
    answer = await reply.wait()

    assert ([(8, 8)], b"01234567", {"t": "v"}) == (credit, answer.data, answer.trailers)


async def test_gathering_is_bounded():
    """A gathered answer above the limit ends with TooLarge, and the generator is stopped."""
    books = Books(gather_limit=10)
    reply, id = books.ask_stream(Infer({}))
    books.hear(wire.frame(Kind.CHUNK, id, b"x" * 11))
    books.hear(wire.frame(Kind.CHUNK, id, b"x" * 11))

    assert [(Kind.CANCEL, id)] == [(frame.kind, frame.id) for frame in books.frames()]
    books.hear(wire.error(id, Outcome.CANCELLED, b""))
    with pytest.raises(TooLarge):
        await reply.wait()


async def test_late_frames_of_a_stream_are_dropped():
    """Chunks and endings of a stream that has ended already change nothing."""
    books = Books()
    stream, id = books.ask_stream()
    books.hear(wire.frame(Kind.CHUNK, id, b"a") + wire.done(id))
    books.hear(wire.frame(Kind.CHUNK, id, b"b") + wire.done(id) + wire.error(id, Outcome.CANCELLED, b""))

    assert ([b"a"], []) == (await stream.receive(), await stream.receive())


async def test_batch_for_one_stream_on_a_batch_handler():
    """A streaming call of a batch handler gets one chunk and the end."""
    books = Books()
    stream = books.mailbox.ask(Generate({}))
    books.hand.send_batch(books.mailbox.take(books.mailbox.batch_lane, 1))
    (frame,) = books.frames()
    (item,) = wire.read_batch(frame.payload)
    books.hear(wire.result(frame.id, [Result(item.id, Outcome.OK, b"one", {})]))

    assert ([b"one"], []) == (await stream.receive(), await stream.receive())


async def test_too_large_for_a_frame_fails_alone(monkeypatch):
    """What fits into no frame fails with TooLarge; the others go, in as many batches as they need."""
    monkeypatch.setattr(in_hand, "PAYLOAD_LIMIT", 1000)
    books = Books()
    sizes = [300, 300, 2000, 300, 300]
    replies = [books.mailbox.ask(Infer({"data": b"x" * size})) for size in sizes]
    books.hand.send_batch(books.mailbox.take(books.mailbox.batch_lane, 5))
    large = books.mailbox.ask(Generate({"data": b"x" * 2000}))
    books.hand.open_stream(books.mailbox.take(books.mailbox.batch_lane, 1)[0])
    batches = [wire.read_batch(frame.payload) for frame in books.frames()]

    assert [2, 2] == [len(batch) for batch in batches]
    assert (2, 4) == (books.hand.batches, books.hand.items)
    with pytest.raises(TooLarge):
        await replies[2].wait()
    with pytest.raises(TooLarge):
        await large.receive()


GARBAGE = st.one_of(
    st.builds(
        wire.frame,
        st.sampled_from(Kind),
        st.integers(0, 12),
        st.binary(max_size=60),
    ),
    st.builds(
        lambda id, results: wire.result(id, [Result(*result, {}) for result in results]),
        st.integers(1, 8),
        st.lists(st.tuples(st.integers(1, 12), st.integers(0, 7), st.binary(max_size=5)), max_size=5),
    ),
    st.builds(lambda id, code: wire.frame(Kind.ERROR, id, bytes((code,))), st.integers(0, 12), st.integers(0, 9)),
    st.builds(wire.done, st.integers(0, 12)),
)


@pytest.mark.parametrize("message", [Generate({}), OpenSequence()], ids=["stream", "sequence"])
async def test_no_more_than_the_credit_is_kept(message):
    """A worker that goes on without credit is broken: what its caller has not received stays bounded."""
    books = Books()
    reply, id = books.ask_stream(message)
    for _ in range(CREDIT_CHUNKS):
        books.hear(wire.frame(Kind.CHUNK, id, b"x"))
    with pytest.raises(WireError, match="no credit"):
        books.hear(wire.frame(Kind.CHUNK, id, b"x"))
    reply.abandon()
    books.hear(wire.frame(Kind.CHUNK, id, b"x"))


@given(st.lists(GARBAGE, max_size=12))
@example([wire.frame(Kind.ERROR, 5)])
@example([wire.error(5, Outcome.RAISED, b"{")])
@example([wire.frame(Kind.DONE, 5, b"x")])
@example([wire.result(1, [Result(2, Outcome.RAISED, b"{", {})])])
def test_exactly_one_ending_whatever_a_worker_says(said):
    """A worker may say anything: WireError at worst, and when it is gone every request has ended or goes back, once."""

    async def main():
        books = Books()
        replies = [
            *books.ask_batch(3)[0],
            books.ask_stream()[0],
            *books.ask_batch(2)[0],
            books.ask_stream(Infer({}))[0],
        ]
        try:
            for data in said:
                books.hear(data)
        except WireError:
            pass
        back = [envelope.reply for envelope in books.hand.abandon_all(crashed)]
        assert len(back) == len(set(map(id, back)))
        for reply in replies:
            assert reply.is_set != (reply in back)
        assert 0 == books.hand.items

    run_virtually(main)
