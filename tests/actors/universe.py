"""A supervisor with scripted workers and nothing above it: what the tests of actors run in, in virtual time."""

# ruff: noqa: SIM300, ASYNC109  # expected == actual; a call's timeout

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from actorserve.actors.device import Ledger
from actorserve.actors.directory import Directory
from actorserve.actors.messages import Generate, Infer, ModelSpec, Scale, Spawn, State, Stop
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.supervisor import Supervisor
from actorserve.errors import Expired
from actorserve.scripted import ScriptedWorker, ScriptedWorkers


def spec(**given) -> ModelSpec:
    """The model that tests run; everything is a default but the name."""
    return ModelSpec(**{"name": "m", "version": "1", "handler": "a:B", "model_dir": Path("/"), **given})


def run_virtually(main: Callable, *args):
    """trio.run on a clock that jumps: for hypothesis, and for runs by the hundred."""
    return trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0))


class Universe:
    """See the module's docstring."""

    def __init__(self, workers: ScriptedWorkers, supervisor: Supervisor, directory: Directory, nursery) -> None:
        self.workers = workers
        self.supervisor = supervisor
        self.directory = directory
        self.nursery = nursery

    @property
    def made(self) -> list[ScriptedWorker]:
        """Every worker so far."""
        return self.workers.made

    async def spawn(self, **given) -> None:
        """Register the model and wait until it is READY."""
        await self.supervisor.ask(Spawn(spec(**given))).wait()

    async def scale(self, count: int) -> None:
        """Scale the model and wait."""
        await self.supervisor.ask(Scale("m", "", count, count)).wait()

    async def stop(self, grace_s: float = 30.0) -> None:
        """Unregister the model and wait until it is gone."""
        await self.supervisor.ask(Stop("m", "", grace_s)).wait()

    @property
    def mailbox(self):
        """The model's mailbox."""
        return self.directory.find("m")

    def model(self):
        """What the tree says of the model."""
        return next(model for model in self.supervisor.observe().models if model.spec.name == "m")

    def states(self) -> list[State]:
        """The replicas' states."""
        return [replica.state for replica in self.model().replicas]

    async def ask(self, data: bytes = b"x", timeout: float = float("inf")) -> bytes:
        """Ask as the service does: a scope with the deadline; who leaves abandons."""
        deadline = trio.current_time() + timeout
        with trio.CancelScope(deadline=deadline) as scope:
            reply = self.directory.find("m").ask(Infer({"data": data}), deadline)
            try:
                return (await reply.wait()).data
            finally:
                reply.abandon()
        assert scope.cancelled_caught
        raise Expired("the caller's deadline")

    async def stream(self, count: int, data: bytes = b"x", timeout: float = float("inf")) -> AsyncIterator[bytes]:
        """Ask for a stream as the service does, and give credit back for each chunk that is taken."""
        deadline = trio.current_time() + timeout
        reply = self.directory.find("m").ask(Generate({"data": data, "count": b"%d" % count}), deadline)
        try:
            while chunks := await reply.receive():
                for chunk in chunks:
                    yield chunk
                    reply.taken(1, len(chunk))
        finally:
            reply.abandon()


@asynccontextmanager
async def universe(
    make: Callable = ScriptedWorker,
    *,
    grace_s: float = 30.0,
    stable_after_s: float = 60.0,
    ledger: Ledger | None = None,
    **settings_given,
):
    """Run a supervisor; on exit it drains, and nothing may be left."""
    workers = make if isinstance(make, ScriptedWorkers) else ScriptedWorkers(make)
    directory = Directory()
    settings = ActorSettings(workers, cache_dir=Path("/"), **settings_given)
    supervisor = Supervisor(settings, directory, stable_after_s=stable_after_s, grace_s=grace_s, ledger=ledger)
    async with trio.open_nursery() as nursery:
        workers.nursery = nursery
        await nursery.start(supervisor.run)
        one = Universe(workers, supervisor, directory, nursery)
        yield one
        await supervisor.drain(grace_s)
        assert [] == [worker for worker in workers.made if worker.process.status is None]
        assert [0] * len(supervisor.observe().models) == [model.waiting for model in supervisor.observe().models]
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], within: float = 600.0) -> None:
    """Wait, in virtual time, until something holds."""
    with trio.fail_after(within):
        while not condition():
            await trio.sleep(0.01)
