"""What ends a call early, and where the call is then: four causes in five places, each seen by a client of the whole
server in virtual time. Members of a continuous batch: the same with real processes, test_processes_supervision.py.
"""

# ruff: noqa: SIM300  # expected == actual

from contextlib import asynccontextmanager

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import testing
from actorserve.client import Channel
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.services.transport.memory import memory_pair

AT = 2.0  # when the cause strikes, in seconds from the beginning
GRACE = 5.0
CAUSES = ("cancel", "lost connection", "deadline", "shutdown")


class Notes(testing.ScriptedWorker):
    """`data` is a name and the seconds that it takes; a stream gives a chunk a second, for ever."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.seen: list[str] = []
        self.steps: dict[str, int] = {}
        self.closed: list[str] = []

    async def infer(self, items):
        words = [item.inputs["data"].decode().split() for item in items]
        self.seen += [name for name, _ in words]
        await trio.sleep(max(float(seconds) for _, seconds in words))
        return [name.encode() for name, _ in words]

    async def generate(self, item):
        name = item.inputs["data"].decode()
        try:
            while True:
                await trio.sleep(1)
                self.steps[name] = self.steps.get(name, 0) + 1
                yield b"x"
        finally:
            self.closed.append(name)


class Story:
    """One server, the calls that others make, and the one that ends early."""

    def __init__(self, app, worker: Notes) -> None:
        self.app = app
        self.worker = worker
        self.endings: dict[str, tuple[object, float]] = {}
        self._began = trio.current_time()
        self._ends: dict[str, object] = {}
        self._scopes: dict[str, trio.CancelScope] = {}

    async def call(self, data, *, stream=False, timeout=None):  # noqa: ASYNC109  # the call's own deadline
        """Call over a connection of its own, and note how and when that ended."""
        name = data.split()[0]
        ending: object = "cancelled"
        theirs, ours = memory_pair()
        self._ends[name] = theirs
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.app.server.grpc["inference"].serve_connection, ours, "memory")
            with trio.CancelScope() as self._scopes[name]:
                async with Channel.over(theirs, retry=None) as channel:
                    ending = await self._ask(InferenceAPIsServiceStub(channel), data, stream, timeout)
            self.endings[name] = ending, trio.current_time() - self._began
            with trio.CancelScope(shield=True):
                await theirs.aclose()

    @staticmethod
    async def _ask(stub, data, stream, timeout):  # noqa: ASYNC109  # as above
        request = PredictionsRequest(model_name="m", input={"data": data.encode()})
        try:
            if not stream:
                return (await stub.Predictions(request, timeout=timeout)).prediction.decode()
            async with stub.StreamPredictions.open(timeout=timeout) as call:
                await call.send_message(request, end=True)
                while await call.recv_message() is not None:
                    pass
        except GRPCError as error:
            return error.status

    async def strike(self, cause: str) -> None:
        """Let it happen to the call named `t`, at its time."""
        await trio.sleep_until(self._began + AT)
        match cause:
            case "cancel":
                self._scopes["t"].cancel()
            case "lost connection":
                await self._ends["t"].aclose()
            case "shutdown":
                self.app.server.stop()
        await trio.sleep_until(self._began + AT + 0.1)

    @property
    def model(self):
        return self.app.tree().models[0]


@asynccontextmanager
async def story(calls, cause, *, stream=False, **model):
    """Make the calls in order, a tenth of a second apart, and strike. The block looks, and then all calls end."""
    workers = testing.ScriptedWorkers(Notes)
    config = {"server": {"grace_s": GRACE}, "models": {"m": {"handler": "a:B", **model}}}
    async with testing.serve(config, workers=workers) as app:
        one = Story(app, workers.made[0])
        async with trio.open_nursery() as nursery:
            for data in calls:
                mine = data.split()[0] == "t"
                left = AT - (trio.current_time() - one._began) if mine and cause == "deadline" else None
                nursery.start_soon(lambda data=data, left=left: one.call(data, stream=stream, timeout=left))
                await trio.sleep(0.1)
            await one.strike(cause)
            yield one
            if stream:
                nursery.cancel_scope.cancel()


def check_client(one: Story, cause: str, *, cut: float = AT + GRACE) -> None:
    """The client's own ending: at the moment of the cause, or when the grace is over."""
    ending, when = one.endings["t"]
    expected = {
        "cancel": "cancelled",
        "lost connection": Status.UNAVAILABLE,
        "deadline": Status.DEADLINE_EXCEEDED,
        "shutdown": Status.UNAVAILABLE,
    }
    assert (expected[cause], pytest.approx(cut if cause == "shutdown" else AT, abs=0.05)) == (ending, when)


@pytest.mark.parametrize("cause", CAUSES)
async def test_in_the_queue(autojump_clock, cause):
    """Its place is free at once and the handler never sees it; who was before it is answered. Shutdown: it waits its
    turn until the grace is over.
    """
    async with story(["a 8", "b 8", "t 8"], cause, batch_size=1) as one:
        assert (cause == "shutdown") == one.model.waiting
        await trio.sleep(40)
    check_client(one, cause)
    assert "t" not in one.worker.seen
    if cause != "shutdown":
        assert (["a", "b"], "a", "b") == (one.worker.seen, one.endings["a"][0], one.endings["b"][0])


@pytest.mark.parametrize("cause", CAUSES)
async def test_in_a_batch_that_is_being_assembled(autojump_clock, cause):
    """It is left out of the batch that its neighbour goes with. Shutdown: nobody waits for a fuller batch."""
    async with story(["n 1", "t 1"], cause, batch_size=4, max_batch_delay_ms=10_000) as one:
        assert (0 if cause == "shutdown" else 1) == one.model.waiting
        await trio.sleep(40)
    assert ("n", ["n", "t"] if cause == "shutdown" else ["n"]) == (one.endings["n"][0], one.worker.seen)
    if cause == "shutdown":
        assert ("t", pytest.approx(AT + 1, abs=0.05)) == one.endings["t"]
    else:
        check_client(one, cause)


@pytest.mark.parametrize("cause", CAUSES)
async def test_in_a_batch_that_was_sent_ahead(autojump_clock, cause):
    """The worker has it and has not begun: it drops it before any code of the handler. Shutdown: cut with the grace."""
    async with story(["a 8", "t 8"], cause, batch_size=1) as one:
        assert (0, 2) == (one.model.waiting, one.model.replicas[0].in_hand)
        await trio.sleep(40)
    check_client(one, cause)
    assert ["a"] == one.worker.seen
    if cause != "shutdown":
        assert "a" == one.endings["a"][0]


@pytest.mark.parametrize("cause", CAUSES)
async def test_in_a_running_batch(autojump_clock, cause):
    """What runs is not interrupted: its neighbour in the batch is answered, its own answer is dropped, the worker
    stays. Shutdown: cut with the grace, the worker too.
    """
    async with story(["n 8", "t 8"], cause, batch_size=2, max_batch_delay_ms=1000) as one:
        assert (["n", "t"], 2) == (one.worker.seen, one.model.replicas[0].in_hand)
        await trio.sleep(40)
        if cause != "shutdown":
            assert (0, 0) == (one.model.replicas[0].in_hand, one.model.replicas[0].restarts)
    check_client(one, cause)
    assert (Status.UNAVAILABLE if cause == "shutdown" else "n") == one.endings["n"][0]


@pytest.mark.parametrize("cause", CAUSES)
async def test_in_a_generator(autojump_clock, cause):
    """It is closed before its next step, once; its neighbour goes on. Shutdown: both go on until the grace is over."""
    async with story(["n", "t"], cause, stream=True) as one:
        steps, neighbours = one.worker.steps["t"], one.worker.steps["n"]
        await trio.sleep(GRACE + 1)
        if cause != "shutdown":
            assert (steps, ["t"]) == (one.worker.steps["t"], one.worker.closed)
            assert (neighbours + 6, 1) == (one.worker.steps["n"], one.model.replicas[0].in_hand)
        else:
            assert steps + 4 <= one.worker.steps["t"] <= steps + 5
            assert Status.UNAVAILABLE is one.endings["n"][0]
    check_client(one, cause)
    assert 1 == one.worker.closed.count("t")
