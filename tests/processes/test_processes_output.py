"""What a worker prints: always read, cut and counted, whoever holds the pipe."""

# ruff: noqa: SIM300  # expected == actual

import os

import trio

from actorserve.actors.worker_process import LineLimit, OutputPump


def test_so_many_lines_a_second():
    """The first lines of a second are let through; the rest is counted, and the count is told once."""
    limit = LineLimit(3)
    allowed = [limit.allows(10 + n / 10) for n in range(5)] + [limit.allows(11.0)]

    assert ([True] * 3 + [False] * 2 + [True], 2, 0) == (allowed, limit.take_dropped(), limit.take_dropped())


async def pump(write, lines=1000):
    """Run a pump while `write(descriptor)` prints; gives what was logged, and whether the descriptor was closed."""
    read, written = os.pipe()
    said: list[str] = []
    ended = trio.Event()
    one = OutputPump(read, said.append, LineLimit(lines))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run, ended.wait)
        await write(written)
        ended.set()
    os.close(written)
    try:
        os.fstat(read)
    except OSError:
        return said
    raise AssertionError("the descriptor is still open")


async def test_lines_and_the_rest():
    """Whole lines as they come, and what has no end of line when the worker ends."""

    async def write(descriptor):
        os.write(descriptor, b"one\ntw")
        await trio.sleep(0.05)
        os.write(descriptor, b"o\nthree\xff")

    assert ["one", "two", "three\ufffd"] == await pump(write)


async def test_the_pipe_may_stay_open():
    """The worker's end ends the pump, although somebody still holds the pipe."""

    async def write(descriptor):
        os.write(descriptor, b"last words\n")

    assert ["last words"] == await pump(write)


async def test_long_lines_are_cut():
    """A line is cut at 8 KB."""

    async def write(descriptor):
        os.write(descriptor, b"x" * 20_000 + b"\n")

    assert [8192] == [len(line) for line in await pump(write)]


async def test_a_flood_that_ends_is_counted():
    """What was dropped is said although nothing more is printed."""

    async def write(descriptor):
        os.write(descriptor, b"line\n" * 50)
        await trio.sleep(1.3)
        os.write(descriptor, b"after\n")
        await trio.sleep(0.05)

    said = await pump(write, lines=10)
    dropped = [line for line in said if "dropped" in line]

    assert (["after"], 1) == (said[-1:], len(dropped))
