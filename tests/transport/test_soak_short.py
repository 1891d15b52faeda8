"""The soak in short: a hundred connections of every kind against a real server. The long form: benchmarks/soak.py."""

from pathlib import Path

import trio

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


async def test_hundreds_of_calls_end_as_they_should_and_leave_nothing(monkeypatch):
    """Every call is answered as its kind says, however connections end, and no descriptor is left."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak  # noqa: PLC0415  the path is known only now
    from processes import ours  # noqa: PLC0415  as above

    with ours("echo.toml") as server:
        await trio.to_thread.run_sync(server.wait_listening)
        await trio.to_thread.run_sync(soak.ready, server)
        run = soak.Soak(server)
        before = run.descriptors()
        await run.run(minutes=0.07, connections=60)
        left = await soak.emptied(run, before)
    tally = run.tally

    assert (dict(tally.wrong), left) == ({}, 0)
    assert tally.connections >= 60
    assert tally.calls
    assert tally.frames > 3 * tally.calls
