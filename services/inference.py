"""InferenceAPIsService: TorchServe's inference contract, each call a message to a model's mailbox.

What must not live here: fields (codec.py), statuses (status.py), who runs the model (actors/).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from actorserve.actors.directory import Directory
from actorserve.actors.messages import Answer, Generate, Infer, Metadata, Observe, State
from actorserve.actors.supervisor import Supervisor
from actorserve.errors import HandlerRaised, HandlerStatus
from actorserve.proto.inference_grpc import InferenceAPIsServiceBase
from actorserve.proto.inference_pb2 import PredictionResponse, TorchServeHealthResponse
from actorserve.services.access import check_model, metadata_for
from actorserve.services.codec import inputs_of, model_of
from actorserve.services.compat import About
from actorserve.services.sequences import Conversation, InBand
from actorserve.services.status import status_bytes

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream

NEVER = float("inf")


def deadline_of(stream: ServerStream) -> float:
    """When the call ends by itself, on trio's clock; infinity for never."""
    return NEVER if stream.expires is None else stream.expires


async def _send_trailers(stream: ServerStream, trailers: Metadata) -> None:
    """What the handler set; a key or a value that gRPC does not take is the handler's fault."""
    if trailers:
        try:
            await stream.send_trailing_metadata(metadata=trailers)
        except (TypeError, ValueError) as error:
            raise HandlerRaised(type(error).__name__, f"set_trailer: {error}") from None


class InferenceService(InferenceAPIsServiceBase):  # type: ignore[misc]  # generated without types
    """See the module's docstring. `in_band`: how an error reads inside StreamPredictions2.

    `as_torchserve`: a status that a handler set beside its answer is not told, as over TorchServe's gRPC.
    """

    def __init__(
        self,
        directory: Directory,
        supervisor: Supervisor,
        *,
        in_band: InBand = status_bytes,
        as_torchserve: bool = False,
    ) -> None:
        self._directory = directory
        self._supervisor = supervisor
        self._in_band = in_band
        self._as_torchserve = as_torchserve

    async def Ping(self, stream: ServerStream) -> None:  # noqa: N802  # the rpc's name
        """Healthy: every model's default version has its minimum of READY workers."""
        await stream.recv_message()
        tree = await self._supervisor.ask(Observe()).wait()
        healthy = all(
            sum(replica.state is State.READY for replica in model.replicas) >= model.spec.workers_min
            for model in tree.models
            if model.is_default
        )
        health = json.dumps({"status": "Healthy" if healthy else "Unhealthy"}, indent=2)
        await stream.send_message(TorchServeHealthResponse(health=health))

    async def Predictions(self, stream: ServerStream) -> None:  # noqa: N802
        """One question, one answer. Cancelling abandons the question wherever it is."""
        request = await stream.recv_message()
        assert request is not None  # noqa: S101  # the transport has refused a unary call without a message
        name, version = model_of(request)
        stream.about = About(name, version)
        check_model(stream, name)
        message = Infer(inputs_of(request), metadata_for(stream), stream.ensure_request_id())
        reply = self._directory.find(name, version).ask(message, deadline_of(stream))
        try:
            answer = await reply.wait()
        except HandlerStatus as error:
            answer = Answer(self._in_spite_of(error))
        finally:
            reply.abandon()
        await stream.send_message(PredictionResponse(prediction=answer.data))
        await _send_trailers(stream, answer.trailers)

    async def StreamPredictions(  # noqa: N802
        self, stream: ServerStream
    ) -> None:
        """One question, many answers. A slow client slows its own generator: credit follows flow control."""
        request = await stream.recv_message()
        assert request is not None  # noqa: S101  # as above
        name, version = model_of(request)
        stream.about = About(name, version)
        check_model(stream, name)
        message = Generate(inputs_of(request), metadata_for(stream), stream.ensure_request_id())
        reply = self._directory.find(name, version).ask(message, deadline_of(stream))
        try:
            while chunks := await reply.receive():
                for chunk in chunks:
                    await stream.send_message(PredictionResponse(prediction=chunk))
                await stream.drained()
                reply.taken(len(chunks), sum(map(len, chunks)))
        except HandlerStatus as error:
            await stream.send_message(PredictionResponse(prediction=self._in_spite_of(error)))
        finally:
            reply.abandon()
        await _send_trailers(stream, reply.trailers)

    def _in_spite_of(self, error: HandlerStatus) -> bytes:
        """The answer that came with a handler's status, where that status is not told; else the error is."""
        if self._as_torchserve and error.answer is not None:
            return error.answer
        raise error

    async def StreamPredictions2(self, stream: ServerStream) -> None:  # noqa: N802
        """Stateful sequences, and questions one after the other: each message has its own reply (sequences.py)."""
        await Conversation(stream, self._directory, self._in_band).run()
