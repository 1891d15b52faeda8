"""Short ways to ask a server under test, through actorserve's own channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf import empty_pb2
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve.client import Channel
from actorserve.proto import management_pb2
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.testing import App

ECHO = "actorserve.handlers.echo:Echo"


def models(**tables: dict[str, Any]) -> dict[str, Any]:
    """A configuration of models; without a handler they are echoes."""
    return {"models": {name: {"handler": ECHO, **table} for name, table in tables.items()}}


class Asker:
    """Both services of one server."""

    def __init__(self, inference: Channel, management: Channel) -> None:
        self.inference = InferenceAPIsServiceStub(inference)
        self.management = ManagementAPIsServiceStub(management)

    async def ping(self) -> str:
        """Ping; gives the health."""
        return (await self.inference.Ping(empty_pb2.Empty())).health

    async def predict(
        self,
        model: str,
        data: bytes = b"hello",
        *,
        version: str = "",
        timeout: float | None = None,  # noqa: ASYNC109  # the call's own deadline
        **inputs: bytes,
    ) -> bytes:
        """Predictions; gives the prediction."""
        request = PredictionsRequest(model_name=model, model_version=version, input={"data": data, **inputs})
        return (await self.inference.Predictions(request, timeout=timeout)).prediction

    async def stream(self, model: str, data: bytes = b"hello", **inputs: bytes) -> list[bytes]:
        """StreamPredictions; gives all predictions."""
        request = PredictionsRequest(model_name=model, input={"data": data, **inputs})
        return [answer.prediction for answer in await self.inference.StreamPredictions(request)]

    async def manage(
        self,
        rpc: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # as above
        **fields: Any,
    ) -> str:
        """One of the management rpcs; gives its text."""
        request = getattr(management_pb2, f"{rpc}Request")(**fields)
        return (await getattr(self.management, rpc)(request, timeout=timeout)).msg


@asynccontextmanager
async def asker(app: App) -> AsyncIterator[Asker]:
    """Channels to both listeners, in memory."""
    async with app.channel("inference") as inference, app.channel("management") as management:
        yield Asker(inference, management)


class Refused:
    """What `refused` caught."""

    error: GRPCError

    @property
    def message(self) -> str:
        """The status message."""
        return self.error.message or ""

    @property
    def reason(self) -> str:
        """The reason of its ErrorInfo."""
        return next(detail.reason for detail in self.error.details or () if hasattr(detail, "reason"))


@asynccontextmanager
async def refused(status: Status, text: str = "") -> AsyncIterator[Refused]:
    """The block raises this status, with this text in its message."""
    caught = Refused()
    with pytest.raises(GRPCError) as error:
        yield caught
    caught.error = error.value
    assert (error.value.status, text in caught.message) == (status, True), error.value
    assert caught.message
