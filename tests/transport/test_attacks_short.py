"""All attacks at once against a real server, beside a good client. The long form, with times: benchmarks/attack.py."""

import json
import sys
from pathlib import Path

import trio

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CAP_S = 30


async def test_attacks_leave_the_good_client_alone(monkeypatch):
    """No error for the good client, each attacker is told why it is closed, no traceback, memory bounded."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import attack  # noqa: PLC0415  the path is known only now
    from attacks.kinds import ATTACKS  # noqa: PLC0415  as above

    async with trio.open_nursery() as nursery:
        with attack.victim() as server:
            await attack.ready(server.port)
            start, errors, calls = server.memory(), 0, 0
            done = []

            async def hostile():
                command = [sys.executable, "-m", "attacks.attacker", "all", str(server.port), str(CAP_S)]
                done.append((await trio.run_process(command, capture_stdout=True, cwd=BENCHMARKS)).stdout)

            nursery.start_soon(hostile)
            while not done:
                took, failed = await attack.good_client(server.port, 0.3)
                errors += failed
                calls += len(took)
            closed = json.loads(done[0])
            grown, tracebacks = server.memory() - start, server.tracebacks()

    bare = {name: ends for name, ends in closed.items() if any(not how.startswith("GOAWAY") for how in ends)}
    still_open = [name for name, one in ATTACKS.items() if one.closed_at_once and not closed[name]]
    assert calls
    assert (errors, tracebacks, bare, still_open) == (0, 0, {}, [])
    assert grown < 100
