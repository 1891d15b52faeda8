"""The management service as a caller meets it, in virtual time with scripted workers."""

# ruff: noqa: SIM117  # the server's block, then the block that is refused: two things
import json
from dataclasses import replace

import pytest
import trio
import trio.testing
from asking import ECHO, asker, models, refused
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import testing
from actorserve.actors.messages import Spawn
from actorserve.errors import LoadFailed


class Slow(testing.ScriptedWorker):
    """Takes 10 s to load, and 10 s for a batch."""

    async def load(self, content):
        await trio.sleep(10)

    async def infer(self, items):
        await trio.sleep(10)
        return await super().infer(items)


class Picky(testing.ScriptedWorker):
    """Loads nothing that is called bad."""

    async def load(self, content):
        if "bad" in content["handler"]:
            raise LoadFailed("handler cannot be imported: No module named 'bad'")


def scripted(worker=Slow):
    return testing.ScriptedWorkers(worker)


@pytest.fixture
def store(tmp_path):
    """A model store: one good folder, and some that are not."""
    for name, content in {
        "good": f'handler = "{ECHO}"\nname = "called"\nversion = "2.0"\nbatch_size = 5\nworkers = {{ min = 2 }}\n',
        "bare": None,
        "broken": "handler = ",
        "wrong": f'handler = "{ECHO}"\nbatch_size = "many"\n',
        "torn": f'handler = "{ECHO}"\nrestart = "temporary"\nmax_requests_per_worker = 5\n',
        "odd": f'handler = "{ECHO}"\nname = 3\n',
        "nested": f'handler = "{ECHO}"\nsource = ".."\n',
    }.items():
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "model.toml").write_text(content)
    (tmp_path / "file.txt").write_text("not a folder")
    return tmp_path


# --- ListModels, DescribeModel ---------------------------------------------------------------------


async def test_list_pages(autojump_clock):
    """Pages of `limit` models by name, each with the token of the next; 0, negative or over 100 is 100."""
    many = models(**{f"m{number:03}": {"workers": {"min": 0}} for number in range(120)})
    names = sorted(many["models"])
    async with testing.serve(many, workers=scripted()) as app, asker(app) as ask:

        async def page(**fields):
            body = json.loads(await ask.manage("ListModels", **fields))
            assert list(body) == (["nextPageToken", "models"] if "nextPageToken" in body else ["models"])
            assert all(model == {"modelName": model["modelName"], "modelUrl": ECHO} for model in body["models"])
            return [model["modelName"] for model in body["models"]], body.get("nextPageToken")

        assert await page() == (names[:100], "100")
        assert await page(limit=7) == (names[:7], "7")
        assert await page(limit=7, next_page_token=7) == (names[7:14], "14")
        assert await page(limit=-1) == await page(limit=101) == (names[:100], "100")
        assert await page(next_page_token=100) == (names[100:], None)
        assert await page(limit=20, next_page_token=100) == (names[100:], None)
        assert await page(next_page_token=-5, limit=1) == (names[:1], "1")
        assert await page(next_page_token=500) == ([], None)


async def test_list_body(autojump_clock):
    """The body is JSON pretty-printed with two spaces; an empty list is `[]`."""
    async with testing.serve(models(), workers=scripted()) as app, asker(app) as ask:
        assert await ask.manage("ListModels") == '{\n  "models": []\n}'


KEYS = [
    "modelName",
    "modelVersion",
    "modelUrl",
    "runtime",
    "minWorkers",
    "maxWorkers",
    "batchSize",
    "maxBatchDelay",
    "responseTimeout",
    "startupTimeout",
    "maxRetryTimeoutInSec",
    "clientTimeoutInMills",
    "parallelType",
    "parallelLevel",
    "deviceType",
    "continuousBatching",
    "useJobTicket",
    "useVenv",
    "stateful",
    "sequenceMaxIdleMSec",
    "sequenceTimeoutMSec",
    "maxNumSequence",
    "maxSequenceJobQueueSize",
    "status",
    "loadedAtStartup",
    "workers",
    "jobQueueStatus",
]
WORKER_KEYS = ["id", "startTime", "status", "memoryUsage", "pid", "gpu", "gpuUsage", "device"]


async def test_describe(autojump_clock):
    """An array of one object for a version, with TorchServe's keys in its order; workers are numbered from 9000."""
    config = models(m={"workers": {"min": 2}, "batch_size": 3, "max_batch_delay_ms": 7, "queue_size": 9})
    async with testing.serve(config, workers=scripted()) as app, asker(app) as ask:
        text = await ask.manage("DescribeModel", model_name="m")
        assert text.startswith('[\n  {\n    "modelName": "m",\n    "modelVersion": "1.0",\n')
        (model,) = json.loads(text)
        assert list(model) == KEYS
        assert [list(worker) for worker in model["workers"]] == [WORKER_KEYS, WORKER_KEYS]
        assert [(worker["id"], worker["status"], worker["gpu"]) for worker in model["workers"]] == [
            ("9000", "READY", False),
            ("9001", "READY", False),
        ]
        assert (model["minWorkers"], model["maxWorkers"], model["batchSize"], model["maxBatchDelay"]) == (2, 2, 3, 7)
        assert (model["status"], model["loadedAtStartup"]) == ("READY", True)
        assert model["jobQueueStatus"] == {"remainingCapacity": 9, "pendingRequests": 0}


async def test_describe_what_is_not_there(autojump_clock):
    """No name is INVALID_ARGUMENT, an unknown name or version NOT_FOUND."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        async with refused(Status.INVALID_ARGUMENT, "model_name: is empty"):
            await ask.manage("DescribeModel")
        async with refused(Status.NOT_FOUND, "Model not found: x"):
            await ask.manage("DescribeModel", model_name="x")
        async with refused(Status.NOT_FOUND, "Model not found: x"):
            await ask.manage("DescribeModel", model_name="x", model_version="all")
        async with refused(Status.NOT_FOUND, "Model version: 9 does not exist for model: m"):
            await ask.manage("DescribeModel", model_name="m", model_version="9")


# --- RegisterModel -------------------------------------------------------------------------------------


async def test_register_synchronous(autojump_clock):
    """Synchronous: answered when the workers are READY; the model answers then."""
    async with testing.serve(models(), workers=scripted()) as app, asker(app) as ask:
        began = trio.current_time()
        text = await ask.manage("RegisterModel", model_name="m", handler=ECHO, initial_workers=2, synchronous=True)
        assert text == 'Model "m" Version: 1.0 registered with 2 initial workers'
        assert trio.current_time() - began >= 10
        assert await ask.predict("m") == b"hello"


async def test_register_asynchronous(autojump_clock):
    """Asynchronous: answered at once; calls queue until the first worker is READY."""
    async with testing.serve(models(), workers=scripted()) as app, asker(app) as ask:
        began = trio.current_time()
        text = await ask.manage("RegisterModel", model_name="m", handler=ECHO, initial_workers=1)
        assert text == "Processing worker updates..."
        assert trio.current_time() == began
        assert await ask.predict("m") == b"hello"


async def test_register_without_workers(autojump_clock):
    """Without initial workers the model is there and says what to do; ScaleWorker brings it to life."""
    async with testing.serve(models(), workers=scripted()) as app, asker(app) as ask:
        text = await ask.manage("RegisterModel", model_name="m", handler=ECHO)
        assert text == (
            'Model "m" Version: 1.0 registered with 0 initial workers. '
            "Use scale workers API to add workers for the model."
        )
        async with refused(Status.UNAVAILABLE, "model m has no workers"):
            await ask.predict("m")
        text = await ask.manage("ScaleWorker", model_name="m", min_worker=1, synchronous=True)
        assert text == "Workers scaled to 1 for model: m"
        assert await ask.predict("m") == b"hello"


async def test_register_folder(autojump_clock, store):
    """A folder of the store says name, version, workers and batch itself; fields of the request win over it."""
    config = models() | {"server": {"model_store": str(store)}}
    async with testing.serve(config, workers=scripted()) as app, asker(app) as ask:
        text = await ask.manage("RegisterModel", url="good", synchronous=True)
        assert text == 'Model "called" Version: 2.0 registered with 2 initial workers'
        text = await ask.manage(
            "RegisterModel", url="good", model_name="mine", batch_size=7, initial_workers=1, synchronous=True
        )
        assert text == 'Model "mine" Version: 2.0 registered with 1 initial workers'
        (model,) = json.loads(await ask.manage("DescribeModel", model_name="called"))
        assert (model["modelUrl"], model["batchSize"], model["loadedAtStartup"]) == ("good", 5, False)
        (model,) = json.loads(await ask.manage("DescribeModel", model_name="mine"))
        assert model["batchSize"] == 7
        assert await ask.predict("called") == b"hello"
        text = await ask.manage("RegisterModel", url="bare", handler=ECHO, initial_workers=1, synchronous=True)
        assert text == 'Model "bare" Version: 1.0 registered with 1 initial workers'


async def test_versions(autojump_clock, store):
    """Versions stand side by side; the first is the default, "all" describes every one, and the default version
    cannot be unregistered while others exist.
    """
    config = models(called={}) | {"server": {"model_store": str(store)}}
    async with testing.serve(config, workers=scripted()) as app, asker(app) as ask:
        await ask.manage("RegisterModel", url="good", synchronous=True)
        every = json.loads(await ask.manage("DescribeModel", model_name="called", model_version="all"))
        assert [model["modelVersion"] for model in every] == ["1.0", "2.0"]
        (default,) = json.loads(await ask.manage("DescribeModel", model_name="called"))
        assert default["modelVersion"] == "1.0"
        assert json.loads(await ask.manage("ListModels"))["models"] == [{"modelName": "called", "modelUrl": ECHO}]
        assert await ask.predict("called", version="2.0") == b"hello"
        async with refused(Status.FAILED_PRECONDITION, "version 1.0 is the default of model called"):
            await ask.manage("UnregisterModel", model_name="called", model_version="1.0")
        await ask.manage("UnregisterModel", model_name="called", model_version="2.0")
        await ask.manage("UnregisterModel", model_name="called")
        async with refused(Status.NOT_FOUND, "Model not found: called"):
            await ask.predict("called")


REFUSALS = [
    ({}, Status.INVALID_ARGUMENT, "url: Parameter url is required."),
    ({"handler": ECHO}, Status.INVALID_ARGUMENT, "model_name: Model name is not defined."),
    ({"handler": ECHO, "model_name": "a b"}, Status.INVALID_ARGUMENT, "model_name: 'a b' may hold letters"),
    ({"handler": ECHO, "model_name": "m" * 256}, Status.INVALID_ARGUMENT, f"model_name: '{'m' * 80}' may hold letters"),
    ({"handler": "nothing", "model_name": "m"}, Status.INVALID_ARGUMENT, "handler: handler 'nothing' is not"),
    ({"handler": ECHO, "model_name": "m", "batch_size": -1}, Status.INVALID_ARGUMENT, "batch_size: -1 is negative"),
    (
        {"handler": ECHO, "model_name": "m", "batch_size": 1 << 30},
        Status.INVALID_ARGUMENT,
        "batch_size: 1073741824 is wrong: it must be at most 65536",
    ),
    (
        {"handler": ECHO, "model_name": "m", "initial_workers": 5000},
        Status.INVALID_ARGUMENT,
        "initial_workers: 5000 is wrong: it must be at most 1024",
    ),
    (
        {"handler": ECHO, "model_name": "m", "max_batch_delay": 1 << 30},
        Status.INVALID_ARGUMENT,
        "max_batch_delay: 1073741824 is wrong: it must be at most 600000",
    ),
    ({"url": "good", "runtime": "lua"}, Status.INVALID_ARGUMENT, "runtime: Invalid RuntimeType value: lua"),
    ({"url": "good", "s3_sse_kms": True}, Status.INVALID_ARGUMENT, "s3_sse_kms: not supported"),
    ({"url": "../good"}, Status.INVALID_ARGUMENT, "url: Relative path is not allowed in url: ../good"),
    ({"url": "/etc"}, Status.INVALID_ARGUMENT, "url: '/etc' is not a folder inside the model store"),
    ({"url": "."}, Status.INVALID_ARGUMENT, "url: '.' is not a folder inside the model store"),
    ({"url": "a\0b"}, Status.INVALID_ARGUMENT, "is no name of a folder"),
    ({"url": "x" * 5000}, Status.INVALID_ARGUMENT, "is no name of a folder"),
    ({"url": "nowhere"}, Status.NOT_FOUND, "nowhere (no such folder or archive in the model store)"),
    ({"url": "file.txt"}, Status.INVALID_ARGUMENT, "'file.txt' cannot be used: it is neither a folder nor an archive"),
    (
        {"url": "https://example.com/m.mar"},
        Status.NOT_FOUND,
        "Given URL https://example.com/m.mar does not match any allowed URL(s)",
    ),
    ({"url": "m.mar"}, Status.NOT_FOUND, "m.mar (no such folder or archive in the model store)"),
    ({"url": "bare"}, Status.INVALID_ARGUMENT, 'handler: is missing: give "module:Class"'),
    ({"url": "broken"}, Status.INVALID_ARGUMENT, "url: 'broken' cannot be used"),
    ({"url": "wrong"}, Status.INVALID_ARGUMENT, 'batch_size: "many" is wrong: it must be a whole number'),
    ({"url": "torn"}, Status.INVALID_ARGUMENT, "url: max_requests_per_worker cannot be kept"),
    ({"url": "odd"}, Status.INVALID_ARGUMENT, "url: 'odd' cannot be used: name: 3"),
    ({"url": "nested"}, Status.INVALID_ARGUMENT, "url: 'nested' cannot be used: source: does not belong into"),
    ({"handler": ECHO, "model_name": "there"}, Status.ALREADY_EXISTS, "model there version 1.0 is registered already"),
]


@pytest.mark.parametrize(("fields", "status", "text"), REFUSALS)
async def test_register_refused(autojump_clock, store, fields, status, text):
    """A registration that cannot be is refused with its status and the field's name, and changes nothing."""
    config = models(there={}) | {"server": {"model_store": str(store)}}
    async with testing.serve(config, workers="scripted") as app, asker(app) as ask:
        for synchronous in (True, False):
            async with refused(status, text):
                await ask.manage("RegisterModel", **fields, synchronous=synchronous)
        assert [model.spec.name for model in app.tree().models] == ["there"]
        assert await ask.predict("there") == b"hello"


async def test_register_load_failed(autojump_clock):
    """A synchronous registration whose model cannot load is FAILED_PRECONDITION, LOAD_FAILED, with the cause; the name
    is free again. An asynchronous one leaves the model visible, FAILED, with its reason.
    """
    async with testing.serve(models(), workers=scripted(Picky)) as app, asker(app) as ask:
        fields = {"model_name": "m", "handler": "bad:Model", "initial_workers": 1}
        for _ in range(2):
            async with refused(Status.FAILED_PRECONDITION, "No module named 'bad'") as caught:
                await ask.manage("RegisterModel", **fields, synchronous=True)
            assert caught.reason == "LOAD_FAILED"
            assert app.tree().models == ()
        await ask.manage("RegisterModel", **fields)
        await trio.testing.wait_all_tasks_blocked()
        (model,) = json.loads(await ask.manage("DescribeModel", model_name="m"))
        assert model["status"] == "FAILED"
        assert model["workers"][0]["reason"] == "handler cannot be imported: No module named 'bad'"
        await ask.manage("UnregisterModel", model_name="m")
        text = await ask.manage("RegisterModel", model_name="m", handler=ECHO, initial_workers=1, synchronous=True)
        assert "registered with 1" in text


async def test_startup_timeout(autojump_clock):
    """A worker that is not READY within `startup_timeout` at every try ends a synchronous registration with
    DEADLINE_EXCEEDED, naming the limit.
    """
    async with testing.serve(models(), workers=scripted()) as app, asker(app) as ask:
        async with refused(Status.DEADLINE_EXCEEDED, "startup_timeout_s = 5"):
            await ask.manage(
                "RegisterModel", model_name="m", handler=ECHO, initial_workers=1, startup_timeout=5, synchronous=True
            )


async def test_cancelled_registration_still_happens(autojump_clock):
    """A client's deadline or cancel ends the answer, never the change."""
    async with testing.serve(models(), workers=scripted()) as app, asker(app) as ask:
        fields = {"handler": ECHO, "initial_workers": 1, "synchronous": True}
        async with refused(Status.DEADLINE_EXCEEDED):
            await ask.manage("RegisterModel", model_name="late", **fields, timeout=2)
        with trio.move_on_after(2) as scope:
            await ask.manage("RegisterModel", model_name="gone", **fields)
        assert scope.cancelled_caught
        assert await ask.predict("late") == await ask.predict("gone") == b"hello"


# --- ScaleWorker -------------------------------------------------------------------------------------------


async def test_scale(autojump_clock):
    """Up, down, and 0, which is 1 since proto3 cannot tell it from "not given"."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:

        def ready():
            return sum(replica.pid is not None for replica in app.tree().models[0].replicas)

        for given, expected in ((3, 3), (1, 1), (2, 2), (0, 1)):
            text = await ask.manage("ScaleWorker", model_name="m", min_worker=given, synchronous=True)
            assert text == f"Workers scaled to {expected} for model: m"
            assert ready() == expected
        began = trio.current_time()
        assert await ask.manage("ScaleWorker", model_name="m", min_worker=2) == "Processing worker updates..."
        assert trio.current_time() == began
        assert await ask.predict("m") == b"hello"
        text = await ask.manage("ScaleWorker", model_name="m", model_version="1.0", min_worker=1, synchronous=True)
        assert text == "Workers scaled to 1 for model: m, version: 1.0"


async def test_scale_down_drains(autojump_clock):
    """A worker that is scaled away finishes what it has in hand."""
    config = models(m={"workers": {"min": 2}, "batch_size": 1})
    async with testing.serve(config, workers=scripted()) as app, asker(app) as ask, trio.open_nursery() as nursery:
        answers = []

        async def one():
            answers.append(await ask.predict("m"))

        for _ in range(4):
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
        await ask.manage("ScaleWorker", model_name="m", min_worker=1, synchronous=True)
        await trio.sleep(60)
        assert answers == [b"hello"] * 4


async def test_scale_refused(autojump_clock):
    """Refused are max below min, more workers than any machine has, no name, an unknown name or version."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        async with refused(Status.INVALID_ARGUMENT, "max_worker cannot be less than min_worker."):
            await ask.manage("ScaleWorker", model_name="m", min_worker=2, max_worker=1)
        async with refused(Status.INVALID_ARGUMENT, "model_name: is empty"):
            await ask.manage("ScaleWorker", min_worker=1)
        async with refused(Status.NOT_FOUND, "Model not found: x"):
            await ask.manage("ScaleWorker", model_name="x", min_worker=1)
        async with refused(Status.NOT_FOUND, "Model version: 9 does not exist for model: m"):
            await ask.manage("ScaleWorker", model_name="m", model_version="9", min_worker=1)
        for field in ("min_worker", "max_worker"):
            async with refused(Status.INVALID_ARGUMENT, f"{field}: 1073741824 is wrong: it must be at most 1024"):
                await ask.manage("ScaleWorker", model_name="m", **{field: 1 << 30})
        assert await ask.predict("m") == b"hello"


# --- UnregisterModel, SetDefault -------------------------------------------------------------------------------


async def test_unregister_drains(autojump_clock):
    """What runs and what queues is answered, a new call is NOT_FOUND at once, and the name can be registered anew
    while the old model still drains.
    """
    async with testing.serve(models(m={"batch_size": 1}), workers=scripted()) as app, asker(app) as ask:
        answers = []

        async def one():
            answers.append(await ask.predict("m"))

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(one)
                await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()

            async def unregister():
                assert await ask.manage("UnregisterModel", model_name="m") == 'Model "m" unregistered'
                assert trio.current_time() - began == pytest.approx(20, abs=1)

            nursery.start_soon(unregister)
            await trio.testing.wait_all_tasks_blocked()
            async with refused(Status.NOT_FOUND, "Model not found: m"):
                await ask.predict("m")
            assert json.loads(await ask.manage("ListModels"))["models"] == []
            await ask.manage("RegisterModel", model_name="m", handler=ECHO, initial_workers=1, synchronous=True)
        assert answers == [b"hello"] * 2
        assert await ask.predict("m") == b"hello"


async def test_unregister_refused(autojump_clock):
    """No name is INVALID_ARGUMENT; an unknown name or version, and a second time, NOT_FOUND."""
    async with testing.serve(models(m={}), workers="scripted") as app, asker(app) as ask:
        async with refused(Status.INVALID_ARGUMENT, "model_name: is empty"):
            await ask.manage("UnregisterModel")
        async with refused(Status.NOT_FOUND, "Model version: 9 does not exist for model: m"):
            await ask.manage("UnregisterModel", model_name="m", model_version="9")
        await ask.manage("UnregisterModel", model_name="m")
        async with refused(Status.NOT_FOUND, "Model not found: m"):
            await ask.manage("UnregisterModel", model_name="m")


async def test_set_default(autojump_clock):
    """Calls without a version go to the chosen one; none of 64 in flight fails while the default changes to and fro.

    The default version alone cannot be unregistered while there are others.
    """
    async with testing.serve(models(m={}), workers="scripted") as app, asker(app) as ask:
        for version in ("2.0", "3.0"):
            app.server.registrar.ask(Spawn(replace(app.tree().models[0].spec, version=version)))
        await trio.testing.wait_all_tasks_blocked()
        done = 0

        async def keep_asking():
            nonlocal done
            while not over:
                assert await ask.predict("m") == b"hello"
                done += 1

        over = False
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(keep_asking)
            for version in ("2.0", "1.0", "3.0") * 5:
                said = await ask.manage("SetDefault", model_name="m", model_version=version)
                assert said == f'Default version successfully updated for model "m" to "{version}"'
                described = json.loads(await ask.manage("DescribeModel", model_name="m"))
                assert [one["modelVersion"] for one in described] == [version]
            over = True
        assert done > 64
        async with refused(Status.FAILED_PRECONDITION, "version 3.0 is the default of model m"):
            await ask.manage("UnregisterModel", model_name="m", model_version="3.0")
        await ask.manage("UnregisterModel", model_name="m", model_version="1.0")


async def test_set_default_refused(autojump_clock):
    """No name is INVALID_ARGUMENT; an unknown model, an unknown version and none are NOT_FOUND, and nothing changes."""
    async with testing.serve(models(m={}), workers="scripted") as app, asker(app) as ask:
        async with refused(Status.INVALID_ARGUMENT, "model_name: is empty"):
            await ask.manage("SetDefault", model_version="1.0")
        async with refused(Status.NOT_FOUND, "Model not found: n"):
            await ask.manage("SetDefault", model_name="n", model_version="1.0")
        async with refused(Status.NOT_FOUND, "Model not found: n"):
            await ask.manage("SetDefault", model_name="n")
        async with refused(Status.NOT_FOUND, "Model version: 9 does not exist for model: m"):
            await ask.manage("SetDefault", model_name="m", model_version="9")
        async with refused(Status.NOT_FOUND, "does not exist for model: m"):
            await ask.manage("SetDefault", model_name="m")
        assert await ask.predict("m") == b"hello"


async def test_management_while_draining(autojump_clock):
    """A server that drains takes no change any more: UNAVAILABLE, or the connection is told to go."""
    async with testing.serve(models(m={}), workers=scripted()) as app, asker(app) as ask:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask.predict, "m")
            await trio.testing.wait_all_tasks_blocked()
            app.server.stop()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(GRPCError) as error:
                await ask.manage("RegisterModel", model_name="n", handler=ECHO, initial_workers=1)
            assert error.value.status is Status.UNAVAILABLE
