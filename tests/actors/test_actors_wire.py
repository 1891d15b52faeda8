"""The worker protocol's framing: properties, by hypothesis."""

# ruff: noqa: SIM300  # expected == actual

import contextlib
import struct
from itertools import cycle, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorserve.actors import wire
from actorserve.actors.wire import Frame, FrameReader, Item, Kind, Outcome, Result, WireError

ids = st.integers(0, 2**64 - 1)
pairs = st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=4)
metadata = st.dictionaries(st.text("abc", min_size=1, max_size=5), st.text(max_size=9), max_size=3).flatmap(
    lambda text: st.dictionaries(st.text("xyz", max_size=5).map(lambda key: key + "-bin"), st.binary(max_size=9)).map(
        lambda binary: {**text, **binary}
    )
)
items = st.builds(Item, ids, st.integers(0, 2**62), st.text(max_size=12), pairs, metadata)
results = st.builds(Result, ids, st.sampled_from([int(one) for one in Outcome]), st.binary(max_size=60), metadata)
frames = st.lists(st.tuples(st.sampled_from(list(Kind)), ids, st.binary(max_size=200)), max_size=12)


def joined(data: wire.Data) -> bytes:
    return b"".join(data) if isinstance(data, list) else data


def one(data: wire.Data) -> Frame:
    (frame,) = FrameReader().feed(joined(data))
    return frame


@given(frames, st.lists(st.integers(0, 2000)))
def test_any_split_gives_the_same_frames(said, cuts):
    """However the bytes are cut, the same frames come out, in order."""
    stream = b"".join(wire.frame(*one) for one in said)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut <= len(stream))})
    reader = FrameReader()
    heard = [frame for start, end in pairwise(edges) for frame in reader.feed(stream[start:end])]

    assert said == heard


LARGE_SIZES = st.one_of(st.integers(0, 300), st.integers(wire.LARGE - 20, wire.LARGE + 20), st.just(300_000))


@given(
    st.lists(st.tuples(st.sampled_from(list(Kind)), ids, LARGE_SIZES), max_size=4),
    st.lists(st.tuples(st.integers(1, 200_000), st.booleans()), max_size=6),
)
@settings(deadline=None)
def test_large_frames_by_whichever_way_they_come(said, reads):
    """Fed, or received into the room for them, in turns and in reads of any size: the same frames, in order."""
    said = [(kind, id, bytes(range(251)) * (size // 251 + 1)) for kind, id, size in said]
    stream = memoryview(b"".join(wire.frame(*one) for one in said))
    reader, heard, sizes = FrameReader(), [], cycle([*reads, (50_000, True)])
    while stream:
        size, by_room = next(sizes)
        if by_room and reader.room is not None:
            size = min(size, len(reader.room), len(stream))
            reader.room[:size] = stream[:size]
            heard += reader.filled(size)
        else:
            size = min(size, len(stream))
            heard += reader.feed(bytes(stream[:size]))
        stream = stream[size:]

    assert said == heard
    assert reader.room is None


@given(st.integers(wire.LARGE, wire.MAX_FRAME_BYTES), st.integers(0, 6 << 20))
@settings(deadline=None, max_examples=20)
def test_a_length_is_not_believed_before_its_bytes_come(length, come):
    """What is held of a frame is at most 4 MiB or twice what has come, whatever length it says."""
    reader = FrameReader()
    come = min(come, length - 1)
    reader.feed(struct.pack("<BQI", Kind.RESULT, 1, length) + bytes(come))

    assert reader.room is not None
    assert 0 < len(reader.room) + come <= max(4 << 20, 2 * come)


@given(st.lists(st.lists(LARGE_SIZES, min_size=1, max_size=4), min_size=1, max_size=3), st.data())
@settings(deadline=None)
def test_parts_make_the_same_bytes(writes, data):
    """However writes are put together, and wherever a send stops, what is left is what has not left."""
    values = [[bytes([n % 256]) * n for n in sizes] for sizes in writes]
    whole = b"".join(part for value in values for part in value)
    ready = wire.together([value if len(value) > 1 else value[0] for value in values])
    sent = data.draw(st.integers(0, len(whole)))

    assert whole == joined(ready)
    assert whole[sent:] == b"".join(wire.unsent(ready if isinstance(ready, list) else [ready], sent))


def test_what_is_large_is_not_copied():
    """A large value leaves as the very object that it is, in a BATCH, an OPEN, an ITEM, a RESULT and a CHUNK."""
    value = bytes(wire.LARGE)
    one = Item(1, 0, "", {"data": value, "more": b"x"}, {})
    written = [
        wire.batch(1, [one]),
        wire.open_stream(one),
        wire.item(1, one.inputs),
        wire.result(1, [Result(1, 0, value, {})]),
        wire.chunk(1, value),
    ]

    for data in [*written, wire.together(written)]:
        assert any(part is value for part in data)


@given(ids, st.lists(items, max_size=5))
def test_batch_reads_back(id, batch):
    """What is packed into a BATCH reads back."""
    frame = one(wire.batch(id, batch))

    assert (Kind.BATCH, id, batch) == (frame.kind, frame.id, wire.read_batch(frame.payload))


@given(items)
def test_open_reads_back(item):
    """What is packed into an OPEN reads back, and its id is the item's."""
    frame = one(wire.open_stream(item))

    assert (Kind.OPEN, item.id, item) == (frame.kind, frame.id, wire.read_open(frame.payload))


@given(ids, st.lists(results, max_size=5))
def test_result_reads_back(id, batch):
    """What is packed into a RESULT reads back."""
    frame = one(wire.result(id, batch))

    assert (Kind.RESULT, id, batch) == (frame.kind, frame.id, wire.read_result(frame.payload))


@given(ids, metadata, st.sampled_from(Outcome), st.text(max_size=20), st.text(max_size=20))
def test_endings_read_back(id, trailers, outcome, first, text):
    """What is packed into a DONE or an ERROR reads back."""
    done = one(wire.done(id, trailers))
    error = one(wire.error(id, outcome, wire.error_data(first, text)))
    said, data = wire.read_error(error.payload)

    assert (id, trailers) == (done.id, wire.read_done(done.payload))
    assert (id, outcome, (first, text)) == (error.id, said, wire.read_error_data(data))


@given(ids, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.floats(0, 1e9))
def test_small_ones_read_back(id, chunks, size, seconds):
    """What is packed into a CREDIT, a PONG or a note reads back."""
    credit = one(wire.credit(id, chunks, size))
    content = {"text": "é\ud800", "list": [1, None], "number": seconds}

    assert (id, (chunks, size)) == (credit.id, wire.read_credit(credit.payload))
    assert seconds == wire.read_pong(one(wire.pong(seconds)).payload)
    assert content == wire.read_note(one(wire.note(Kind.LOG, content)).payload)


@given(items)
def test_size_is_never_underestimated(item):
    """`size_of` is at least what the item takes once packed."""
    assert wire.size_of(item) >= len(wire.open_stream(item)) - wire.HEADER_BYTES


def test_many_and_long_keys():
    """A client may send 70,000 inputs, and a key of 70,000 letters: neither is the server's problem."""
    many = Item(1, 0, "r", {str(n): b"" for n in range(70_000)} | {"k" * 70_000: b"v"}, {})
    trailers = {f"t{n}": "v" for n in range(300)}

    assert [many] == wire.read_batch(one(wire.batch(1, [many])).payload)
    assert [Result(1, 0, b"", trailers)] == wire.read_result(one(wire.result(1, [Result(1, 0, b"", trailers)])).payload)


@given(st.integers(0, 255).filter(lambda kind: kind not in set(Kind)), ids)
def test_unknown_kind(kind, id):
    """A kind that nobody knows is WireError, as soon as its header is there."""
    with pytest.raises(WireError, match="unknown"):
        FrameReader().feed(struct.pack("<BQI", kind, id, 0))


@given(st.integers(wire.MAX_FRAME_BYTES + 1, 2**32 - 1))
def test_oversize(length):
    """A frame above the limit is WireError before any of it is kept."""
    with pytest.raises(WireError, match="limit"):
        FrameReader().feed(struct.pack("<BQI", Kind.CHUNK, 1, length))


def test_what_came_before_nonsense_is_still_heard():
    """Frames that are whole before an unknown kind are given; the error comes next: they may say BEGUN."""
    reader = FrameReader()
    frames = reader.feed(wire.frame(Kind.BEGUN, 7) + b"\xff" * 40)

    assert ([(Kind.BEGUN, 7, b"")], True) == (frames, reader.broken)
    with pytest.raises(WireError):
        reader.feed(b"")


READERS = [
    wire.read_batch,
    wire.read_open,
    wire.read_result,
    wire.read_done,
    wire.read_error,
    wire.read_error_data,
    wire.read_status_data,
    wire.read_note,
    wire.read_credit,
    wire.read_pong,
]


@pytest.mark.parametrize("read", READERS)
@given(payload=st.binary(max_size=80))
def test_garbage_is_wire_error_and_nothing_else(read, payload):
    """Whatever a payload holds, a reader gives something or raises WireError: a worker cannot hurt the server."""
    with contextlib.suppress(WireError):
        read(payload)


@given(ids, st.lists(results, min_size=1, max_size=4), st.data())
def test_a_cut_result_is_wire_error(id, batch, data):
    """A RESULT that is shorter or longer than its lengths say is WireError, never a shorter answer."""
    payload = one(wire.result(id, batch)).payload
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(WireError):
        wire.read_result(payload[:cut])
    with pytest.raises(WireError):
        wire.read_result(payload + b"\0")


@pytest.mark.parametrize("payload", [b"[" * 100_000, b"[1e999, 1]", b"[[], 1]"], ids=["deep", "infinite", "no number"])
def test_strange_json_is_an_error_of_the_worker(payload):
    """JSON that Python reads and cannot use is WireError too."""
    with pytest.raises(WireError):
        wire.read_too_large_data(payload)


@given(st.integers(), st.text(), st.none() | st.binary())
def test_a_status_comes_back(code, text, answer):
    """What a handler ended its item with is read as it was packed; no answer is not an empty one."""
    assert (code, text, answer) == wire.read_status_data(wire.status_data(code, text, answer))
