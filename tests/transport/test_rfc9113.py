"""RFC 9113, section by section: what a peer sends, and what it gets.

A case is (section, what it is, octets after the preface and SETTINGS, expectation). Expectations: `broken(code)` ends
the connection with GOAWAY, `reset(id, code)` one stream with RST_STREAM, `told(names)` gives these events and no fault,
`answered(octets)` sends exactly these. After anything but `broken` the connection must still take a request.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from actorserve.services.transport import frames as f
from actorserve.services.transport import grpc, hpack
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection, Settings

END = f.END_HEADERS | f.END_STREAM
PSEUDO = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"localhost")]
ANSWER = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OPENED, ENDED = "RequestReceived", "DataReceived"


def block(*extra: tuple[bytes, bytes], first=PSEUDO) -> bytes:
    return hpack.encode_pairs([*first, *extra])


def heads(number: int, *extra: tuple[bytes, bytes], flags: int = f.END_HEADERS, first=PSEUDO) -> bytes:
    return f.encode(f.HEADERS, flags, number, block(*extra, first=first))


def without(name: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in PSEUDO if pair[0] != name]


def changed(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return [(key, value if key == name else old) for key, old in PSEUDO]


@dataclass(frozen=True)
class Seen:
    """What one exchange showed."""

    events: list[s.Event]
    sent: bytes
    core: Connection


Check = Callable[[Seen], None]


def names(events: list[s.Event]) -> list[str]:
    return [type(event).__name__ for event in events if not isinstance(event, s.SettingsReceived)]


def broken(code: int, last: int | None = None) -> Check:
    def check(seen: Seen) -> None:
        assert [code] == [event.code for event in seen.events if isinstance(event, s.ConnectionBroken)]
        assert seen.events[-1].__class__ is s.ConnectionBroken
        at = seen.sent.rindex(f.encode(f.GOAWAY, 0, 0)[3:])
        told, sent_code = f.TWO_LONGS.unpack_from(seen.sent, at + 6)
        assert code == sent_code
        assert last is None or last == told

    return check


def reset(number: int, code: int) -> Check:
    def check(seen: Seen) -> None:
        assert "ConnectionBroken" not in names(seen.events)
        assert f.encode_rst_stream(number, code) in seen.sent
        assert number not in seen.core.streams

    return check


def told(*expected: str) -> Check:
    def check(seen: Seen) -> None:
        assert list(expected) == names(seen.events)
        assert b"\x00\x00\x04\x03" not in seen.sent

    return check


def answered(expected: bytes) -> Check:
    def check(seen: Seen) -> None:
        assert expected == seen.sent

    return check


BIG = f.encode(f.DATA, 0, 1, bytes(16_384))
FIELD = (b"x-key", b"value")

SERVER: list[tuple[str, str, bytes, Check]] = [
    ("4.1", "unknown frame types are ignored", f.encode(0x77, 0xFF, 3, b"x") + heads(1), told(OPENED)),
    (
        "4.1",
        "undefined flags are ignored",
        f.encode(f.PING, 0xFE, 0, bytes(8)),
        answered(f.encode(f.PING, f.ACK, 0, bytes(8))),
    ),
    ("4.1", "the reserved bit is ignored", f.encode(f.HEADERS, END, 1 | 1 << 31, block()), told(OPENED)),
    ("4.2", "a frame of the largest size is taken", heads(1) + BIG, told(OPENED, ENDED)),
    (
        "4.2",
        "a larger one is refused by its header alone",
        f.HEADER.pack(0x40, 1, f.DATA, 0, 1),
        broken(f.FRAME_SIZE_ERROR),
    ),
    ("4.2", "SETTINGS too large", f.HEADER.pack(0x80, 0, f.SETTINGS, 0, 0), broken(f.FRAME_SIZE_ERROR)),
    ("4.3", "a block that does not decode", f.encode(f.HEADERS, END, 1, b"\xbf"), broken(f.COMPRESSION_ERROR, 0)),
    ("4.3", "a block cut short", f.encode(f.HEADERS, END, 1, block()[:-1]), broken(f.COMPRESSION_ERROR)),
    ("4.3", "index 0", f.encode(f.HEADERS, END, 1, b"\x80"), broken(f.COMPRESSION_ERROR)),
    (
        "4.3",
        "an integer without end",
        f.encode(f.HEADERS, END, 1, b"\x00\x7f" + b"\xff" * 9),
        broken(f.COMPRESSION_ERROR),
    ),
    (
        "4.3",
        "a table larger than allowed",
        f.encode(f.HEADERS, END, 1, b"\x3f\xe2\x1f" + block()),
        broken(f.COMPRESSION_ERROR),
    ),
    ("4.3", "a table size after a field", f.encode(f.HEADERS, END, 1, b"\x83\x20"), broken(f.COMPRESSION_ERROR)),
    ("4.3", "a table of no size is fine", f.encode(f.HEADERS, END, 1, b"\x20" + block()), told(OPENED)),
    ("5.1", "idle: DATA", f.encode(f.DATA, 0, 1, b"x"), broken(f.PROTOCOL_ERROR)),
    ("5.1", "idle: RST_STREAM", f.encode_rst_stream(1, 0), broken(f.PROTOCOL_ERROR)),
    ("5.1", "idle: WINDOW_UPDATE", f.encode_window_update(1, 1), broken(f.PROTOCOL_ERROR)),
    ("5.1", "idle: CONTINUATION", f.encode(f.CONTINUATION, 4, 1), broken(f.PROTOCOL_ERROR)),
    ("5.1", "idle: PRIORITY is fine", f.encode(f.PRIORITY, 0, 1, bytes(5)), told()),
    ("5.1", "half-closed: DATA", heads(1, flags=END) + f.encode(f.DATA, 0, 1, b"x"), reset(1, f.STREAM_CLOSED)),
    ("5.1", "half-closed: HEADERS", heads(1, flags=END) + heads(1, flags=END), reset(1, f.STREAM_CLOSED)),
    ("5.1", "half-closed: WINDOW_UPDATE is fine", heads(1, flags=END) + f.encode_window_update(1, 1), told(OPENED)),
    (
        "5.1",
        "reset by the peer: DATA",
        heads(1) + f.encode_rst_stream(1, 8) + f.encode(f.DATA, 0, 1, b"x"),
        reset(1, f.STREAM_CLOSED),
    ),
    ("5.1", "reset by the peer: HEADERS", heads(1) + f.encode_rst_stream(1, 8) + heads(1), reset(1, f.STREAM_CLOSED)),
    (
        "5.1",
        "reset by the peer: WINDOW_UPDATE is fine",
        heads(1) + f.encode_rst_stream(1, 8) + f.encode_window_update(1, 1),
        told(OPENED, "StreamReset"),
    ),
    ("5.1.1", "even ids are the server's", heads(2), broken(f.PROTOCOL_ERROR)),
    ("5.1.1", "ids only rise", heads(5, flags=END) + heads(3), broken(f.PROTOCOL_ERROR, 5)),
    ("5.1.1", "ids only rise, from the first", heads(3) + heads(1), broken(f.PROTOCOL_ERROR, 3)),
    ("5.1", "skipped, so closed: DATA", heads(3) + f.encode(f.DATA, 0, 1, b"x"), broken(f.STREAM_CLOSED, 3)),
    ("5.1", "skipped, so closed: RST_STREAM is fine", heads(3) + f.encode_rst_stream(1, 8), told(OPENED)),
    ("5.1.1", "ids may skip", heads(1) + heads(99), told(OPENED, OPENED)),
    ("5.1.2", "above MAX_CONCURRENT_STREAMS", heads(1) + heads(3) + heads(5), reset(5, f.REFUSED_STREAM)),
    (
        "5.4.1",
        "GOAWAY names the last stream",
        heads(1) + heads(3) + f.encode(f.PING, 0, 1, bytes(8)),
        broken(f.PROTOCOL_ERROR, 3),
    ),
    ("6.1", "DATA on stream 0", f.encode(f.DATA, 0, 0, b"x"), broken(f.PROTOCOL_ERROR)),
    ("6.1", "padding is taken off", heads(1) + f.encode(f.DATA, f.PADDED, 1, b"\x02xyz\0\0"), told(OPENED, ENDED)),
    ("6.1", "nothing but padding", heads(1) + f.encode(f.DATA, f.PADDED | 1, 1, b"\x02\0\0"), told(OPENED, ENDED)),
    (
        "6.1",
        "padding as long as the frame",
        heads(1) + f.encode(f.DATA, f.PADDED, 1, b"\x03\0\0"),
        broken(f.PROTOCOL_ERROR),
    ),
    ("6.1", "padded without a length", heads(1) + f.encode(f.DATA, f.PADDED, 1), broken(f.FRAME_SIZE_ERROR)),
    ("6.1", "empty DATA that ends", heads(1) + f.encode(f.DATA, 1, 1), told(OPENED, ENDED)),
    ("6.2", "HEADERS on stream 0", f.encode(f.HEADERS, END, 0, block()), broken(f.PROTOCOL_ERROR)),
    ("6.2", "padding is taken off", f.encode(f.HEADERS, END | f.PADDED, 1, b"\x01" + block() + b"\0"), told(OPENED)),
    (
        "6.2",
        "padding as long as the frame",
        f.encode(f.HEADERS, END | f.PADDED, 1, b"\x04abc"),
        broken(f.PROTOCOL_ERROR),
    ),
    (
        "6.2",
        "priority fields are ignored",
        f.encode(f.HEADERS, END | f.HAS_PRIORITY, 1, bytes(5) + block()),
        told(OPENED),
    ),
    ("6.2", "no room for them", f.encode(f.HEADERS, END | f.HAS_PRIORITY, 1, bytes(4)), broken(f.FRAME_SIZE_ERROR)),
    ("6.3", "PRIORITY is ignored", f.encode(f.PRIORITY, 0, 1, bytes(5)), told()),
    ("6.3", "PRIORITY on stream 0", f.encode(f.PRIORITY, 0, 0, bytes(5)), broken(f.PROTOCOL_ERROR)),
    (
        "6.3",
        "PRIORITY of 4 octets on a stream",
        heads(1) + f.encode(f.PRIORITY, 0, 1, bytes(4)),
        reset(1, f.FRAME_SIZE_ERROR),
    ),
    ("6.4", "RST_STREAM ends a stream", heads(1) + f.encode_rst_stream(1, 8), told(OPENED, "StreamReset")),
    ("6.4", "RST_STREAM on stream 0", f.encode_rst_stream(0, 8), broken(f.PROTOCOL_ERROR)),
    ("6.4", "RST_STREAM of 3 octets", heads(1) + f.encode(f.RST_STREAM, 0, 1, bytes(3)), broken(f.FRAME_SIZE_ERROR)),
    ("6.5", "SETTINGS are acknowledged", f.encode_settings([(f.HEADER_TABLE_SIZE, 0)]), answered(f.SETTINGS_ACK)),
    ("6.5", "SETTINGS on a stream", f.encode(f.SETTINGS, 0, 1), broken(f.PROTOCOL_ERROR)),
    ("6.5", "SETTINGS of 5 octets", f.encode(f.SETTINGS, 0, 0, bytes(5)), broken(f.FRAME_SIZE_ERROR)),
    ("6.5", "ACK with a payload", f.encode(f.SETTINGS, f.ACK, 0, bytes(6)), broken(f.FRAME_SIZE_ERROR)),
    ("6.5.2", "ENABLE_PUSH of 2", f.encode_settings([(f.ENABLE_PUSH, 2)]), broken(f.PROTOCOL_ERROR)),
    (
        "6.5.2",
        "INITIAL_WINDOW_SIZE of 2^31",
        f.encode_settings([(f.INITIAL_WINDOW_SIZE, 2**31)]),
        broken(f.FLOW_CONTROL_ERROR),
    ),
    ("6.5.2", "MAX_FRAME_SIZE of 16383", f.encode_settings([(f.MAX_FRAME_SIZE, 16_383)]), broken(f.PROTOCOL_ERROR)),
    ("6.5.2", "MAX_FRAME_SIZE of 2^24", f.encode_settings([(f.MAX_FRAME_SIZE, 2**24)]), broken(f.PROTOCOL_ERROR)),
    ("6.5.2", "unknown settings are ignored", f.encode_settings([(0xAAAA, 1)]), told()),
    (
        "6.5.3",
        "the last of two values counts",
        f.encode_settings([(f.MAX_FRAME_SIZE, 16_384), (f.MAX_FRAME_SIZE, 20_000)]),
        answered(f.SETTINGS_ACK),
    ),
    ("6.6", "PUSH_PROMISE", heads(1) + f.encode(f.PUSH_PROMISE, 4, 1, bytes(4)), broken(f.PROTOCOL_ERROR)),
    ("6.7", "PING comes back", f.encode(f.PING, 0, 0, b"12345678"), answered(f.encode(f.PING, f.ACK, 0, b"12345678"))),
    ("6.7", "the acknowledgement does not", f.encode(f.PING, f.ACK, 0, b"12345678"), answered(b"")),
    ("6.7", "PING on a stream", f.encode(f.PING, 0, 1, bytes(8)), broken(f.PROTOCOL_ERROR)),
    ("6.7", "PING of 6 octets", f.encode(f.PING, 0, 0, bytes(6)), broken(f.FRAME_SIZE_ERROR)),
    ("6.8", "GOAWAY is told", f.encode_goaway(0, 0), told("GoawayReceived")),
    ("6.8", "streams go on after it", f.encode_goaway(0, 0) + heads(1), told("GoawayReceived", OPENED)),
    ("6.8", "GOAWAY on a stream", f.encode(f.GOAWAY, 0, 1, bytes(8)), broken(f.PROTOCOL_ERROR)),
    ("6.8", "GOAWAY of 7 octets", f.encode(f.GOAWAY, 0, 0, bytes(7)), broken(f.FRAME_SIZE_ERROR)),
    ("6.9", "WINDOW_UPDATE of 3 octets", f.encode(f.WINDOW_UPDATE, 0, 0, bytes(3)), broken(f.FRAME_SIZE_ERROR)),
    ("6.9", "WINDOW_UPDATE of 0", f.encode_window_update(0, 0), broken(f.PROTOCOL_ERROR)),
    ("6.9", "WINDOW_UPDATE of 0 on a stream", heads(1) + f.encode_window_update(1, 0), reset(1, f.PROTOCOL_ERROR)),
    ("6.9.1", "more DATA than the window", heads(1) + BIG * 5, reset(1, f.FLOW_CONTROL_ERROR)),
    (
        "6.9.1",
        "more DATA than the connection's",
        heads(1) + heads(3) + BIG * 3 + f.encode(f.DATA, 0, 3, bytes(16_384)) * 4,
        broken(f.FLOW_CONTROL_ERROR),
    ),
    ("6.9.1", "a window above 2^31-1", f.encode_window_update(0, f.MAX_WINDOW), broken(f.FLOW_CONTROL_ERROR)),
    (
        "6.9.1",
        "a stream's above 2^31-1",
        heads(1) + f.encode_window_update(1, f.MAX_WINDOW),
        reset(1, f.FLOW_CONTROL_ERROR),
    ),
    (
        "6.9.2",
        "a window that SETTINGS take above 2^31-1",
        heads(1) + f.encode_window_update(1, 2**31 - 1 - 65_535) + f.encode_settings([(f.INITIAL_WINDOW_SIZE, 65_536)]),
        broken(f.FLOW_CONTROL_ERROR),
    ),
    (
        "6.10",
        "a block in three parts",
        f.encode(f.HEADERS, 1, 1, block()[:9])
        + f.encode(f.CONTINUATION, 0, 1, block()[9:20])
        + f.encode(f.CONTINUATION, 4, 1, block()[20:]),
        told(OPENED),
    ),
    ("6.10", "an empty part", heads(1, flags=1) + f.encode(f.CONTINUATION, 4, 1), told(OPENED)),
    (
        "6.10",
        "another frame in between",
        heads(1, flags=1) + f.encode(f.PING, 0, 0, bytes(8)),
        broken(f.PROTOCOL_ERROR),
    ),
    ("6.10", "an unknown frame in between", heads(1, flags=1) + f.encode(0x55, 0, 0), broken(f.PROTOCOL_ERROR)),
    ("6.10", "a part of another stream", heads(1, flags=1) + f.encode(f.CONTINUATION, 4, 3), broken(f.PROTOCOL_ERROR)),
    ("6.10", "a part after the end", heads(1) + f.encode(f.CONTINUATION, 4, 1), broken(f.PROTOCOL_ERROR)),
    ("8.1", "trailers", heads(1) + heads(1, flags=END, first=[FIELD]), told(OPENED, "TrailersReceived")),
    ("8.1", "trailers without END_STREAM", heads(1) + heads(1, first=[FIELD]), reset(1, f.PROTOCOL_ERROR)),
    ("8.1", "pseudo-fields in trailers", heads(1) + heads(1, flags=END), reset(1, f.PROTOCOL_ERROR)),
    (
        "8.1.1",
        "content-length that fits",
        heads(1, (b"content-length", b"3")) + f.encode(f.DATA, 1, 1, b"abc"),
        told(OPENED, ENDED),
    ),
    (
        "8.1.1",
        "padding does not count",
        heads(1, (b"content-length", b"3")) + f.encode(f.DATA, 9, 1, b"\1abc\0"),
        told(OPENED, ENDED),
    ),
    (
        "8.1.1",
        "content-length above",
        heads(1, (b"content-length", b"4")) + f.encode(f.DATA, 1, 1, b"abc"),
        reset(1, f.PROTOCOL_ERROR),
    ),
    (
        "8.1.1",
        "content-length below",
        heads(1, (b"content-length", b"2")) + f.encode(f.DATA, 0, 1, b"abc"),
        reset(1, f.PROTOCOL_ERROR),
    ),
    ("8.1.1", "content-length and no DATA", heads(1, (b"content-length", b"2"), flags=END), reset(1, f.PROTOCOL_ERROR)),
    (
        "8.1.1",
        "content-length and trailers",
        heads(1, (b"content-length", b"2")) + heads(1, flags=END, first=[FIELD]),
        reset(1, f.PROTOCOL_ERROR),
    ),
    ("8.1.1", "content-length of no digits", heads(1, (b"content-length", b"+2")), reset(1, f.PROTOCOL_ERROR)),
    (
        "8.1.1",
        "two content-lengths",
        heads(1, (b"content-length", b"2"), (b"content-length", b"3")),
        reset(1, f.PROTOCOL_ERROR),
    ),
    ("8.1.1", "the same one twice", heads(1, (b"content-length", b"2"), (b"content-length", b"2")), told(OPENED)),
    *[
        ("8.2.1", f"a field name {name!r}", heads(1, (name, b"v")), reset(1, f.PROTOCOL_ERROR))
        for name in (b"Upper", b"a b", b"", b"a\0", b"\xc3\xa9", b"a:b", b"a\x7f")
    ],
    *[
        ("8.2.1", f"a field value {value!r}", heads(1, (b"x-key", value)), reset(1, f.PROTOCOL_ERROR))
        for value in (b"a\0", b"a\rb", b"a\nb", b" a", b"a\t", b"\x1b[0m", b"\x7f", b"\xc3\xa9")
    ],
    ("8.2.1", "a tab inside a value is fine", heads(1, (b"x-key", b"a\tb")), told(OPENED)),
    *[
        ("8.2.2", f"{name!r} is of the connection", heads(1, (name, b"v")), reset(1, f.PROTOCOL_ERROR))
        for name in (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
    ],
    ("8.2.2", "te: trailers", heads(1, (b"te", b"trailers")), told(OPENED)),
    ("8.2.2", "another te", heads(1, (b"te", b"trailers, deflate")), reset(1, f.PROTOCOL_ERROR)),
    (
        "8.3",
        "a pseudo-field after a field",
        heads(1, FIELD, (b":path", b"/"), first=without(b":path")),
        reset(1, f.PROTOCOL_ERROR),
    ),
    ("8.3", "an unknown one", heads(1, first=[*PSEUDO, (b":unknown", b"v")]), reset(1, f.PROTOCOL_ERROR)),
    ("8.3", "one of an answer", heads(1, first=[*PSEUDO, (b":status", b"200")]), reset(1, f.PROTOCOL_ERROR)),
    *[
        ("8.3.1", f"{name!r} twice", heads(1, first=[*PSEUDO, (name, b"/")]), reset(1, f.PROTOCOL_ERROR))
        for name, _ in PSEUDO
    ],
    *[("8.3.1", f"no {name!r}", heads(1, first=without(name)), reset(1, f.PROTOCOL_ERROR)) for name, _ in PSEUDO[:3]],
    ("8.3.1", "no :authority is fine", heads(1, first=without(b":authority")), told(OPENED)),
    *[
        ("8.3.1", f":path {path!r}", heads(1, first=changed(b":path", path)), reset(1, f.PROTOCOL_ERROR))
        for path in (b"", b"a", b"*")
    ],
    ("8.3.1", ":method of no token", heads(1, first=changed(b":method", b"PO ST")), reset(1, f.PROTOCOL_ERROR)),
    ("8.4", "ENABLE_PUSH of 1 changes nothing", f.encode_settings([(f.ENABLE_PUSH, 1)]), answered(f.SETTINGS_ACK)),
    ("10.5.1", "a list above the limit", heads(1, (b"x-key", b"v" * 2000)), told("HeadersTooLarge")),
    (
        "10.5.1",
        "a list far above it",
        f.encode(f.HEADERS, 4, 1, hpack.encode_pairs([(b"x", b"v" * 8000)])),
        broken(f.ENHANCE_YOUR_CALM),
    ),
]  # fmt: skip  a table, one case a line


def server() -> Connection:
    settings = Settings(
        stream_window=65_535, connection_window=65_535 + 40_000, max_header_list=1000, max_concurrent_streams=2
    )
    core = Connection(client=False, settings=settings)
    core.receive(f.PREFACE + f.encode_settings([]) + f.SETTINGS_ACK)
    core.take()
    return core


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "octet by octet"])
@pytest.mark.parametrize(("section", "title", "data", "check"), SERVER, ids=[f"{one[0]} {one[1]}" for one in SERVER])
def test_the_servers_side(section, title, data, check, whole):
    """Each rule, with the octets at once and one by one."""
    core = server()
    parts = [data] if whole else [data[at : at + 1] for at in range(len(data))]
    events = [event for part in parts for event in core.receive(part)]
    seen = Seen(events, bytes(core.take()), core)
    check(seen)
    if not core.broken:
        for stream in list(core.streams.values()):
            core.reset(stream, f.CANCEL)
        assert names(core.receive(heads(201, flags=END))) == [OPENED]


def test_ids_that_were_used_are_told_from_ids_that_were_skipped():
    """5.1, 5.1.1: HEADERS on a stream that has ended is STREAM_CLOSED, on one that never was PROTOCOL_ERROR."""
    for number, code in ((3, f.STREAM_CLOSED), (1, f.PROTOCOL_ERROR), (5, f.PROTOCOL_ERROR)):
        core = server()
        for used in (3, 7):
            for event in core.receive(heads(used, flags=END)):
                core.respond(event.stream, grpc.HEAD, grpc.TAIL, b"")
            core.take()
        events = core.receive(heads(number))
        broken(code, 7)(Seen(events, bytes(core.take()), core))


def test_the_preface_must_be_right():
    """3.4: other octets are PROTOCOL_ERROR, found at the first wrong one."""
    core = Connection(client=False)
    broken(f.PROTOCOL_ERROR)(Seen(core.receive(b"PRI * HTTP/1"), bytes(core.take()), core))


@pytest.mark.parametrize("first", [f.encode(f.PING, 0, 0, bytes(8)), f.SETTINGS_ACK, heads(1), f.encode(0x99, 0, 0)])
def test_settings_come_first(first):
    """3.4: anything else before is PROTOCOL_ERROR."""
    core = Connection(client=False)
    broken(f.PROTOCOL_ERROR)(Seen(core.receive(f.PREFACE + first), bytes(core.take()), core))


CLIENT: list[tuple[str, str, bytes, Check]] = [
    ("5.1.1", "a server opens no stream", heads(2, first=ANSWER), broken(f.PROTOCOL_ERROR)),
    ("5.1.1", "nor answers an idle one", heads(3, first=ANSWER), broken(f.PROTOCOL_ERROR)),
    ("6.5.2", "a server cannot enable push", f.encode_settings([(f.ENABLE_PUSH, 1)]), broken(f.PROTOCOL_ERROR)),
    ("8.4", "nor push", f.encode(f.PUSH_PROMISE, 4, 1, bytes(4)), broken(f.PROTOCOL_ERROR)),
    ("8.1", "an answer", heads(1, first=ANSWER), told("ResponseReceived")),
    (
        "8.1",
        "an interim answer before it",
        heads(1, first=[(b":status", b"103")]) + heads(1, first=ANSWER),
        told("ResponseReceived"),
    ),
    (
        "8.1",
        "an interim answer that ends",
        heads(1, first=[(b":status", b"100")], flags=END),
        reset(1, f.PROTOCOL_ERROR),
    ),
    ("8.1", "DATA before the headers", f.encode(f.DATA, 0, 1, b"x"), reset(1, f.PROTOCOL_ERROR)),
    (
        "8.1",
        "trailers",
        heads(1, first=ANSWER) + heads(1, flags=END, first=[FIELD]),
        told("ResponseReceived", "TrailersReceived"),
    ),
    (
        "8.1",
        "a stream closed early",
        heads(1, first=ANSWER, flags=END) + f.encode_rst_stream(1, 0),
        told("ResponseReceived", "StreamReset"),
    ),
    (
        "8.2.1",
        "octets that are not ASCII are let through",
        heads(1, (b"grpc-message", b"\xc3\xa9"), first=ANSWER),
        told("ResponseReceived"),
    ),
    *[
        ("8.3.2", f":status {status!r}", heads(1, first=[(b":status", status)]), reset(1, f.PROTOCOL_ERROR))
        for status in (b"", b"20", b"OK!", b"101", b"2000")
    ],
    ("8.3.2", "no :status", heads(1, first=[FIELD]), reset(1, f.PROTOCOL_ERROR)),
    ("8.3.2", "a pseudo-field of a request", heads(1, first=[*ANSWER, (b":path", b"/")]), reset(1, f.PROTOCOL_ERROR)),
    (
        "8.1.1",
        "content-length above",
        heads(1, (b"content-length", b"4"), first=ANSWER) + f.encode(f.DATA, 1, 1, b"x"),
        reset(1, f.PROTOCOL_ERROR),
    ),
]  # fmt: skip  a table, one case a line


@pytest.mark.parametrize(("section", "title", "data", "check"), CLIENT, ids=[f"{one[0]} {one[1]}" for one in CLIENT])
def test_the_clients_side(section, title, data, check):
    """Each rule that is the server's to keep."""
    core = Connection(client=True)
    core.receive(f.encode_settings([]) + f.SETTINGS_ACK)
    core.open_stream(grpc.request_block("/a.B/C", b"localhost", b"tests", None))
    core.take()
    events = core.receive(data)
    check(Seen(events, bytes(core.take()), core))


def test_every_case_says_its_section():
    """The table covers the sections that have rules for a peer."""
    sections = {section.split(".")[0] + "." + section.split(".")[1] for section, *_ in SERVER + CLIENT}

    assert sections >= {"4.1", "4.2", "4.3", "5.1", "5.4", "8.1", "8.2", "8.3", "8.4"} | {
        f"6.{n}" for n in range(1, 11)
    }
