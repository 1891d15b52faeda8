"""The tree as text."""

# ruff: noqa: SIM300  # expected == actual

import pytest
import trio
from universe import spec, universe, until

from actorserve.actors.messages import (
    Crashed,
    Drained,
    Infer,
    ModelView,
    ReplicaView,
    Spawn,
    State,
    Tree,
)
from actorserve.actors.tree_text import render
from actorserve.errors import LoadFailed
from actorserve.scripted import ScriptedWorker


def replica(index, state, **given):
    defaults = {
        "name": f"m/1#{index}",
        "index": index,
        "device": "cpu",
        "state": state,
        "incarnation": 1,
        "pid": None,
        "restarts": 0,
        "replaced": 0,
        "failures_in_a_row": 0,
        "last_exit": None,
        "reason": "",
        "started_at": 0.0,
        "in_hand": 0,
    }
    return ReplicaView(**{**defaults, **given})


def test_everything_is_shown():
    """States, incarnations, pids, depths, restarts, replacements, last exits and reasons, each replica on one line."""
    crashed = Crashed("it was killed\nby SIGSEGV")
    tree = Tree(
        (
            ModelView(
                spec(queue_size=7),
                is_default=True,
                state=State.READY,
                waiting=3,
                replicas=(
                    replica(0, State.READY, pid=4242, in_hand=4, incarnation=2, replaced=1, last_exit=Drained()),
                    replica(1, State.RESTARTING, incarnation=3, restarts=2, failures_in_a_row=1, last_exit=crashed),
                    replica(2, State.FAILED, last_exit=Crashed("boom"), reason="6 failures in a row, the last: boom"),
                ),
            ),
            ModelView(spec(name="none"), is_default=False, state=State.NO_WORKERS, waiting=0, replicas=()),
        ),
        (ModelView(spec(name="old"), is_default=False, state=State.DRAINING, waiting=1, replicas=()),),
    )
    assert (
        "2 models, 1 worker READY\n"
        "m/1  READY  default  waiting 3 of 7\n"
        "  #0  READY       cpu  pid 4242  incarnation 2  in hand 4  replaced 1  last exit: Drained: it was drained\n"
        "  #1  RESTARTING  cpu  no pid    incarnation 3  in hand 0  restarts 2  failures in a row 1"
        "  last exit: Crashed: it was killed by SIGSEGV\n"
        "  #2  FAILED      cpu  no pid    incarnation 1  in hand 0"
        "  last exit: Crashed: boom  reason: 6 failures in a row, the last: boom\n"
        "none/1  NO_WORKERS  waiting 0 of 100\n"
        "old/1  DRAINING  unregistered  waiting 1 of 100"
    ) == render(tree)


def test_nothing_at_all():
    """An empty tree is one line."""
    assert "0 models, 0 workers READY" == render(Tree(()))


class Slow(ScriptedWorker):
    """Takes ten seconds for a batch; `bad` cannot be loaded."""

    async def load(self, content):
        if content["name"] == "bad":
            raise LoadFailed("no such file")

    async def infer(self, items):
        await trio.sleep(10)
        return await super().infer(items)


async def test_the_tree_is_true(autojump_clock):
    """observe() shows what is: who waits, what is in hand, restarts and last exits, and models that still drain."""
    async with universe(Slow) as u:
        await u.spawn(batch_size=1)
        with pytest.raises(LoadFailed):
            await u.supervisor.ask(Spawn(spec(name="bad"))).wait()
        await u.supervisor.ask(Spawn(spec(name="none", workers_min=0, workers_max=0))).wait()
        text = render(u.supervisor.observe())
        assert "bad/1  FAILED  default  waiting 0 of 100\n  #0  FAILED  cpu  " in text
        assert "last exit: Crashed: no such file" in text
        assert "none/1  NO_WORKERS  default" in text
        u.made[0].crash()
        await until(lambda: u.model().replicas[0].restarts == 1 and u.states() == [State.READY])
        replies = [u.mailbox.ask(Infer({"data": b"x"})) for _ in range(5)]
        await trio.sleep(1)
        text = render(u.supervisor.observe())
        assert "m/1  READY  default  waiting 3 of 100\n  #0  READY  cpu  pid -3  incarnation 2  in hand 2  " in text
        assert "restarts 1  failures in a row 1  last exit: Crashed: it was killed by SIGKILL" in text
        u.nursery.start_soon(u.stop, 100.0)
        await trio.sleep(1)
        assert "m/1  DRAINING  unregistered  waiting 3 of 100" in render(u.supervisor.observe())
        for reply in replies:
            assert b"x" == (await reply.wait()).data
        await until(lambda: "m/1" not in render(u.supervisor.observe()))
