"""The inference service as a caller meets it, in virtual time with scripted workers."""

# ruff: noqa: SIM117  # the server's block, then the block that is refused: two things
import json

import pytest
import trio
import trio.testing
from asking import asker, models, refused
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import testing
from actorserve.errors import BadInput, HandlerRaised
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest

HEALTHY, UNHEALTHY = (f'{{\n  "status": "{word}"\n}}' for word in ("Healthy", "Unhealthy"))


class Told(testing.ScriptedWorker):
    """Does what `data` says."""

    async def infer(self, items):
        """Answer each item by its word; some words are for the whole batch."""
        answers = []
        for item in items:
            match item.inputs["data"]:
                case b"sleep":
                    await trio.sleep(10)
                    answers.append(b"slept")
                case b"crash":
                    self.crash()
                    await trio.sleep_forever()
                case b"raise":
                    answers.append(KeyError("a word"))
                case b"long":
                    answers.append(ValueError("x" * 1_000_000))
                case b"bad":
                    answers.append(BadInput("data", "is a bad word"))
                case b"big":
                    answers.append(b"x" * 2000)
                case b"metadata":
                    shown = {k: v if isinstance(v, str) else v.hex() for k, v in sorted(item.metadata.items())}
                    answers.append(json.dumps([item.request_id, shown]).encode())
                case other:
                    answers.append(other)
        return answers


class Batches(Told):
    """Has no generate."""

    can_generate = False


class Streams(Told):
    """Has no infer."""

    can_infer = False


class Slow(Told):
    """Takes 10 s to load."""

    async def load(self, content):
        """Sleep."""
        await trio.sleep(10)


def scripted(worker=Told):
    """A spawner of such workers."""
    return testing.ScriptedWorkers(worker)


async def test_ping(autojump_clock):
    """Healthy is: every model's default version has its minimum of READY workers. A crash makes it Unhealthy until
    the worker is back; a model that wants no worker does not count.
    """
    config = models(m={"workers": {"min": 2}}, none={"workers": {"min": 0}})
    async with testing.serve(config, workers=scripted(Slow), wait_loaded=False) as app, asker(app) as ask:
        assert await ask.ping() == UNHEALTHY
        await trio.sleep(11)
        assert await ask.ping() == HEALTHY
        app.kill_worker("m")
        await trio.testing.wait_all_tasks_blocked()
        assert await ask.ping() == UNHEALTHY
        await trio.sleep(11)
        assert await ask.ping() == HEALTHY


async def test_ping_failed_model(autojump_clock):
    """A model that cannot load leaves the server Unhealthy, and Ping is still answered OK."""

    class Broken(testing.ScriptedWorker):
        async def load(self, content):
            raise HandlerRaised("RuntimeError", "no luck")

    async with testing.serve(models(m={"max_restarts": 0}), workers=scripted(Broken)) as app, asker(app) as ask:
        assert await ask.ping() == UNHEALTHY
        assert [name for name, _ in app.failures] == ["m"]


async def test_predictions(autojump_clock):
    """Bytes in, bytes out; no model name, an unknown model and an unknown version say so."""
    async with testing.serve(models(m={}), workers="scripted") as app, asker(app) as ask:
        assert await ask.predict("m", b"\x00\xff") == b"\x00\xff"
        assert await ask.predict("m", version="1.0") == b"hello"
        async with refused(Status.INVALID_ARGUMENT, "model_name: is empty"):
            await ask.predict("")
        async with refused(Status.NOT_FOUND, "Model not found: nobody"):
            await ask.predict("nobody")
        async with refused(Status.NOT_FOUND, "Model version: 9 does not exist for model: m"):
            await ask.predict("m", version="9")
        async with refused(Status.NOT_FOUND, "Model not found: nobody"):
            await ask.stream("nobody")


async def test_stream(autojump_clock):
    """A stream is as many messages as the handler yields, none included."""
    async with testing.serve(models(m={}), workers="scripted") as app, asker(app) as ask:
        assert await ask.stream("m", count=b"100") == [b"hello"] * 100
        assert await ask.stream("m", count=b"0") == []


async def test_unary_on_a_streaming_handler(autojump_clock):
    """A unary call on a handler that only streams gets the chunks concatenated, in order."""
    async with testing.serve(models(m={}), workers=scripted(Streams)) as app, asker(app) as ask:
        assert await ask.predict("m", b"ab", count=b"40") == b"ab" * 40


async def test_stream_on_a_batch_handler(autojump_clock):
    """A streaming call on a handler that only infers gets one message, then OK."""
    async with testing.serve(models(m={}), workers=scripted(Batches)) as app, asker(app) as ask:
        assert await ask.stream("m") == [b"hello"]


async def test_gathered_answer_too_large(autojump_clock):
    """Chunks whose concatenation would be larger than a message may be are refused with both sizes."""
    config = models(m={}) | {
        "listeners": {"inference": {"address": "127.0.0.1:0", "services": ["inference"], "max_send_bytes": 1000}}
    }
    async with testing.serve(config, workers=scripted(Streams)) as app, app.channel() as channel:
        stub = InferenceAPIsServiceStub(channel)
        async with refused(Status.RESOURCE_EXHAUSTED, "limit of 1000 bytes"):
            await stub.Predictions(PredictionsRequest(model_name="m", input={"data": b"x" * 10, "count": b"101"}))


async def send(ask, metadata, data=b"metadata"):
    """Predictions with metadata: the answer or error, and the trailers."""
    trailers = {}
    async with ask.inference.Predictions.open(metadata=metadata) as stream:
        await stream.send_message(PredictionsRequest(model_name="m", input={"data": data}), end=True)
        answer = await stream.recv_message()
        await stream.recv_trailing_metadata()
        trailers = dict(stream.trailing_metadata)
    return answer, trailers


async def test_metadata_reaches_the_handler(autojump_clock):
    """The call's metadata reaches the handler, -bin values as bytes, and the request id is the item's id."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        sent = {"x-request-id": "id-1", "one": "1", "two-bin": b"\x00\xff"}
        answer, _ = await send(ask, sent)
        id, seen = json.loads(answer.prediction)
        assert id == "id-1"
        assert seen == {"one": "1", "two-bin": "00ff", "x-request-id": "id-1"}


@pytest.mark.parametrize("key", ["x-request-id", "request_id"])
async def test_request_id_is_echoed(autojump_clock, key):
    """A request id that the client sent comes back in the trailers."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        _, trailers = await send(ask, {key: "id-1"})
        assert trailers["x-request-id"] == "id-1"


async def test_no_request_id_unless_sent(autojump_clock):
    """An answer carries no request id when the client sent none, also if it sent other metadata."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        for metadata in ({}, {"one": "1"}):
            answer, trailers = await send(ask, metadata)
            assert json.loads(answer.prediction)[0]
            assert "x-request-id" not in trailers


async def test_errors_carry_a_request_id(autojump_clock):
    """An error carries a request id, made if there was none, so that it can be found in the log."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        async with refused(Status.INTERNAL), ask.inference.Predictions.open() as stream:
            request = PredictionsRequest(model_name="m", input={"data": b"raise"})
            await stream.send_message(request, end=True)
            try:
                await stream.recv_message()
                await stream.recv_trailing_metadata()
            finally:
                trailers = dict(stream.trailing_metadata or {})
        assert trailers["x-request-id"]


# --- the table of errors, end to end ------------------------------------------------------------------


async def test_handler_raised(autojump_clock):
    """What the handler raised is INTERNAL with its type and text, for its item alone, and never a traceback."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        async with refused(Status.INTERNAL) as caught:
            await ask.predict("m", b"raise")
        assert caught.message == "KeyError: 'a word'"
        async with refused(Status.INTERNAL, "ValueError: xxx"):
            await ask.predict("m", b"long")
        async with refused(Status.INVALID_ARGUMENT) as caught:
            await ask.predict("m", b"bad")
        assert caught.message == "data: is a bad word"
        assert await ask.predict("m") == b"hello"


async def test_crash(autojump_clock):
    """A worker that dies fails what it has in hand: UNAVAILABLE, CRASHED; the model answers again by itself."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        async with refused(Status.UNAVAILABLE, "the worker of model m died") as caught:
            await ask.predict("m", b"crash")
        assert caught.reason == "CRASHED"
        assert await ask.predict("m") == b"hello"


async def test_given_up(autojump_clock):
    """A model that was given up answers at once: UNAVAILABLE, GIVEN_UP, and why."""
    async with testing.serve(models(m={"max_restarts": 0}), workers=scripted()) as app, asker(app) as ask:
        async with refused(Status.UNAVAILABLE):
            await ask.predict("m", b"crash")
        async with refused(Status.UNAVAILABLE, "model m has FAILED") as caught:
            await ask.predict("m")
        assert caught.reason == "GIVEN_UP"


async def test_no_workers(autojump_clock):
    """A model without workers answers at once: UNAVAILABLE, NO_WORKERS, and what to do."""
    async with testing.serve(models(m={"workers": {"min": 0}}), workers="scripted") as app, asker(app) as ask:
        async with refused(Status.UNAVAILABLE, "model m has no workers; scale it up first") as caught:
            await ask.predict("m")
        assert caught.reason == "NO_WORKERS"


async def test_draining(autojump_clock):
    """When the server stops, a running request is answered; one that still queues when the grace ends is cut:
    UNAVAILABLE, DRAINING.
    """
    config = models(m={"batch_size": 1}) | {"server": {"grace_s": 15}}
    async with testing.serve(config, workers=scripted()) as app, asker(app) as ask:
        answers = {}

        async def one(number):
            try:
                answers[number] = await ask.predict("m", b"sleep")
            except GRPCError as error:
                answers[number] = (error.status, error.details[0].reason)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(one, number)
                await trio.testing.wait_all_tasks_blocked()
            app.server.stop()
        assert answers[0] == b"slept"
        assert answers[3] == (Status.UNAVAILABLE, "DRAINING")
        assert len(answers) == 4


async def test_overloaded(autojump_clock):
    """A full mailbox refuses at once: RESOURCE_EXHAUSTED, naming queue_size, with a time to try again."""
    config = models(m={"batch_size": 1, "queue_size": 1})
    async with testing.serve(config, workers=scripted()) as app, asker(app) as ask, trio.open_nursery() as nursery:
        refusals = []

        async def one():
            try:
                await ask.predict("m", b"sleep")
            except GRPCError as error:
                refusals.append(error)

        for _ in range(6):
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
        assert refusals
        for error in refusals:
            assert error.status is Status.RESOURCE_EXHAUSTED
            assert "queue_size" in error.message
            (retry,) = error.details
            assert retry.retry_delay.ToMilliseconds() >= 100


async def test_deadline_in_the_queue(autojump_clock):
    """A deadline that passes in the queue is DEADLINE_EXCEEDED, and the request never reaches the handler."""
    workers = scripted()
    config = models(m={"batch_size": 1})
    seen = []

    class Noting(Told):
        async def infer(self, items):
            seen.extend(item.inputs["data"] for item in items)
            return await super().infer(items)

    workers = scripted(Noting)
    async with testing.serve(config, workers=workers) as app, asker(app) as ask, trio.open_nursery() as nursery:
        for _ in range(2):  # one runs, one is prefetched
            nursery.start_soon(ask.predict, "m", b"sleep")
            await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        async with refused(Status.DEADLINE_EXCEEDED):
            await ask.predict("m", b"late", timeout=5)
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)
        await trio.sleep(60)
        assert await ask.predict("m", b"next") == b"next"
    assert b"late" not in seen


async def test_request_timeout(autojump_clock):
    """`request_timeout_s` ends a call of a client that gave no deadline."""
    config = models(m={}) | {
        "listeners": {"inference": {"address": "127.0.0.1:0", "services": ["inference"], "request_timeout_s": 3}}
    }
    async with testing.serve(config, workers=scripted()) as app, app.channel() as channel:
        async with refused(Status.DEADLINE_EXCEEDED):
            await InferenceAPIsServiceStub(channel).Predictions(
                PredictionsRequest(model_name="m", input={"data": b"sleep"})
            )


async def test_response_timeout(autojump_clock):
    """One call of the handler that takes longer than `response_timeout_s`: the worker is killed, UNAVAILABLE, CRASHED;
    DEADLINE_EXCEEDED where the client's own deadline was the shorter one.
    """
    async with testing.serve(models(m={"response_timeout_s": 4}), workers=scripted()) as app, asker(app) as ask:
        async with refused(Status.UNAVAILABLE, "response_timeout_s = 4") as caught:
            await ask.predict("m", b"sleep")
        assert caught.reason == "CRASHED"
        async with refused(Status.DEADLINE_EXCEEDED):
            await ask.predict("m", b"sleep", timeout=2)
        assert await ask.predict("m") == b"hello"
