"""Restarts, hangs, drain and kill, in virtual time with scripted workers."""

# ruff: noqa: SIM300  # expected == actual

import pytest
import trio
from universe import spec, universe, until

from actorserve.actors import wire
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Crashed, Generate, Infer, Scale, Spawn, State, Stop
from actorserve.errors import (
    ActorCrashed,
    ActorGone,
    AlreadyRegistered,
    BadInput,
    Draining,
    Expired,
    HandlerRaised,
    LoadFailed,
    NoSuchModel,
    NoWorkers,
    Overloaded,
    StartupTimeout,
)
from actorserve.scripted import ScriptedWorker, ScriptedWorkers


class Script(ScriptedWorker):
    """What it does is what the data says: a status to crash with, seconds to sleep, an error."""

    async def infer(self, items):
        for item in items:
            match item.inputs["data"].split():
                case [b"crash"]:
                    self.crash(-11)
                    await trio.sleep_forever()
                case [b"sleep", seconds]:
                    await trio.sleep(float(seconds))
                case [b"raise"]:
                    raise ValueError("as told")
                case [b"silent"]:
                    self.answers_ping = False
                    await trio.sleep_forever()
        return [BadInput("data", "bad") if item.inputs["data"] == b"bad" else item.inputs["data"] for item in items]


def loads(*plan):
    """Workers whose loads go as planned: seconds to take, or an exception; the last is repeated."""

    class Loads(Script):
        async def load(self, content):
            step = plan[min(-self.process.pid, len(plan)) - 1]
            if isinstance(step, Exception):
                raise step
            if step is None:
                self.crash()
            await trio.sleep(step or 0)

    return Loads


async def elapsed(call) -> float:
    start = trio.current_time()
    await call
    return trio.current_time() - start


# --- starting -------------------------------------------------------------------------------


async def test_spawn_replies_at_ready(autojump_clock):
    """Spawn is answered when every worker is READY, no sooner; the supervisor answers others meanwhile."""
    async with universe(loads(5.0, 9.0)) as u:
        reply = u.supervisor.ask(Spawn(spec(workers_min=2, workers_max=2)))
        await trio.sleep(6)
        assert ({State.READY, State.LOADING}, False) == (set(u.states()), reply.is_set)
        await reply.wait()
        assert [State.READY] * 2 == u.states()


async def test_who_waits_for_spawn_may_leave(autojump_clock):
    """Cancelling who waits ends the answer, never the change."""
    async with universe(loads(5.0)) as u:
        with trio.move_on_after(1):
            await u.spawn()
        await until(lambda: u.states() == [State.READY])


async def test_requests_queue_while_loading(autojump_clock):
    """LOADING: requests wait, their deadlines hold, the bound holds."""
    async with universe(loads(5.0)) as u, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: u.spawn(queue_size=2))
        await trio.sleep(1)
        with pytest.raises(Expired):
            await u.ask(timeout=1)
        early = [u.mailbox.ask(Infer({"data": b"%d" % n})) for n in range(2)]
        with pytest.raises(Overloaded):
            await u.ask()
        assert [b"0", b"1"] == [(await reply.wait()).data for reply in early]


async def test_a_permanent_failure_is_failed_at_once(autojump_clock):
    """What no restart can mend is FAILED at the first attempt, with its reason, and asked no more."""
    async with universe(loads(LoadFailed("no such file"))) as u:
        with pytest.raises(LoadFailed, match="no such file"):
            await u.spawn()
        (replica,) = u.model().replicas
        assert (State.FAILED, "no such file", 1, 1) == (
            replica.state,
            replica.reason,
            replica.incarnation,
            len(u.made),
        )
        with pytest.raises(ActorGone, match="no such file"):
            await u.ask()


async def test_unregister_on_failure(autojump_clock):
    """A synchronous registration that fails leaves nothing registered."""
    async with universe(loads(LoadFailed("no such file"))) as u:
        with pytest.raises(LoadFailed):
            await u.supervisor.ask(Spawn(spec(), unregister_on_failure=True)).wait()
        with pytest.raises(NoSuchModel):
            await u.ask()


async def test_a_load_that_may_work_is_tried_again(autojump_clock):
    """A failure that may pass is tried again, and the answer to spawn waits for it."""
    async with universe(loads(OSError("busy"), None, LoadFailed("later", permanent=False), 0.0)) as u:
        await u.spawn()
        assert (4, 3) == (len(u.made), u.model().replicas[0].failures_in_a_row)


async def test_a_slow_load_times_out(autojump_clock):
    """A worker that is not READY in time is killed, and that is a failure like others, StartupTimeout at last."""
    async with universe(loads(100.0)) as u:
        with pytest.raises(StartupTimeout, match="startup_timeout_s = 3"):
            await u.spawn(startup_timeout_s=3.0, max_restarts=1)
        assert ([-9, -9], [State.FAILED]) == ([worker.process.status for worker in u.made], u.states())


async def test_a_spawner_that_hangs_times_out(autojump_clock):
    """A process that cannot be had in time is a failed start, not a model that loads for ever."""

    class Stuck(ScriptedWorkers):
        async def spawn(self, child):
            await trio.sleep_forever()

    async with universe(Stuck()) as u:
        with pytest.raises(StartupTimeout):
            await u.spawn(startup_timeout_s=3.0, max_restarts=1)


async def test_a_spawner_that_raises_is_a_failed_start(autojump_clock):
    """No descriptors, no memory: counted as a failure, tried again."""

    class Poor(ScriptedWorkers):
        tries = 0

        async def spawn(self, child):
            self.tries += 1
            if self.tries < 3:
                raise OSError("too many open files")
            return await super().spawn(child)

    async with universe(Poor()) as u:
        await u.spawn()
        assert 2 == u.model().replicas[0].failures_in_a_row


async def test_registered_once(autojump_clock):
    """A second registration of a version is refused; the first stays."""
    async with universe() as u:
        await u.spawn()
        with pytest.raises(AlreadyRegistered):
            await u.spawn()
        assert b"x" == await u.ask()


# --- crashes --------------------------------------------------------------------------------


async def test_max_restarts_in_a_row_then_failed(autojump_clock):
    """More than max_restarts failures in a row: FAILED; what is queued and what comes get ActorGone at once."""
    async with universe(loads(0.0, None)) as u:
        await u.spawn(max_restarts=3)
        u.made[0].crash()
        await until(lambda: u.states() == [State.RESTARTING])
        queued = u.mailbox.ask(Infer({"data": b"x"}))
        await until(lambda: u.states() == [State.FAILED])
        (replica,) = u.model().replicas
        assert (4, 4) == (replica.incarnation, replica.failures_in_a_row)
        assert isinstance(replica.last_exit, Crashed)
        assert replica.reason
        with pytest.raises(ActorGone):
            await queued.wait()
        with pytest.raises(ActorGone):
            await u.ask()
        assert 4 == len(u.made)
        await trio.sleep(1000)
        assert 4 == len(u.made)


async def test_failed_comes_back_by_scale(autojump_clock):
    """A FAILED model comes back by ScaleWorker."""
    async with universe(loads(LoadFailed("bad"), 0.0)) as u:
        with pytest.raises(LoadFailed):
            await u.spawn()
        await u.scale(1)
        assert (b"x", [State.READY]) == (await u.ask(), u.states())


async def test_an_answer_resets_the_count(autojump_clock):
    """A worker that answered before it died is not counted: it may die so for ever."""
    async with universe(Script) as u:
        await u.spawn(max_restarts=1)
        for _ in range(8):
            assert b"x" == await u.ask()
            with pytest.raises(ActorCrashed):
                await u.ask(b"crash")
        await until(lambda: u.states() == [State.READY])
        assert 9 == len(u.made)


async def test_without_an_answer_the_count_grows(autojump_clock):
    """A request that kills every worker that takes it gets the model FAILED after max_restarts."""
    async with universe(Script) as u:
        await u.spawn(max_restarts=2)
        for _ in range(3):
            with pytest.raises(ActorCrashed):
                await u.ask(b"crash")
        with pytest.raises(ActorGone):
            await u.ask()


async def test_stability_resets_the_count(autojump_clock):
    """stable_after_s in READY resets the count as an answer does."""
    async with universe(Script, stable_after_s=50.0) as u:
        await u.spawn(max_restarts=1)
        for n in range(5):
            await until(lambda n=n: len(u.made) == n + 1 and u.states() == [State.READY])
            await trio.sleep(51)
            u.made[-1].crash()
        await until(lambda: u.states() == [State.READY])


async def test_a_crash_fails_its_batch_alone(autojump_clock):
    """Only the batch in hand fails; one that was sent ahead and not begun, and the queue, are answered later."""
    async with universe(Script) as u:
        await u.spawn(batch_size=2)
        batch = [u.mailbox.ask(Infer({"data": data})) for data in (b"sleep 1", b"crash")]
        await trio.sleep(0.5)
        ahead = [u.mailbox.ask(Infer({"data": b"%d" % n})) for n in range(2)]
        await trio.sleep(0.1)
        queued = u.mailbox.ask(Infer({"data": b"2"}))
        assert (4, 1) == (u.model().replicas[0].in_hand, u.model().waiting)
        for reply in batch:
            with pytest.raises(ActorCrashed, match="SIGSEGV"):
                await reply.wait()
        assert [b"0", b"1", b"2"] == [(await reply.wait()).data for reply in (*ahead, queued)]
        assert 2 == len(u.made)


async def test_streams_fail_with_their_worker(autojump_clock):
    """A stream whose worker dies gets what was said and then ActorCrashed, once."""

    class Halfway(ScriptedWorker):
        async def generate(self, item):
            yield b"a"
            await trio.sleep(1)
            self.crash()
            yield b"b"

    async with universe(Halfway) as u:
        await u.spawn()
        heard = []
        with pytest.raises(ActorCrashed):  # noqa: PT012  # what was heard before counts
            async for chunk in u.stream(2):
                heard.append(chunk)  # noqa: PERF401  # what came before the error counts
        assert [b"a"] == heard


async def test_handler_errors_are_not_crashes(autojump_clock):
    """An exception of the handler fails its items; BadInput its item alone; the worker stays."""
    async with universe(Script) as u:
        await u.spawn()
        with pytest.raises(HandlerRaised, match="ValueError: as told"):
            await u.ask(b"raise")
        replies = [u.mailbox.ask(Infer({"data": data})) for data in (b"good", b"bad")]
        assert b"good" == (await replies[0].wait()).data
        with pytest.raises(BadInput):
            await replies[1].wait()
        assert 1 == len(u.made)


async def test_a_worker_that_talks_nonsense_is_replaced(autojump_clock):
    """A worker that breaks the protocol is killed and replaced; what it had fails; the server stays."""

    class Mad(ScriptedWorker):
        async def _run_batches(self):
            if self.process.pid == -1:
                async for id, _items in self._batch_queue:
                    await self._say(wire.frame(wire.Kind.BEGUN, id) + b"\xff" * 40)
            await super()._run_batches()

    async with universe(Mad) as u:
        await u.spawn()
        with pytest.raises(ActorCrashed, match="broke the protocol"):
            await u.ask()
        assert b"x" == await u.ask()


async def test_an_open_socket_does_not_hide_a_death(autojump_clock):
    """A process that ended is dead even where somebody holds its socket open: its requests fail within seconds."""

    class Held(ScriptedWorker):
        async def run(self):
            held = self._stream
            if self.process.pid == -1:
                self._stream = Half(held)
            await super().run()

    class Half(trio.abc.Stream):
        def __init__(self, stream):
            self.stream = stream

        async def send_all(self, data):
            await self.stream.send_all(data)

        async def wait_send_all_might_not_block(self):
            await trio.lowlevel.checkpoint()

        async def receive_some(self, max_bytes=None):
            return await self.stream.receive_some(max_bytes)

        async def aclose(self):
            pass

    class Both(Held, Script):
        pass

    async with universe(Both) as u:
        await u.spawn()
        with trio.fail_after(3), pytest.raises(ActorCrashed):
            await u.ask(b"crash")
        assert b"x" == await u.ask(timeout=5)


# --- hangs ----------------------------------------------------------------------------------


async def test_a_hang_is_killed_and_replaced(autojump_clock):
    """More than response_timeout_s in one handler call: killed, its batch fails, another answers."""
    async with universe(Script) as u:
        await u.spawn(response_timeout_s=5.0)
        start = trio.current_time()
        with pytest.raises(ActorCrashed, match="response_timeout_s = 5"):
            await u.ask(b"sleep 1000")
        assert 5 < trio.current_time() - start <= 7
        assert (b"x", -9) == (await u.ask(), u.made[0].process.status)


async def test_slow_but_within_the_limit(autojump_clock):
    """One call within the limit is let be, and so are many one after the other."""
    async with universe(Script) as u:
        await u.spawn(response_timeout_s=5.0, batch_size=1)
        replies = [u.mailbox.ask(Infer({"data": b"sleep 4"})) for _ in range(5)]
        for reply in replies:
            await reply.wait()
        assert 1 == len(u.made)


async def test_no_pong_is_killed_and_replaced(autojump_clock):
    """No PONG for 10 s while work is out: killed, its batch fails, another answers."""
    async with universe(Script) as u:
        await u.spawn()
        start = trio.current_time()
        with pytest.raises(ActorCrashed, match="no PONG"):
            await u.ask(b"silent")
        assert 10 <= trio.current_time() - start <= 13
        assert b"x" == await u.ask()


async def test_idle_workers_are_left_alone(autojump_clock):
    """A worker without work that answers its pings stays for as long as it likes."""
    async with universe(Script) as u:
        await u.spawn()
        await trio.sleep(3600)
        assert (b"x", 1) == (await u.ask(), len(u.made))


async def test_an_idle_worker_that_was_stopped_is_replaced(autojump_clock):
    """No PONG of a worker without work: it is replaced within 20 s, before a request finds out."""
    async with universe(Script) as u:
        await u.spawn()
        assert b"x" == await u.ask()
        u.made[0].answers_ping = False
        await until(lambda: len(u.made) == 2 and u.states() == [State.READY], within=20)
        assert (-9, "no PONG within 10 s") == (u.made[0].process.status, u.model().replicas[0].last_exit.cause)


async def test_a_ping_is_answered_while_the_handler_computes(autojump_clock):
    """Work in hand and a PONG every second: no limit but response_timeout_s ends a long call."""
    async with universe(Script) as u:
        await u.spawn(response_timeout_s=100.0)
        assert b"sleep 90" == await u.ask(b"sleep 90")
        assert 1 == len(u.made)


async def test_waiting_for_credit_is_no_hang(autojump_clock):
    """A generator that nobody reads is not in a handler call, however long it waits."""
    async with universe() as u:
        await u.spawn(response_timeout_s=5.0)
        reply = u.mailbox.ask(Generate({"data": b"x", "count": b"100"}))
        await trio.sleep(60)
        assert (1, 16) == (len(u.made), len(await reply.receive()))
        reply.abandon()


# --- streams --------------------------------------------------------------------------------


class Counting(ScriptedWorker):
    """Notes how far each generator has come, and which were closed."""

    made_chunks: dict[bytes, int]
    closed: list[bytes]
    pause = 0.0
    size = 1

    async def generate(self, item):
        name = item.inputs["data"]
        try:
            while True:
                await trio.sleep(self.pause)
                self.made_chunks[name] = self.made_chunks.get(name, 0) + 1
                yield b"x" * self.size
        finally:
            self.closed.append(name)


async def test_who_leaves_stops_the_generator_within_one_step(autojump_clock):
    """A caller that goes away mid-stream: no chunk is made after that, and the generator is closed."""

    class Steps(Counting):
        made_chunks: dict[bytes, int] = {}  # noqa: RUF012  # one per test
        closed: list[bytes] = []  # noqa: RUF012
        pause = 1.0

    async with universe(Steps) as u:
        await u.spawn()
        reply = u.mailbox.ask(Generate({"data": b"s"}))
        await trio.sleep(3.5)
        reply.abandon()
        await trio.sleep(0.1)
        assert ({b"s": 3}, [b"s"]) == (Steps.made_chunks, Steps.closed)
        await trio.sleep(100)
        assert ({b"s": 3}, 0) == (Steps.made_chunks, u.model().replicas[0].in_hand)


@pytest.mark.parametrize(("size", "chunks"), [(1, 16), (64 * 1024, 4), (1 << 20, 1)])
async def test_a_slow_reader_stops_its_own_generator(autojump_clock, size, chunks):
    """Unread, a generator stops after 16 chunks or 256 KiB, but always after one; its neighbour goes on."""

    class Sized(Counting):
        made_chunks: dict[bytes, int] = {}  # noqa: RUF012  # one per test
        closed: list[bytes] = []  # noqa: RUF012
        pause = 0.01

    Sized.size = size
    async with universe(Sized) as u:
        await u.spawn()
        slow = u.mailbox.ask(Generate({"data": b"slow"}))
        fast = u.stream(0, b"fast")
        for _ in range(200):
            await anext(fast)
        assert chunks == Sized.made_chunks[b"slow"]
        slow.taken(len(taken := await slow.receive()), sum(map(len, taken)))
        await trio.sleep(10)
        assert 2 * chunks == Sized.made_chunks[b"slow"]
        slow.abandon()
        await fast.aclose()


# --- drain, kill, scale ---------------------------------------------------------------------


async def test_drain_finishes_what_is_queued(autojump_clock):
    """Unregistered: the name is gone at once, what is in hand and queued is answered, then the worker ends."""
    async with universe(Script) as u:
        await u.spawn(batch_size=1)
        mailbox = u.mailbox
        replies = [mailbox.ask(Infer({"data": b"sleep 2"})) for _ in range(4)]
        await trio.sleep(0.5)
        stopped = u.supervisor.ask(Stop("m", "", 30.0))
        await trio.sleep(0.1)
        with pytest.raises(NoSuchModel):
            await u.ask()
        with pytest.raises(NoSuchModel):
            mailbox.ask(Infer({}))
        assert [b"sleep 2"] * 4 == [(await reply.wait()).data for reply in replies]
        await stopped.wait()
        assert 0 == u.made[0].process.status


async def test_grace_cuts_the_drain(autojump_clock):
    """What is not done when the grace ends gets Draining: in hand, sent ahead and queued alike."""
    async with universe(Script) as u:
        await u.spawn(batch_size=1)
        mailbox = u.mailbox
        replies = [mailbox.ask(Infer({"data": b"sleep 100"})) for _ in range(5)]
        stream = mailbox.ask(Generate({"data": b"x", "count": b"100"}))
        await trio.sleep(0.5)
        assert 3.0 == await elapsed(u.stop(grace_s=3.0))
        for reply in replies:
            with pytest.raises(Draining):
                with trio.fail_after(0):
                    await reply.wait()
        with pytest.raises(Draining):  # noqa: PT012  # after what came before
            while True:
                await stream.receive()
        assert -9 == u.made[0].process.status


async def test_the_server_drains_and_keeps_names(autojump_clock):
    """While the server drains, late calls are told DRAINING and not that there is no such model."""
    async with universe(Script) as u:
        await u.spawn()
        reply = u.mailbox.ask(Infer({"data": b"sleep 5"}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(u.supervisor.drain, 30.0)
            await trio.sleep(1)
            with pytest.raises(Draining):
                await u.ask()
            with pytest.raises(Draining):
                await u.scale(2)
            assert State.DRAINING is u.model().state
        assert b"sleep 5" == (await reply.wait()).data


async def test_the_last_registered_is_the_first_to_shut(autojump_clock, monkeypatch):
    """The server's drain shuts the doors in the reverse of the order of registration, before any model has ended."""
    shut = []
    close = Mailbox.close

    def noted(mailbox, refusal):
        shut.append((mailbox.name, sum(worker.process.status is None for worker in u.made)))
        close(mailbox, refusal)

    async with universe() as u:
        for name in ("b", "c", "a"):
            await u.supervisor.ask(Spawn(spec(name=name))).wait()
        monkeypatch.setattr(Mailbox, "close", noted)
        await u.supervisor.drain(30.0)
        assert [("a", 3), ("c", 3), ("b", 3)] == shut
        assert [0, 0, 0] == [worker.process.status for worker in u.made]


async def test_drain_does_not_wait_for_a_load(autojump_clock):
    """Nothing queued: a replica that is still loading is not waited for."""
    async with universe(loads(0.0, 1000.0)) as u:
        await u.spawn()
        u.supervisor.ask(Scale("m", "", 2, 2))
        await trio.sleep(1)
        reply = u.mailbox.ask(Infer({"data": b"sleep 5"}))
        await trio.sleep(1)
        assert 4.0 == pytest.approx(await elapsed(u.stop(grace_s=100.0)), abs=0.1)
        assert b"sleep 5" == (await reply.wait()).data


async def test_drain_waits_for_a_load_that_somebody_needs(autojump_clock):
    """What was queued before the drain is answered by a worker that becomes READY during it."""
    async with universe(loads(5.0)) as u:
        u.supervisor.ask(Spawn(spec()))
        await trio.sleep(1)
        reply = u.mailbox.ask(Infer({"data": b"x"}))
        assert 4.0 == pytest.approx(await elapsed(u.stop()), abs=0.1)
        assert b"x" == (await reply.wait()).data


async def test_a_crash_during_the_drain(autojump_clock):
    """A worker that dies while it drains is not started again; what it leaves ends at once with Draining."""
    async with universe(Script) as u:
        await u.spawn(batch_size=1)
        replies = [u.mailbox.ask(Infer({"data": data})) for data in (b"sleep 1", b"crash", b"x", b"x")]
        await trio.sleep(0.5)
        assert await elapsed(u.stop(grace_s=100.0)) < 2
        endings = []
        for reply in replies:
            try:
                await reply.wait()
                endings.append(None)
            except (ActorCrashed, Draining) as error:
                endings.append(type(error))
        assert [None, ActorCrashed, Draining, Draining] == endings
        assert 1 == len(u.made)


async def test_an_unbegun_batch_survives_a_crash_during_the_drain(autojump_clock):
    """While another replica is still at work, it takes over what a dying one had not begun."""
    async with universe(Script) as u:
        await u.spawn(workers_min=2, workers_max=2, batch_size=1)
        replies = [u.mailbox.ask(Infer({"data": b"sleep 3"})) for _ in range(2)]
        await trio.sleep(0.5)
        replies += [u.mailbox.ask(Infer({"data": b"sleep 1"})) for _ in range(2)]
        await trio.sleep(0.5)
        stopped = u.supervisor.ask(Stop("m", "", 100.0))
        await trio.sleep(0.5)
        u.made[0].crash()
        await stopped.wait()
        outcomes = []
        for reply in replies:
            try:
                outcomes.append((await reply.wait()).data)
            except ActorCrashed:
                outcomes.append(b"crashed")
        assert [b"crashed", b"sleep 1", b"sleep 1", b"sleep 3"] == sorted(outcomes)


async def test_scale_up_and_down(autojump_clock):
    """Scaled up, new workers answer; scaled down, one drains: its batch is answered, and it ends."""
    async with universe(Script) as u:
        await u.spawn()
        await u.scale(3)
        assert [State.READY] * 3 == u.states()
        replies = [u.mailbox.ask(Infer({"data": b"sleep 2"})) for _ in range(3)]
        await trio.sleep(1)
        await u.scale(1)
        assert [State.READY] == u.states()
        for reply in replies:
            assert b"sleep 2" == (await reply.wait()).data
        assert [None, 0, 0] == [worker.process.status for worker in u.made]


async def test_scale_down_keeps_those_that_work(autojump_clock):
    """A replica that is still loading goes before one that is READY."""
    async with universe(loads(0.0, 0.0, 1000.0)) as u:
        await u.spawn(workers_min=2, workers_max=2)
        u.made[0].crash()
        await until(lambda: len(u.made) == 3)
        await u.scale(1)
        assert ([State.READY], b"x") == (u.states(), await u.ask(timeout=1))


async def test_scale_to_nothing(autojump_clock):
    """Without workers, what is queued and what comes is refused at once, until there are some again."""
    async with universe(Script) as u:
        await u.spawn(batch_size=1)
        replies = [u.mailbox.ask(Infer({"data": b"sleep 1"})) for _ in range(3)]
        await trio.sleep(0.5)
        await u.scale(0)
        with pytest.raises(NoWorkers):
            await u.ask()
        with pytest.raises(NoWorkers):
            await replies[2].wait()
        assert b"sleep 1" == (await replies[0].wait()).data
        await u.scale(1)
        assert b"x" == await u.ask()


async def test_streams_are_shared_by_idle_replicas(autojump_clock):
    """Two streams that come together to two idle replicas run on one each."""
    async with universe() as u:
        await u.spawn(workers_min=2, workers_max=2)
        replies = [u.mailbox.ask(Generate({"data": b"x", "count": b"100"})) for _ in range(2)]
        await trio.sleep(1)
        assert [1, 1] == [replica.in_hand for replica in u.model().replicas]
        for reply in replies:
            reply.abandon()


async def test_a_log_line_of_any_level(autojump_clock, logged):
    """What a worker says of a line's level may be anything: the line is logged, and nothing is its fault."""

    class Odd(ScriptedWorker):
        async def load(self, content):
            for level in ([1], None, "critical", "msg"):
                await self._say(wire.note(wire.Kind.LOG, {"level": level, "text": "odd", "logger": "l"}))

    async with universe(Odd) as u:
        await u.spawn()
    levels = [line["log_level"] for line in logged if line["event"] == "odd"]
    assert ["info", "info", "critical", "info"] == levels


async def test_a_bug_of_one_actor_does_not_end_the_server(autojump_clock, logged):
    """An exception inside an incarnation is that worker's crash, logged with a traceback, and the model comes back."""
    async with universe() as u:
        await u.spawn()
        original, u.mailbox.take = u.mailbox.take, lambda *_: 1 / 0
        reply = u.mailbox.ask(Infer({"data": b"x"}))
        await until(lambda: u.states() == [State.RESTARTING])
        u.mailbox.take = original
        assert b"x" == (await reply.wait()).data
    assert any("bug in the server" in str(line) for line in logged)
    logged.clear()
