"""A call of a deployment in the worker: a task of its own, in the context of its request, ended once.

What lives here: `Calls`, which begins, runs and cancels calls of one method, whoever they come from. What must not:
what the answer is (handle_calls.py, client_calls.py), how the user's code is run (instance.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from actorserve.actors.messages import Ending
from actorserve.handlers.rpc.call import RpcCall
from actorserve.handlers.rpc.endings import CANCELLED, INTERNAL, text_of
from actorserve.handlers.rpc.instance import Instance
from actorserve.handlers.rpc.links import EngineLink
from actorserve.serve.context import RequestContext, entered

Answer = Callable[[RpcCall, RequestContext], Awaitable[Ending]]
"""Answers one call; its ending. What it raises is INTERNAL."""


@dataclass(slots=True)
class Replica:
    """Who answers: the user's instance, and of which deployment it is. `link`: None while it loads."""

    application: str
    deployment: str
    instance: Instance
    link: EngineLink | None = None


def request_of(call: RpcCall, application: str, deployment: str, method: str) -> RequestContext:
    """What user code may ask about a call."""
    opened = call.opened
    said = {key: value for key, value in opened.metadata if isinstance(value, str)}
    return RequestContext(
        request_id=opened.request_id,
        application=application,
        deployment=deployment,
        method=method,
        multiplexed_model_id=said.get("multiplexed_model_id", ""),
        session_id=said.get("session_id", ""),
        traceparent=said.get("traceparent", ""),
        deadline=opened.deadline_ns / 1e9 if opened.deadline_ns else None,
    )


class Calls:
    """Runs calls of one method, each in a task of its own."""

    def __init__(self, replica: Replica, name: str, answer: Answer) -> None:
        self._replica = replica
        self._name = name
        self._answer = answer

    def begin(self, call: RpcCall) -> None:
        """Begin one, on the loop."""
        replica = self._replica
        asked = request_of(call, replica.application, replica.deployment, self._name)
        link, model = replica.link, asked.multiplexed_model_id
        if model and link is not None:
            link.begin(model)
            asked.scope.at_end(lambda: link.end(model))
        task = call.spawn(self._run(call, asked))  # it ends the call where it was cancelled before its first step
        task.add_done_callback(lambda _task: asked.scope.end())

        def cancel() -> None:
            asked.scope.cancel()
            task.cancel()

        call.on_cancel = cancel

    async def _run(self, call: RpcCall, asked: RequestContext) -> None:
        try:
            with entered(asked):
                ending = await self._answer(call, asked)
        except asyncio.CancelledError as error:
            if call.cancelled:
                call.end(Ending(CANCELLED, "the caller has gone"))
                raise
            ending = Ending(INTERNAL, text_of(error))  # the user's own: nobody has cancelled this call
        except BaseException as error:  # noqa: BLE001  # the user's: SystemExit must not end the replica either
            ending = Ending(INTERNAL, text_of(error))
        call.end(ending)


def senders(
    call: RpcCall, packed: Callable[[Any], bytes]
) -> tuple[Callable[[Any], Awaitable[None]], Callable[[Any], bool]]:
    """What sends the items of a stream, for `Instance.stream`: on the loop, and in a thread."""

    async def send(item: Any) -> None:
        data = packed(item)
        await call.room()
        call.send(data)

    def send_blocking(item: Any) -> bool:
        data = packed(item)
        if call.room_blocking():
            call.send(data)
        return call.is_active

    return send, send_blocking
