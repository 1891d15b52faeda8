"""DescribeModel with `customized`: what a handler says of itself, in virtual time and from a real handler's thread."""

# ruff: noqa: SIM117  # the server's block, then the block that is refused: two things
import json

import pytest
import trio
from asking import asker, models, refused
from grpclib.const import Status

from actorserve import testing
from actorserve.services import describe as bodies
from actorserve.services.customized import MOST_BYTES, MOST_LEVELS, read_metadata


class Speaking(testing.ScriptedWorker):
    """Takes 10 s for a batch; says what its handler's name says."""

    async def infer(self, items):
        await trio.sleep(10)
        return await super().infer(items)

    async def describe(self):
        word = self.child.model.handler.partition(":")[2]
        if word == "Raises":
            raise ValueError("no words")
        if word == "Sleeps":
            await trio.sleep_forever()
        large = b'{"a": "%s"}' % (b"x" * MOST_BYTES)
        return {"Says": b'{"a": [1]}', "Nothing": b"", "Garbage": b"\xff{", "List": b"[1]", "Much": large}[word]


def speaking(*words, **table):
    config = models(**{word.lower(): {"handler": f"a:{word}", **table} for word in words})
    return testing.serve(config, workers=testing.ScriptedWorkers(Speaking))


async def describe(ask, model, **fields):
    (found,) = json.loads(await ask.manage("DescribeModel", model_name=model, customized=True, **fields))
    return found


async def test_customized(autojump_clock):
    """A JSON object is the last key of the answer; nothing leaves it out, and anything else is an empty object."""
    async with speaking("Says", "Nothing", "Garbage", "List") as app, asker(app) as ask:
        said = await describe(ask, "says", model_version="1.0")
        assert said["customizedMetadata"] == {"a": [1]}
        assert list(said)[-1] == "customizedMetadata"
        assert "customizedMetadata" not in await describe(ask, "nothing")
        assert (await describe(ask, "garbage"))["customizedMetadata"] == {}
        assert (await describe(ask, "list"))["customizedMetadata"] == {}


async def test_all_versions_are_not_asked(autojump_clock):
    """With "all" nobody is asked, so that a handler that would raise does no harm."""
    async with speaking("Raises") as app, asker(app) as ask:
        assert "customizedMetadata" not in await describe(ask, "raises", model_version="all")


async def test_a_handler_that_raises(autojump_clock):
    """Its exception is the call's status, as of any question."""
    async with speaking("Raises") as app, asker(app) as ask:
        async with refused(Status.INTERNAL, "ValueError: no words"):
            await describe(ask, "raises")


async def test_more_than_is_taken(autojump_clock):
    """A handler that says too much of itself is told so by the call's status; the server does not print it."""
    async with speaking("Much") as app, asker(app) as ask:
        async with refused(Status.RESOURCE_EXHAUSTED, "what the handler says of itself"):
            await describe(ask, "much")


async def test_no_worker(autojump_clock):
    """Without a worker there is nobody to ask: UNAVAILABLE, reason NO_WORKERS."""
    async with speaking("Says", workers={"min": 0}) as app, asker(app) as ask:
        async with refused(Status.UNAVAILABLE) as caught:
            await describe(ask, "says")
        assert caught.reason == "NO_WORKERS"


async def test_deadline(autojump_clock):
    """A call's deadline ends the question, wherever it is, and the worker hears of it."""
    async with speaking("Sleeps") as app, asker(app) as ask:
        async with refused(Status.DEADLINE_EXCEEDED):
            await describe(ask, "sleeps", timeout=5)
        (worker,) = app.server.spawner.made
        await trio.sleep(1)
        assert (len(worker.cancelled), worker.open_streams) == (1, 0)


async def test_beside_requests(autojump_clock):
    """Asked while requests wait, all of them are answered, and so is the question."""
    async with speaking("Says", batch_size=2) as app, asker(app) as ask:
        answers = []

        async def predict():
            answers.append(await ask.predict("says"))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(predict)
            await trio.sleep(1)
            answers.append((await describe(ask, "says"))["customizedMetadata"])
        assert sorted(answers, key=str) == [b"hello"] * 8 + [{"a": [1]}]


async def test_crash(autojump_clock):
    """A worker that dies while it is asked fails the question with CRASHED."""
    async with speaking("Sleeps") as app, asker(app) as ask:
        async with trio.open_nursery() as nursery:

            async def kill():
                await trio.sleep(1)
                app.kill_worker("sleeps")

            nursery.start_soon(kill)
            async with refused(Status.UNAVAILABLE) as caught:
                await describe(ask, "sleeps")
            assert caught.reason == "CRASHED"


async def test_hang(autojump_clock):
    """A handler that does not come back is noticed as in any call: its worker is killed, the question fails."""
    async with speaking("Sleeps", response_timeout_s=5) as app, asker(app) as ask:
        began = trio.current_time()
        async with refused(Status.UNAVAILABLE, "no answer within response_timeout_s = 5") as caught:
            await describe(ask, "sleeps")
        assert caught.reason == "CRASHED"
        assert trio.current_time() - began < 10


@pytest.mark.parametrize(
    ("data", "expected"), [(b"null", {}), (b"[" * 100_000, {}), (b"{}", {}), (b"", None), (b'{"a": 1}', {"a": 1})]
)
def test_read_metadata(data, expected):
    """Whatever a worker sends is an object, or nothing."""
    assert expected == read_metadata(data)


@pytest.mark.parametrize(
    ("data", "is_taken"),
    [
        (b'{"a": "\\ud800"}', False),
        (b'{"\\udfff": 1}', False),
        (b'{"a": "\\ud83d\\ude00"}', True),
        (b'{"a":' + b"[" * (MOST_LEVELS - 1) + b"]" * (MOST_LEVELS - 1) + b"}", True),
        (b'{"a":' + b"[" * MOST_LEVELS + b"]" * MOST_LEVELS + b"}", False),
        (b'{"a":' + b'{"b":' * 800 + b"1" + b"}" * 801, False),
    ],
)
def test_whatever_is_read_can_be_printed(data, is_taken):
    """What would break the answer, half of a character or levels without end, is as what is no object."""
    said = read_metadata(data)
    assert bool(said) is is_taken
    assert json.loads(bodies._print(bodies._without_nulls(said)).encode()) == said
