"""DescribeModel where not all is well: states, reasons, restarts and last exits, in virtual time."""

import json

import trio
import trio.testing
from asking import asker, models, refused
from grpclib.const import Status

from actorserve import testing
from actorserve.errors import LoadFailed


class Fragile(testing.ScriptedWorker):
    """Dies of `crash`; `bad` cannot be loaded; the third one is slow to load."""

    async def load(self, content):
        if content["name"] == "bad":
            raise LoadFailed("no such file: weights.pt")
        await trio.sleep(100 if self.process.pid == -3 else 0)

    async def infer(self, items):
        if items[0].inputs["data"] == b"crash":
            self.crash(-11)
            await trio.sleep_forever()
        return await super().infer(items)


async def workers_of(ask, name):
    """What DescribeModel says of a model: its status and its workers."""
    (model,) = json.loads(await ask.manage("DescribeModel", model_name=name))
    return model["status"], model["workers"]


async def test_failed_and_none(autojump_clock):
    """A FAILED model shows its reason and its worker's last exit; one without workers says NO_WORKERS, not LOADING."""
    config = models(bad={}, none={"workers": {"min": 0}})
    async with testing.serve(config, workers=testing.ScriptedWorkers(Fragile)) as app, asker(app) as ask:
        status, (worker,) = await workers_of(ask, "bad")
        assert (status, worker["status"]) == ("FAILED", "FAILED")
        assert worker["reason"] == "no such file: weights.pt"
        assert worker["lastExit"] == "Crashed: no such file: weights.pt"
        assert await workers_of(ask, "none") == ("NO_WORKERS", [])


async def test_restarts_and_last_exit(autojump_clock):
    """A model that has crashed is RESTARTING with its reason, then READY with the count and how it last ended."""
    config = models(m={})
    async with testing.serve(config, workers=testing.ScriptedWorkers(Fragile)) as app, asker(app) as ask:
        for _ in range(2):
            async with refused(Status.UNAVAILABLE, "SIGSEGV"):
                await ask.predict("m", data=b"crash")
        await trio.sleep(1)
        status, (worker,) = await workers_of(ask, "m")
        assert (status, worker["status"], worker["restarts"]) == ("RESTARTING", "RESTARTING", 2)
        assert worker["reason"] == "it was killed by SIGSEGV"
        await trio.sleep(200)
        status, (worker,) = await workers_of(ask, "m")
        assert (status, worker["status"], worker["restarts"]) == ("READY", "READY", 2)
        assert worker["lastExit"] == "Crashed: it was killed by SIGSEGV"
        assert "reason" not in worker
