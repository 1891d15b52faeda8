"""`compatibility = "torchserve"` as a caller meets it, in virtual time with scripted workers: codes, texts, bodies.

The rows of the table itself stand in test_server_compat_table.py.
"""

import hashlib
import json

import pytest
import structlog.testing
import trio
import trio.testing
from asking import ECHO, asker, models
from google.rpc.error_details_pb2 import ErrorInfo
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import testing
from actorserve.actors.manifest import LOADER
from actorserve.actors.messages import Spawn
from actorserve.errors import HandlerStatus, LoadFailed
from actorserve.proto import management_pb2
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

HTTP = "org.pytorch.serve.http."
MODEL = "org.pytorch.serve.archive.model."
NO_WORKER = (
    " has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence "
    "inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
    "\nInternalServerException.()"
)
NOT_FOUND = f"Model not found: x\n{MODEL}ModelNotFoundException"
NO_VERSION = f"Model version: 9 does not exist for model: m\n{MODEL}ModelVersionNotFoundException"
YAML = {"model_yaml_config": {"maxRetryTimeoutInSec": 7, "clientTimeoutInMills": 50, "parallelType": "TP",
                              "torchrun": {"nproc-per-node": 4}, "useJobTicket": True, "continuousBatching": True,
                              "sequenceBatching": True, "sequenceMaxIdleMSec": 3000, "sequenceTimeoutMSec": 9000,
                              "maxNumSequence": 4, "maxSequenceJobQueueSize": 5, "useVenv": True}}  # fmt: skip


class Told(testing.ScriptedWorker):
    """Does what `data` says; has sequences where its model is called `count`."""

    def __init__(self, *given):
        super().__init__(*given)
        self.can_sequences = self.child.model.name.startswith("count")

    async def load(self, content):
        """Fail, or be ready."""
        if "bad" in content["handler"]:
            raise LoadFailed("no module named bad")

    async def infer(self, items):
        """One answer each."""
        return [await self.one(item) for item in items]

    async def one(self, item):
        """Sleep, die, raise, or echo."""
        match item.inputs["data"]:
            case b"sleep":
                await trio.sleep(10)
            case b"die":
                self.crash(1)
                await trio.sleep_forever()
            case b"killed":
                self.crash(-9)
                await trio.sleep_forever()
            case b"raise":
                return KeyError("a word")
            case b"coded":
                return HandlerStatus(418, "a phrase", b"the answer")
            case b"thrown":
                return HandlerStatus(404, "not here")
        return item.inputs["data"]

    async def describe(self):
        """What the options say."""
        return self.child.model.options.get("says", "").encode()

    async def feed(self, id, inputs):
        """Refuse, end, or echo."""
        if inputs["data"] == b"end":
            raise ValueError("no more")
        return KeyError("a word") if inputs["data"] == b"raise" else inputs["data"]


def compatible(config, **listener):
    """The configuration with TorchServe's two listeners."""
    common = {"address": "127.0.0.1:0", "compatibility": "torchserve", **listener}
    listeners = {name: {**common, "services": [name]} for name in ("inference", "management")}
    return {"log": {"access": False}, **config, "listeners": listeners}


def served(config, worker=Told):
    """Such a server with scripted workers."""
    return testing.serve(compatible(config), workers=testing.ScriptedWorkers(worker))


async def said(ask, *args, **fields):
    """The status and the text of a call that must fail; it has no details."""
    with pytest.raises(GRPCError) as error:
        await ask(*args, **fields)
    assert error.value.details is None
    return error.value.status, error.value.message or ""


# --- inference ---------------------------------------------------------------------------------------


async def test_predictions(autojump_clock):
    """Predictions and StreamPredictions answer alike: no name, no such model or version, no worker, with or without
    the version in the text, what a handler raises, and what its worker's death is.
    """
    async with served(models(m={}, none={"workers": {"min": 0}})) as app, asker(app) as ask:
        for rpc in (ask.predict, ask.stream):
            assert await said(rpc, "") == (
                Status.INTERNAL,
                "Parameter model_name is required.\nBadRequestException.()",
            )
            assert await said(rpc, "x") == (Status.INTERNAL, NOT_FOUND)
            assert await said(rpc, "none") == (Status.INTERNAL, 'Model "none"' + NO_WORKER)
        assert await said(ask.predict, "m", version="9") == (Status.INTERNAL, NO_VERSION)
        assert await said(ask.predict, "none", version="1.0") == (
            Status.INTERNAL,
            'Model "none" Version 1.0"' + NO_WORKER,
        )
        kind = f"\n{HTTP}InternalServerException"
        assert await said(ask.predict, "m", b"raise") == (Status.UNAVAILABLE, "Prediction failed" + kind)
        assert await said(ask.predict, "m", b"thrown") == (Status.NOT_FOUND, "not here" + kind)
        assert await said(ask.predict, "m", b"die") == (Status.INTERNAL, "Worker died." + kind)
        assert await said(ask.predict, "m", b"killed") == (Status.RESOURCE_EXHAUSTED, "Worker died." + kind)
        assert await ask.predict("m") == b"hello"


async def test_a_full_queue_reads_as_no_worker(autojump_clock):
    """INTERNAL with the one text that TorchServe has for all of it."""
    async with served(models(m={"batch_size": 1, "queue_size": 1})) as app, asker(app) as ask:
        refusals = []

        async def one():
            try:
                await ask.predict("m", b"sleep")
            except GRPCError as error:
                refusals.append((error.status, error.message))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(one)
                await trio.testing.wait_all_tasks_blocked()
        assert refusals
        assert set(refusals) == {(Status.INTERNAL, 'Model "m"' + NO_WORKER)}


async def test_a_status_beside_an_answer(autojump_clock):
    """`set_response_status` is not told over TorchServe's gRPC: OK, with the answer. By our own table it is."""
    async with served(models(m={})) as app, asker(app) as ask:
        assert await ask.predict("m", b"coded") == b"the answer"
    async with testing.serve(models(m={}), workers=testing.ScriptedWorkers(Told)) as app, asker(app) as ask:
        with pytest.raises(GRPCError) as error:
            await ask.predict("m", b"coded")
        assert (error.value.status, error.value.message) == (Status.FAILED_PRECONDITION, "a phrase")


class Raw:
    """Bytes that no message has."""

    def SerializeToString(self):  # noqa: N802  # protobuf's name
        """See above."""
        return b"\xff"


@pytest.mark.parametrize(
    ("listener", "path", "reply"),
    [
        ("inference", "inference.InferenceAPIsService/Predictions", PredictionResponse),
        ("management", "management.ManagementAPIsService/RegisterModel", management_pb2.ManagementResponse),
    ],
)
async def test_bytes_that_are_no_message(autojump_clock, listener, path, reply):
    """UNKNOWN without a text."""
    async with served(models(m={})) as app, app.channel(listener) as channel:
        method = UnaryUnaryMethod(channel, f"/org.pytorch.serve.grpc.{path}", Raw, reply)
        with pytest.raises(GRPCError) as error:
            await method(Raw())
        assert (error.value.status, error.value.message or "") == (Status.UNKNOWN, "")


async def test_tokens(autojump_clock, tmp_path):
    """No token, a wrong one, one in another case or of another service: PERMISSION_DENIED with TorchServe's text."""
    digest = hashlib.sha256(b"secret").hexdigest()
    (tmp_path / "tokens.toml").write_text(f'[tokens.t]\nsha256 = "{digest}"\nservices = ["inference"]\n')
    config = compatible(models(m={}), tokens_file=str(tmp_path / "tokens.toml"))
    async with testing.serve(config, workers="scripted") as app, asker(app) as ask:
        request = PredictionsRequest(model_name="m", input={"data": b"hello"})

        async def predict(authorization):
            return await ask.inference.Predictions(request, metadata={"authorization": authorization})

        text = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
        assert await said(ask.predict, "m") == (Status.PERMISSION_DENIED, text)
        for wrong in ("Bearer other", "bearer secret", "Bearer", "Bearer secret and more"):
            assert await said(predict, wrong) == (Status.PERMISSION_DENIED, text)
        listing = management_pb2.ListModelsRequest()
        denied = await said(ask.management.ListModels, listing, metadata={"authorization": "Bearer secret"})
        assert denied == (Status.PERMISSION_DENIED, text)
        assert (await predict("Bearer secret")).prediction == b"hello"


async def test_the_access_log_says_what_happened(autojump_clock, capfd):
    """The line of a call has the status that the client got, and our own text, which says more than TorchServe's."""
    config = {**compatible(models(m={})), "log": {"access": True, "format": "json"}}
    async with testing.serve(config, workers="scripted") as app, asker(app) as ask:
        fields = {"model_name": "m", "handler": ECHO}
        assert await said(ask.manage, "RegisterModel", **fields) == (Status.UNKNOWN, "")
    (line,) = [json.loads(text) for text in capfd.readouterr().err.splitlines() if "RegisterModel" in text]
    assert (line["status"], line["message"]) == (2, "model m version 1.0 is registered already")


# --- StreamPredictions2 --------------------------------------------------------------------------------


async def test_errors_inside_a_stream(autojump_clock):
    """In-band errors have TorchServe's codes, the first line as message, the second as reason; each has an id, a new
    one where none was sent; the call goes on and ends OK.
    """
    raised = (Status.UNAVAILABLE, "Prediction failed", f"{HTTP}InternalServerException")
    full = (Status.INTERNAL, ('Model "count"' + NO_WORKER).partition("\n")[0], "InternalServerException.()")
    rows = [
        ("", None, b"a", (Status.INTERNAL, "Parameter model_name is required.", "BadRequestException.()")),
        ("x", "1", b"a", (Status.INTERNAL, "Model not found: x", f"{MODEL}ModelNotFoundException")),
        ("count", "1", b"a", None),
        ("count", "1", b"raise", raised),
        ("count", "2", b"a", full),  # one sequence is the limit
        ("count", "1", b"end", raised),
        ("count", "1", b"a", full),  # it has ended
        ("plain", None, b"a", None),
        ("plain", None, b"raise", raised),
    ]
    config = models(count={"max_sequences": 1}, plain={})
    async with served(config) as app, asker(app) as ask, ask.inference.StreamPredictions2.open() as stream:
        for model, id, data, expected in rows:
            await stream.send_message(PredictionsRequest(model_name=model, input={"data": data}, sequence_id=id))
            reply = await stream.recv_message()
            assert reply.sequence_id == id or (id is None and reply.sequence_id)
            if expected is None:
                assert (reply.prediction, reply.HasField("status")) == (data, False)
                continue
            (detail,) = reply.status.details
            reason = ErrorInfo.FromString(detail.value).reason
            assert (Status(reply.status.code), reply.status.message, reason) == expected
        await stream.end()
        assert await stream.recv_message() is None
        await stream.recv_trailing_metadata()


# --- ListModels, DescribeModel -----------------------------------------------------------------------------


async def test_list(autojump_clock):
    """Without a limit it lists; the token of the next page is there also where this one ends with the last model."""
    async with served(models(**{f"m{number}": {} for number in range(4)})) as app, asker(app) as ask:
        for fields, names, token in (
            ({}, ["m0", "m1", "m2", "m3"], None),
            ({"limit": 2}, ["m0", "m1"], "2"),
            ({"limit": 2, "next_page_token": 2}, ["m2", "m3"], "4"),
            ({"limit": 2, "next_page_token": 4}, [], None),
            ({"limit": 4}, ["m0", "m1", "m2", "m3"], "4"),
            ({"limit": -1, "next_page_token": -1}, ["m0", "m1", "m2", "m3"], None),
        ):
            body = json.loads(await ask.manage("ListModels", **fields))
            assert ([model["modelName"] for model in body["models"]], body.get("nextPageToken")) == (names, token)


DESCRIBED = """[
  {
    "modelName": "m",
    "modelVersion": "1.0",
    "modelUrl": "%s",
    "runtime": "%s",
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 3,
    "maxBatchDelay": 7,
    "responseTimeout": 120,
    "startupTimeout": 120,
    "maxRetryTimeoutInSec": %d,
    "clientTimeoutInMills": %d,
    "parallelType": "%s",
    "parallelLevel": %d,
    "deviceType": "cpu",
    "continuousBatching": %s,
    "useJobTicket": %s,
    "useVenv": false,
    "stateful": %s,
    "sequenceMaxIdleMSec": %d,
    "sequenceTimeoutMSec": %d,
    "maxNumSequence": %d,
    "maxSequenceJobQueueSize": %d,
    "loadedAtStartup": true,
    "workers": [
      {
        "id": "9000",
        "startTime": "START",
        "status": "READY",
        "memoryUsage": 0,
        "pid": -1,
        "gpu": false,
        "gpuUsage": "N/A"
      }
    ],
    "jobQueueStatus": {
      "remainingCapacity": 9,
      "pendingRequests": 0
    }%s
  }
]"""
PLAIN = (ECHO, "python", 300, 0, "", 0, "false", "false", "false", 0, 0, 0, 0, "")
ECHOED = (LOADER, "python3", 7, 50, "tp", 4, "true", "true", "true", 3000, 9000, 4, 5, "")


@pytest.mark.parametrize(
    ("options", "handler", "values"),
    [
        ({}, ECHO, PLAIN),
        ({"torchserve": {"manifest": {"runtime": "python3"}, **YAML}}, LOADER, ECHOED),
        ({"torchserve": {"model_yaml_config": {"parallelType": 3, "maxNumSequence": "4"}}}, ECHO, PLAIN),
    ],
)
async def test_describe(autojump_clock, options, handler, values):
    """TorchServe's keys and no others, in its order; what has no effect here is what the model's own files say."""
    table = {"handler": handler, "batch_size": 3, "max_batch_delay_ms": 7, "queue_size": 9, "options": options}
    async with served(models(m=table)) as app, asker(app) as ask:
        text = await ask.manage("DescribeModel", model_name="m")
        start = json.loads(text)[0]["workers"][0]["startTime"]
        assert text == (DESCRIBED % values).replace("START", start)
        assert await ask.manage("DescribeModel", model_name="m", model_version="all") == text


async def test_describe_has_keys_of_ours_elsewhere(autojump_clock):
    """Without compatibility TorchServe's keys are all there, with ours among them, and a sequence's bounds are ours."""
    table = {"max_sequences": 5, "sequence_idle_timeout_s": 2}
    config = models(count=table)
    async with testing.serve(config, workers=testing.ScriptedWorkers(Told)) as app, asker(app) as ask:
        (body,) = json.loads(await ask.manage("DescribeModel", model_name="count"))
    theirs = json.loads(DESCRIBED % PLAIN)[0]
    assert [key for key in body if key in theirs] == list(theirs)
    assert set(body) - set(theirs) == {"status"}
    assert set(body["workers"][0]) - set(theirs["workers"][0]) == {"device"}
    said_of_sequences = {key: body[key] for key in body if "equence" in key or key == "stateful"}
    assert said_of_sequences == {
        "stateful": True,
        "sequenceMaxIdleMSec": 2000,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 5,
        "maxSequenceJobQueueSize": 16,
    }


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ('{"kind": "cat", "none": null, "list": [null, {"a": null}]}', {"kind": "cat", "list": [None, {}]}),
        ("{}", {}),
        ("[1, 2]", {}),
        ("not JSON", {}),
        ("", None),
    ],
)
async def test_customized_metadata(autojump_clock, says, expected):
    """What the handler says of itself is the last key; what is no object is empty, nothing at all no key."""
    table = {"options": {"says": says}}
    async with served(models(m=table)) as app, asker(app) as ask:
        (body,) = json.loads(await ask.manage("DescribeModel", model_name="m", customized=True))
        assert body.get("customizedMetadata") == expected
        assert (list(body)[-1] == "customizedMetadata") == (expected is not None)
        (every,) = json.loads(await ask.manage("DescribeModel", model_name="m", model_version="all", customized=True))
        assert "customizedMetadata" not in every


async def test_describe_refused(autojump_clock):
    """NOT_FOUND, and INTERNAL where the handler would be asked, as is a model without workers."""
    async with served(models(m={"workers": {"min": 0}})) as app, asker(app) as ask:
        for customized, status in ((False, Status.NOT_FOUND), (True, Status.INTERNAL)):
            for name, version, text in (
                ("", "", f"Model not found: \n{MODEL}ModelNotFoundException"),
                ("x", "", NOT_FOUND),
                ("m", "9", NO_VERSION),
            ):
                fields = {"model_name": name, "model_version": version, "customized": customized}
                assert await said(ask.manage, "DescribeModel", **fields) == (status, text)
        every = {"model_name": "x", "model_version": "all", "customized": True}
        assert await said(ask.manage, "DescribeModel", **every) == (Status.NOT_FOUND, NOT_FOUND)
        none = await said(ask.manage, "DescribeModel", model_name="m", customized=True)
        assert none == (Status.INTERNAL, f"InternalServerException.()\n{HTTP}InternalServerException")


# --- RegisterModel -------------------------------------------------------------------------------------------


REGISTRATIONS = [
    ({}, Status.INVALID_ARGUMENT, f"Parameter url is required.\n{HTTP}BadRequestException"),
    ({"model_name": "n", "handler": "image_classifier"}, Status.INVALID_ARGUMENT,
     f"Parameter url is required.\n{HTTP}BadRequestException"),
    ({"url": "good", "runtime": "Python"}, Status.INVALID_ARGUMENT,
     f"Invalid RuntimeType value: Python\n{HTTP}BadRequestException"),
    ({"url": "good", "s3_sse_kms": True}, Status.INVALID_ARGUMENT,
     f"s3_sse_kms: not supported: models are not fetched from S3 with a KMS key\n{HTTP}BadRequestException"),
    ({"handler": ECHO}, Status.INVALID_ARGUMENT, f"Model name is not defined.\n{MODEL}InvalidModelException"),
    ({"url": "none.mar"}, Status.NOT_FOUND, f"Model not found at: none.mar\n{MODEL}ModelNotFoundException"),
    ({"url": "/etc"}, Status.NOT_FOUND, f"Model not found at: /etc\n{MODEL}ModelNotFoundException"),
    ({"url": "../m.mar"}, Status.NOT_FOUND,
     f"Relative path is not allowed in url: ../m.mar\n{MODEL}ModelNotFoundException"),
    ({"url": "good", "model_name": "m"}, Status.UNKNOWN, ""),
]  # fmt: skip


@pytest.fixture
def store(tmp_path):
    """A model store with a folder of a native handler."""
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "model.toml").write_text(f'handler = "{ECHO}"\n')
    return tmp_path


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize(("fields", "status", "text"), REGISTRATIONS)
async def test_register_refused(autojump_clock, store, fields, status, text, synchronous):  # noqa: PLR0917  # a row
    """Each has its code and its text, waited for or not, and changes nothing."""
    config = models(m={}) | {"server": {"model_store": str(store)}}
    async with served(config) as app, asker(app) as ask:
        found = await said(ask_plainly(ask), "RegisterModel", **fields, synchronous=synchronous)
        assert found == (status, text)
        assert [model.spec.name for model in app.tree().models] == ["m"]


def ask_plainly(ask):
    """As `ask.manage`, without the details of rows that are ours."""

    async def manage(rpc, **fields):
        try:
            return await ask.manage(rpc, **fields)
        except GRPCError as error:
            raise GRPCError(error.status, error.message or "") from None

    return manage


async def test_register_load_failed(autojump_clock):
    """A synchronous registration that cannot start is INTERNAL with TorchServe's text, and the model is gone."""
    async with served(models()) as app, asker(app) as ask:
        fields = {"model_name": "m", "handler": "bad:Model", "initial_workers": 1, "synchronous": True}
        text = f"Failed to start workers for model m version: 1.0\n{HTTP}InternalServerException"
        assert await said(ask.manage, "RegisterModel", **fields) == (Status.INTERNAL, text)
        assert app.tree().models == ()


async def test_negative_numbers_are_not_given(autojump_clock, store):
    """TorchServe takes its default for a number below 0."""
    async with served(models() | {"server": {"model_store": str(store)}}) as app, asker(app) as ask:
        numbers = dict.fromkeys(("batch_size", "max_batch_delay", "response_timeout", "startup_timeout"), -1)
        await ask.manage("RegisterModel", url="good", initial_workers=-1, **numbers)
        (model,) = app.tree().models
        assert (model.spec.batch_size, model.spec.response_timeout_s, model.spec.workers_min) == (32, 120, 0)


# --- ScaleWorker -----------------------------------------------------------------------------------------------


async def test_scale(autojump_clock):
    """0 and less is 1; the version stands in the text where it was given."""
    async with served(models(m={})) as app, asker(app) as ask:
        for fields, text in (
            ({"min_worker": 2}, "Workers scaled to 2 for model: m"),
            ({"min_worker": 0}, "Workers scaled to 1 for model: m"),
            ({"min_worker": -3, "max_worker": -3}, "Workers scaled to 1 for model: m"),
            ({"min_worker": 2, "model_version": "1.0"}, "Workers scaled to 2 for model: m, version: 1.0"),
        ):
            assert await ask.manage("ScaleWorker", model_name="m", synchronous=True, **fields) == text
        assert await ask.manage("ScaleWorker", model_name="m", min_worker=1) == "Processing worker updates..."


async def test_scale_refused(autojump_clock):
    """Order first, then the name; a start that fails says which version, `null` where none was given."""
    config = models(m={}, broken={"handler": "bad:Model", "workers": {"min": 0}})
    async with served(config) as app, asker(app) as ask:
        order = f"max_worker cannot be less than min_worker.\n{HTTP}BadRequestException"
        wrong = {"min_worker": 2, "max_worker": 1}
        assert await said(ask.manage, "ScaleWorker", model_name="x", **wrong) == (Status.INVALID_ARGUMENT, order)
        assert await said(ask_plainly(ask), "ScaleWorker", min_worker=1) == (Status.UNKNOWN, "")
        assert await said(ask.manage, "ScaleWorker", model_name="x") == (Status.NOT_FOUND, NOT_FOUND)
        unknown = await said(ask.manage, "ScaleWorker", model_name="m", model_version="9")
        assert unknown == (Status.NOT_FOUND, NO_VERSION)
        for version, shown in (("", "null"), ("1.0", "1.0")):
            text = f"Failed to start workers for model broken version: {shown}\n{HTTP}InternalServerException"
            fields = {"model_name": "broken", "model_version": version, "synchronous": True}
            assert await said(ask.manage, "ScaleWorker", **fields) == (Status.INTERNAL, text)


async def test_scaling_in_progress(autojump_clock):
    """A worker that has died again when the last one is READY: what was asked is not there yet."""

    class Frail(Told):
        async def load(self, content):
            await trio.sleep(10 if self.process.pid == -2 else 0)

    workers = testing.ScriptedWorkers(Frail)
    async with testing.serve(compatible(models(m={})), workers=workers) as app, asker(app) as ask:
        async with trio.open_nursery() as nursery:

            async def crash():
                await trio.sleep(9.95)  # its next life begins after 0.08 s at least
                workers.made[0].crash()

            nursery.start_soon(crash)
            text = await ask.manage("ScaleWorker", model_name="m", min_worker=2, synchronous=True)
        assert text == "Workers scaling in progress..."


@pytest.mark.parametrize(
    ("limit_s", "answer", "seconds"), [(4, "Worker died.", 4), (0, "Worker died.", 6), (-1, "", 9)]
)
async def test_timeout_of_scale(autojump_clock, limit_s, answer, seconds):
    """`timeout` is what a worker that leaves gets for what it has in hand: 0 is the server's grace, -1 for ever."""

    class Slow(Told):
        async def one(self, item):
            await trio.sleep(9)
            return b"done"

    config = models(m={"workers": {"min": 2}, "batch_size": 1}) | {"server": {"grace_s": 6}}
    async with served(config, Slow) as app, asker(app) as ask, trio.open_nursery() as nursery:
        answers = []

        async def one():
            try:
                answers.append((await ask.predict("m")).decode())
            except GRPCError as error:
                answers.append(error.message)

        for _ in range(2):
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        request = management_pb2.ScaleWorkerRequest(model_name="m", min_worker=1, timeout=limit_s, synchronous=True)
        await ask.management.ScaleWorker(request)
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.5)
        await trio.sleep(30)
        assert sorted(text.partition("\n")[0] for text in answers) == sorted(["done", answer or "done"])


async def test_number_gpu_is_named_once(autojump_clock):
    """`number_gpu` has no effect, and the log says so once."""
    async with served(models(m={})) as app, asker(app) as ask:
        with structlog.testing.capture_logs() as lines:
            for _ in range(3):
                await ask.manage("ScaleWorker", model_name="m", min_worker=1, number_gpu=2, synchronous=True)
        assert [line["number_gpu"] for line in lines if "number_gpu" in line] == [2]


# --- SetDefault, UnregisterModel ---------------------------------------------------------------------------------


async def test_set_default_and_unregister(autojump_clock):
    """Their texts and refusals; the default version cannot go while there are others, and is then UNKNOWN."""
    async with served(models(m={})) as app, asker(app) as ask:
        spec = app.tree().models[0].spec
        await app.server.registrar.ask(Spawn(type(spec)("m", "2.0", spec.handler, spec.model_dir))).done.wait()
        for name, version, text in (
            ("", "", f"Model not found: \n{MODEL}ModelNotFoundException"),
            ("x", "1.0", NOT_FOUND),
            ("x", "", NOT_FOUND),
            ("m", "9", f"Model version 9 does not exist for model m\n{MODEL}ModelVersionNotFoundException"),
            ("m", "", f"Model version  does not exist for model m\n{MODEL}ModelVersionNotFoundException"),
        ):
            fields = {"model_name": name, "model_version": version}
            assert await said(ask.manage, "SetDefault", **fields) == (Status.NOT_FOUND, text)
        set_to = await ask.manage("SetDefault", model_name="m", model_version="2.0")
        assert set_to == 'Default version successfully updated for model "m" to "2.0"'
        for fields, status, text in (
            ({}, Status.INVALID_ARGUMENT, f"Parameter url is required.\n{HTTP}BadRequestException"),
            ({"model_name": "x"}, Status.NOT_FOUND, NOT_FOUND),
            ({"model_name": "m", "model_version": "9"}, Status.NOT_FOUND, NO_VERSION),
            ({"model_name": "m"}, Status.UNKNOWN, ""),
            ({"model_name": "m", "model_version": "2.0"}, Status.UNKNOWN, ""),
        ):
            assert await said(ask_plainly(ask), "UnregisterModel", **fields) == (status, text)
        for version in ("1.0", ""):
            assert (
                await ask.manage("UnregisterModel", model_name="m", model_version=version) == 'Model "m" unregistered'
            )
        assert await said(ask.manage, "UnregisterModel", model_name="m") == (
            Status.NOT_FOUND,
            f"Model not found: m\n{MODEL}ModelNotFoundException",
        )
