"""The way from a replica to other deployments: a handle's call becomes a call of this worker's.

What lives here: `EngineLink`, and which exception a handle raises for each way a call can end. What must not: pickling.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import count

from actorserve import errors
from actorserve.actors import wire_calls
from actorserve.actors.messages import Cardinality, Ending
from actorserve.handlers.rpc.engine import Engine
from actorserve.handlers.rpc.outgoing import CallFailed, Outgoing
from actorserve.serve.context import OutCall
from actorserve.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
    ServeError,
    gRPCStatusError,
)

CANCELLED, UNIMPLEMENTED = 1, 12
UNAVAILABLE = {
    "ActorCrashed": errors.ActorCrashed.reason,
    "ActorGone": errors.ActorGone.reason,
    "NoWorkers": errors.NoWorkers.reason,
    "Draining": errors.Draining.reason,
    "Unavailable": errors.Unavailable.reason,
    "NoSuchModel": "NO_SUCH_DEPLOYMENT",
}
"""Errors of the server that mean nobody answers, and their reasons in ErrorInfo."""


def raised_of(failed: CallFailed) -> Exception:
    """What a handle raises where the server had a call not answered."""
    text = failed.text
    if failed.error == "Overloaded":
        return BackPressureError(text, float(failed.extra.get("retry_after_s", 0.0)))
    if failed.error == "Expired":
        return errors.Expired(text)
    if failed.error == "Cancelled":
        return RequestCancelledError(text)
    if failed.error in UNAVAILABLE:
        return DeploymentUnavailableError(text, UNAVAILABLE[failed.error])
    return ServeError(f"{failed.error}: {text}")


def raised_by(ending: Ending) -> Exception | None:
    """What a handle raises for a status; None: it is OK."""
    if not ending.status:
        return None
    if ending.status == CANCELLED:
        return RequestCancelledError(ending.details)
    return gRPCStatusError(ending.status, ending.details)


class Answer:
    """The answer to one call."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._over = False

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        try:
            data = await self._outgoing.receive()
        except CallFailed as failed:
            self._over = True
            raise raised_of(failed) from None
        if data is not None:
            return data
        self._over = True
        ending = self._outgoing.ending
        assert ending is not None  # noqa: S101  # narrows the type: receive gave None
        error = raised_by(ending)
        if error is not None:
            raise error
        if ending.data is None:
            raise StopAsyncIteration
        return ending.data

    async def aclose(self) -> None:
        """Cancel it, if it runs."""
        self._over = True
        self._outgoing.cancel()


class EngineLink:
    """See serve.context.Link."""

    def __init__(self, engine: Engine) -> None:
        self.loop = engine.loop
        self._engine = engine
        self._asked: Counter[str] = Counter()
        self._caches: dict[str, tuple[Sequence[str], Sequence[str]]] = {}  # what each holds and loads
        self._turns: dict[int, tuple[str, asyncio.Future[None]]] = {}
        self._numbers = count(1)
        engine.on_may_load = self._begin_turn

    def call(self, call: OutCall) -> Answer:
        """Begin a call, at once."""
        said = dict(call.metadata)
        request_id = str(said.pop("request_id", ""))
        kind = "stream" if call.stream else "one"
        return Answer(
            Outgoing(
                self._engine,
                f"{call.application}:{call.deployment}",
                method=f"handle/{kind}/{call.method}",
                cardinality=Cardinality.UNARY_STREAM if call.stream else Cardinality.UNARY_UNARY,
                data=call.payload,
                metadata=tuple(said.items()),
                deadline_ns=0 if call.deadline is None else int(call.deadline * 1e9),
                request_id=request_id,
            )
        )

    def hold(self, cache: str, held: Sequence[str], loading: Sequence[str]) -> None:
        """Say which models this replica holds and loads, those that calls in hand are for included."""
        self._caches[cache] = held, loading
        self._say()

    def _say(self) -> None:
        held = dict.fromkeys(model for here, _ in self._caches.values() for model in here)
        loading = dict.fromkeys(model for _, coming in self._caches.values() for model in coming)
        loading.update(dict.fromkeys(model for model in self._asked if model not in held))
        wants = [(key, number) for number, (key, _) in self._turns.items()]
        said = wire_calls.Models(list(held), list(loading), self._engine.opened, wants)
        self._engine.post(wire_calls.models(said))

    @contextlib.asynccontextmanager
    async def turn(self, cache: str, model: str) -> AsyncIterator[None]:
        """Have the load of a model to oneself, among all replicas; waits until nobody else loads it."""
        number, begun = next(self._numbers), self.loop.create_future()
        self._turns[number] = f"{cache}/{model}", begun
        self._say()
        try:
            await begun
            yield
        finally:
            del self._turns[number]
            self._say()

    def _begin_turn(self, number: int) -> None:
        _, begun = self._turns.get(number, ("", None))  # it may have been given up meanwhile
        if begun is not None and not begun.done():
            begun.set_result(None)

    def begin(self, model: str) -> None:
        """A call that asks for a model has come."""
        self._asked[model] += 1

    def end(self, model: str) -> None:
        """It has ended. Where its model was never loaded, the server hears that it is not coming."""
        self._asked[model] -= 1
        if not self._asked[model]:
            del self._asked[model]
            if self._caches and not any(model in held for held, _ in self._caches.values()):
                self._say()
