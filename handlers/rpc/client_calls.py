"""A client's calls of a deployment, by their rpc's full name.

What lives here: reading the request by the rpc's schema, handing it to the method, packing what that gives. What must
not: which rpcs there are (deployment_schema.py), how a failed call ends (endings.py).

Rules of a client's call, where Ray has any (facts: its recorded answers; docs/migrating-from-ray-serve.md)
1. A parameter named `grpc_context` gets a RayServegRPCContext. A code that it sets ends the call, also when the method
   returns; when it raises, the details are those that were set, else the exception's text. Trailers go in either case.
2. A method that raises without a code, or with OK, is INTERNAL with the exception's type and text; one of ours has its
   own code.
3. A request that does not decode is INVALID_ARGUMENT. A method that the application lacks is UNIMPLEMENTED.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from actorserve import errors
from actorserve.actors.messages import Cardinality, Ending
from actorserve.handlers.rpc.call import CallCancelled, RpcCall
from actorserve.handlers.rpc.deployment_calls import Calls, Replica, senders
from actorserve.handlers.rpc.endings import INVALID_ARGUMENT, failed, text_of, trailers_of
from actorserve.handlers.rpc.instance import Instance, name_of
from actorserve.handlers.rpc.methods import Method
from actorserve.handlers.rpc.peers import auth_of, peer_of
from actorserve.serve.context import RequestContext
from actorserve.serve.grpc_util import RayServegRPCContext, gRPCInputStream, status_number

Decode = Callable[[bytes], Any]
_END = object()
"""Behind the last message of a client that streams."""


def rpc_method(
    replica: Replica,
    path: str,
    method: Callable[..., Any],
    cardinality: Cardinality,
    decode: Decode,
    *,
    prediction: bool = False,
) -> Method:
    """What a client's call of one rpc does. `prediction`: as in `Rpc`."""
    rpc = Rpc(replica.instance, method, cardinality, decode, prediction=prediction)
    return Method(cardinality, Calls(replica, path.rpartition("/")[2], rpc.answer).begin)


class Rpc:
    """Answers calls of one rpc. `prediction`: the method takes the inputs and gives bytes (Ray's Predict)."""

    def __init__(
        self,
        instance: Instance,
        method: Callable[..., Any],
        cardinality: Cardinality,
        decode: Decode,
        *,
        prediction: bool = False,
    ) -> None:
        self._instance = instance
        self._method = method
        self._cardinality = cardinality
        self._decode = decode
        self._prediction = prediction
        self._wants_context = _has_context(method)

    async def answer(self, call: RpcCall, asked: RequestContext) -> Ending:
        """Answer one, by the module's rules."""
        said = grpc_context(call)
        kwargs = {"grpc_context": said} if self._wants_context else {}
        try:
            request = self._request(call)
        except Exception as error:  # noqa: BLE001  # protobuf's, or the user's own
            return Ending(INVALID_ARGUMENT, f"the request cannot be read: {text_of(error)}", trailers_of(said))
        try:
            data = await self._answered(call, request, kwargs)
        except Exception as error:  # noqa: BLE001  # the user's
            return failed(error, said)
        code = 0 if said.code() is None else status_number(said.code())
        return Ending(code, said.details() or "", trailers_of(said), data=None if code else data)

    def _request(self, call: RpcCall) -> Any:
        if self._cardinality.client_streams:
            return input_stream(call, self._decode)
        request = self._decode(call.opened.data or b"")
        return dict(request.input) if self._prediction else request

    async def _answered(self, call: RpcCall, request: Any, kwargs: Mapping[str, Any]) -> bytes | None:
        if not self._cardinality.server_streams:
            return self._packed(await self._instance.call(self._method, (request,), kwargs))
        send, send_blocking = senders(call, self._packed)
        await self._instance.stream(self._method, (request,), kwargs, send=send, send_blocking=send_blocking)
        return None

    def _packed(self, answer: Any) -> bytes:
        if self._prediction:
            from actorserve.proto.ray_serve_pb2 import PredictResponse  # noqa: PLC0415  # only where it is called

            return bytes(PredictResponse(prediction=answer).SerializeToString())
        if not hasattr(answer, "SerializeToString"):
            raise TypeError(f"{name_of(self._method)} must give a protobuf message; it gave {type(answer).__name__}")
        return bytes(answer.SerializeToString())


def input_stream(call: RpcCall, decode: Decode) -> gRPCInputStream:
    """What a client streams, decoded. It raises BadInput for what is no message."""

    def read(data: bytes | None) -> Any:
        if data is None:
            return _END
        try:
            return decode(data)
        except Exception as error:
            raise errors.BadInput("request", f"a message of the stream cannot be read: {text_of(error)}") from error

    async def take() -> Any:
        return read(await call.receive())

    def take_blocking() -> Any:
        try:
            return read(call.receive_blocking())
        except CallCancelled:
            return _END

    return gRPCInputStream(take, end=_END, take_blocking=take_blocking, is_gone=lambda: call.cancelled)


def _has_context(method: Callable[..., Any]) -> bool:
    try:
        return "grpc_context" in inspect.signature(method).parameters
    except (TypeError, ValueError):
        return False


def grpc_context(call: RpcCall) -> RayServegRPCContext:
    """What a method is given of the call."""
    opened = call.opened
    return RayServegRPCContext(
        metadata=opened.metadata,
        peer=peer_of(opened.peer),
        request_id=opened.request_id,
        auth=auth_of(opened.auth),
        deadline=call.time_remaining,
    )
