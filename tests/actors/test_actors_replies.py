"""Reply and ReplyStream: ended once, awaited by any number, abandoned without a trace."""

# ruff: noqa: SIM300  # expected == actual

import pytest
import trio

from actorserve.actors.reply import Reply, ReplyStream, fail_quietly
from actorserve.errors import Expired


async def test_every_waiter_gets_the_answer(autojump_clock):
    """A Reply is awaited by any number, before and after it is set."""
    reply: Reply[int] = Reply()
    heard = []

    async def wait():
        heard.append(await reply.wait())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.sleep(1)
        reply.set(7)
    await wait()

    assert [7] * 4 == heard


async def test_set_once():
    """A second ending of either kind is a bug that is raised, and the first stays."""
    reply: Reply[int] = Reply()
    reply.set(1)
    for again in (lambda: reply.set(2), lambda: reply.fail(Expired("late"))):
        with pytest.raises(RuntimeError):
            again()
    fail_quietly(reply, Expired("late"))

    assert 1 == await reply.wait()


async def test_error_is_raised():
    """An error is raised from wait."""
    reply: Reply[int] = Reply()
    reply.fail(Expired("late"))
    with pytest.raises(Expired, match="late"):
        await reply.wait()


async def test_cancelled_waiter_leaves_the_reply(autojump_clock):
    """Cancelling a waiter changes nothing for the others."""
    reply: Reply[int] = Reply()
    with trio.move_on_after(1):
        await reply.wait()
    reply.set(3)

    assert (3, False) == (await reply.wait(), reply.abandoned)


async def test_abandon_is_said_once_and_only_before_the_end():
    """on_abandon is called once, and not at all once answered; a late answer is dropped in silence."""
    calls = []
    reply: Reply[int] = Reply()
    reply.on_abandon = lambda: calls.append("abandoned")
    reply.abandon()
    reply.abandon()
    reply.set(1)
    answered: Reply[int] = Reply()
    answered.on_abandon = lambda: calls.append("too late")
    answered.set(1)
    answered.abandon()

    assert (["abandoned"], False) == (calls, answered.abandoned)


async def test_stream_delivers_then_ends():
    """What was pushed before an end is delivered before it; trailers are there at the end."""
    stream = ReplyStream()
    stream.push(b"a")
    stream.push(b"b")
    stream.finish({"k": "v"})

    assert [b"a", b"b"] == await stream.receive()
    assert ([], {"k": "v"}) == (await stream.receive(), stream.trailers)


async def test_stream_delivers_then_fails():
    """What was pushed before an error is delivered before it."""
    stream = ReplyStream()
    stream.push(b"a")
    stream.fail(Expired("late"))

    assert [b"a"] == await stream.receive()
    with pytest.raises(Expired):
        await stream.receive()


async def test_stream_wakes_its_reader(autojump_clock):
    """A reader that waits gets each chunk when it comes, and the end."""
    stream, heard = ReplyStream(), []

    async def read():
        while chunks := await stream.receive():
            heard.append((trio.current_time() - start, chunks))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for chunk in (b"a", b"b"):
            await trio.sleep(1)
            stream.push(chunk)
        await trio.sleep(1)
        stream.finish({})

    assert [(1, [b"a"]), (2, [b"b"])] == heard


async def test_stream_ends_once():
    """After its end nothing may be pushed, and no second end be said."""
    stream = ReplyStream()
    stream.finish({})
    for again in (lambda: stream.push(b"x"), lambda: stream.finish({}), lambda: stream.fail(Expired("late"))):
        with pytest.raises(RuntimeError):
            again()


async def test_abandoned_stream_keeps_nothing():
    """An abandoned stream drops what is buffered and what still comes, and says so once."""
    calls = []
    stream = ReplyStream()
    stream.on_abandon = lambda: calls.append("abandoned")
    stream.push(b"x" * 1000)
    stream.abandon()
    stream.abandon()
    stream.push(b"y")
    stream.finish({})

    assert (["abandoned"], []) == (calls, await stream.receive())
