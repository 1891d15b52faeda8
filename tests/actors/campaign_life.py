"""One seeded life of a small server in virtual time: its callers, somebody who turns every knob, and the rules.

What must not live here: the faults (campaign_faults.py), how many lives there are (test_actors_campaign.py).
Over 250 lines: a life is read from its birth to its end.
"""

# ruff: noqa: SIM300, S311, ASYNC109  # expected == actual; dice, not secrets; a call's timeout

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import trio
from campaign_faults import Scales, faulty
from universe import Universe, spec, universe

from actorserve import errors
from actorserve.actors.autoscaler import may_scale
from actorserve.actors.device import Ledger
from actorserve.actors.messages import Generate, Infer, ModelView, OpenSequence, Restart, Scale, Spawn, State, Stop
from actorserve.scripted import ScriptedWorkers

EXPECTED = (
    errors.ActorCrashed,
    errors.ActorGone,
    errors.BadInput,
    errors.Draining,
    errors.Expired,
    errors.HandlerRaised,
    errors.NoSuchModel,
    errors.NoSuchSequence,
    errors.NotStateful,
    errors.NoWorkers,
    errors.Overloaded,
    errors.TooLarge,
    errors.TooManySequences,
    errors.Unsupported,
)
REFUSED = (
    errors.AlreadyRegistered,
    errors.Draining,
    errors.LoadFailed,
    errors.NoSuchModel,
    errors.StartupTimeout,
    errors.Unavailable,  # itself: a worker was scaled away before it was READY
    errors.WrongState,
)
LONGEST_S = 1000.0  # a call without a deadline, and what the operator asks for
REST_S = 100.0  # backoffs, loads and delays of scaling come to an end within it
NEVER = float("inf")
HEAVIEST = 10
WHO, WEIGHT = "who", "tokens"


class Name(NamedTuple):
    """A model version."""

    model: str
    version: str


HOUSEHOLDS = [[Name("m", "1")], [Name("m", "1")], [Name("m", "1"), Name("n", "1")], [Name("m", "1"), Name("m", "2")]]


class Life:
    """See the module's docstring. `run` once."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.endings: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.callers = self.dice.choice([3, 12, 40])
        self.rush_s = self.dice.choice([1, 20, 20])
        self.names = self.dice.choice(HOUSEHOLDS)
        self.calm = False
        self.ledger = Ledger()
        self.scales = Scales()

    # --- callers ------------------------------------------------------------------------------

    async def caller(self, u: Universe, n: int) -> None:
        dice = self.dice
        await trio.sleep(dice.uniform(0, self.rush_s))
        timeout = dice.choice([NEVER, NEVER, dice.uniform(0, 1), dice.uniform(0, 15)])
        patience = dice.choice([NEVER, NEVER, dice.uniform(0, 5)])
        call = dice.choice([self.ask, self.ask, self.ask, self.read, self.read, self.converse])
        began = trio.current_time()
        with trio.fail_after(LONGEST_S), trio.move_on_after(patience) as scope:
            kind = await self.call(call, u, b"%d" % n, timeout)
        if scope.cancelled_caught:
            kind = "left"
        self.endings[n] += 1
        self.kinds[kind] += 1
        took = trio.current_time() - began
        assert took <= min(timeout, patience) + 1, f"call {n} took {took} s of {timeout} s: {kind}"

    async def call(self, call, u: Universe, data: bytes, timeout: float) -> str:
        """As the service does: the call's deadline ends it wherever it is."""
        name, metadata = self.dice.choice(self.names), self.metadata()
        deadline = trio.current_time() + timeout
        try:
            mailbox = u.directory.find(*name)
            with trio.CancelScope(deadline=deadline):
                await call(mailbox, data, metadata, deadline)
                return "conversed" if call == self.converse else "answered"
        except EXPECTED as error:
            return type(error).__name__
        return "Expired"

    def metadata(self) -> dict[str, str]:
        """What a call claims, now and then nonsense."""
        dice = self.dice
        claims = {
            WHO: dice.choice("abc"),
            WEIGHT: str(dice.choice([0, 1, 1, 3, HEAVIEST, HEAVIEST + 1])),
            "priority": dice.choice(["0", "0", "5", "9", "9", "high"]),
        }
        return {key: value for key, value in claims.items() if dice.random() < 0.5 or key == WEIGHT}

    async def ask(self, mailbox, data: bytes, metadata, deadline: float) -> None:
        reply = mailbox.ask(Infer({"data": data}, metadata), deadline)
        try:
            assert data == (await reply.wait()).data
        finally:
            reply.abandon()

    async def read(self, mailbox, data: bytes, metadata, deadline: float) -> None:
        inputs = {"data": data, "count": b"%d" % self.dice.choice([0, 1, 5, 60])}
        stream = mailbox.ask(Generate(inputs, metadata), deadline)
        try:
            while chunks := await stream.receive():
                assert {data} == set(chunks)
                await trio.sleep(self.dice.choice([0, 0, 0.2]))
                stream.taken(len(chunks), sum(map(len, chunks)))
        finally:
            stream.abandon()

    async def converse(self, mailbox, data: bytes, metadata, deadline: float) -> None:
        """A sequence: items at random moments; in the end a half-close, or silence until it expires."""
        duplex = mailbox.ask(OpenSequence(metadata=metadata), deadline)
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                sent: list[bytes] = []
                nursery.start_soon(self.send, duplex, data, sent)
                try:
                    await self.hear(duplex, sent)
                except EXPECTED as error:
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            duplex.abandon()
        if failure is not None:
            raise failure

    async def hear(self, duplex, sent: list[bytes]) -> None:
        """A reply to each item, in order."""
        heard = 0
        while replies := await duplex.receive():
            for reply in replies:
                assert isinstance(reply, errors.BadInput) or sent[heard] == reply
                heard += 1
            await trio.sleep(self.dice.choice([0, 0, 0.2]))
            duplex.taken(len(replies), sum(len(one) for one in replies if isinstance(one, bytes)))
        assert len(sent) == heard, "it ended well, with items unanswered"

    async def send(self, duplex, data: bytes, sent: list[bytes]) -> None:
        dice = self.dice
        for number in range(dice.choice([0, 1, 5, 40])):
            await trio.sleep(dice.choice([0, 0, 0, 0.05, 1.0]))
            item = b"%s.%d" % (data, number)
            sent.append(item)
            try:
                await duplex.send({"data": item})
            except EXPECTED:
                sent.pop()
                return  # who receives is told the same
            except trio.Cancelled:
                sent.pop()
                raise
        if dice.random() < 0.7:
            duplex.end()

    # --- the operator -------------------------------------------------------------------------

    async def operator(self, u: Universe) -> None:
        dice = self.dice
        for _ in range(dice.randrange(6)):
            await trio.sleep(dice.uniform(0, 6))
            name, count = dice.choice(self.names), dice.randrange(4)
            message = dice.choice(
                [
                    Scale(*name, count, count),
                    Scale(*name, dice.choice([0, 1]), 3),
                    Stop(*name, dice.choice([0.0, 2.0, 30.0])),
                ]
            )
            kept = u.supervisor.ask(message)
            if dice.random() < 0.5:
                await self.settle(kept)
            if isinstance(message, Stop):
                self.spawn(u, name)
        alive = [worker for worker in u.made if worker.process.status is None]
        if alive and dice.random() < 0.5:
            dice.choice(alive).crash()

    def spawn(self, u: Universe, name: Name):
        """Register a model version anew; each time it is another."""
        return u.supervisor.ask(Spawn(self.draw_spec(name), unregister_on_failure=self.dice.random() < 0.2))

    def draw_spec(self, name: Name):
        dice = self.dice
        least = dice.choice([0, 1, 1, 2, 3])
        weight = dice.choice(["count", "count", "bytes", f"metadata:{WEIGHT}"])
        given: dict[str, Any] = {
            "workers_min": least,
            "workers_max": least + dice.choice([0, 0, 1, 2]),
            "target_ongoing_requests": dice.choice([0.5, 1.0, 4.0]),
            "upscale_delay_s": dice.choice([0.0, 1.0, 3.0]),
            "downscale_delay_s": dice.choice([0.0, 1.0, 5.0]),
            "batch_size": dice.choice([1, 2, 8]),
            "max_batch_delay_s": dice.choice([0.0, 0.0, 0.5]),
            "weight": weight,
            "max_batch_weight": 0 if weight == "count" else HEAVIEST,
            "tenant_key": dice.choice(["", "", WHO]),
            "queue_size": dice.choice([3, 100]),
            "startup_timeout_s": 10.0,
            "response_timeout_s": 5.0,
            "max_restarts": dice.choice([0, 2, 5]),
            "max_requests_per_worker": dice.choice([0, 0, 0, 1, 10]),
            "max_worker_memory_mb": dice.choice([0, 0, 100]),
            "max_sequences": dice.choice([1, 100]),
            "sequence_idle_timeout_s": dice.choice([0.5, 3.0, 60.0]),
            "restart": dice.choice([*Restart, Restart.TRANSIENT]),
        }
        return spec(name=name.model, version=name.version, **given)

    async def settle(self, reply) -> None:
        with trio.fail_after(LONGEST_S), suppress(*REFUSED):
            await reply.wait()

    # --- from birth to the end -----------------------------------------------------------------

    async def run(self) -> None:
        """Live; AssertionError where a rule is broken."""
        handlers = {name: faulty(self.dice, lambda: self.calm) for name in self.names}
        workers = ScriptedWorkers(
            lambda child, *given: handlers[Name(child.model.name, child.model.version)](child, *given)
        )
        self.scales.made = workers.made
        async with universe(workers, grace_s=20.0, ledger=self.ledger, measure=self.scales.weigh) as u:
            ready = [self.spawn(u, name) for name in self.names]
            await trio.lowlevel.checkpoint()
            drained_early = self.dice.random() < 0.3
            async with trio.open_nursery() as nursery:
                for n in range(self.callers):
                    nursery.start_soon(self.caller, u, n)
                nursery.start_soon(self.operator, u)
                if drained_early:
                    await trio.sleep(self.dice.uniform(0, 20))
                    await u.supervisor.drain(self.dice.choice([0.0, 1.0, 30.0]))
            if not drained_early:
                for reply in ready:
                    await self.settle(reply)
                self.calm = True  # those that are replaced for ever would fail some day
                await trio.sleep(REST_S)
                self.check_rest(u)
        assert Counter(range(self.callers)) == self.endings
        assert not any(self.ledger.owners().values()), self.ledger.owners()

    # --- the rules at rest ---------------------------------------------------------------------

    def check_rest(self, u: Universe) -> None:
        """Every replica is READY with nothing in hand, or FAILED with a reason; nobody holds what nobody uses."""
        tree = u.supervisor.observe()
        assert () == tree.leaving
        for model in tree.models:
            self.check_model(u, model)
        alive = [worker for worker in u.made if worker.process.status is None]
        ready = [view for model in tree.models for view in model.replicas if view.state is State.READY]
        assert len(ready) == sum(map(len, self.ledger.owners().values()))
        replacing = sum(worker.process.pid not in {view.pid for view in ready} for worker in alive)
        assert replacing <= sum(is_limited(model) for model in tree.models)  # one at a time
        assert [] == [worker.open_streams for worker in alive if worker.open_streams]

    def check_model(self, u: Universe, model: ModelView) -> None:
        mailbox = u.directory.find(model.spec.name, model.spec.version)
        assert 0 == model.waiting == mailbox.seats.taken
        assert 0 == mailbox.batch_lane.garbage == mailbox.stream_lane.garbage
        assert 0 == mailbox.batch_lane.weight == mailbox.stream_lane.weight
        for replica in model.replicas:
            assert replica.state in {State.READY, State.FAILED}, replica
            assert replica.state is State.READY or replica.reason
            assert 0 == replica.in_hand
            replacing = replica.incarnation > 1 + replica.restarts + replica.replaced
            assert not replacing or is_limited(model)  # tries that failed
        ready = sum(replica.state is State.READY for replica in model.replicas)
        failed = len(model.replicas) - ready
        if may_scale(model.spec) and ready:  # asked nothing, it has as few as it may; one stays beside a FAILED one
            assert ready == max(model.spec.workers_min - failed, 1 if failed else 0), model
        elif may_scale(model.spec):
            assert failed or not model.spec.workers_min, model
        assert ready <= model.spec.workers_max
        for waiters in (mailbox.idle, mailbox.busy, mailbox.roomy):
            assert len(waiters) <= ready + 1  # and one that is being replaced, or will replace


def is_limited(model: ModelView) -> bool:
    """Whether its workers are replaced in good health."""
    return bool(model.spec.max_requests_per_worker or model.spec.max_worker_memory_mb)
