"""When the server's process looks for garbage (src/actorserve/collecting.py)."""

import gc
import sys
import weakref

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from actorserve.collecting import ALL_S, COUNT_S, GROWTH, LONGEST_S, LOOK_S, SHORTEST_S, Timing, collect_garbage


class Ring:
    """Garbage that counting references does not find."""

    def __init__(self):
        self.itself = self


def ring():
    return weakref.ref(Ring())


@given(st.lists(st.floats(0, 1), max_size=50))
def test_the_pause_stays_within_its_bounds(looks):
    """Whatever the looks take; a long one never makes the next pause longer, nor a short one shorter."""
    timing = Timing(0.0, 0)
    for seconds in looks:
        before = timing.pause
        timing.took(seconds)
        assert SHORTEST_S <= timing.pause <= LONGEST_S
        assert seconds <= LOOK_S or timing.pause <= before
        assert seconds >= LOOK_S / 2 or timing.pause >= before


GROWN = 75_000 + GROWTH


@pytest.mark.parametrize(
    ("now", "blocks", "due"),
    [
        (COUNT_S, 50_000, False),
        (COUNT_S, GROWN - 1, False),
        (COUNT_S, GROWN, True),
        (COUNT_S / 2, GROWN, False),  # not counted yet
        (ALL_S - 1, 50_000, False),
        (ALL_S, 50_000, True),
    ],
)
def test_when_all_objects_are_looked_at(now, blocks, due):
    """When what is allocated has grown by half and more, or after a quarter of an hour."""
    assert Timing(0.0, 50_000).all_are_due(now, lambda: blocks) is due


def test_growth_is_over_the_least_that_was_left():
    """What a crowd leaves when it goes is forgotten, so that the next one's growth is seen."""
    timing = Timing(0.0, 500_000)
    assert not timing.all_are_due(1.0, lambda: 100_000)
    assert timing.all_are_due(2.0, lambda: 300_000)
    timing.looked_at_all(2.0, 300_000)
    assert not timing.all_are_due(3.0, lambda: 300_000)


async def test_young_garbage_goes_soon(autojump_clock):
    """A cycle that nobody holds is gone after a pause; Python does nothing by itself meanwhile."""
    assert gc.isenabled()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_garbage)
        await trio.sleep(1)
        assert not gc.isenabled()
        garbage = ring()
        assert garbage() is not None
        await trio.sleep(2 * LONGEST_S)
        assert garbage() is None
        nursery.cancel_scope.cancel()

    assert gc.isenabled()


async def test_old_garbage_goes_when_memory_grows(autojump_clock, monkeypatch):
    """A cycle that was held for long, and is not any more, goes with the next look at all objects."""
    blocks = 50_000
    monkeypatch.setattr(sys, "getallocatedblocks", lambda: blocks)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_garbage)
        held = Ring()
        garbage = weakref.ref(held)
        gc.collect()
        del held
        await trio.sleep(ALL_S / 2)
        assert garbage() is not None
        blocks = GROWN
        await trio.sleep(2 * COUNT_S)
        assert garbage() is None
        nursery.cancel_scope.cancel()
