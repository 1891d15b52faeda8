"""The frames of calls: what is packed is read again, and whatever else a worker sends is a WireError, never worse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorserve.actors import wire, wire_calls
from actorserve.actors.messages import Cardinality, Ending, Initial
from actorserve.actors.wire import Kind
from actorserve.actors.wire_calls import Opened

TEXT = st.text(max_size=40)
PAIRS = st.lists(
    st.one_of(
        st.tuples(TEXT.filter(lambda key: not key.endswith("-bin")), TEXT),
        st.tuples(TEXT.map(lambda key: f"{key}-bin"), st.binary(max_size=40)),
    ),
    max_size=6,
).map(tuple)
DATA = st.one_of(st.none(), st.binary(max_size=100), st.just(bytes(wire.LARGE + 1)))
OPENED = st.builds(
    Opened,
    id=st.integers(0, 2**64 - 1),
    deadline_ns=st.integers(0, 2**63 - 1),
    cardinality=st.sampled_from(Cardinality),
    method=TEXT,
    request_id=TEXT,
    peer=TEXT,
    auth=st.binary(max_size=40),
    metadata=PAIRS,
    data=DATA,
)
ENDINGS = st.builds(
    Ending,
    status=st.integers(-(2**31), 2**31 - 1),
    details=TEXT,
    trailers=PAIRS,
    rich=st.binary(max_size=40),
    data=DATA,
    reset=st.booleans(),
)
INITIALS = st.builds(Initial, PAIRS, st.sampled_from(("", "deflate", "gzip")))
READERS = (
    lambda payload: wire_calls.read_open_call((1, payload)),
    lambda payload: wire_calls.read_call((1, payload)),
    wire_calls.read_initial,
    wire_calls.read_ended,
    wire_calls.read_failed,
)


def frame_of(data):
    """The one frame in what was packed."""
    (frame,) = wire.FrameReader().feed(data if isinstance(data, bytes) else b"".join(data))
    return frame


@given(OPENED, TEXT)
def test_calls(opened, target):
    """A call, and one that a worker makes."""
    frame = frame_of(wire_calls.open_call(opened))
    assert frame.kind == Kind.OPEN_CALL
    assert wire_calls.read_open_call((frame.id, frame.payload)) == opened
    frame = frame_of(wire_calls.call(target, opened))
    assert frame.kind == Kind.CALL
    assert wire_calls.read_call((frame.id, frame.payload)) == (target, opened)


@given(ENDINGS, INITIALS)
def test_endings_and_initial_metadata(ending, initial):
    """Both ways: of a call, and of one that a worker has made."""
    for kind in (Kind.ENDED, Kind.REPLY_ENDED):
        frame = frame_of(wire_calls.ended(7, ending, kind))
        assert (frame.kind, frame.id, wire_calls.read_ended(frame.payload)) == (kind, 7, ending)
    for kind in (Kind.INITIAL, Kind.REPLY_INITIAL):
        frame = frame_of(wire_calls.initial(7, initial, kind))
        assert (frame.kind, frame.id, wire_calls.read_initial(frame.payload)) == (kind, 7, initial)


@given(st.binary(max_size=200), OPENED, ENDINGS, INITIALS, st.data())
def test_nonsense_is_a_wire_error(noise, opened, ending, initial, data):
    """Noise, and frames with a part cut off or changed, are read as something or refused with WireError."""
    opened, ending = opened._replace(data=None), Ending(ending.status, ending.details, ending.trailers)
    whole = [wire_calls.open_call(opened), wire_calls.ended(1, ending), wire_calls.initial(1, initial)]
    payloads = [noise, *(frame_of(one).payload for one in whole)]
    for payload in payloads:
        at = data.draw(st.integers(0, len(payload)))
        for wrong in (payload[:at], payload[:at] + noise + payload[at:]):
            for read in READERS:
                try:
                    read(wrong)
                except wire.WireError:
                    continue


def test_cut_off_frames_are_refused():
    """Every proper beginning of a frame without a message is refused."""
    opened = Opened(1, 0, Cardinality.STREAM_STREAM, "/a.B/C", "id", "peer", b"{}", (("key", "value"),), None)
    payload = frame_of(wire_calls.open_call(opened)).payload
    for at in range(len(payload)):
        with pytest.raises(wire.WireError):
            wire_calls.read_open_call((1, payload[:at]))


@given(st.lists(TEXT), st.lists(TEXT), st.integers(0, 2**40), st.lists(st.tuples(TEXT, st.integers(0, 2**40))))
def test_models_and_turns(held, loading, seen, wants):
    """What a replica says of its models, and the number of a turn, are read as they were packed."""
    said = wire_calls.Models(held, loading, seen, wants)
    assert wire_calls.read_models(wire_calls.models(said)[wire.HEADER_BYTES :]) == said
    assert wire_calls.read_may_load(wire_calls.may_load(seen)[wire.HEADER_BYTES :]) == seen


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b'{"held": 1, "loading": [], "seen": 0, "wants": []}',
        b'{"held": [], "loading": [], "seen": "x", "wants": []}',
        b'{"held": [], "loading": [], "seen": 0, "wants": [1]}',
        b'{"held": [], "loading": [], "seen": 0, "wants": [["m"]]}',
    ],
)
def test_models_that_make_no_sense(payload):
    """A worker that says nonsense of its models breaks the protocol, and nothing else breaks."""
    with pytest.raises(wire.WireError):
        wire_calls.read_models(payload)
