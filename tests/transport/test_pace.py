"""The pace at which connections come and go (services/transport/pace.py), in virtual time."""

import pytest
import trio

from actorserve.services.transport.connection import Connection
from actorserve.services.transport.limits import Limits
from actorserve.services.transport.memory import memory_pair
from actorserve.services.transport.pace import BURST, Pace, PacedListener
from actorserve.services.transport.server import GrpcServer


class Endless(trio.abc.Listener):
    """A listener with as many connections waiting as anybody may want."""

    def __init__(self):
        self.given = []

    async def accept(self):
        await trio.lowlevel.checkpoint()
        _, stream = memory_pair()
        self.given.append(stream)
        return stream

    async def aclose(self):
        await trio.lowlevel.checkpoint()


async def test_a_burst_goes_at_once_and_then_so_many_a_second(autojump_clock):
    """The first BURST wait for nothing; those behind them are evenly spread, `rate` in a second."""
    pace, times = Pace(128.0), []  # whose steps are exact
    for _ in range(BURST + 128):
        await pace.turn()
        times.append(trio.current_time())

    assert len(set(times[:BURST])) == 1
    assert [later - times[0] for later in times[BURST:]] == [n / 128 for n in range(1, 129)]


async def test_a_pause_makes_room_for_a_burst_and_for_no_more(autojump_clock):
    """However long nobody came, the next BURST go at once, and the one after them waits."""
    pace = Pace(128.0)
    await trio.sleep(3600)
    start = trio.current_time()
    for _ in range(BURST):
        await pace.turn()
    assert trio.current_time() == start

    await pace.turn()
    assert trio.current_time() - start == 1 / 128


async def test_without_a_rate_nobody_waits(autojump_clock):
    """Rate 0 is no bound."""
    pace = Pace(0.0)
    for _ in range(10 * BURST):
        await pace.turn()

    assert trio.current_time() == 0.0


async def test_listeners_that_share_a_pace_share_its_places(autojump_clock):
    """Two listeners together take no more than one would alone."""
    pace, taken = Pace(100.0), []

    async def take(listener):
        while True:
            await listener.accept()
            taken.append(trio.current_time())

    with trio.move_on_after(1.0):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(take, PacedListener(Endless(), pace))

    assert BURST + 98 <= len(taken) <= BURST + 101


async def test_a_connection_that_waits_for_its_place_is_closed_when_nobody_wants_it(autojump_clock):
    """Cancelled while it waits, accept closes what it has taken from the kernel."""
    listener = Endless()
    paced = PacedListener(listener, Pace(0.001))
    for _ in range(BURST):
        await paced.accept()
    with trio.move_on_after(5):
        await paced.accept()

    assert len(listener.given) == BURST + 1
    with pytest.raises(trio.ClosedResourceError):
        await listener.given[-1].receive_some(1)


async def test_idle_connections_are_told_to_go_one_after_another(autojump_clock):
    """Hundreds that are idle at once are drained at half the rate at which connections are taken."""
    server = GrpcServer([], limits=Limits(max_idle_s=10.0, connection_rate=100.0))
    ends = []

    async def client(stream):
        core = Connection(client=True)
        await stream.send(core.take())
        try:
            while True:
                core.receive(await stream.receive())
                if core.wants_write:
                    await stream.send(core.take())
        except Exception as error:  # noqa: BLE001  # the end of the stream, whichever way the library says it
            ends.append((trio.current_time(), core.goaway_received, type(error).__name__))

    async with trio.open_nursery() as nursery:
        for _ in range(BURST + 50):
            mine, theirs = memory_pair()
            nursery.start_soon(server.serve_connection, theirs)
            nursery.start_soon(client, mine)

    assert all(told for _, told, _ in ends)
    assert sum(when < ends[0][0] + 0.01 for when, _, _ in ends) == BURST
    assert 0.9 < max(when for when, _, _ in ends) - ends[0][0] < 1.2
