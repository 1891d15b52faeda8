"""Connections on which nothing goes on: what they cost, and that nothing is missed when something begins."""

import random
import ssl

import h2.events
import pytest
import trio
import trustme
from echo_service import framed
from hypothesis import assume, given
from hypothesis import strategies as st
from rig import Service, stub
from test_connection_life import CALL, QUIET, farewell, hello
from test_rfc9113 import heads
from test_transport_server import House, value

from actorserve.client import Channel
from actorserve.services.transport import frames as f
from actorserve.services.transport import grpc, server_connection
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.limits import Limits
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.server import GrpcServer
from actorserve.services.transport.watch import Watch

HELLO = f.PREFACE + f.encode_settings([]) + f.SETTINGS_ACK


@pytest.fixture
async def house(nursery):
    return House(nursery)


def tasks():
    return trio.lowlevel.current_statistics().tasks_living


async def test_a_connection_that_makes_no_call_is_one_task(house, autojump_clock):
    """It reads and waits, and asks for signs of life; the writer is there from the first call on."""
    before = tasks()
    client = house.start(keepalive_interval_s=30, max_idle_s=0).raw()
    for _ in range(5):
        await client.until(lambda event: isinstance(event, h2.events.PingReceived))
        await trio.sleep(1)
        assert tasks() == before + 1

    await client.ended(await client.request("/test.Echo/Unary", framed(b"")))
    await trio.sleep(1)
    assert tasks() == before + 2


async def test_the_client_speaks_first(house, autojump_clock):
    """Nothing is written before the client's SETTINGS; ours and the acknowledgment of those are one write."""
    pipe = house.start(**QUIET).pipe()
    await pipe.send(f.PREFACE)
    with trio.move_on_after(5) as nothing:
        await pipe.receive()
    assert nothing.cancelled_caught

    await pipe.send(f.encode_settings([]))
    first = await pipe.receive()
    assert first[3] == f.SETTINGS
    assert f.SETTINGS_ACK in first


async def test_a_drain_before_the_greeting(house, autojump_clock):
    """A client that has said nothing yet gets SETTINGS, as the first frame must be, then GOAWAY, then the end."""
    pipe = house.start().pipe()
    await trio.testing.wait_all_tasks_blocked()
    house.server.drain()
    received = b"".join([part async for part in pipe])

    assert received[3] == f.SETTINGS
    assert received.endswith(f.encode(f.GOAWAY, 0, 0, f.TWO_LONGS.pack(0, f.NO_ERROR)))


async def test_nobody_looks_at_a_quiet_connection(house, autojump_clock, monkeypatch):
    """Within max_idle_s there is nothing to find, so nobody looks; then it is closed, in time."""
    looks = []
    due = Watch.due
    monkeypatch.setattr(Watch, "due", lambda self, *now: looks.append(now) or due(self, *now))
    pipe = await hello(house, max_idle_s=600, keepalive_interval_s=0)
    await trio.sleep(599)
    assert looks == []

    await farewell(pipe)
    assert 600 <= house.elapsed <= 601
    assert len(looks) <= 2


async def test_idleness_counts_from_the_last_call(house, autojump_clock):
    """A call in between is seen, though nobody looked while the connection was quiet."""
    client = house.start(max_idle_s=60, keepalive_interval_s=0).raw()
    await client.flush()
    await trio.sleep(50)
    await client.ended(await client.request("/test.Echo/Unary", framed(b"")))
    await farewell(client.stream)

    assert 110 <= house.elapsed <= 113


BEGINNINGS = {
    "a frame took too long": f.HEADER.pack(0, 100, f.PING + 90, 0, 0),
    "a header block took too long": heads(1, flags=0, first=CALL[:1]),
}


@pytest.mark.parametrize("text", BEGINNINGS)
async def test_what_begins_on_a_quiet_connection_has_its_time(house, autojump_clock, text):
    """Half a frame or half a header block, after minutes of silence: ended soon after its timeout."""
    limits = {"body_stall_timeout_s": 20, "handshake_timeout_s": 20, **QUIET, "max_idle_s": 10_000}
    pipe = await hello(house, **limits)
    await trio.sleep(1000)
    began = trio.current_time()
    await pipe.send(BEGINNINGS[text])

    assert await farewell(pipe) == (0, f.ENHANCE_YOUR_CALM, text.encode())
    assert 20 <= trio.current_time() - began <= 26


async def test_a_body_that_stalls_on_a_quiet_connection(house, autojump_clock):
    """A unary request that stops coming is reset soon after its timeout."""
    client = house.start(body_stall_timeout_s=20, **QUIET).raw()
    await client.flush()
    await trio.sleep(1000)
    began = trio.current_time()
    await client.request("/test.Echo/Unary", framed(b"x" * 100)[:50], end=False)
    await client.until(lambda event: isinstance(event, h2.events.StreamReset))

    assert 20 <= trio.current_time() - began <= 26


async def test_a_peer_that_stops_reading_on_a_quiet_connection(nursery, autojump_clock):
    """It asks for signs of life and takes none of the answers: ended soon after the timeout of a write."""
    server = GrpcServer([], limits=Limits(write_stall_timeout_s=20, min_ping_interval_s=0, **QUIET))
    mine, theirs = memory_pair(1000)
    nursery.start_soon(server.serve_connection, theirs)
    await mine.send(HELLO)
    await trio.sleep(1000)
    began = trio.current_time()
    for _ in range(200):
        await mine.send(f.encode(f.PING, 0, 0, bytes(8)))
    while server.statistics().connections:
        await trio.sleep(0.1)

    assert server.statistics().closed == {"stall": 1}
    assert 20 <= trio.current_time() - began <= 26


@pytest.mark.parametrize("tls", [False, True])
async def test_looks_in_the_midst_of_reading_lose_nothing(nursery, monkeypatch, tls):
    """However often a read is broken off for a look, between any two turns, every octet of every call is taken."""
    looks = []
    rng = random.Random(1)  # noqa: S311  no secret

    def next_look(_self, now, *_, **__):
        looks.append(now)
        return now + rng.choice([0, 0.0002, 0.001])

    monkeypatch.setattr(Watch, "next_look", next_look)
    monkeypatch.setattr(server_connection, "TURN", 2)

    async def echo(stream):
        await stream.send_message(await stream.recv_message())

    authority = trustme.CA()
    context, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    authority.configure_trust(trusting)
    server = GrpcServer([Service(echo)])

    async def serve(stream):
        await server.serve_connection(trio.SSLStream(stream, context, server_side=True) if tls else stream)

    listeners = await nursery.start(trio.serve_tcp, serve, 0)
    port = listeners[0].socket.getsockname()[1]
    async with Channel(f"127.0.0.1:{port}", tls=trusting if tls else False) as channel:

        async def calls(number):
            for size in (0, 1, 100, 70_000, 300_000):
                message = value(rng.randbytes(size) + bytes([number]))
                assert await stub(channel)(message) == message

        with trio.fail_after(60):
            async with trio.open_nursery() as callers:
                for number in range(16):
                    callers.start_soon(calls, number)

    assert len(looks) > 50


WHAT = st.sampled_from(["call", "ping", "long call"])
ACTS = st.lists(st.tuples(st.integers(1, 160).map(lambda quarters: quarters / 4), WHAT), max_size=8)
TIMES = st.sampled_from([0.0, 3.0, 10.0, 30.0, 100.0])


class Life:
    """A server's core to which things happen, and its watch."""

    def __init__(self, limits):
        self.core = Connection(client=False)
        self.core.receive(HELLO, 0.0)
        self.core.take()
        self.watch = Watch(self.core, limits, 0.0)
        self.heard_at = 0.0
        self.number = -1

    def act(self, what, now):
        """Have something come; a call is answered at once or never."""
        self.heard_at = now
        if what == "ping":
            self.core.receive(f.encode(f.PING, f.ACK, 0, bytes(8)), now)
        else:
            self.number += 2
            events = self.core.receive(heads(self.number, flags=5, first=CALL), now)
            if what == "call":
                self.core.respond(events[0].stream, grpc.HEAD, grpc.TAIL, framed(b""))
        self.core.take()


def first_due(limits, acts, *, step):
    """When the watch first wants something, looking every `step` seconds, or where None: when it says."""
    life, now, acts = Life(limits), 0.0, list(acts)
    look = step or life.watch.next_look(0.0, 0.0, quiet=True)
    while now < 500:
        if acts and acts[0][0] <= look:
            now, what = acts.pop(0)
            life.act(what, now)
            if not (step or life.watch.is_quiet):
                look = min(look, now + life.watch.busy_pause)
            continue
        now = min(look, 500.0)
        if life.watch.due(now, life.heard_at) is not None:
            return now
        look = now + step if step else life.watch.next_look(now, life.heard_at, quiet=life.watch.is_quiet)
    return 500.0


@given(acts=ACTS, idle=TIMES, keepalive=TIMES, age=TIMES)
def test_looking_when_it_says_finds_what_looking_always_finds(acts, idle, keepalive, age):
    """Whatever happens on a connection, what is due is found no later than a pause after its time."""
    limits = Limits(max_idle_s=idle, keepalive_interval_s=keepalive, max_connection_age_s=age)
    times, now = [], 0.125  # between two looks of who looks always
    for after, what in acts:
        now += after
        times.append((now, what))
    random.seed(1)  # the spread of ages
    always = first_due(limits, times, step=0.25)
    random.seed(1)
    told = first_due(limits, times, step=None)

    late = 2 * Life(limits).watch.busy_pause + 0.5
    assume(not any(always - 0.5 <= when <= always + late for when, _ in times))  # it may yet come in time
    assert always - 0.5 <= told <= always + late
