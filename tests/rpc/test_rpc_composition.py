"""Calls that a worker makes go through the server's mailboxes, so that deadline, cancel and supervision hold."""

import pytest
import trio
from rpc_rig import HERE

from actorserve import testing
from actorserve.actors.messages import Call, Cardinality

CONFIG = {
    "server": {"state_dir": ""},
    "models": {
        name: {"handler": f"compose_hosts:{handler}", "path": [str(HERE)], "batch_size": 4}
        for name, handler in (("front", "Front"), ("back", "Back"))
    },
}
FRONT = {"target": "back", "method": "double"}


@pytest.fixture
async def app():
    """A server with both."""
    async with testing.serve(CONFIG) as app:
        yield app


def ask(
    app, method, data=b"", cardinality=Cardinality.UNARY_UNARY, *, target="back", deadline=float("inf"), to="front"
):
    """Ask the front to ask the back."""
    metadata = {"target": target, "method": method}
    call = Call("go" if to == "front" else method, cardinality, data, metadata)
    return app.server.directory.find(to).ask(call, deadline)


async def streamed(exchange):
    """Every message, and the ending."""
    found = []
    while items := await exchange.receive():
        found += items
        exchange.taken(len(items), sum(map(len, items)))
    return found, exchange.ending


async def test_all_four_cardinalities_pass_through(app):
    """Messages, endings and trailers of a call that a worker made are those of the worker that answered."""
    with trio.fail_after(20):
        assert (await ask(app, "double", b"ab").wait()).data == b"abab"
        messages, ending = await streamed(ask(app, "count", b"100", Cardinality.UNARY_STREAM))
        assert messages == [b"%d" % number for number in range(100)]
        assert ending.trailers == (("x-said", "all"),)
        joining = ask(app, "join", None, Cardinality.STREAM_UNARY)
        for _ in range(100):
            assert await joining.send(b"x" * 10_000)
        joining.end()
        assert (await joining.wait()).data == b"x" * 1_000_000
        echoing = ask(app, "echo", None, Cardinality.STREAM_STREAM)
        for text in (b"a", b"b"):
            await echoing.send(text)
            assert await echoing.receive() == [text]
        echoing.end()
        _, ending = await streamed(echoing)
        assert (ending.status, ending.details) == (9, "enough")


async def test_deadline_and_cancel_travel(app):
    """The answering worker sees the asker's deadline, and that the first of a chain has gone."""
    with trio.fail_after(20):
        ending = await ask(app, "left", deadline=trio.current_time() + 50).wait()
        assert 40 <= int(ending.data) <= 50
        hanging = ask(app, "hang")
        while not any(model.replicas[0].in_hand for model in app.tree().models if model.spec.name == "back"):
            await trio.sleep(0.001)
        hanging.abandon()
        while (await ask(app, "cancelled").wait()).data != b"1":
            await trio.sleep(0.001)


async def test_a_target_that_is_not_there_or_dies(app):
    """The asking worker is told which of the server's errors it was; it goes on, and its other calls with it."""
    with trio.fail_after(20):
        beside = ask(app, "hang")
        missing = await ask(app, "double", target="nobody").wait()
        assert missing.details == "NoSuchModel: Model not found: nobody"
        died = await ask(app, "die").wait()
        assert died.details.startswith("ActorCrashed: the worker of model back died: it exited with status 3")
        assert (await beside.wait()).details.startswith("ActorCrashed: ")  # it was the same worker's
        assert (await ask(app, "double", b"c").wait()).data == b"cc"


async def test_calls_of_a_dead_worker_end(app):
    """A worker that dies takes what it has asked along: whoever answers is told that nobody waits."""
    with trio.fail_after(20):
        hanging = ask(app, "hang")
        while not any(model.replicas[0].in_hand for model in app.tree().models if model.spec.name == "back"):
            await trio.sleep(0.001)
        app.kill_worker("front")
        with pytest.raises(Exception, match="the worker of model front died"):
            await hanging.wait()
        while (await ask(app, "cancelled", to="back").wait()).data != b"1":
            await trio.sleep(0.001)


async def test_an_rpc_worker_is_a_process():
    """`isolation = "thread"` is refused: a loop, and code that expects a process, would share the server's."""
    config = {
        "server": {"state_dir": ""},
        "models": {"back": {"handler": "compose_hosts:Back", "path": [str(HERE)], "isolation": "thread"}},
    }
    async with testing.serve(config) as app:
        assert 'needs a process: isolation = "thread" has none' in str(app.failures[0][1])
