"""StreamPredictions2: sequence ids, errors in-band, half-close; by scripted workers, and by grpcio with Silero VAD."""

# ruff: noqa: SIM300  # expected == actual

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import wave
from contextlib import asynccontextmanager

import grpc
import pytest
import trio
from asking import ECHO, asker, models
from google.rpc import error_details_pb2
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from zoo_server import ROOT, served

from actorserve import testing
from actorserve.errors import BadInput
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.scripted import ScriptedWorker, ScriptedWorkers

METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions2"


class Counter(ScriptedWorker):
    """Counts the items of each sequence; model `plain` has none. Words: `bad`, `raise`, `wait` (until `go`)."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.can_sequences = self.child.model.name.startswith("count")
        self.seen: dict[int, int] = {}
        self.go = trio.Event()

    async def load(self, content):
        """`slow` takes a while."""
        await trio.sleep(self.child.model.options.get("load_s", 0))

    async def feed(self, id, inputs):
        """The item's number and word."""
        word = inputs["data"]
        if word == b"wait":
            await self.go.wait()
        if word == b"raise":
            raise ValueError("no more")
        if word == b"bad":
            return BadInput("data", "is bad")
        self.seen[id] = self.seen.get(id, 0) + 1
        return b"%d %s" % (self.seen[id], word)


class Call:
    """One StreamPredictions2 call of a test."""

    def __init__(self, stream) -> None:
        self.stream = stream
        self.ended = False

    async def end(self) -> None:
        """Half-close, once."""
        if not self.ended:
            self.ended = True
            await self.stream.end()

    async def say(self, data: bytes = b"a", id: str | None = None, *, model: str = "count") -> None:
        """Send one message."""
        await self.stream.send_message(PredictionsRequest(model_name=model, input={"data": data}, sequence_id=id))

    async def hear(self) -> PredictionResponse | None:
        """The next reply."""
        return await self.stream.recv_message()

    async def ask(self, data: bytes = b"a", id: str | None = None, *, model: str = "count") -> PredictionResponse:
        """One message and its reply."""
        await self.say(data, id, model=model)
        reply = await self.hear()
        assert reply is not None
        return reply

    async def rest(self) -> list[PredictionResponse]:
        """Half-close; every reply that is left."""
        await self.end()
        replies = []
        while (reply := await self.hear()) is not None:
            replies.append(reply)
        return replies


@asynccontextmanager
async def calling(app, **options):
    """A call that is open."""
    async with app.channel("inference") as channel:
        stub = InferenceAPIsServiceStub(channel)
        async with stub.StreamPredictions2.open(**options) as stream:
            call = Call(stream)
            yield call
            await call.end()


@asynccontextmanager
async def counting(**tables):
    """A server with scripted counters."""
    workers = ScriptedWorkers(Counter)
    given = models(**(tables or {"count": {}, "plain": {}}))
    async with testing.serve(given, workers=workers) as app:
        yield app, workers


def code(reply: PredictionResponse) -> Status:
    """The status inside a reply."""
    return Status(reply.status.code)


async def test_messages_without_an_id_are_one_sequence(autojump_clock):
    """The server makes the id, every reply carries it, and it may be sent back."""
    async with counting() as (app, _), calling(app) as call:
        first, second = await call.ask(b"a"), await call.ask(b"b")
        third = await call.ask(b"c", first.sequence_id)
        assert [b"1 a", b"2 b", b"3 c"] == [one.prediction for one in (first, second, third)]
        assert first.sequence_id.startswith("seq-")
        assert 1 == len({one.sequence_id for one in (first, second, third)})
        assert not first.HasField("status")
        assert [] == await call.rest()


async def test_ids_are_sequences_of_their_own(autojump_clock):
    """Two ids in one call, and one id in two calls, are sequences that do not meet."""
    async with counting() as (app, _), calling(app) as call, calling(app) as other:
        for _ in range(2):
            for id in ("x", "y"):
                assert id == (await call.ask(b"a", id)).sequence_id
        assert b"3 a" == (await call.ask(b"a", "x")).prediction
        assert b"1 a" == (await other.ask(b"a", "x")).prediction
        assert [] == await call.rest()
        assert [] == await other.rest()


async def test_half_close_drains(autojump_clock):
    """What was sent before the half-close is answered, in order, and the call ends with OK."""
    async with counting() as (app, workers), calling(app) as call:
        for word in (b"wait", b"b", b"c"):
            await call.say(word)
        await call.end()
        await trio.sleep(5)
        workers.made[0].go.set()
        assert [b"1 wait", b"2 b", b"3 c"] == [one.prediction for one in await call.rest()]
        await call.stream.recv_trailing_metadata()


async def test_an_item_that_fails_is_told_in_band(autojump_clock):
    """A bad item has a status in its reply, with its details; the sequence and the call go on."""
    async with counting() as (app, _), calling(app) as call:
        await call.ask(b"a", "x")
        bad = await call.ask(b"bad", "x")
        assert (Status.INVALID_ARGUMENT, "data: is bad", "x") == (code(bad), bad.status.message, bad.sequence_id)
        detail = error_details_pb2.BadRequest.FromString(bad.status.details[0].value)
        assert "data" == detail.field_violations[0].field
        assert b"2 b" == (await call.ask(b"b", "x")).prediction


async def test_a_sequence_that_ended_stays_ended(autojump_clock):
    """Each message in hand is told why it ended; later ones get NOT_FOUND and open nothing; other ids go on."""
    async with counting() as (app, workers), calling(app) as call:
        for word in (b"wait", b"raise", b"b"):
            await call.say(word, "x")
        workers.made[0].go.set()
        replies = [await call.hear() for _ in range(3)]
        assert b"1 wait" == replies[0].prediction
        assert [Status.INTERNAL] * 2 == [code(one) for one in replies[1:]]
        late = await call.ask(b"c", "x")
        assert (Status.NOT_FOUND, "the sequence has ended: ValueError: no more") == (code(late), late.status.message)
        assert b"1 c" == (await call.ask(b"c", "y")).prediction


async def test_a_crash_ends_the_sequence(autojump_clock):
    """UNAVAILABLE, reason CRASHED, to what was in hand, or else to the next message; then NOT_FOUND."""
    async with counting() as (app, workers), calling(app) as call:
        await call.ask(b"a", "idle")
        await call.say(b"wait", "busy")
        await trio.sleep(1)
        next(worker for worker in workers.made if worker.can_sequences).crash()
        busy = await call.hear()
        idle = await call.ask(b"b", "idle")
        for reply, id in ((busy, "busy"), (idle, "idle")):
            assert (Status.UNAVAILABLE, id) == (code(reply), reply.sequence_id)
            assert "CRASHED" == error_details_pb2.ErrorInfo.FromString(reply.status.details[0].value).reason
        assert Status.NOT_FOUND == code(await call.ask(b"b", "idle"))
        assert b"1 b" == (await call.ask(b"b", "new")).prediction


async def test_an_idle_sequence_expires(autojump_clock):
    """After `sequence_idle_timeout_s` the next message gets NOT_FOUND, with an id of its own or without."""
    async with counting(count={"sequence_idle_timeout_s": 5}) as (app, _), calling(app) as call:
        await call.ask(b"a")
        await call.ask(b"a", "x")
        await trio.sleep(10)
        for id in (None, "x"):
            reply = await call.ask(b"b", id)
            assert (Status.NOT_FOUND, "the sequence expired after 5 s without a message") == (
                code(reply),
                reply.status.message,
            )


async def test_too_many_sequences(autojump_clock):
    """Above `max_sequences`: RESOURCE_EXHAUSTED; a seat is free again when a call ends or is cancelled."""
    async with counting(count={"max_sequences": 2}) as (app, _):
        async with calling(app) as call, calling(app) as other:
            await call.ask(b"a", "x")
            await other.ask(b"a", "x")
            full = await call.ask(b"a", "y")
            assert (Status.RESOURCE_EXHAUSTED, "y") == (code(full), full.sequence_id)
            assert "max_sequences" in full.status.message
            assert [] == await other.rest()
            assert Status.NOT_FOUND == code(await call.ask(b"b", "y"))  # its first message is missing
            assert b"1 a" == (await call.ask(b"a", "z")).prediction
            await call.stream.cancel()
            call.ended = True
        await trio.sleep(1)
        async with calling(app) as call:
            for id in ("x", "y"):
                assert b"1 a" == (await call.ask(b"a", id)).prediction
            assert [] == await call.rest()
        assert 0 == app.server.directory.find("count").seats.taken


async def test_a_sequence_whose_first_message_was_refused_has_ended(autojump_clock):
    """Its later messages get NOT_FOUND with the reason, so that none begins without its beginning: with an id, without
    one, and where the model came only later. Other ids begin as ever.
    """
    config = {"count": {"workers": {"min": 0}}, "plain": {"workers": {"min": 0}}}
    async with counting(**config) as (app, _), calling(app) as call, asker(app) as ask:
        own = await call.ask(b"a")
        for id in ("x", "later", None):
            model = "counted" if id == "later" else "count"
            reply = await call.ask(b"a", id, model=model)
            expected = {"later": Status.NOT_FOUND, "x": Status.UNAVAILABLE, None: Status.NOT_FOUND}[id]
            assert (expected, id or own.sequence_id) == (code(reply), reply.sequence_id)
        await ask.manage("ScaleWorker", model_name="count", min_worker=1, synchronous=True)
        await ask.manage("RegisterModel", model_name="counted", handler=ECHO, initial_workers=1, synchronous=True)
        for model, id in (("count", "x"), ("counted", "later"), ("count", None)):
            reply = await call.ask(b"b", id, model=model)
            assert (Status.NOT_FOUND, id or own.sequence_id) == (code(reply), reply.sequence_id)
            assert reply.status.message.startswith("the sequence has ended: ")
        for model in ("count", "counted"):
            assert b"1 a" == (await call.ask(b"a", "new", model=model)).prediction


async def test_a_refused_question_ends_nothing(autojump_clock):
    """A model without sequences answers the next message of an id whose first was refused."""
    async with counting(plain={"workers": {"min": 0}}) as (app, _), calling(app) as call, asker(app) as ask:
        for id in ("x", None):
            assert Status.UNAVAILABLE == code(await call.ask(b"a", id, model="plain"))
        await ask.manage("ScaleWorker", model_name="plain", min_worker=1, synchronous=True)
        for id in ("x", None):
            assert b"b" == (await call.ask(b"b", id, model="plain")).prediction


async def test_as_many_endings_are_remembered_as_sequences_may_be_open(autojump_clock):
    """A call remembers the last `max_sequences` of its sequences that have ended; earlier ids may begin anew."""
    async with counting(count={"max_sequences": 2}) as (app, _), calling(app) as call:
        for id in ("x", "y", "z"):
            assert Status.INTERNAL == code(await call.ask(b"raise", id))
        assert Status.NOT_FOUND == code(await call.ask(b"a", "y"))
        assert b"1 a" == (await call.ask(b"a", "x")).prediction


async def test_bad_messages_are_told_in_band(autojump_clock):
    """No model, an unknown one, an id that is too long: a status in the reply, and the call goes on."""
    async with counting() as (app, _), calling(app) as call:
        for model, id, status, text in (
            ("", None, Status.INVALID_ARGUMENT, "model_name"),
            ("nobody", "x", Status.NOT_FOUND, "Model not found: nobody"),
            ("count", "x" * 257, Status.INVALID_ARGUMENT, "sequence_id: has 257 characters"),
        ):
            reply = await call.ask(b"a", id, model=model)
            assert status == code(reply)
            assert reply.sequence_id == id or (id is None and reply.sequence_id.startswith("seq-"))
            assert text in reply.status.message
        assert b"1 a" == (await call.ask(b"a", "x" * 256)).prediction


async def test_a_model_without_sequences_answers_each_message(autojump_clock):
    """Independent questions, answered in order, each with the id it came with; also while the model still loads."""
    tables = {"plain": {}, "slow": {"options": {"load_s": 30}}}
    workers = ScriptedWorkers(Counter)
    async with testing.serve(models(**tables), workers=workers, wait_loaded=False) as app, calling(app) as call:
        for model in ("plain", "slow"):
            for number in range(40):
                await call.say(b"%d" % number, "even" if number % 2 == 0 else "odd", model=model)
                if number % 10 == 9:  # the server reads 16 ahead
                    for before in range(number - 9, number + 1):
                        reply = await call.hear()
                        assert (b"%d" % before, "odd" if before % 2 else "even") == (
                            reply.prediction,
                            reply.sequence_id,
                        )
        assert (await call.ask(b"a", model="plain")).sequence_id.startswith("seq-")
        assert [] == await call.rest()


async def test_a_failing_question_is_told_in_its_place(autojump_clock):
    """What the mailbox refuses and what the handler raises are replies in the order of the messages."""

    class Moody(ScriptedWorker):
        async def infer(self, items):
            return [BadInput("data", "bad") if item.inputs["data"] == b"bad" else b"good" for item in items]

    workers = ScriptedWorkers(Moody)
    async with testing.serve(models(plain={}), workers=workers) as app, calling(app) as call:
        for word in (b"a", b"bad", b"b"):
            await call.say(word, "x", model="plain")
        replies = await call.rest()
        assert [0, Status.INVALID_ARGUMENT.value, 0] == [one.status.code for one in replies]
        assert [b"good", b"", b"good"] == [one.prediction for one in replies]


async def test_the_deadline_ends_the_call(autojump_clock):
    """The call's deadline is the call's own status, and the sequence's seat is free."""
    async with counting() as (app, _):
        with pytest.raises(GRPCError) as error:  # noqa: PT012  # the block is the call
            async with calling(app, timeout=5) as call:
                await call.ask(b"a")
                await call.ask(b"wait")
        assert Status.DEADLINE_EXCEEDED is error.value.status
        await trio.sleep(1)
        assert 0 == app.server.directory.find("count").seats.taken


async def test_a_model_that_drains_tells_its_sequences(autojump_clock):
    """An open sequence does not hold up an unregistration, and its next message is told so."""
    async with counting() as (app, workers), calling(app) as call:
        await call.ask(b"a", "x")
        began = trio.current_time()
        async with asker(app) as ask:
            await ask.manage("UnregisterModel", model_name="count")
        assert trio.current_time() - began < 5
        reply = await call.ask(b"b", "x")
        assert Status.NOT_FOUND == code(reply)  # the name has left the directory
        assert [] == await call.rest()
        worker = next(worker for worker in workers.made if worker.can_sequences)
        assert worker.process.status is not None


@pytest.mark.parametrize("model", ["count", "plain"])
async def test_replies_keep_their_order_while_a_model_drains(model, autojump_clock):
    """A message that comes too late is told so after the answers that are owed to earlier ones, not before."""

    class Slow(Counter):
        async def infer(self, items):
            await self.go.wait()
            return [b"1 wait" for _ in items]

    workers = ScriptedWorkers(Slow)
    async with testing.serve(models(**{model: {}}), workers=workers) as app, calling(app) as call, asker(app) as ask:
        await call.say(b"wait", "x", model=model)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask.manage("UnregisterModel", model_name=model))
            await trio.sleep(1)
            await call.say(b"late", "x", model=model)
            await trio.sleep(1)
            workers.made[0].go.set()
        first, second = await call.rest()
        assert b"1 wait" == first.prediction
        assert code(second) in (Status.UNAVAILABLE, Status.NOT_FOUND)
        assert "x" == first.sequence_id == second.sequence_id


async def test_a_handler_of_sequences_alone_says_so(autojump_clock):
    """Predictions of a model that has sequences only is UNIMPLEMENTED, and names the rpc that would do."""

    class Only(Counter):
        can_infer = False
        can_generate = False

    async with testing.serve(models(count={}), workers=ScriptedWorkers(Only)) as app, asker(app) as ask:
        with pytest.raises(GRPCError, match="StreamPredictions2") as error:
            await ask.predict("count")
        assert Status.UNIMPLEMENTED is error.value.status


# --- Silero VAD, by grpcio -----------------------------------------------------------------------


class Talk:
    """A grpcio call that stays open: messages go one by one."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.messages: queue.Queue[PredictionsRequest | None] = queue.Queue()
        converse = channel.stream_stream(
            METHOD,
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        self.replies = converse(iter(self.messages.get, None), timeout=120)

    def say(self, data: bytes) -> None:
        """Send one piece."""
        self.messages.put(PredictionsRequest(model_name="speech", input={"data": data}))

    def hear(self) -> dict:
        """The next reply, while the call is open."""
        return json.loads(next(self.replies).prediction)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A server with the voice-activity model alone, whose answers say how many streams shared their batch."""
    folder = tmp_path_factory.mktemp("speech")
    (folder / "shared_vad.py").write_text(
        "from actorserve.handlers.voice_activity import VoiceActivity\n"
        "class Shared(VoiceActivity):\n"
        "    def feed(self, states, requests):\n"
        "        return [{**answer, 'streams': len(states)} for answer in super().feed(states, requests)]\n"
    )
    (folder / "config.toml").write_text('[models.speech]\nhandler = "shared_vad:Shared"\n')
    with served("config.toml", folder=folder, log=folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def sample() -> bytes:
    """The sample's samples."""
    with wave.open(str(ROOT / "examples" / "samples" / "voice.wav")) as file:
        return file.readframes(file.getnframes())


@pytest.mark.zoo
def test_probabilities_come_while_the_call_is_open(speech, sample):
    """Each piece is answered before the next is sent; silence, then speech, then silence; half-close ends with OK."""
    with grpc.insecure_channel(speech.inference) as channel:
        talk = Talk(channel)
        heard = []
        for at in range(0, len(sample), 3200):
            talk.say(sample[at : at + 3200])
            heard += talk.hear()["speech"]
        talk.messages.put(None)
        assert [] == list(talk.replies)
        assert grpc.StatusCode.OK is talk.replies.code()
    assert 80 == len(heard)
    assert max(heard[:14]) < 0.5
    assert sum(one > 0.5 for one in heard) > 30
    assert heard[-1] < 0.5


@pytest.mark.zoo
def test_two_clients_share_batches(speech, sample):
    """Two clients that talk at once are heard in batches of two, and each hears its own."""
    together = threading.Event()
    first: dict[int, list[float]] = {}

    def run(number: int) -> None:
        with grpc.insecure_channel(speech.inference) as channel:
            while number not in first or not together.is_set():
                talk = Talk(channel)
                for at in range(0, len(sample), 1024):
                    talk.say(sample[at : at + 1024])
                talk.messages.put(None)
                replies = [json.loads(reply.prediction) for reply in talk.replies]
                first.setdefault(number, [one for reply in replies for one in reply["speech"]])
                if any(reply["streams"] == 2 for reply in replies):
                    together.set()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert together.is_set()
    assert 80 == len(first[0])
    assert max(abs(one - other) for one, other in zip(first[0], first[1], strict=True)) < 1e-4


@pytest.mark.zoo
def test_the_example_draws_speech(speech):
    """examples/hear_speech.py draws silence, speech and silence."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "hear_speech.py", speech.inference],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    drawn = done.stdout.strip()
    assert 80 == len(drawn)
    assert drawn.startswith("." * 10)
    assert drawn.count("#") > 30
