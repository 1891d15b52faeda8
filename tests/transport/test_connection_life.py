"""How long a connection lives, and why it ends; in virtual time."""

import contextlib

import anyio
import h2.events
import pytest
import structlog.testing
import trio
from echo_service import Echo, RawClient, framed, frames_of
from test_rfc9113 import heads
from test_transport_server import House

from actorserve.services.transport import frames as f
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.server import GrpcServer, Limits
from actorserve.services.transport.watch import End, Watch

CALM = f.ENHANCE_YOUR_CALM


@pytest.fixture
async def house(nursery):
    return House(nursery)


def goaway(event: h2.events.Event) -> bool:
    return isinstance(event, h2.events.ConnectionTerminated)


async def farewell(pipe) -> tuple[int, int, bytes]:
    """Read to the end; give the last GOAWAY's last stream, code and text."""
    last = (-1, -1, b"")
    for kind, _, payload in frames_of(b"".join([part async for part in pipe])):
        if kind == f.GOAWAY:
            last = (*f.TWO_LONGS.unpack_from(payload), payload[8:])
    return last


async def hello(house, **limits):
    """Give a pipe on which SETTINGS were exchanged and nobody answers any more."""
    pipe = house.start(**limits).pipe()
    await pipe.send(f.PREFACE + f.encode_settings([]) + f.SETTINGS_ACK)
    return pipe


QUIET = {"keepalive_interval_s": 0, "max_idle_s": 0}


async def test_a_silent_peer_is_asked_for_a_sign_of_life(house, autojump_clock):
    """No answer to the PING: GOAWAY and the end."""
    pipe = await hello(house, keepalive_interval_s=30, keepalive_timeout_s=10, max_idle_s=0)

    assert await farewell(pipe) == (0, f.NO_ERROR, b"keepalive_timeout")
    await house.ended.wait()
    assert house.server.statistics().closed == {"keepalive": 1}


async def test_a_peer_that_answers_stays(house, autojump_clock):
    """Keepalive goes on for hours with a peer that acknowledges its PINGs."""
    client = house.start(keepalive_interval_s=30, keepalive_timeout_s=10, max_idle_s=0).raw()
    with trio.move_on_after(7200):
        await client.until(goaway)

    assert house.server.statistics().connections == 1
    assert 100 < len([event for event in client.events if isinstance(event, h2.events.PingReceived)]) < 300


async def test_an_idle_connection_is_closed(house, autojump_clock):
    """Without a call for max_idle_s: drained, and no call is lost by it."""
    client = house.start(max_idle_s=60).raw()
    await client.ended(await client.request("/test.Echo/Unary", framed(b"")))
    assert (await farewell(client.stream))[1] == f.NO_ERROR
    await house.ended.wait()

    assert house.server.statistics().closed == {"idle": 1}
    assert house.elapsed >= 60


async def test_where_there_are_no_calls_one_goaway_says_it_all(house, autojump_clock):
    """It names the last stream that was served, so a call on its way is known not to have begun."""
    client = house.start(max_idle_s=60, keepalive_interval_s=0).raw()
    for _ in range(2):
        await client.ended(await client.request("/test.Echo/Unary", framed(b"")))
    frames = list(frames_of(b"".join([part async for part in client.stream])))

    assert [payload for kind, _, payload in frames if kind == f.GOAWAY] == [f.TWO_LONGS.pack(3, f.NO_ERROR)]
    assert f.PING not in [kind for kind, _, _ in frames]


async def test_an_open_call_is_not_idle(house, autojump_clock):
    """A call keeps its connection, whatever passes on it."""
    client = house.start(max_idle_s=60).raw()
    await client.request("/test.Echo/Wait", framed(b""))
    with trio.move_on_after(1000):
        await client.until(goaway)

    assert house.server.statistics().calls == 1


async def test_an_old_connection_is_drained(house, autojump_clock):
    """Past its age it takes no more calls; those that end within the grace are answered."""
    client = house.start(max_connection_age_s=100, max_connection_age_grace_s=50, **QUIET).raw()
    number = await client.request("/test.Echo/Wait", framed(b""))
    received = b""
    while f.encode(f.GOAWAY, 0, 0)[3:] not in received:
        received += await client.stream.receive()
    assert house.server.statistics().drained == 1
    house.echo.gate.set()
    await farewell(client.stream)
    await house.ended.wait()

    assert [record.status for record in house.records] == [0]
    assert house.server.statistics().closed == {"age": 1}
    assert number == 1


async def test_calls_on_an_old_connection_end_with_its_grace(house, autojump_clock):
    """A call that never ends does not keep an aged connection."""
    pipe = await hello(house, max_connection_age_s=100, max_connection_age_grace_s=50, **QUIET)
    await pipe.send(heads(1, flags=5, first=[(k, b"/test.Echo/Idle" if k == b":path" else v) for k, v in CALL]))
    assert await farewell(pipe) == (1, f.NO_ERROR, b"max_connection_age")
    await house.ended.wait()

    assert [record.status for record in house.records] == [1]
    assert house.server.statistics().closed == {"age": 1}


CALL = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/test.Echo/Unary"),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


async def test_a_slow_preface(house, autojump_clock):
    """Octet by octet: the handshake is bounded as a whole, and says so."""
    pipe = house.start(handshake_timeout_s=5).pipe()

    async def drip():
        with contextlib.suppress(anyio.BrokenResourceError):
            for octet in f.PREFACE:
                await pipe.send(bytes([octet]))
                await trio.sleep(2)

    house.nursery.start_soon(drip)
    assert await farewell(pipe) == (0, f.SETTINGS_TIMEOUT, b"no SETTINGS in time")
    await house.ended.wait()
    assert house.server.statistics().closed == {"handshake": 1}


async def test_slow_headers(house, autojump_clock):
    """A header block that comes part by part must be whole within handshake_timeout_s."""
    pipe = await hello(house, handshake_timeout_s=5, **QUIET)

    async def drip():
        await pipe.send(heads(1, flags=0, first=CALL[:1]))
        for pair in CALL[1:] * 20:
            await trio.sleep(1)
            await pipe.send(f.encode(f.CONTINUATION, 0, 1, heads(1, first=[pair])[9:]))

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            assert await farewell(pipe) == (0, CALM, b"a header block took too long")
            scope.cancel()


async def test_a_frame_that_never_ends(house, autojump_clock):
    """Half a frame, then nothing: a frame has its time too."""
    pipe = await hello(house, body_stall_timeout_s=20, **QUIET)
    await pipe.send(f.HEADER.pack(0, 100, f.PING + 90, 0, 0))

    assert await farewell(pipe) == (0, CALM, b"a frame took too long")


async def test_a_body_that_never_ends(house, autojump_clock):
    """A unary request that stops coming is reset; its call ends; the connection lives."""
    client = house.start(body_stall_timeout_s=20, **QUIET).raw()
    number = await client.request("/test.Echo/Unary", framed(b"x" * 100)[:50], end=False)
    event = await client.until(lambda event: isinstance(event, h2.events.StreamReset))

    assert (number, CALM) == (event.stream_id, event.error_code)
    assert (await client.ended(await client.request("/test.Echo/Unary", framed(b""))))["grpc-status"] == "0"


async def test_a_stream_of_requests_may_pause(house, autojump_clock):
    """A method that takes many messages waits for the next one as long as it likes."""
    client = house.start(body_stall_timeout_s=20, **QUIET).raw()
    number = await client.request("/test.Echo/Chat", framed(b""), end=False)
    with trio.move_on_after(1000):
        await client.until(lambda event: isinstance(event, h2.events.StreamReset))
    client.h2.send_data(number, b"", end_stream=True)
    await client.flush()

    assert (await client.ended(number))["grpc-status"] == "0"


async def test_an_answer_that_is_never_taken(house, autojump_clock):
    """A window of 0: the stream is reset after write_stall_timeout_s, and the method does not wait for ever."""
    client = house.start(write_stall_timeout_s=20, **QUIET).raw(INITIAL_WINDOW_SIZE=0)
    number = await client.request("/test.Echo/Unary", framed(b"\x0a\x01x"))
    event = await client.until(lambda event: isinstance(event, h2.events.StreamReset))

    assert (number, CALM) == (event.stream_id, event.error_code)
    await trio.testing.wait_all_tasks_blocked()
    assert house.server.statistics().calls == 0


async def test_many_answers_that_are_never_taken(house, autojump_clock):
    """Stalls are stream faults: too many of them end the connection."""
    client = house.start(write_stall_timeout_s=20, max_stream_faults=10, **QUIET).raw(INITIAL_WINDOW_SIZE=0)
    for _ in range(20):
        await client.request("/test.Echo/Unary", framed(b"\x0a\x01x"))

    assert await farewell(client.stream) == (39, CALM, b"too many stream errors")
    await house.ended.wait()
    assert house.server.statistics().closed == {"fault": 1}


async def test_a_slow_reader_is_served(house, autojump_clock):
    """Progress of a kilobyte in the timeout is enough."""
    client = house.start(write_stall_timeout_s=20, **QUIET).raw(INITIAL_WINDOW_SIZE=0)
    body = b"\x0a\xd0\x0f" + b"x" * 2000
    number = await client.request("/test.Echo/Unary", framed(body * 3))
    for _ in range(6):
        await trio.sleep(15)
        client.h2.increment_flow_control_window(1100, number)
        await client.flush()

    assert (await client.ended(number))["grpc-status"] == "0"


async def test_a_peer_that_never_reads(house, autojump_clock):
    """What it does not read is bounded; after write_stall_timeout_s the connection goes."""
    client, server = memory_pair(1000)
    house.start(write_stall_timeout_s=20, **QUIET)
    house.nursery.start_soon(house._serve, server)
    await client.send(f.PREFACE + f.encode_settings([]))
    for number in range(1, 401, 2):
        await client.send(heads(number, flags=5, first=[(b":path", b"/test.Echo/None"), *CALL[:2], *CALL[3:]]))
    await house.ended.wait()

    assert house.server.statistics().closed == {"stall": 1}


async def test_beyond_max_connections_the_new_one_is_told(house, autojump_clock):
    """While all have calls, a further client gets GOAWAY at once; the others notice nothing."""
    house.start(max_connections=2)
    clients = [house.raw(), house.raw()]
    numbers = [await client.request("/test.Echo/Wait", framed(b"")) for client in clients]
    await trio.testing.wait_all_tasks_blocked()

    assert await farewell(house.pipe()) == (0, CALM, b"too many connections")
    house.echo.gate.set()
    for client, number in zip(clients, numbers, strict=True):
        assert (await client.ended(number))["grpc-status"] == "0"
    assert house.server.statistics().refused == 1


async def test_beyond_max_connections_an_idle_one_makes_room(house, autojump_clock):
    """Those that never made a call go first: a crowd of idle connections keeps nobody out."""
    house.start(max_connections=3)
    used = house.raw()
    await used.ended(await used.request("/test.Echo/Unary", framed(b"")))
    crowd = [house.raw(), house.raw()]
    for one in crowd:
        await one.flush()
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(2):
        late = house.raw()
        assert (await late.ended(await late.request("/test.Echo/Unary", framed(b""))))["grpc-status"] == "0"
    for one in crowd:
        assert (await farewell(one.stream))[1] == f.NO_ERROR

    assert (await used.ended(await used.request("/test.Echo/Unary", framed(b""))))["grpc-status"] == "0"
    await trio.sleep(5)
    assert house.server.statistics().closed["room"] == 2
    assert house.server.statistics().connections == 3


@pytest.mark.parametrize("data", [b"\x16\x03\x01junk", heads(2), f.encode(f.HEADERS, 5, 1, b"\xbf"), bytes(200)])
async def test_broken_octets_are_one_line_in_the_log(house, autojump_clock, capfd, data):
    """No traceback, nothing on stderr, GOAWAY."""
    with structlog.testing.capture_logs() as logs:
        pipe = await hello(house)
        await pipe.send(data)
        await pipe.send_eof()
        last = await farewell(pipe)
        await house.ended.wait()

    assert last[1] > 0 or data[:1] == b"\x16"
    assert len(logs) <= 1
    assert not any("exc_info" in line for line in logs)
    assert capfd.readouterr() == ("", "")


async def test_one_large_read_does_not_hold_the_others_up(nursery, autojump_clock):
    """Between turns of a flood other connections are served."""
    order = []

    class Notes(Echo):
        async def unary(self, stream):
            order.append(stream.peer)
            await super().unary(stream)

    server = GrpcServer([Notes()], limits=Limits(max_concurrent_streams=10_000))
    ends = {}
    for name in ("flood", "good"):
        ends[name], end = memory_pair(10_000_000)
        nursery.start_soon(server.serve_connection, end, name)
    good = RawClient(ends["good"])
    await good.ended(await good.request("/test.Echo/Unary", framed(b"")))
    await ends["flood"].send(f.PREFACE + f.encode_settings([]))
    await trio.testing.wait_all_tasks_blocked()
    order.clear()
    body = f.encode(f.DATA, 1, 0, framed(b""))
    many = b"".join(heads(n, first=CALL) + body[:5] + n.to_bytes(4, "big") + body[9:] for n in range(1, 801, 2))
    async with trio.open_nursery() as both:
        both.start_soon(ends["flood"].send, many)
        both.start_soon(good.request, "/test.Echo/Unary", framed(b""))
    await trio.testing.wait_all_tasks_blocked()

    assert order.count("flood") == 400
    assert order.index("good") <= 200


async def test_unfinished_messages_of_a_connection_are_bounded(house, autojump_clock):
    """A message within its own limit is refused where the connection keeps too much already; the others go on."""
    client = house.start(max_buffered_bytes=30_000, **QUIET).raw()
    whole = framed(b"\x0a\xa0\x9c\x01" + b"x" * 20_000)
    first = await client.request("/test.Echo/Unary", whole[:15_000], end=False)
    await trio.testing.wait_all_tasks_blocked()  # so that it is the first that is held: trio shuffles tasks
    second = await client.request("/test.Echo/Unary", whole[:16_000], end=False)

    assert (await client.ended(second))["grpc-status"] == "8"
    client.h2.send_data(first, whole[15_000:], end_stream=True)
    await client.flush()
    assert (await client.ended(first))["grpc-status"] == "0"


async def test_a_message_whose_stream_does_not_end_is_held_too(house, autojump_clock):
    """A unary request is not whole before END_STREAM."""
    client = house.start(max_buffered_bytes=1000, **QUIET).raw()
    number = await client.request("/test.Echo/Unary", framed(b"\x0a\xd0\x0f" + b"x" * 2000), end=False)

    assert (await client.ended(number))["grpc-status"] == "8"


def test_a_backlog_of_ours_is_no_slowness_of_the_peer():
    """While whole frames wait for their turn neither a frame nor a header block took too long; later the peer may."""
    core, limits = Connection(client=False), Limits(body_stall_timeout_s=60, handshake_timeout_s=10)
    watch, ping = Watch(core, limits, 0.0), f.encode(f.PING, 0, 0, bytes(8))
    part = f.encode(f.HEADERS, f.END_STREAM, 1, b"\x83")
    core.receive(f.PREFACE + f.encode_settings([]) + part, 0.0)
    core.receive(f.encode(f.CONTINUATION, f.END_HEADERS, 1, b"\x86") + ping * 3 + ping[:10], 1.0, 0)
    assert core.more
    assert watch.due(100.0, 99.0) is None
    core.receive(b"", 100.0, 1)
    assert core.more
    assert watch.due(200.0, 199.0) is None
    core.receive(b"", 200.0)
    assert not core.more
    assert watch.due(259.0, 258.0) is None

    assert watch.due(260.0, 259.0) == End("slow", CALM, "a frame took too long")


@pytest.mark.parametrize(("octets", "stalls"), [(0, True), (1, True), (100, False)])
def test_a_write_of_which_next_to_nothing_is_taken_stalls(octets, stalls):
    """So many octets a second: under 1 KiB in the timeout is not progress, else a peer could sip for ever."""
    watch = Watch(Connection(client=False), Limits(write_stall_timeout_s=60), 0.0)

    assert stalls is any(watch.write_stalled(float(now), now * octets, writing=True) for now in range(0, 600, 5))
    assert not watch.write_stalled(600.0, 600 * octets, writing=False)
