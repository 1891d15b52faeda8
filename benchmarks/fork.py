"""How long a worker takes from the order to its process, and to READY, once the forkserver is warm.

`python benchmarks/fork.py [COUNT]`. The bar is 200 ms for the fork, weights excluded; the handler is echo.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import trio

from actorserve.actors import wire
from actorserve.actors.forkservers import Forkservers, ProcessSpawner
from actorserve.actors.messages import ChildSpec, ModelSpec
from actorserve.actors.wire import Kind
from actorserve.actors.worker_process import Worker

SPEC = ModelSpec(name="echo", version="1.0", handler="actorserve.handlers.echo:Echo", model_dir=Path.cwd())
LOAD = {
    "name": "echo",
    "version": "1.0",
    "handler": SPEC.handler,
    "device": "cpu",
    "model_dir": str(SPEC.model_dir),
    "options": {},
    "cache_dir": str(SPEC.model_dir),
    "threads": 1,
    "path": [],
}


async def until_ready(worker: Worker) -> None:
    """Load the handler and wait for READY."""
    worker.write(wire.note(Kind.LOAD, LOAD))
    while not any(frame.kind == Kind.READY for frame in await worker.receive()):
        pass


async def one(spawner: ProcessSpawner) -> tuple[float, float]:
    """Milliseconds to the process, and to READY."""
    began = time.perf_counter()
    worker = await spawner.spawn(ChildSpec(SPEC, 0))
    forked = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run_writer)
        await until_ready(worker)
        ready = time.perf_counter()
        nursery.cancel_scope.cancel()
    worker.process.kill()
    await worker.process.wait()
    await worker.aclose()
    for _, descriptor in worker.process.outputs():
        os.close(descriptor)
    return (forked - began) * 1e3, (ready - began) * 1e3


async def main(count: int) -> None:
    """Measure and print."""
    forkservers = Forkservers(Path.cwd())
    spawner = ProcessSpawner(forkservers)
    async with trio.open_nursery() as nursery:
        began = time.perf_counter()
        await nursery.start(forkservers.run)
        await forkservers.shared.wait_warm()
        print(f"forkserver warm after {time.perf_counter() - began:.2f} s")
        forks, readies = zip(*[await one(spawner) for _ in range(count)], strict=True)
        for name, figures in (("fork", forks), ("READY", readies)):
            ordered = sorted(figures)
            print(
                f"{name:>6}: median {statistics.median(ordered):6.1f} ms   slowest {ordered[-1]:6.1f} ms   of {count}"
            )
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 30)
