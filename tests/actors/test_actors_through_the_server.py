"""The same rules seen by a client of the whole server, in virtual time."""

# ruff: noqa: SIM300  # expected == actual

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import testing
from actorserve.actors.messages import State
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest


def config(**given):
    return {"models": {"m": {"handler": "a:B", **given}}}


def request(**inputs):
    return PredictionsRequest(model_name="m", input={key: value.encode() for key, value in inputs.items()})


async def outcome(stub, seconds=None, **inputs):
    """An answer, or the status of a call that failed."""
    try:
        return (await stub.Predictions(request(**inputs), timeout=seconds)).prediction
    except GRPCError as error:
        return error.status


class Slow(testing.ScriptedWorker):
    """Notes what reaches it; takes its time."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.seen: list[bytes] = []
        self.steps = 0
        self.closed = False

    async def infer(self, items):
        self.seen += [item.inputs["data"] for item in items]
        await trio.sleep(2)
        if any(item.inputs["data"] == b"crash" for item in items):
            self.crash()
            await trio.sleep_forever()
        return [item.inputs["data"] for item in items]

    async def generate(self, item):
        try:
            while True:
                await trio.sleep(float(item.inputs.get("pause", b"1")))
                self.steps += 1
                yield b"x" * int(item.inputs.get("size", b"1"))
        finally:
            self.closed = True


async def test_a_deadline_in_the_queue_never_reaches_the_handler(autojump_clock):
    """DEADLINE_EXCEEDED at the deadline, and the handler never sees the request."""
    workers = testing.ScriptedWorkers(Slow)
    async with testing.serve(config(batch_size=1), workers=workers) as app, app.channel() as channel:
        stub = InferenceAPIsServiceStub(channel)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lambda: outcome(stub, data="ok"))
            await trio.sleep(0.5)
            start = trio.current_time()
            assert Status.DEADLINE_EXCEEDED is await outcome(stub, 1.0, data="late")
            assert 1.0 == pytest.approx(trio.current_time() - start, abs=0.01)
        assert b"late" not in workers.made[0].seen


async def test_the_longest_deadline_is_none(autojump_clock):
    """99999999 hours is a grpc-timeout like another, though no clock of nanoseconds holds it."""
    workers = testing.ScriptedWorkers(testing.ScriptedWorker)
    async with testing.serve(config(), workers=workers) as app, app.channel() as channel:
        stub = InferenceAPIsServiceStub(channel)
        assert b"ok" == await outcome(stub, 99_999_999 * 3600.0, data="ok")
        assert [State.READY] == [replica.state for replica in app.tree().models[0].replicas]
        assert 1 == len(workers.made)


async def test_who_goes_away_stops_the_generator(autojump_clock):
    """A client that leaves mid-stream: no step is made after that, and the generator is closed."""
    workers = testing.ScriptedWorkers(Slow)
    async with testing.serve(config(), workers=workers) as app, app.channel() as channel:
        async with InferenceAPIsServiceStub(channel).StreamPredictions.open() as stream:
            await stream.send_message(request(pause="1"), end=True)
            for _ in range(3):
                await stream.recv_message()
            await stream.cancel()
        await trio.sleep(0.5)
        assert (3, True) == (workers.made[0].steps, workers.made[0].closed)
        await trio.sleep(100)
        assert 3 == workers.made[0].steps


async def test_a_lost_connection_stops_the_generator(autojump_clock):
    """A connection that is lost ends its streams too."""
    workers = testing.ScriptedWorkers(Slow)
    async with testing.serve(config(), workers=workers) as app:
        with trio.move_on_after(3.5):
            async with app.channel() as channel, InferenceAPIsServiceStub(channel).StreamPredictions.open() as stream:
                await stream.send_message(request(pause="1"), end=True)
                while True:
                    await stream.recv_message()
        await trio.sleep(100)
        assert (3, True) == (workers.made[0].steps, workers.made[0].closed)


async def test_a_slow_reader_stops_its_own_generator(autojump_clock):
    """HTTP/2's window and the stream's credit fill up, the generator stops; a neighbour is answered."""
    workers = testing.ScriptedWorkers(Slow)
    async with testing.serve(config(), workers=workers) as app, app.channel() as channel:
        stub = InferenceAPIsServiceStub(channel)
        async with stub.StreamPredictions.open() as stream:
            await stream.send_message(request(pause="0.01", size="65536"), end=True)
            await trio.sleep(10)
            stopped = workers.made[0].steps
            await trio.sleep(10)
            assert stopped == workers.made[0].steps < 64
            assert b"ok" == await outcome(stub, data="ok")
            for _ in range(stopped + 20):
                await stream.recv_message()
            assert workers.made[0].steps > stopped
            await stream.cancel()


async def test_full_crash_and_drain(autojump_clock):
    """RESOURCE_EXHAUSTED when full, UNAVAILABLE for a crash; leaving the block answers what is queued."""
    workers = testing.ScriptedWorkers(Slow)
    heard = []

    async def ask(stub, data):
        heard.append(await outcome(stub, data=data))

    async with (
        testing.serve(config(batch_size=1, queue_size=2), workers=workers) as app,
        app.channel() as channel,
        trio.open_nursery() as nursery,
    ):
        stub = InferenceAPIsServiceStub(channel)
        for data in ("crash", "a", "b", "c"):
            nursery.start_soon(ask, stub, data)
            await trio.sleep(0.1)
        assert Status.RESOURCE_EXHAUSTED is await outcome(stub, data="d")
        app.server.stop()
    assert Status.UNAVAILABLE in heard
    assert 4 == len(heard)
