"""All attacks at once against a real server, beside a good client. The long form, with times: benchmarks/attack.py."""

from pathlib import Path

import trio

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CAP_S = 60


async def test_attacks_leave_the_good_client_alone(monkeypatch):
    """No error for the good client, each attacker is told why and closed as promised, no traceback, memory bounded."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import attack  # noqa: PLC0415  the path is known only now
    from attacks.kinds import ATTACKS  # noqa: PLC0415  as above

    async with trio.open_nursery() as nursery:
        with attack.victim() as server:
            await attack.ready(server.port)
            start, errors, calls = server.memory(), 0, 0
            told = {}

            async def hostile():
                told.update(await attack.hostile(server, "all", CAP_S))

            nursery.start_soon(hostile)
            while not told:
                took, failed = await attack.good_client(server.port, 0.3)
                errors += failed
                calls += len(took)
            grown, tracebacks = server.memory() - start, server.tracebacks()

    otherwise = {
        name: one["closed"]
        for name, one in told.items()
        if not one["closed"] or any(not how.startswith(ATTACKS[name].ends) for how in one["closed"])
    }
    assert calls
    assert (errors, tracebacks, otherwise) == (0, 0, {})
    assert grown < 100
