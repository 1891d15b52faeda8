"""What an answer leaves behind (actors/reply.py): nothing that only Python's collector would find."""

import gc
import weakref

import pytest

from actorserve.actors.reply import Reply, ReplyStream


class Asked:
    """What an answer is for. It holds the answer, which holds it in turn, by what is called on it."""

    def __init__(self, reply, ways):
        self.reply = reply
        self.abandoned = False
        for way in ways:
            setattr(reply, way, lambda *_: self.note())

    def note(self):
        self.abandoned = True


class Watched(Reply):
    """One to which there may be weak references."""


@pytest.fixture(autouse=True)
def _no_collector():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("kind", "ways"), [(Reply, ["on_abandon"]), (ReplyStream, ["on_abandon", "on_taken"])])
def test_an_abandoned_answer_is_freed_at_once(kind, ways):
    """Who asked is told, and is then held by nobody."""
    asked = Asked(kind(), ways)
    gone = weakref.ref(asked)
    asked.reply.abandon()
    assert asked.abandoned
    del asked

    assert gone() is None


async def test_an_answer_that_was_an_error_is_freed_at_once():
    """The error's traceback does not hold the reply that holds the error."""
    reply = Watched()
    gone = weakref.ref(reply)
    reply.fail(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await reply.wait()
    del reply

    assert gone() is None
