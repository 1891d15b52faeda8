"""Workers that are replaced in good health, and the three restart policies, in virtual time with scripted workers."""

# ruff: noqa: SIM300  # expected == actual

import pytest
import trio
from universe import Universe, universe, until

from actorserve.actors.memory import parse
from actorserve.actors.messages import Drained, Finished, Generate, Infer, OpenSequence, Restart, State
from actorserve.errors import ActorCrashed, ActorGone, LoadFailed, NoWorkers
from actorserve.scripted import ScriptedWorker

MB = 1 << 20


class Grows(ScriptedWorker):
    """Holds ten megabytes when it is loaded, and leaks one with each request."""

    held: dict[int, int]
    load_s = 0.0
    fails: tuple[int, ...] = ()
    can_sequences = True
    first_mb = 10

    async def load(self, content):
        number = -self.process.pid
        if number in self.fails:
            raise LoadFailed("cannot", permanent=False)
        await trio.sleep(self.load_s if number > 1 else 0)
        self.held[self.process.pid] = self.first_mb * MB

    async def infer(self, items):
        self.held[self.process.pid] += len(items) * MB
        for item in items:
            match item.inputs["data"].split():
                case [b"sleep", seconds]:
                    await trio.sleep(float(seconds))
                case [b"crash"]:
                    self.crash(-11)
                    await trio.sleep_forever()
        return [item.inputs["data"] for item in items]

    async def feed(self, id, inputs):
        self.fed = getattr(self, "fed", 0) + 1
        return b"%d:%d" % (self.process.pid, self.fed)

    async def generate(self, item):
        for _ in range(int(item.inputs["count"])):
            await trio.sleep(1)
            yield b"x"


def growing(**given):
    """A class of workers that grow, and how to weigh them."""
    held: dict[int, int] = {}

    async def measure(pid):
        await trio.lowlevel.checkpoint()
        return held.get(pid)

    return type("Growing", (Grows,), {"held": held, **given}), measure


def growing_universe(**given):
    worker, measure = growing(**given)
    return universe(worker, measure=measure)


async def feed(u: Universe, count: int, pause: float = 1.0) -> int:
    """One request after the other; how many were answered."""
    answered = 0
    for n in range(count):
        assert b"%d" % n == await u.ask(b"%d" % n, timeout=5)
        answered += 1
        await trio.sleep(pause)
    return answered


# --- replacing ------------------------------------------------------------------------------


async def test_a_leaking_worker_is_replaced(autojump_clock):
    """Above max_worker_memory_mb another worker is started, and takes over once it is READY: no request waits for its
    load, none is lost, and nothing is counted as a failure or a restart.
    """
    async with growing_universe(load_s=20.0) as u:
        await u.spawn(max_worker_memory_mb=50, queue_size=2)
        assert 200 == await feed(u, 200)
        await trio.sleep(60)
        replica = u.model().replicas[0]
        assert replica.replaced == replica.incarnation - 1 == len(u.made) - 1 >= 2
        assert (0, 0, State.READY) == (replica.restarts, replica.failures_in_a_row, replica.state)
        assert [0] * (len(u.made) - 1) == [worker.process.status for worker in u.made[:-1]]


async def test_requests_per_worker(autojump_clock):
    """After max_requests_per_worker a worker is replaced; streams count as well; what it has is finished first."""
    async with growing_universe() as u:
        await u.spawn(max_requests_per_worker=10)
        stream = u.mailbox.ask(Generate({"count": b"30"}))
        assert 9 == await feed(u, 9, pause=0.0)
        await until(lambda: u.model().replicas[0].replaced == 1)
        assert 1 == u.model().replicas[0].in_hand
        assert b"x" == await u.ask()
        heard = b""
        while chunks := await stream.receive():
            heard += b"".join(chunks)
            stream.taken(len(chunks), len(chunks))
        assert (b"x" * 30, 2) == (heard, len(u.made))
        await until(lambda: u.made[0].process.status == 0)


async def test_sequences_stay_where_they_are(autojump_clock):
    """A worn worker keeps its open sequences, whose state nobody else has, until they end; new ones go to the other."""
    async with growing_universe() as u:
        await u.spawn(max_requests_per_worker=3)
        old = u.mailbox.ask(OpenSequence())
        for n in range(1, 10):
            await old.send({"data": b"x"})
            assert [b"-1:%d" % n] == await old.receive()
            old.taken(1, 4)
            await trio.sleep(0.5)
        assert 1 == u.model().replicas[0].replaced
        new = u.mailbox.ask(OpenSequence())
        await new.send({"data": b"x"})
        assert [b"-2:1"] == await new.receive()
        for duplex in (old, new):
            duplex.end()
            assert [] == await duplex.receive()
        await until(lambda: u.made[0].process.status == 0)


async def test_one_at_a_time(autojump_clock):
    """Replicas that are due together are replaced one after the other: never more than one extra worker loads."""
    async with growing_universe(load_s=10.0) as u:
        await u.spawn(workers_min=3, workers_max=3, max_requests_per_worker=5, batch_size=1)
        asked = [u.mailbox.ask(Infer({"data": b"sleep 0.1"})) for _ in range(30)]
        for reply in asked:
            await reply.wait()
        most = 0
        while sum(replica.replaced for replica in u.model().replicas) < 3:
            most = max(most, sum(worker.process.status is None for worker in u.made))
            await trio.sleep(0.1)
        assert 4 == most
        assert {State.READY} == set(u.states())


async def test_a_replacement_that_fails_changes_nothing(autojump_clock):
    """The old worker goes on answering while its replacement fails, however often, and is replaced at last."""
    async with growing_universe(fails=tuple(range(2, 12))) as u:
        await u.spawn(max_requests_per_worker=5, max_restarts=1)
        assert 300 == await feed(u, 300)
        replica = u.model().replicas[0]
        assert (0, 0, State.READY) == (replica.restarts, replica.failures_in_a_row, replica.state)
        assert replica.replaced >= 1


async def test_a_worn_worker_that_dies_has_an_heir(autojump_clock):
    """A worker that dies while its replacement loads fails its batch alone; the replacement is what comes next."""
    async with growing_universe(load_s=10.0) as u:
        await u.spawn(max_requests_per_worker=3)
        await feed(u, 3, pause=0.1)
        await until(lambda: len(u.made) == 2)
        with pytest.raises(ActorCrashed):
            await u.ask(b"crash")
        await trio.sleep(0.2)
        assert [State.RESTARTING] == u.states()
        assert b"later" == await u.ask(b"later", timeout=15)
        replica = u.model().replicas[0]
        assert (2, 1, 0) == (len(u.made), replica.restarts, replica.replaced)


async def test_stop_wins_over_replacing(autojump_clock):
    """A stop while a replacement loads ends both; what was queued is answered."""
    async with growing_universe(load_s=100.0) as u:
        await u.spawn(max_requests_per_worker=3)
        await feed(u, 3, pause=0.1)
        await until(lambda: len(u.made) == 2)
        reply = u.mailbox.ask(Infer({"data": b"sleep 2"}))
        began = trio.current_time()
        await u.stop()
        assert trio.current_time() - began < 3
        assert (b"sleep 2", [0, -9]) == ((await reply.wait()).data, [worker.process.status for worker in u.made])


async def test_scale_down_while_replacing(autojump_clock):
    """A replica that is scaled away while its replacement loads takes both workers with it."""
    async with growing_universe(load_s=100.0) as u:
        await u.spawn(max_requests_per_worker=3)
        await feed(u, 3, pause=0.1)
        await until(lambda: len(u.made) == 2)
        await u.scale(0)
        assert [0, -9] == [worker.process.status for worker in u.made]


async def test_a_limit_below_what_a_worker_needs(autojump_clock):
    """A worker that is above its limit as soon as it is loaded is FAILED at once, and says so: no loop."""
    async with growing_universe(first_mb=80) as u:
        with pytest.raises(LoadFailed, match="as soon as it is loaded it holds 80 MB of its own, more than max_worker"):
            await u.spawn(max_worker_memory_mb=50)
        assert (1, [State.FAILED]) == (len(u.made), u.states())


async def test_no_limits_no_replacement(autojump_clock):
    """Without limits nothing is weighed or counted."""
    async with growing_universe() as u:
        await u.spawn()
        await feed(u, 500)
        assert 1 == len(u.made)


def test_what_is_counted():
    """Counted are written pages that are nobody else's, and the share of the swap; not clean or shared ones."""
    rollup = (
        "0-f ---p 00000000 00:00 0 [rollup]\nRss: 900 kB\nShared_Clean: 100 kB\nShared_Dirty: 200 kB\n"
        "Private_Clean: 400 kB\nPrivate_Dirty: 8 kB\nPrivate_Hugetlb: 16 kB\nSwap: 999 kB\nSwapPss: 32 kB\n"
    )
    assert 56 * 1024 == parse(rollup)


# --- permanent, transient, temporary --------------------------------------------------------


class Leaves(Grows):
    """Ends by itself, and well, when it has had nothing to do for a while."""

    async def infer(self, items):
        answers = await super().infer(items)
        trio.lowlevel.spawn_system_task(self.leave)
        return answers

    async def leave(self):
        await trio.sleep(1)
        if self.process.status is None:
            self.crash(0)


def leaving():
    return type("Leaving", (Leaves,), {"held": {}})


async def test_transient_a_good_end_is_the_end(autojump_clock):
    """transient: a worker that ended well is not started again; the model says that it has none."""
    async with universe(leaving()) as u:
        await u.spawn()
        assert b"x" == await u.ask()
        await until(lambda: not u.model().replicas)
        assert State.NO_WORKERS is u.model().state
        with pytest.raises(NoWorkers):
            await u.ask()
        await u.scale(1)
        assert b"x" == await u.ask()


async def test_permanent_again_whatever_its_end(autojump_clock):
    """permanent: a worker that ended well is started again at once, each time, and is no failure."""
    async with universe(leaving()) as u:
        await u.spawn(restart=Restart.PERMANENT, max_restarts=0)
        for _ in range(5):
            assert b"x" == await u.ask()
            await trio.sleep(2)
        replica = u.model().replicas[0]
        assert (5, 0, Finished()) == (replica.restarts, replica.failures_in_a_row, replica.last_exit)


async def test_temporary_never(autojump_clock):
    """temporary: a crash is FAILED at once, with its reason."""
    async with universe(leaving()) as u:
        await u.spawn(restart=Restart.TEMPORARY)
        with pytest.raises(ActorCrashed):
            await u.ask(b"crash")
        with pytest.raises(ActorGone, match="SIGSEGV"):
            await u.ask()
        assert (1, [State.FAILED]) == (len(u.made), u.states())


@pytest.mark.parametrize("restart", Restart)
async def test_a_stop_wins_over_all_three(autojump_clock, restart):
    """Whatever the policy: a child that was told to stop is not started again, even if it dies on the way."""
    async with universe(leaving()) as u:
        await u.spawn(restart=restart)
        reply = u.mailbox.ask(Infer({"data": b"sleep 5"}))
        await trio.sleep(1)
        u.nursery.start_soon(u.stop)
        await trio.sleep(1)
        u.made[0].crash()
        with pytest.raises(ActorCrashed):
            await reply.wait()
        await trio.sleep(100)
        assert (1, ()) == (len(u.made), u.supervisor.observe().models)


async def test_last_exit_of_one_that_was_replaced(autojump_clock):
    """A replaced worker has drained: nothing that is shown calls it a crash."""
    async with growing_universe() as u:
        await u.spawn(max_requests_per_worker=2)
        await feed(u, 3)
        assert u.model().replicas[0].last_exit in (None, Drained())
