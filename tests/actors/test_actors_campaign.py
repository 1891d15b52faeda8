"""A campaign of faults in virtual time: hundreds of seeded lives of a small server, and the rules that hold in each.

`python tests/actors/test_actors_campaign.py 1000` lives so many (`just campaign`), `... 1 SEED` that one again.
"""

# ruff: noqa: SIM300, S311, C901, ASYNC109  # expected == actual; dice, not secrets; a worker with many faults; a call's timeout

from __future__ import annotations

import logging
import random
import sys
from collections import Counter

import pytest
import structlog
import trio
from trio._core import _run as trio_run
from universe import Universe, run_virtually, spec, universe

from actorserve import errors
from actorserve.actors.messages import Restart, Scale, Spawn, State, Stop
from actorserve.scripted import ScriptedWorker

RUNS = 1000
PER_TEST = 100
EXPECTED = (
    errors.ActorCrashed,
    errors.ActorGone,
    errors.AlreadyRegistered,
    errors.Draining,
    errors.Expired,
    errors.HandlerRaised,
    errors.LoadFailed,
    errors.NoSuchModel,
    errors.NoWorkers,
    errors.Overloaded,
    errors.StartupTimeout,
)
LONGEST_S = 5000.0


def faulty(dice: random.Random) -> type[ScriptedWorker]:
    """Workers that do everything wrong, now and then."""
    fault_rate = dice.choice([0.0, 0.02, 0.1, 0.3])

    def strikes() -> bool:
        return dice.random() < fault_rate

    class Faulty(ScriptedWorker):
        async def load(self, content):
            await trio.sleep(dice.choice([0, 0, 0.3, 3.0]))
            if strikes():
                match dice.randrange(5):
                    case 0:
                        self.crash()
                    case 1:
                        await trio.sleep(100)
                    case 2:
                        raise errors.LoadFailed("cannot", permanent=dice.random() < 0.3)
                    case 3:
                        raise OSError("busy")
                    case 4:
                        await self._say(b"\xfe" * 13)
            if strikes():
                trio.lowlevel.spawn_system_task(self.die_later, dice.expovariate(0.3))

        async def die_later(self, seconds):
            await trio.sleep(seconds)
            self.crash(dice.choice([-9, -11, 0, 3]))

        async def misbehave(self):
            match dice.randrange(6):
                case 0:
                    self.crash(dice.choice([-9, -11, 0, 1]))
                    await trio.sleep_forever()
                case 1:
                    await trio.sleep(1000)
                case 2:
                    self.answers_ping = False
                    await trio.sleep(1000)
                case 3:
                    raise ValueError("as told")
                case 4:
                    await self._say(bytes(dice.randrange(256) for _ in range(20)))
                    await trio.sleep_forever()
                case 5:
                    await trio.sleep(4)

        async def infer(self, items):
            await trio.sleep(dice.choice([0, 0, 0.01, 0.5]))
            if strikes():
                await self.misbehave()
            return [item.inputs["data"] for item in items]

        async def generate(self, item):
            for _ in range(int(item.inputs["count"])):
                await trio.sleep(dice.choice([0, 0.01, 0.1]))
                if strikes() and strikes():
                    await self.misbehave()
                yield item.inputs["data"]

    Faulty.can_generate = dice.random() < 0.7
    Faulty.can_infer = dice.random() < 0.8 or not Faulty.can_generate
    return Faulty


class Life:
    """One life: callers, and somebody who turns every knob; then what must hold."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.endings: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.callers = self.dice.choice([3, 12, 40])

    async def caller(self, u: Universe, n: int) -> None:
        dice = self.dice
        await trio.sleep(dice.uniform(0, 20))
        timeout = dice.choice([float("inf"), float("inf"), dice.uniform(0, 1), dice.uniform(0, 15)])
        patience = dice.choice([float("inf"), float("inf"), dice.uniform(0, 5)])
        began = trio.current_time()
        with trio.move_on_after(patience) as scope:
            kind = await self.call(u, b"%d" % n, timeout)
        if scope.cancelled_caught:
            kind = "left"
        self.endings[n] += 1
        self.kinds[kind] += 1
        took = trio.current_time() - began
        assert took <= min(timeout, patience, LONGEST_S) + 1, f"call {n} took {took} s of {timeout} s: {kind}"

    async def call(self, u: Universe, data: bytes, timeout: float) -> str:
        dice = self.dice
        try:
            if dice.random() < 0.6:
                assert data == await u.ask(data, timeout)
            else:
                with trio.move_on_after(timeout) as scope:
                    await self.read(u, data, timeout)
                if scope.cancelled_caught:
                    return "Expired"
        except EXPECTED as error:
            return type(error).__name__
        return "answered"

    async def read(self, u: Universe, data: bytes, timeout: float) -> None:
        count = self.dice.choice([0, 1, 5, 60])
        stream = u.stream(count, data, timeout)
        try:
            async for chunk in stream:
                assert data == chunk
                await trio.sleep(self.dice.choice([0, 0, 0.2]))
        finally:
            await stream.aclose()

    async def operator(self, u: Universe) -> None:
        dice = self.dice
        for _ in range(dice.randrange(6)):
            await trio.sleep(dice.uniform(0, 6))
            count = dice.randrange(4)
            message = dice.choice(
                [Scale("m", "", count, count), Scale("m", "", 1, 3), Stop("m", "", dice.choice([0.0, 2.0, 30.0]))]
            )
            kept = u.supervisor.ask(message)
            if dice.random() < 0.5:
                await self.settle(kept)
            if isinstance(message, Stop):
                self.spawn(u)
        alive = [worker for worker in u.made if worker.process.status is None]
        if alive and dice.random() < 0.5:
            dice.choice(alive).crash()

    def spawn(self, u: Universe):
        dice = self.dice
        count = dice.choice([0, 1, 1, 2, 3])
        return u.supervisor.ask(
            Spawn(
                spec(
                    workers_min=count,
                    workers_max=count,
                    batch_size=dice.choice([1, 2, 8]),
                    max_batch_delay_s=dice.choice([0.0, 0.0, 0.5]),
                    queue_size=dice.choice([3, 100]),
                    startup_timeout_s=10.0,
                    response_timeout_s=5.0,
                    max_restarts=dice.choice([0, 2, 5]),
                    max_requests_per_worker=dice.choice([0, 0, 1, 10]),
                    restart=dice.choice([*Restart, Restart.TRANSIENT]),
                ),
                unregister_on_failure=dice.random() < 0.2,
            )
        )

    async def settle(self, reply) -> None:
        try:
            await reply.wait()
        except (*EXPECTED, errors.Unavailable):  # Unavailable itself: a worker was scaled away before it was READY
            pass

    async def run(self) -> None:
        async with universe(faulty(self.dice), grace_s=20.0) as u:
            ready = self.spawn(u)
            drained_early = self.dice.random() < 0.3
            async with trio.open_nursery() as nursery:
                for n in range(self.callers):
                    nursery.start_soon(self.caller, u, n)
                nursery.start_soon(self.operator, u)
                if drained_early:
                    await trio.sleep(self.dice.uniform(0, 20))
                    await u.supervisor.drain(self.dice.choice([0.0, 1.0, 30.0]))
            if not drained_early:
                await self.settle(ready)
                await trio.sleep(200)  # backoffs and loads come to an end
                self.check_tree(u)
        assert Counter(range(self.callers)) == self.endings

    def check_tree(self, u: Universe) -> None:
        """At rest every replica is READY with nothing in hand, or FAILED with a reason."""
        for model in u.supervisor.observe().models:
            assert 0 == model.waiting
            for replica in model.replicas:
                assert replica.state in {State.READY, State.FAILED}, replica
                assert replica.state is State.READY or replica.reason
                assert 0 == replica.in_hand
                replacing = replica.incarnation > 1 + replica.restarts + replica.replaced
                assert not replacing or model.spec.max_requests_per_worker  # tries that failed


def run(seed: int) -> Counter[str]:
    """One life, the same for the same seed."""
    random.seed(seed)
    trio_run._r.seed(seed)
    life = Life(seed)
    run_virtually(life.run)
    return life.kinds


@pytest.fixture
def in_order(monkeypatch):
    """Let trio schedule by its seeded dice alone, so that a seed is one life."""
    monkeypatch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)


@pytest.mark.parametrize("first", range(0, RUNS, PER_TEST))
def test_every_request_ends_exactly_once(first, in_order, logged):
    """Each request ends once, in time, by its own answer or a named error; the tree comes to rest; nothing is left."""
    kinds: Counter[str] = Counter()
    for seed in range(first, first + PER_TEST):
        logged.clear()
        try:
            kinds += run(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        assert [] == [line for line in logged if "bug in the server" in str(line)], f"seed {seed}"
    assert {"answered", "left", "Expired", "ActorCrashed"} <= set(kinds)


if __name__ == "__main__":
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    lives, beginning = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    endings: Counter[str] = Counter()
    for number in range(beginning, beginning + lives):
        try:
            endings += run(number)
        except BaseException as error:
            error.add_note(f"seed {number}")
            raise
    print(f"{lives} lives in virtual time, {endings.total()} calls, each ended once: {dict(endings.most_common())}")
