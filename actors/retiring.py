"""How a model ends: what is queued is answered and its workers finish, within the grace; then what is left is killed.

What must not live here: whether it may end, and the name that it loses (roster.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from actorserve.actors.messages import ModelSpec, State
from actorserve.actors.model import Model
from actorserve.actors.reply import Reply
from actorserve.actors.roster import Roster

log = structlog.get_logger("actorserve.supervisor")


class Retiring:
    """See the module's docstring. `on_gone` is awaited when a model is gone: nobody needs its folder any more."""

    def __init__(self, roster: Roster, on_gone: Callable[[ModelSpec], Awaitable[None]] | None) -> None:
        self._roster = roster
        self._on_gone = on_gone

    async def answer_when_gone(self, model: Model, grace_s: float, reply: Reply[None]) -> None:
        """As `retire`; then the reply is given."""
        await self.retire(model, grace_s)
        reply.set(None)

    async def retire(self, model: Model, grace_s: float) -> None:
        """Wait for the drain of a model whose door is shut until the grace ends, then kill what is left."""
        model.drop_rollout(model.stopped())
        children = list(model.everyone())
        model.refresh()
        with trio.move_on_after(grace_s):
            await model.mailbox.wait_empty()
            for child in children:
                if child.state is not State.READY:
                    child.drain()  # nothing is left for one that is still loading
            for child in children:
                await child.gone.wait()
        model.mailbox.fail_all(model.stopped)
        for child in children:
            child.kill()
        for child in children:
            await child.gone.wait()
        model.mailbox.fail_all(model.stopped)  # what came back from those that were killed
        self._roster.gone(model)
        if self._on_gone is not None:
            await self._on_gone(model.spec)
        log.info("model gone", model=model.spec.key)
