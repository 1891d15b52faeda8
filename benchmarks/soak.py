"""Thousands of connections and millions of frames against a real server, which must not grow: `just soak`.

    python benchmarks/soak.py [--minutes 10] [--connections 1000] [--bound 512]

A thousand connections are open at a time; each makes some dozen calls of every kind (soak_client.py), ends in one of
several ways, polite and rude, and another takes its place. RSS of the server process is printed over time. Fails where
a call is answered otherwise than it should be, where RSS rises by more than `--bound` KiB a minute after the first
third (Theil and Sen's median of slopes: one jump is no slope), or where connections are left when all have gone. The
allocator gives and takes some 10 MiB; at the 60,000 calls a minute of two cores the default bound is 9 bytes a call.
What must not live here: what a connection does (soak_client.py).
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from dataclasses import dataclass, field

import trio
from calls import Health
from processes import Server, ours
from soak_client import Tally, live

SAMPLE_S = 1.0
PRINT_EVERY = 5  # samples
CALLING = 64  # connections that have calls in hand at a time: the others are open and idle, as clients' are
FEWEST_SAMPLES = 6


@dataclass
class Soak:
    """A run."""

    server: Server
    tally: Tally = field(default_factory=Tally)
    samples: list[tuple[float, float]] = field(default_factory=list)  # minutes, KiB

    async def run(self, minutes: float, connections: int) -> None:
        """Keep so many connections going for so long."""
        began = trio.current_time()
        turns = trio.CapacityLimiter(CALLING)

        async def slot(number: int) -> None:
            dice = random.Random(number)  # noqa: S311  no secret
            while True:
                await live(self.server.port, dice, turns, self.tally)

        with trio.move_on_after(60 * minutes):
            async with trio.open_nursery() as nursery:
                for number in range(connections):
                    nursery.start_soon(slot, number)
                while True:
                    await trio.sleep(min(SAMPLE_S, 60 * minutes / FEWEST_SAMPLES))
                    self.sample((trio.current_time() - began) / 60)

    def sample(self, minutes: float) -> None:
        """Print a line."""
        self.server.check()
        rss = self.server.process.memory_info().rss / 1024
        self.samples.append((minutes, rss))
        if len(self.samples) % PRINT_EVERY:
            return
        tally = self.tally
        print(
            f"{60 * minutes:7.0f} s  RSS {rss / 1024:7.1f} MiB  descriptors {self.descriptors():6}  "
            f"connections {tally.connections:8,}  calls {tally.calls:10,}  frames {tally.frames:12,}  "
            f"wrong {dict(tally.wrong) or 0}",
            flush=True,
        )

    def descriptors(self) -> int:
        """How many the server process has open."""
        return int(self.server.process.num_fds())

    def slope(self) -> float:
        """KiB a minute, the first half left out."""
        kept = self.samples[len(self.samples) // 2 :]
        slopes = [
            (later[1] - sooner[1]) / (later[0] - sooner[0])
            for place, sooner in enumerate(kept)
            for later in kept[place + 1 :]
        ]
        return statistics.median(slopes) if slopes else 0.0


async def emptied(soak: Soak, descriptors: int) -> int:
    """Wait for the server to notice that everybody has gone; how many descriptors more than before are left."""
    for _ in range(100):
        if soak.descriptors() <= descriptors:
            break
        await trio.sleep(0.1)
    return max(0, soak.descriptors() - descriptors)


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=1000, help="open at a time")
    parser.add_argument("--bound", type=float, default=512.0, help="KiB a minute that RSS may rise by")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}; {options.connections} connections at a time")
    with ours("echo.toml") as server:
        server.wait_listening()
        ready(server)
        soak = Soak(server)
        descriptors = soak.descriptors()
        trio.run(soak.run, options.minutes, options.connections)
        left = trio.run(emptied, soak, descriptors)
    slope, tally = soak.slope(), soak.tally
    print(f"slope {slope:.0f} KiB a minute (bound {options.bound:.0f}); {left} descriptors left")
    print(f"wrong: {dict(tally.wrong) or 'nothing'}")
    print(
        f"{tally.connections:,} connections, {tally.calls:,} calls, {tally.frames:,} frames; ended: {dict(tally.ends)}"
    )
    sys.exit(1 if slope > options.bound or left or tally.wrong else 0)


def ready(server: Server) -> None:
    """Wait for the model."""
    import grpc  # type: ignore[import-untyped]  # noqa: PLC0415

    with grpc.insecure_channel(server.address) as channel:
        Health(channel).wait_healthy()


if __name__ == "__main__":
    main()
