"""What a hostile peer may do, and where it ends: one test a bound of docs/security.md."""

import tracemalloc

import hpack as python_hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rfc9113 import END, PSEUDO, block, heads
from test_transport_connection import conversation, take_all

from actorserve.services.transport import frames as f
from actorserve.services.transport import grpc, hpack
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection, Settings
from actorserve.services.transport.patience import Patience

CALM = f.ENHANCE_YOUR_CALM
PING = f.encode(f.PING, 0, 0, bytes(8))


def server(**changes) -> Connection:
    """Give a core whose peer has said SETTINGS, at second 0."""
    core = Connection(client=False, settings=Settings(**changes))
    core.receive(f.PREFACE + f.encode_settings([]) + f.SETTINGS_ACK, 0.0)
    core.take()
    return core


def faults(core: Connection, data: bytes, now: float = 0.0) -> list[tuple[int, str]]:
    """Give the connection's fault, if there is one; answer nothing."""
    events = core.receive(data, now)
    core.take()
    return [(event.code, event.text) for event in events if isinstance(event, s.ConnectionBroken)]


def until_broken(core: Connection, make, limit: int, *, every: float = 0.0) -> tuple[int, str, int]:
    """Send make(0), make(1)...; give the fault and how many were borne."""
    for number in range(limit):
        for code, text in faults(core, make(number), number * every):
            assert core.goaway_sent is not None
            return code, text, number
    raise AssertionError("nothing happened")


def rapid_reset(number: int) -> bytes:
    return heads(2 * number + 1) + f.encode_rst_stream(2 * number + 1, f.CANCEL)


def refused(number: int) -> bytes:
    return heads(2 * number + 1, flags=END)


def made_to_reset(number: int) -> bytes:
    return heads(2 * number + 1) + f.encode_window_update(2 * number + 1, 0)


def half_closed(number: int) -> bytes:
    return heads(2 * number + 1, flags=END) + f.encode(f.DATA, 0, 2 * number + 1, b"x")


def too_wide(number: int) -> bytes:
    return f.encode_headers(2 * number + 1, block(*[(b"x-key", b"v" * 4000)] * 5), f.DEFAULT_MAX_FRAME, end=True)


FLOODS = {
    "header lists above the limit": (too_wide, "too many stream errors", 100),
    "rapid reset (CVE-2023-44487)": (rapid_reset, "too many resets", 500),
    "streams above the limit": (refused, "too many resets", 500 + 256),
    "provoked resets (CVE-2025-8671), WINDOW_UPDATE of 0": (made_to_reset, "too many stream errors", 100),
    "provoked resets (CVE-2025-8671), DATA after the end": (half_closed, "too many stream errors", 100),
    "SETTINGS": (lambda _: f.encode_settings([(f.INITIAL_WINDOW_SIZE, 5)]), "too many settings", 49),
    "SETTINGS ACK": (lambda _: f.SETTINGS_ACK, "too many frames without effect", 999),
    "PRIORITY": (lambda _: f.encode(f.PRIORITY, 0, 1, bytes(5)), "too many frames without effect", 999),
    "unknown frames": (lambda _: f.encode(0x42, 0, 0), "too many frames without effect", 999),
    "GOAWAY": (lambda _: f.encode_goaway(0, 0), "too many frames without effect", 999),
    "PING ACK": (lambda _: f.encode(f.PING, f.ACK, 0, bytes(8)), "too many frames without effect", 999),
    "WINDOW_UPDATE": (lambda _: f.encode_window_update(0, 1), "too many frames without effect", 999),
    "RST_STREAM of closed streams": (
        lambda n: heads(1) + f.encode_rst_stream(1, 8) if not n else f.encode_rst_stream(1, 8),
        "too many frames without effect",
        1000,
    ),
    "empty DATA": (lambda n: heads(1) if not n else f.encode(f.DATA, 0, 1), "too many frames without effect", 1000),
    "DATA of padding": (
        lambda n: heads(1) if not n else f.encode(f.DATA, f.PADDED, 1, b"\x04" + bytes(4)),
        "too many frames without effect",
        1000,
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(name):
    """So many are borne, the next one is answered with GOAWAY, ENHANCE_YOUR_CALM and the last stream."""
    make, text, borne = FLOODS[name]
    code, said, number = until_broken(server(), make, 2000)

    assert (CALM, text) == (code, said)
    assert borne - 1 <= number <= borne + 1


@pytest.mark.parametrize("name", FLOODS)
def test_the_same_at_leisure_is_borne(name):
    """Ten seconds later the count begins anew: half the bound in each window goes on for ever."""
    make, _, borne = FLOODS[name]
    core = server(max_concurrent_streams=100_000)
    for number in range(2 * borne):
        assert not faults(core, make(number), number // (borne // 2 + 1) * 10.0)


def test_resets_after_an_answer_are_free():
    """Whoever cancels a stream that has begun to answer, or after a while, may do so often."""
    core = server()
    for number in range(0, 4000, 2):
        for event in core.receive(heads(number + 1), number / 100):
            core.send_headers(event.stream, grpc.HEAD)
        core.take()
        assert not faults(core, f.encode_rst_stream(number + 1, f.CANCEL), number / 100)
    for number in range(4001, 8001, 2):
        assert not faults(core, heads(number), number / 100)
        assert not faults(core, f.encode_rst_stream(number, f.CANCEL), number / 100 + 1)


def test_frames_without_effect_are_forgiven_by_answers():
    """A busy connection's WINDOW_UPDATEs are no flood."""
    core = server()
    for number in range(1, 4001, 2):
        for event in core.receive(heads(number, flags=END) + f.encode_window_update(0, 5) * 20, 0.0):
            core.respond(event.stream, grpc.HEAD, grpc.TAIL, b"x")
        core.take()

    assert not core.broken


def test_pings():
    """Three too soon: too_many_pings; as gRPC's servers have it, an answer in between makes up for them."""
    core = server(min_ping_interval_s=5.0)
    assert not any(faults(core, PING, now) for now in (0.0, 5.0, 10.0, 10.1, 10.2))
    for event in core.receive(heads(1, flags=END), 10.3):
        core.respond(event.stream, grpc.HEAD, grpc.TAIL, b"x")
    assert not any(faults(core, PING, now) for now in (10.4, 10.5, 10.6))
    assert faults(core, PING, 10.7) == [(CALM, "too_many_pings")]


def test_pings_that_are_not_read():
    """Answers to PING are bounded between two writes, whatever the interval."""
    assert [event.code for event in server().receive(PING * 5000) if isinstance(event, s.ConnectionBroken)] == [CALM]


def test_continuation_flood():
    """CVE-2024-27316: neither the octets of a header block nor its parts go on for ever."""
    part = f.encode(f.CONTINUATION, 0, 1, block())
    assert faults(server(), heads(1, flags=0) + part * 2000) == [(CALM, "header block without end")]
    assert faults(server(), heads(1, flags=0) + f.encode(f.CONTINUATION, 0, 1) * 100) == [
        (CALM, "header block without end")
    ]


@pytest.mark.parametrize("library", ["jh2", "hpack"])
def test_hpack_bomb(library):
    """A few octets that unfold to megabytes cost no megabytes."""
    encoder = python_hpack.Encoder()
    bomb = encoder.encode([*PSEUDO, (b"a", b"x" * 4000)]) + b"\xbe" * 12_000
    core = Connection(client=False, hpack_library=library)
    core.receive(f.PREFACE + f.encode_settings([]))
    tracemalloc.start()
    found = faults(core, f.encode(f.HEADERS, END, 1, bomb))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found == [(CALM, "header list far above the limit")]
    assert peak < 2_000_000


def test_tiny_windows():
    """A peer that opens its window octet by octet is not served octet by octet for ever."""
    core = server()
    core.receive(f.encode_settings([(f.INITIAL_WINDOW_SIZE, 0)]), 0.0)
    for event in core.receive(heads(1, flags=END), 0.0):
        core.respond(event.stream, grpc.HEAD, grpc.TAIL, bytes(5000))
    code, text, number = until_broken(core, lambda _: f.encode_window_update(1, 1), 3000)

    assert (code, text, number) == (CALM, "windows of a few octets", 1001)


def test_settings_cost_once_however_often_they_change(monkeypatch):
    """A SETTINGS frame full of window sizes moves the windows of open streams once."""
    core = server()
    core.receive(b"".join(heads(number) for number in range(1, 401, 2)), 0.0)
    moves = []
    monkeypatch.setattr(Connection, "_window_opened", lambda _, stream: moves.append(stream))
    core.receive(f.encode_settings([(f.INITIAL_WINDOW_SIZE, size) for size in range(500)]), 0.0)

    assert len(moves) == 200


def test_a_frame_of_many_settings_counts_as_many():
    """No peer needs more than a few: a thousand in one frame are not even looked at."""
    core = server()
    crowd = [(f.INITIAL_WINDOW_SIZE, size) for size in range(1000)]
    assert faults(core, f.encode_settings(crowd)) == [(CALM, "too many settings")]
    assert core.peer_initial_window == f.DEFAULT_WINDOW


def test_small_data_frames_cost_no_more_than_large_ones():
    """What waits in an inbox is kept in few pieces."""
    core = server()
    (opened,) = core.receive(heads(1), 0.0)
    for _ in range(20):
        core.receive(f.encode(f.DATA, 0, 1, b"ab") * 1000, 0.0)

    assert b"".join(opened.stream.inbox) == b"ab" * 20_000
    assert len(opened.stream.inbox) <= 513


def test_answers_that_are_not_taken_are_bounded():
    """Above max_buffered the stream that adds to it is reset; what closes is subtracted again, and what has left.

    A large answer is held whole until the last of it has left.
    """
    core = server(max_buffered=100_000)
    core.receive(f.encode_settings([(f.INITIAL_WINDOW_SIZE, 0)]), 0.0)
    opened = core.receive(heads(1, flags=END) + heads(3, flags=END) + heads(5, flags=END), 0.0)
    for event in opened:
        core.respond(event.stream, grpc.HEAD, grpc.TAIL, bytes(40_000))

    assert [event.stream.reset_code for event in opened] == [None, None, CALM]
    assert core.buffered == 80_000
    core.receive(f.encode_rst_stream(1, 8) + f.encode_window_update(3, 1000), 0.0)
    core.take()
    assert core.buffered == 40_000
    core.receive(f.encode_window_update(3, 39_000), 0.0)
    core.take()
    assert not core.buffered


def test_unfinished_messages_are_bounded():
    """What a driver holds for messages that are not whole counts too, until they end."""
    core = server(max_buffered=1000)
    first, second = (event.stream for event in core.receive(heads(1) + heads(3), 0.0))

    assert core.hold(first, 900)
    assert not core.hold(second, 200)
    core.receive(f.encode_rst_stream(3, 8), 0.0)
    assert core.buffered == 900
    assert core.hold(first, 0)
    assert not core.buffered


def test_streams_that_wait_for_the_connections_window_leave_nothing_behind():
    """Resets of streams that never got to send do not gather."""
    core = server(max_concurrent_streams=100_000)
    for number in range(1, 20_001, 2):
        for event in core.receive(heads(number, flags=END), number * 1.0):
            core.respond(event.stream, grpc.HEAD, grpc.TAIL, bytes(60_000))
        core.take()
        core.receive(f.encode_rst_stream(number, 8), number * 1.0 + 1)

    assert not core.streams
    assert not core.buffered
    assert not core._starved
    assert len(core._resets) <= 1024


def test_resets_of_a_peer_that_never_reads_are_bounded():
    """Streams that wait for the writer are forgotten when they are reset."""
    core = server()
    for number in range(1, 40_001, 2):
        for event in core.receive(heads(number, flags=END), number * 1.0):
            core.respond(event.stream, grpc.HEAD, grpc.TAIL, bytes(10_000))
        core.receive(f.encode_rst_stream(number, 8), number * 1.0 + 1)
    assert len(core._sendable) <= 5000
    assert not core.buffered


@given(st.lists(st.integers(1, 50), min_size=1), st.lists(st.lists(st.binary(max_size=30), max_size=3), max_size=6))
def test_any_number_of_frames_at_a_time_gives_the_same_events(sizes, requests):
    """A turn's bound changes when frames are taken, never which."""
    wire = conversation([[*body, b"end"] for body in requests])
    whole, turns = Connection(client=False), Connection(client=False)
    expected = [
        (type(event), getattr(event, "stream", s.Stream(0, 0, s.ReceiveWindow(0, 0))).id)
        for event in whole.receive(wire)
    ]
    actual, data, at = [], wire, 0
    while data or turns.more:
        events = turns.receive(data, None, sizes[at % len(sizes)])
        assert len(events) <= sizes[at % len(sizes)]
        actual += [
            (type(event), getattr(event, "stream", s.Stream(0, 0, s.ReceiveWindow(0, 0))).id) for event in events
        ]
        data, at = b"", at + 1

    assert expected == actual


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_mutated_frames_never_grow_memory(random, client):
    """Hundreds of thousands of octets of broken frames leave a connection as small as it was."""
    core = Connection(client=client)
    core.receive((b"" if client else f.PREFACE) + f.encode_settings([]), 0.0)
    wire = bytearray(conversation([[b"abc", b"d"]] * 20, padding=3)[len(f.PREFACE) :])
    for now in range(60):
        for _ in range(2):
            wire[random.randrange(len(wire))] = random.randrange(256)
        core.receive(bytes(wire), now * 11.0)
        take_all(core)
    held = sum(len(chunk) for stream in core.streams.values() for chunk in stream.inbox)

    assert len(core.streams) <= 256
    assert held <= 4_194_304
    assert len(core._buffer) <= 16_393
    assert len(core._blocks.waiting) <= 65_536
    assert len(core._resets) <= 1024
    assert len(core._blocks._known) <= 16


def test_known_blocks_are_forgotten_when_the_table_changes():
    """The same octets mean another list after another entry was added to the dynamic table."""
    core, encoder = server(), python_hpack.Encoder()
    paths = []
    encoder.encode(PSEUDO)  # fills the encoder's table as the first request does
    first = python_hpack.Encoder().encode(PSEUDO)
    again = encoder.encode(PSEUDO)
    other = encoder.encode([*PSEUDO[:2], (b":path", b"/other"), PSEUDO[3]])
    for number, one in enumerate([first, again, again, other, again]):
        (event,) = core.receive(f.encode(f.HEADERS, END, 2 * number + 1, one), 0.0)
        paths.append(event.stream.fields[b":path"])

    assert paths[:4] == [b"/a.B/C"] * 3 + [b"/other"]
    assert paths[4] != b"/a.B/C"


def test_bounds_can_be_set():
    """The bounds are the listener's."""
    core = server(patience=Patience(max_resets=3))

    assert until_broken(core, rapid_reset, 10)[2] == 3


def fault_in(work, octets: bytes) -> f.ConnectionFault | None:
    """Give what it raises."""
    try:
        work(octets)
    except f.ConnectionFault as fault:
        return fault
    return None


@given(st.binary(max_size=80))
def test_walking_a_block_keeps_the_decoders_from_panics(octets):
    """What `walk` lets through no decoder finds cut short, and nothing but COMPRESSION_ERROR comes of it."""
    found = fault_in(hpack.walk, octets)
    if found is None:
        for library in ("jh2", "hpack"):
            found = fault_in(hpack.decoder(100_000, library), octets)
            assert found is None or isinstance(found.__cause__, Exception)
            assert found is None or found.code == f.COMPRESSION_ERROR
    else:
        assert found.code == f.COMPRESSION_ERROR


def test_a_turn_is_paid_for_by_what_its_frames_cost():
    """Large header lists and calls take more of a turn than small frames; only the last frame overdraws it."""
    wide = f.encode_headers(1, block((b"x-key", b"v" * 9000)), f.DEFAULT_MAX_FRAME, end=True)
    for wire, answers in ((wide + PING, 0), (heads(1) + heads(3) + heads(5) + PING, 0), (PING * 12, 8)):
        core = server()
        core.receive(wire, 0.0, 8)
        assert core.more
        assert core.take().count(f.encode(f.PING, f.ACK, 0, bytes(8))) == answers
        while core.more:
            core.receive(b"", 0.0, 8)
        assert not core._buffer
