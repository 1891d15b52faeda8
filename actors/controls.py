"""What one incarnation's worker is asked besides its work: to reconfigure itself, and whether it is healthy.

What lives here: the questions that are open, and the rounds of `check_health`. What must not: what a failure means for
the replica (model_actor.py), the user's code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import trio

from actorserve.actors import wire
from actorserve.actors.reply import Reply, fail_quietly
from actorserve.actors.wire import Data, Frame, Kind
from actorserve.errors import ActorCrashed, HandlerRaised

FAILURES_IN_A_ROW = 3
"""Health checks that must fail one after another before a replica is replaced, as in Ray Serve."""
DIED = "the worker died before it had answered"


class Controls:
    """See the module's docstring. `write` queues bytes for the worker and never waits."""

    def __init__(self, write: Callable[[Data], None]) -> None:
        self._write = write
        self._ids = count(1)
        self._open: dict[int, Reply[None]] = {}
        self._gone = False

    async def ask(self, content: Mapping[str, Any]) -> None:
        """Have the worker do something. HandlerRaised: its code raised. ActorCrashed: it died first, or long ago."""
        if self._gone:
            raise ActorCrashed(DIED)
        id = next(self._ids)
        reply: Reply[None] = Reply()
        self._open[id] = reply
        self._write(wire.frame(Kind.CONTROL, id, json.dumps(content).encode()))
        try:
            await reply.wait()
        finally:
            self._open.pop(id, None)

    def hear(self, frame: Frame) -> None:
        """Take a CONTROLLED; one that nobody waits for any more is dropped."""
        reply = self._open.pop(frame.id, None)
        if reply is None:
            return
        error = wire.read_note(frame.payload).get("error")
        if error is None:
            reply.set(None)
        else:
            kind, _, text = str(error).partition(": ")
            reply.fail(HandlerRaised(kind, text))

    def abandon_all(self) -> None:
        """The worker is gone."""
        self._gone = True
        for reply in self._open.values():
            fail_quietly(reply, ActorCrashed(DIED))
        self._open.clear()

    async def check_health(self, period_s: float, timeout_s: float) -> str:
        """Ask again and again; return why the worker is not healthy, once it has failed often enough in a row."""
        failures = 0
        while True:
            await trio.sleep(period_s)
            why = ""
            with trio.move_on_after(timeout_s) as limit:
                try:
                    await self.ask({"do": "health"})
                except HandlerRaised as error:
                    why = str(error)
            if limit.cancelled_caught:
                why = f"no answer within {timeout_s:g} s"
            failures = failures + 1 if why else 0
            if failures == FAILURES_IN_A_ROW:
                return f"check_health failed {failures} times in a row, the last: {why}"
