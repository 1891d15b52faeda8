"""Octets in pieces: what is put comes out, in order, and what is held is counted."""

from collections import deque

from echo_service import framed
from hypothesis import given, settings
from hypothesis import strategies as st

from actorserve.services.transport.messages import MessageReader
from actorserve.services.transport.pieces import FULL, LARGE, Pieces
from actorserve.services.transport.streams import MAX_CHUNKS, ReceiveWindow, Stream

sizes = st.lists(st.integers(0, 3 * LARGE) | st.integers(0, 8), max_size=40)


def octets(size, start=0):
    """Octets that show their place."""
    return bytes((start + index) % 251 for index in range(size))


@given(st.lists(st.tuples(st.integers(0, 3 * LARGE), st.integers(0, 4 * LARGE)), max_size=30))
@settings(max_examples=60)
def test_what_is_put_moves_on_in_order(steps):
    """Any sequence of puts and moves gives the same octets; `size` is what is left, `held` never less."""
    pieces, put, moved = Pieces(), bytearray(), bytearray()
    held = 0
    for added, wanted in steps:
        data = octets(added, len(put))
        put += data
        pieces.put(data)
        held += added
        held -= pieces.move(min(wanted, pieces.size), moved.extend)

        assert len(put) - len(moved) == pieces.size
        assert held == pieces.held >= pieces.size
    held -= pieces.move(pieces.size, moved.extend)

    assert put == moved
    assert not held


@given(sizes)
@settings(max_examples=60)
def test_what_is_put_is_joined_in_order(added):
    """`join` gives all of it and leaves nothing."""
    pieces, put = Pieces(), b""
    for size in added:
        data = octets(size, len(put))
        put += data
        pieces.put(data)

    assert put == pieces.join()
    assert not pieces.size
    assert not pieces.held
    assert not pieces.join()


def test_a_large_piece_is_not_copied():
    """What was put comes out as the same object, or as views of it; the last part does not hold the rest."""
    pieces, whole, out = Pieces(), octets(5 * LARGE), []
    pieces.put(whole)
    assert whole is pieces.join()

    pieces.put(whole)
    pieces.move(LARGE, out.append)
    pieces.move(LARGE, out.append)
    pieces.move(3 * LARGE, out.append)
    assert [whole, whole] == [view.obj for view in out[:2]]
    assert whole[2 * LARGE :] == out[2]
    assert not isinstance(out[2], memoryview)


def test_many_small_pieces_cost_little_more_than_their_octets():
    """They are put together: a hundred thousand single octets are a few objects."""
    pieces = Pieces()
    for _ in range(100_000):
        pieces.put(b"x")

    assert len(pieces._pieces) <= 100_000 // FULL + 1


@given(st.lists(st.integers(0, 2 * LARGE) | st.integers(0, 9), min_size=1, max_size=12), st.data())
@settings(max_examples=60)
def test_messages_are_read_however_they_are_cut(lengths, data):
    """Any cutting into chunks gives the same messages, and each octet is reported as taken once."""
    bodies = [octets(length, index) for index, length in enumerate(lengths)]
    wire = b"".join(map(framed, bodies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    reader, inbox, read = MessageReader(10 * LARGE), deque(), []
    for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        if start < stop:
            inbox.append(wire[start:stop])
        if data.draw(st.booleans()):
            continue
        while (body := reader.next_message(inbox)) is not None:
            read.append(body)
    while (body := reader.next_message(inbox)) is not None:
        read.append(body)

    assert bodies == read
    assert len(wire) == reader.taken
    assert reader.between_messages
    assert not reader.held


def test_what_is_skipped_is_taken_once():
    """What was read of the first chunk is not given back twice."""
    reader, inbox = MessageReader(100), deque([framed(b"one") + framed(b"two"), framed(b"three")])
    assert reader.next_message(inbox) == b"one"
    reader.skip(inbox)

    assert sum(len(framed(body)) for body in (b"one", b"two", b"three")) == reader.taken
    inbox.append(framed(b"four"))
    assert reader.next_message(inbox) == b"four"


def test_a_slow_reader_of_tiny_frames_keeps_its_place():
    """Chunks are put together behind a first one that was read in part; what was read of it does not pile up."""
    stream, reader, read = Stream(1, 0, ReceiveWindow(0, 0)), MessageReader(100), []
    wire = b"".join(framed(b"%05d" % number) for number in range(2000))
    for index in range(len(wire)):
        stream.put(wire[index : index + 1])
        if index % 12 == 11:
            read.append(reader.next_message(stream.inbox))

        assert len(stream.inbox) <= MAX_CHUNKS
        assert sum(map(len, stream.inbox)) <= 2 * (index + 1 - reader.taken) + MAX_CHUNKS
    while (body := reader.next_message(stream.inbox)) is not None:
        read.append(body)

    assert [b"%05d" % number for number in range(2000)] == read
