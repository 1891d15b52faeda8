"""The sans-IO core against the h2 library as the other end."""

from itertools import pairwise

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import pytest
from echo_service import REQUEST, frames_of
from hypothesis import given, settings
from hypothesis import strategies as st

from actorserve.services.transport import frames, grpc, hpack, next_write, outgoing
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection, Settings

bodies = st.lists(st.binary(max_size=400), max_size=4)
libraries = st.sampled_from(["jh2", "hpack"])
windows = st.integers(0, 2000)


def other(*, client: bool, **changes: int) -> h2.connection.H2Connection:
    """Give h2's end of a connection, with its first frames queued."""
    end = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding=None))
    values = {h2.settings.SettingCodes[name]: value for name, value in changes.items()}
    end.initiate_connection()
    if values:
        end.update_settings(values)
    return end


def take_all(core: Connection) -> bytes:
    """Give everything that the core may send now."""
    parts = []
    while data := bytes(core.take()):
        parts.append(data)
    return b"".join(parts)


def describe(events: list[s.Event]) -> list[tuple[object, ...]]:
    """Give events as values, neighbouring DATA joined, for comparison."""
    told: list[tuple[object, ...]] = []
    for event in events:
        fault = (event.code, event.text) if isinstance(event, s.ConnectionBroken) else ()
        one = (type(event).__name__, event.stream.id if isinstance(event, s.StreamEvent) else 0, *fault)
        if not (told and told[-1] == one and one[0] == "DataReceived"):
            told.append(one)
    return told


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def conversation(requests: list[list[bytes]], *, padding: int = 0, priority: bool = False) -> bytes:
    """Give what an h2 client sends for these requests."""
    client = other(client=True)
    for body in requests:
        number = client.get_next_available_stream_id()
        weight = {"priority_weight": 10, "priority_depends_on": 0} if priority else {}
        client.send_headers(number, REQUEST, end_stream=not body, **weight)
        for index, part in enumerate(body):
            client.send_data(number, part, end_stream=index == len(body) - 1, pad_length=padding or None)
    return client.data_to_send()


@given(st.lists(bodies, min_size=1, max_size=5), st.lists(st.integers(0, 10_000)), libraries, st.booleans())
def test_our_server_receives_what_an_h2_client_sends(requests, cuts, library, priority):
    """Headers, bodies, padding, priorities and ends arrive, however the octets are cut."""
    core = Connection(client=False, hpack_library=library)
    wire = conversation(requests, padding=7 if priority else 0, priority=priority)
    streams = {}
    for part in split_at(wire, cuts):
        for event in core.receive(part):
            assert not isinstance(event, s.ConnectionBroken)
            if isinstance(event, s.StreamEvent):
                streams[event.stream.id] = event.stream

    assert [b"".join(body) for body in requests] == [b"".join(streams[number].inbox) for number in sorted(streams)]
    assert all(stream.ended and stream.fields[b":path"] == b"/test.Echo/Unary" for stream in streams.values())


@given(st.lists(bodies, min_size=1, max_size=5), st.lists(st.integers(0, 10_000)))
def test_any_split_of_the_octets_gives_the_same_events(requests, cuts):
    """One read or many: the same events and the same answers."""
    wire = conversation(requests)
    whole, cut = Connection(client=False), Connection(client=False)
    expected = describe(whole.receive(wire))
    actual = describe([event for part in split_at(wire, cuts) for event in cut.receive(part)])

    assert expected == actual
    assert bytes(whole.take()) == bytes(cut.take())


def run_answer(core: Connection, client: h2.connection.H2Connection, body: bytes) -> bytes:
    """Answer every request with `body`, give flow control back, until all is received."""
    received, ended = bytearray(), False
    data = client.data_to_send()
    for _ in range(100_000):
        for event in core.receive(data):
            if isinstance(event, s.RequestReceived):
                core.respond(event.stream, grpc.HEAD, grpc.TAIL, body)
        for event in client.receive_data(take_all(core)):
            if isinstance(event, h2.events.DataReceived):
                received += event.data
                client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            ended = ended or isinstance(event, h2.events.StreamEnded)
        data = client.data_to_send()
        if ended and not data:
            return bytes(received)
    raise AssertionError("the answer never ended")


@settings(deadline=None)
@given(st.binary(max_size=300).map(lambda seed: seed * 500), st.integers(1, 70_000))
def test_our_server_answers_an_h2_client_inside_its_windows(body, window):
    """Any body through any initial window; h2 raises where a window or a frame size is exceeded."""
    core, client = Connection(client=False), other(client=True, INITIAL_WINDOW_SIZE=window)
    client.send_headers(1, REQUEST, end_stream=True)

    assert body == run_answer(core, client, body)
    assert not core.streams


@given(st.binary(max_size=3000), windows, windows)
def test_a_changed_initial_window_applies_to_open_streams(body, before, after):
    """A window that SETTINGS make smaller, even negative, is respected; made larger, it is used."""
    core, client = Connection(client=False), other(client=True, INITIAL_WINDOW_SIZE=before)
    client.send_headers(1, REQUEST, end_stream=True)
    for event in core.receive(client.data_to_send()):
        if isinstance(event, s.RequestReceived):
            core.respond(event.stream, grpc.HEAD, grpc.TAIL, body)
    events = client.receive_data(take_all(core))
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: after})
    core.receive(client.data_to_send())
    events += client.receive_data(take_all(core))
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 5000})
    core.receive(client.data_to_send())
    events += client.receive_data(take_all(core))

    assert body == b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=400), min_size=1, max_size=4), st.lists(st.integers(0, 10_000)), libraries)
def test_our_client_talks_to_an_h2_server(parts, cuts, library):
    """Requests arrive; initial headers, DATA and trailers of the answer come back in order."""
    core, server = Connection(client=True, hpack_library=library), other(client=False)
    core.receive(server.data_to_send())
    stream = core.open_stream(grpc.request_block("/test.Echo/Unary", b"localhost", b"tests", 5))
    for index, part in enumerate(parts):
        core.send_data(stream, part, end=index == len(parts) - 1)
    received = server.receive_data(take_all(core))
    server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    for part in parts:
        server.send_data(1, part)
    server.send_headers(1, [("grpc-status", "0"), ("x-key", "value")], end_stream=True)
    events = [event for part in split_at(server.data_to_send(), cuts) for event in core.receive(part)]
    names = [name for name, number, *_ in describe(events) if number]

    assert b"".join(parts) == b"".join(e.data for e in received if isinstance(e, h2.events.DataReceived))
    assert any(isinstance(event, h2.events.StreamEnded) for event in received)
    assert names == ["ResponseReceived", "DataReceived", "TrailersReceived"]
    assert b"".join(parts) == b"".join(stream.inbox)
    assert stream.trailer_fields == {b"grpc-status": b"0"}
    assert stream.trailer_metadata == [(b"x-key", b"value")]


@settings(max_examples=300)
@given(
    st.lists(bodies, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.lists(st.integers(0, 10_000), max_size=3),
    st.booleans(),
    libraries,
)
def test_mutated_octets_are_faults_never_exceptions(requests, changes, cuts, client, library):
    """Whatever comes, `receive` gives events; after a fault there is a GOAWAY to send and nothing more is read."""
    wire = bytearray(conversation(requests, padding=3))
    if client:
        del wire[: len(frames.PREFACE)]
    for place, value in changes:
        wire[place % len(wire)] = value
    core = Connection(client=client, hpack_library=library)
    events = [event for part in split_at(bytes(wire), cuts) for event in core.receive(part)]
    for event in events:
        if isinstance(event, s.RequestReceived):
            core.respond(event.stream, grpc.HEAD, grpc.TAIL, b"")
    sent = take_all(core)

    assert core.broken == any(isinstance(event, s.ConnectionBroken) for event in events)
    if core.broken:
        assert not core.receive(conversation(requests))
        assert b"\x07\x00\x00\x00\x00\x00" in sent


@given(st.binary(max_size=300))
def test_junk_after_the_preface_is_a_fault_never_an_exception(junk):
    """Octets of no protocol at all."""
    core = Connection(client=False)
    core.receive(frames.PREFACE + frames.encode_settings([]) + junk)
    take_all(core)


# --- rules one by one -------------------------------------------------------------------------


def opened(**changes: int) -> Connection:
    """Give a server core whose peer has said SETTINGS."""
    core = Connection(client=False, settings=Settings(**changes))
    core.receive(frames.PREFACE + frames.encode_settings([]))
    core.take()
    return core


def headers(number: int, flags: int = frames.END_HEADERS, extra: bytes = b"") -> bytes:
    """Give a request's HEADERS."""
    block = grpc.request_block("/test.Echo/Unary", b"localhost", b"tests", None) + extra
    return frames.encode(frames.HEADERS, flags, number, block)


def fault_of(core: Connection, data: bytes) -> int | None:
    """Give the code of the connection's fault, if there is one."""
    codes = [event.code for event in core.receive(data) if isinstance(event, s.ConnectionBroken)]
    return codes[0] if codes else None


F = frames
END = F.END_HEADERS | F.END_STREAM


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (F.encode(F.DATA, 0, 1, b"x"), F.PROTOCOL_ERROR),  # idle stream
        (F.encode(F.DATA, 0, 0, b"x"), F.PROTOCOL_ERROR),
        (F.encode(F.HEADERS, END, 0, b""), F.PROTOCOL_ERROR),
        (headers(2), F.PROTOCOL_ERROR),  # even id
        (F.encode(F.CONTINUATION, 4, 1, b""), F.PROTOCOL_ERROR),
        (headers(1, 0) + F.encode(F.PING, 0, 0, b"12345678"), F.PROTOCOL_ERROR),  # interrupted block
        (F.encode(F.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), F.PROTOCOL_ERROR),
        (F.encode(F.PING, 0, 0, b"1"), F.FRAME_SIZE_ERROR),
        (F.encode(F.PING, 0, 1, b"12345678"), F.PROTOCOL_ERROR),
        (F.encode(F.SETTINGS, 0, 0, b"1"), F.FRAME_SIZE_ERROR),
        (F.encode(F.SETTINGS, F.ACK, 0, b"123456"), F.FRAME_SIZE_ERROR),
        (F.encode(F.SETTINGS, 0, 1), F.PROTOCOL_ERROR),
        (F.encode_settings([(F.INITIAL_WINDOW_SIZE, 2**31)]), F.FLOW_CONTROL_ERROR),
        (F.encode_settings([(F.MAX_FRAME_SIZE, 5)]), F.PROTOCOL_ERROR),
        (F.encode_settings([(F.ENABLE_PUSH, 2)]), F.PROTOCOL_ERROR),
        (F.encode_window_update(0, 0), F.PROTOCOL_ERROR),
        (F.encode_window_update(0, F.MAX_WINDOW), F.FLOW_CONTROL_ERROR),
        (F.encode_window_update(1, 5), F.PROTOCOL_ERROR),  # idle stream
        (F.encode_rst_stream(1, 0), F.PROTOCOL_ERROR),  # idle stream
        (F.encode(F.RST_STREAM, 0, 1, b"1"), F.FRAME_SIZE_ERROR),
        (F.encode(F.GOAWAY, 0, 0, b"1"), F.FRAME_SIZE_ERROR),
        (F.encode(F.HEADERS, END, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x0f"), F.COMPRESSION_ERROR),
        (F.encode(F.HEADERS, END | F.PADDED, 1, b"\x09abc"), F.PROTOCOL_ERROR),
        (F.encode(F.DATA, 0, 1, b"x" * 16_385), F.FRAME_SIZE_ERROR),
        (headers(1, 0) + F.encode(F.CONTINUATION, 0, 1) * 200, F.ENHANCE_YOUR_CALM),
        (F.encode(F.PING, 0, 0, b"12345678") * 5000, F.ENHANCE_YOUR_CALM),
    ],
)
def test_faults_of_the_connection(data, code):
    """Each breach has the RFC's code."""
    core = opened()

    assert code == fault_of(core, data)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (headers(1, extra=hpack.literal(b"connection", b"close")), F.PROTOCOL_ERROR),
        (F.encode(F.HEADERS, END, 1, hpack.METHOD_POST), F.PROTOCOL_ERROR),
        (headers(1) + headers(1), F.PROTOCOL_ERROR),  # trailers with pseudo-fields
        (headers(1, END) + F.encode(F.DATA, 0, 1, b"x"), F.STREAM_CLOSED),
        (headers(1) + F.encode_window_update(1, 0), F.PROTOCOL_ERROR),
        (headers(1) + F.encode_window_update(1, F.MAX_WINDOW), F.FLOW_CONTROL_ERROR),
        (headers(1, extra=hpack.literal(b"content-length", b"2")) + F.encode(F.DATA, 1, 1, b"123"), F.PROTOCOL_ERROR),
        (headers(1, extra=hpack.literal(b"content-length", b"2")) + F.encode(F.DATA, 1, 1, b"1"), F.PROTOCOL_ERROR),
        (headers(1) + F.encode(F.DATA, 0, 1, b"x" * 16_384) * 5, F.FLOW_CONTROL_ERROR),
    ],
)
def test_faults_of_a_stream_leave_the_connection_alone(data, code):
    """The stream is reset with the RFC's code; the next one is served."""
    core = opened(stream_window=65_535)

    assert fault_of(core, data) is None
    assert F.encode_rst_stream(1, code) in core.take()
    assert "RequestReceived" in [name for name, *_ in describe(core.receive(headers(3)))]


def test_unknown_frames_settings_and_priorities_are_ignored():
    """An extension's frames and settings change nothing."""
    core = opened()
    data = F.encode(0xFA, 0xFF, 7, b"x") + F.encode_settings([(0xABCD, 1)]) + F.encode(F.PRIORITY, 0, 9, b"12345")

    assert fault_of(core, data) is None
    assert core.take() == F.SETTINGS_ACK


def test_a_connection_without_the_preface_is_a_fault():
    """HTTP/1 gets GOAWAY."""
    assert fault_of(Connection(client=False), b"GET / HTTP/1.1\r\n\r\n") == F.PROTOCOL_ERROR


def test_streams_above_the_limit_are_refused():
    """REFUSED_STREAM says that nothing was done; the header table stays in step."""
    core = opened(max_concurrent_streams=1)
    core.receive(headers(1) + headers(3))

    assert F.encode_rst_stream(3, F.REFUSED_STREAM) in core.take()


def test_data_of_a_stream_that_we_reset_is_given_back():
    """Nobody reads it, and the connection's window does not shrink for ever."""
    core = opened(connection_window=65_535)
    (stream,) = [event.stream for event in core.receive(headers(1)) if isinstance(event, s.RequestReceived)]
    core.reset(stream, F.CANCEL)
    core.take()
    core.receive(F.encode(F.DATA, 0, 1, b"x" * 16_384) * 3)

    assert F.encode_window_update(0, 32_768) == core.take()


def test_windows_are_given_back_only_for_what_is_consumed():
    """DATA that the application leaves in the inbox brings no WINDOW_UPDATE."""
    core = opened(stream_window=65_535, connection_window=65_535)
    (stream,) = [event.stream for event in core.receive(headers(1)) if isinstance(event, s.RequestReceived)]
    core.receive(F.encode(F.DATA, 0, 1, b"x" * 16_384) * 3)

    assert core.take() == b""
    stream.inbox.clear()
    core.consumed(stream, 49_152)
    assert F.encode_window_update(0, 49_152) + F.encode_window_update(1, 49_152) == core.take()


def test_streams_take_turns():
    """Two long answers leave frame by frame, one after the other."""
    core = opened()
    core.receive(F.encode_settings([(F.INITIAL_WINDOW_SIZE, 10**6)]) + F.encode_window_update(0, 10**6))
    core.take()
    for event in core.receive(headers(1, END) + headers(3, END)):
        if isinstance(event, s.RequestReceived):
            core.respond(event.stream, grpc.HEAD, grpc.TAIL, b"x" * 200_000)
    data, order = take_all(core), []
    while data:
        high, low, kind, _, number = F.HEADER.unpack_from(data)
        if kind == F.DATA:
            order.append(number)
        data = data[9 + (high << 8 | low) :]

    assert all(before != after for before, after in pairwise(order[1:25]))


def test_a_peer_that_takes_large_frames_does_not_make_streams_wait():
    """A frame is at most MAX_DATA, and a write about WRITE_BUDGET, where the peer would take 16 MB in one."""
    core = opened()
    core.receive(F.encode_settings([(F.INITIAL_WINDOW_SIZE, 10**8), (F.MAX_FRAME_SIZE, 2**24 - 1)]))
    core.receive(F.encode_window_update(0, 10**8))
    core.take()
    body = bytes(range(256)) * 20_000
    for event in core.receive(headers(1, END) + headers(3, END)):
        core.respond(event.stream, grpc.HEAD, grpc.TAIL, body[:5], body[5:])
    writes = []
    while data := core.take():
        writes.append(data)
    frames = list(frames_of(b"".join(writes)))
    sizes = [len(payload) for kind, _, payload in frames if kind == F.DATA]

    assert max(map(len, writes)) <= outgoing.WRITE_BUDGET + next_write.MAX_DATA + 100
    assert max(sizes) == next_write.MAX_DATA
    for number in (1, 3):
        assert body == b"".join(payload for kind, stream, payload in frames if (kind, stream) == (F.DATA, number))
