"""Measures the server and prints tables: `python benchmarks/run.py`, or `just bench`.

docs/performance.md says what each table means and keeps a run's figures. The parts, by name:
echo, transport, calls, overhead, memory, start, models, generation. What must not live here: how anything is measured.
"""

from __future__ import annotations

import argparse
import time

import echo
import footprint
import generation
import load
import models
import open_calls
import transport
from table import machine

PARTS = ("echo", "transport", "calls", "overhead", "memory", "start", "models", "generation")


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
    rounds, seconds, memory_seconds = options.rounds, options.seconds, options.memory_seconds
    if options.quick:
        rounds, seconds, memory_seconds = 3, 0.5, 5.0
    load_by = "h2load" if load.H2LOAD else "benchmarks/driver.py (h2load is not installed)"
    print(f"{time.strftime('%Y-%m-%d')}; {machine()}; load by {load_by}")
    parts = options.only or PARTS
    if "echo" in parts:
        echo.run(rounds=rounds, seconds=seconds, only=options.scenario)
    if "transport" in parts:
        transport.run(rounds=rounds, seconds=seconds, only=options.scenario)
    if "calls" in parts:
        open_calls.run()
    if "overhead" in parts:
        models.overhead(rounds=rounds, seconds=seconds)
    if "memory" in parts:
        footprint.memory(seconds=memory_seconds)
    if "start" in parts:
        footprint.start(rounds=rounds)
    if "models" in parts:
        models.run(rounds=rounds, seconds=4 * seconds)
    if "generation" in parts:
        generation.run(rounds=min(rounds, 3))


if __name__ == "__main__":
    main()
