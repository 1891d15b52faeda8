"""The way from a replica to other deployments: a handle's call becomes a call of this worker's.

What lives here: `EngineLink`, and which exception a handle raises for each way a call can end. What must not: pickling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from actorserve import errors
from actorserve.actors import wire
from actorserve.actors.messages import Cardinality, Ending
from actorserve.actors.wire import Kind
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
        self._held: Sequence[str] | None = None  # None: nothing is multiplexed
        self._loading: Sequence[str] = ()

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

    def hold(self, held: Sequence[str], loading: Sequence[str]) -> None:
        """Say which models this replica holds and loads, those that calls in hand are for included."""
        self._held, self._loading = held, loading
        coming = dict.fromkeys((*loading, *(model for model in self._asked if model not in held)))
        said = {"held": list(held), "loading": list(coming), "seen": self._engine.opened}
        self._engine.post(wire.note(Kind.MODELS, said))

    def begin(self, model: str) -> None:
        """A call that asks for a model has come."""
        self._asked[model] += 1

    def end(self, model: str) -> None:
        """It has ended. Where its model was never loaded, the server hears that it is not coming."""
        self._asked[model] -= 1
        if not self._asked[model]:
            del self._asked[model]
            if self._held is not None and model not in self._held:
                self.hold(self._held, self._loading)
