"""The user's own schema: each rpc is a message to the mailbox that answers for it, found by its full name.

The types are never known here: messages are bytes. All four cardinalities go one way, `converse`. What a worker says of
a call, its status, texts, metadata and details, goes to the client as it is.
What must not live here: the user's code (handlers/rpc), what a graph is, statuses of our own errors (status.py).
"""

from __future__ import annotations

import base64
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
from grpclib import const
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError

from actorserve.actors.exchange import Exchange
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Call, Cardinality, Ending, Initial, Pairs
from actorserve.errors import HandlerRaised, LoadFailed
from actorserve.services.schemas import Schema
from actorserve.services.transport import frames, hpack, values

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream

NEVER = float("inf")
OK = 0
STATUSES = {status.value: status for status in Status}

Ask = Callable[["ServerStream", "bytes | None"], Exchange]
"""Puts the question: the call, and its request where the client does not stream. Raises one of our errors."""


class Raw:
    """A message as the transport takes it: bytes that stay as they are."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @staticmethod
    def FromString(data: bytes) -> bytes:  # noqa: N802  # protobuf's name
        """What comes is its bytes."""
        return data

    def SerializeToString(self) -> bytes:  # noqa: N802  # as above
        """What goes is its bytes."""
        return self.data


# --- schemas -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServicerSchema:
    """What a probe said: the rpcs by full name (`/pkg.Service/Method`), and their descriptors for reflection."""

    services: tuple[str, ...]
    methods: Mapping[str, Cardinality]
    described: Schema = field(compare=False)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> ServicerSchema:
        """Read a probe's answer; LoadFailed for what makes no sense."""
        try:
            services = tuple(str(name) for name in said["services"])
            methods = {str(path): Cardinality(number) for path, number in said["methods"].items()}
            files = [base64.b64decode(text) for text in said["files"]]
            described = Schema(services, files)
        except Exception as error:  # noqa: BLE001  # protobuf raises what it likes; all of it is the user's code's
            raise LoadFailed(f"its schema makes no sense: {type(error).__name__}: {error}") from None
        return cls(services, methods, described)


class Routes:
    """A grpclib service whose methods are those of a schema: what GrpcServer takes."""

    def __init__(self, schema: ServicerSchema, ask: Ask) -> None:
        self.schema = schema
        self._mapping = {path: handler_of(cardinality, ask) for path, cardinality in schema.methods.items()}

    def __mapping__(self) -> Mapping[str, Handler]:
        return self._mapping


def handler_of(cardinality: Cardinality, ask: Ask) -> Handler:
    """The transport's handler of one rpc."""

    async def serve(stream: ServerStream) -> None:
        await converse(stream, ask)

    return Handler(serve, _CARDINALITIES[cardinality], Raw, Raw)


def waiting(settled: trio.Event, find: Callable[[str], Handler | None], unknown: Handler | None = None) -> Handler:
    """A handler for calls that come before the schemas are known: it waits for them, then has the right one go on.

    `unknown`: the one of methods that nobody has.
    """

    async def serve(stream: ServerStream) -> None:
        await settled.wait()
        handler = find(stream.method) or unknown
        if handler is None:
            raise GRPCError(Status.UNIMPLEMENTED, f"unknown method {stream.method}")
        stream.handler = handler
        await handler.func(stream)

    return Handler(serve, const.Cardinality.STREAM_STREAM, Raw, Raw)


def refusing(text: str) -> Handler:
    """A handler for calls of methods that nobody has."""

    async def serve(_stream: ServerStream) -> None:
        raise GRPCError(Status.UNIMPLEMENTED, text)

    return Handler(serve, const.Cardinality.STREAM_STREAM, Raw, Raw)


_CARDINALITIES = {
    Cardinality.UNARY_UNARY: const.Cardinality.UNARY_UNARY,
    Cardinality.UNARY_STREAM: const.Cardinality.UNARY_STREAM,
    Cardinality.STREAM_UNARY: const.Cardinality.STREAM_UNARY,
    Cardinality.STREAM_STREAM: const.Cardinality.STREAM_STREAM,
}
_OURS = {theirs: ours for ours, theirs in _CARDINALITIES.items()}


def asking(mailbox: Callable[[], Mailbox]) -> Ask:
    """Ask a mailbox for the method by its full name. `mailbox` may raise NoSuchModel."""

    def ask(stream: ServerStream, data: bytes | None) -> Exchange:
        return mailbox().ask(call_of(stream, data), NEVER if stream.expires is None else stream.expires)

    return ask


def call_of(stream: ServerStream, data: bytes | None, method: str | None = None) -> Call:
    """The message for a call. `method`: default its full name, with which the worker knows it."""
    metadata = stream.metadata  # its own, which nobody reads again
    if stream.token is not None:
        metadata.popall("authorization", None)  # no user code sees a token
    if (agent := stream.user_agent) is not None:
        metadata.add("user-agent", agent)
    return Call(
        stream.method if method is None else method,
        _OURS[stream.handler.cardinality],
        data,
        metadata,
        stream.request_id,
        stream.peer,
        auth_of(stream),
    )


def auth_of(stream: ServerStream) -> bytes:
    """What is known of the client, in the words of gRPC's auth context, as JSON; nothing where nothing is."""
    if not stream.is_secure:
        return b""
    identity = stream.identity
    if identity is None:
        return _SECURE
    known = {
        "transport_security_type": ["ssl"],
        "security_level": ["TSI_PRIVACY_AND_INTEGRITY"],
        "x509_common_name": [identity.common_name],
        "x509_subject_alternative_name": [name.partition(":")[2] for name in identity.names],
        "x509_names": list(identity.names),
    }
    return json.dumps({key: values for key, values in known.items() if values}).encode()


_SECURE = b'{"transport_security_type": ["ssl"], "security_level": ["TSI_PRIVACY_AND_INTEGRITY"]}'

# --- a call --------------------------------------------------------------------------------------


async def converse(stream: ServerStream, ask: Ask, trailers: Pairs = ()) -> None:
    """Carry one call through. `trailers` are added to those of its ending. Raises one of our errors."""
    if stream.handler.cardinality.client_streaming:
        await _converse_streaming(stream, ask, trailers)
        return
    exchange = ask(stream, await stream.recv_message())
    try:
        await _answer(stream, exchange, trailers)
    finally:
        exchange.abandon()


async def _converse_streaming(stream: ServerStream, ask: Ask, trailers: Pairs) -> None:
    exchange = ask(stream, None)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, stream, exchange)
            await _answer(stream, exchange, trailers)
            nursery.cancel_scope.cancel()
    finally:
        exchange.abandon()


async def _pump(stream: ServerStream, exchange: Exchange) -> None:
    """What the client streams."""
    while (data := await stream.recv_message()) is not None:
        if not await exchange.send(data):
            return
    exchange.end()


async def _answer(stream: ServerStream, exchange: Exchange, trailers: Pairs) -> None:
    """What the worker says, in its order, then its ending."""
    while items := await exchange.receive():
        size = count = 0
        for item in items:
            if isinstance(item, Initial):
                await _send_initial(stream, item)
                continue
            await stream.send_message(Raw(item))
            size += len(item)
            count += 1
        if count:
            await stream.drained()
            exchange.taken(count, size)
    assert exchange.ending is not None  # noqa: S101  # narrows the type: it ended well
    await _end(stream, exchange.ending, trailers)


async def _send_initial(stream: ServerStream, said: Initial) -> None:
    if said.encoding:
        stream.reply_encoding = said.encoding
    if said.metadata or not said.encoding:
        try:
            await stream.send_initial_metadata(metadata=said.metadata)
        except (TypeError, ValueError) as error:
            raise HandlerRaised(type(error).__name__, f"initial metadata: {error}") from None


async def _end(stream: ServerStream, ending: Ending, more: Pairs) -> None:
    if ending.reset:
        stream.abort(frames.NO_ERROR)  # what grpclib resets with; the worker says so for its `cancel` alone
        return
    if ending.data is not None:
        await stream.send_message(Raw(ending.data))
    if not (ending.status or ending.details or ending.trailers or ending.rich or more):
        return  # the transport's quickest way: OK, and nothing else
    if ending.status == OK and ending.data is None and not stream.handler.cardinality.server_streaming:
        raise HandlerRaised("ValueError", "the call ended with OK and without an answer")
    trailers = (*ending.trailers, *more)
    try:
        extra = stream.block_of(trailers)
    except (TypeError, ValueError) as error:
        raise HandlerRaised(type(error).__name__, f"trailing metadata: {error}") from None
    status = STATUSES.get(ending.status, Status.UNKNOWN)
    if ending.rich:
        extra += hpack.literal(b"grpc-status-details-bin", b64encode(ending.rich).rstrip(b"="))
    if status is Status.OK and ending.details:
        extra += hpack.literal(b"grpc-message", values.encode_text(ending.details))
    stream.end(status, ending.details or None, None, extra)
