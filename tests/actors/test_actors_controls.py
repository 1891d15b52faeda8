"""What a worker is asked besides its work (actors/controls.py)."""

import pytest
import trio

from actorserve.actors.controls import Controls
from actorserve.errors import ActorCrashed


async def test_a_worker_that_is_gone_answers_nobody(autojump_clock):
    """Who asks before it dies and who asks afterwards are both told, at once."""
    controls, told = Controls(lambda _data: None), []

    async def ask():
        with pytest.raises(ActorCrashed, match="died before it had answered"):
            await controls.ask({"do": "health"})
        told.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(1)
        controls.abandon_all()
        nursery.start_soon(ask)

    assert len(set(told)) == 1
