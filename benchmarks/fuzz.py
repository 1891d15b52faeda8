"""Mutated conversations for as long as you like: `just fuzz`.

    python benchmarks/fuzz.py [--minutes 10] [--seed FIRST] [--count N]

Every conversation has a seed of its own: FIRST, FIRST + 1, ... Each is fed to the sans-IO core in either role, every
tenth to a whole server in memory on a virtual clock. A failure prints its seed and how to see it again; the exit status
is then 1. What must not live here: what is sent and what must hold (tests/transport/mutations.py).
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import traceback
from pathlib import Path

import structlog
import trio.testing

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "transport"))

from mutations import try_core, try_server  # type: ignore[import-untyped]

SERVER_EVERY = 10
SAY_EVERY_S = 10.0


def one(seed: int, *, server: bool) -> str | None:
    """Give what is wrong with what a seed did."""
    try:
        found = try_core(seed)
        if found is None and server:
            found = trio.run(try_server, seed, clock=trio.testing.MockClock(autojump_threshold=0))
    except Exception:  # noqa: BLE001  any is a finding
        return traceback.format_exc()
    return None if found is None else str(found)


def fuzz(first: int, minutes: float, count: int | None) -> int:
    """Run; give how many seeds failed."""
    until, said = time.monotonic() + 60 * minutes, time.monotonic()
    failed, seed = 0, first
    while time.monotonic() < until and (count is None or seed < first + count):
        found = one(seed, server=count is not None or seed % SERVER_EVERY == 0)
        if found is not None:
            failed += 1
            print(f"seed {seed}: {found}\n  again: python benchmarks/fuzz.py --seed {seed} --count 1", flush=True)
        seed += 1
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            print(f"seeds {first} to {seed - 1}: {failed} failed", flush=True)
    print(f"{seed - first} conversations, seeds {first} to {seed - 1}: {failed} failed")
    return failed


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="of the first conversation; by default any")
    parser.add_argument("--count", type=int, help="so many conversations, each on the core and on a server")
    options = parser.parse_args()
    level = logging.CRITICAL if options.count is None else logging.ERROR  # a few seeds: show what was logged, too
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    first = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    print(f"first seed: {first}", flush=True)
    sys.exit(1 if fuzz(first, options.minutes, options.count) else 0)


if __name__ == "__main__":
    main()
