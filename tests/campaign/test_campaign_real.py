"""The short form of the campaign of faults against real workers (`just campaign` is the long one)."""

from real_lives import run


async def test_every_call_ends_once_and_nothing_is_left():
    """Whatever kills, stops, corrupts or hangs: each call ends in time, the tree comes to rest, nothing is left."""
    kinds = await run(10, first=22)  # among them are guests of both kinds
    assert {"OK", "UNAVAILABLE", "left", "conversation OK", "in-band OK"} <= set(kinds)
