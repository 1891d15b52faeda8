"""Measures the server and prints tables: `python benchmarks/run.py`, or `just bench`.

docs/performance.md says what each table means and keeps a run's figures. What must not live here: how anything is
measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import echo
import footprint
import generation
import load
import models
import open_calls
import payloads
import ray_serve
import replicas
import slow_readers
import transport
from table import machine

PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "echo": lambda o: echo.run(rounds=o.rounds, seconds=o.seconds, only=o.scenario),
    "transport": lambda o: transport.run(rounds=o.rounds, seconds=o.seconds, only=o.scenario),
    "calls": lambda _: open_calls.run(),
    "overhead": lambda o: models.overhead(rounds=o.rounds, seconds=o.seconds),
    "memory": lambda o: footprint.memory(seconds=o.memory_seconds),
    "start": lambda o: footprint.start(rounds=o.rounds),
    "models": lambda o: models.run(rounds=o.rounds, seconds=4 * o.seconds),
    "generation": lambda o: generation.run(rounds=min(o.rounds, 3)),
    "replicas": lambda _: replicas.run(),
    "payloads": lambda o: payloads.run(rounds=o.rounds),
    "ray": lambda o: ray_serve.run(rounds=min(o.rounds, 5), seconds=4 * o.seconds),
    "slow_readers": lambda o: slow_readers.run(rounds=o.rounds, seconds=2 * o.seconds),
}
ASKED_FOR = ("ray",)
"""Parts that install something, and are run only by name."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="benchmarks/run.py", description="Measure the server on this machine.")
    arguments.add_argument("--rounds", type=int, default=7, help="turns of each server; medians are printed (7)")
    arguments.add_argument("--seconds", type=float, default=1.5, help="about how long a turn's load lasts (1.5)")
    arguments.add_argument("--memory-seconds", type=float, default=60.0, help="the load of the part memory (60)")
    arguments.add_argument("--quick", action="store_true", help="3 rounds of 0.5 s: to see that everything runs")
    arguments.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    arguments.add_argument(
        "--scenario", default="", help="of echo and transport, only tables whose title holds this text"
    )
    return arguments


def main() -> None:
    """Run the parts in order."""
    options = parser().parse_args()
    if options.quick:
        options.rounds, options.seconds, options.memory_seconds = 3, 0.5, 5.0
    load_by = "h2load" if load.H2LOAD else "benchmarks/driver.py (h2load is not installed)"
    print(f"{time.strftime('%Y-%m-%d')}; {machine()}; load by {load_by}")
    for name, part in PARTS.items():
        if name in options.only if options.only else name not in ASKED_FOR:
            part(options)


if __name__ == "__main__":
    main()
