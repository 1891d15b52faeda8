"""A grpclib service, run on the loop as grpclib's own server runs it: the same answers, codes and metadata.

The rules, of grpclib 0.4.9's server (tests/rpc compares):
1. GRPCError is the status, its text and its details; any other exception is UNKNOWN "Internal Server Error", and so is
   a unary method that returned without an answer.
2. The deadline passed while the method ran: DEADLINE_EXCEEDED without a text.
3. `cancel` resets the call; after it, and after trailers, nothing more is sent and what the method raises is dropped.
4. A caller who has gone: the task is cancelled.
What must not live here: grpcio's servicers, frames.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from grpclib.const import Handler, Status
from grpclib.encoding.proto import ProtoCodec, ProtoStatusDetailsCodec
from grpclib.exceptions import GRPCError, ProtocolError
from grpclib.metadata import Deadline
from grpclib.stream import StreamIterator
from multidict import MultiDict

from actorserve.actors.messages import Cardinality, Ending, Pairs
from actorserve.handlers.rpc.call import RpcCall
from actorserve.handlers.rpc.methods import Method, cardinality_of
from actorserve.handlers.rpc.schema import schema_of

log = logging.getLogger("actorserve.rpc")
CODEC = ProtoCodec()
DETAILS = ProtoStatusDetailsCodec()
NEEDS_MESSAGE = "Unary response with OK status requires a single message to be sent"


def cardinality(handler: Handler) -> Cardinality:
    """Who streams in an rpc of grpclib's."""
    found = handler.cardinality
    return cardinality_of(client_streams=found.client_streaming, server_streams=found.server_streaming)


def methods_of(service: Any) -> dict[str, Method]:
    """The rpcs of a service."""
    return {path: _method(path, handler) for path, handler in service.__mapping__().items()}


def schema(service: Any) -> dict[str, Any]:
    """The schema of a class or an object: a mapping needs an object, though not one that was made properly."""
    made = object.__new__(service) if isinstance(service, type) else service
    mapping: Mapping[str, Handler] = made.__mapping__()
    messages = [message for handler in mapping.values() for message in (handler.request_type, handler.reply_type)]
    return schema_of({path: cardinality(handler) for path, handler in mapping.items()}, messages)


def _method(path: str, handler: Handler) -> Method:
    def begin(call: RpcCall) -> None:
        call.spawn(_answer(call, Stream(call, path, handler), handler))

    return Method(cardinality(handler), begin)


class Peer:
    """Who calls, as grpclib's `Peer` says it."""

    def __init__(self, call: RpcCall) -> None:
        self._call = call

    def addr(self) -> tuple[Any, ...] | None:
        """The client's host and port; a path's for a Unix socket."""
        host, _, port = self._call.opened.peer.rpartition(":")
        return (host.strip("[]"), int(port)) if port.isdecimal() else None

    def cert(self) -> dict[str, Any] | None:
        """What the client's certificate says, in the words of `ssl`; None without one."""
        known = json.loads(self._call.opened.auth) if self._call.opened.auth else {}
        names = known.get("x509_common_name")
        if not names:
            return None
        alternative = tuple(
            (kind, name) for kind, _, name in (one.partition(":") for one in known.get("x509_names", ()))
        )
        return {"subject": ((("commonName", names[0]),),), "subjectAltName": alternative}


class Stream(StreamIterator[Any]):
    """What a method gets: grpclib's `server.Stream`, by its shape."""

    def __init__(self, call: RpcCall, path: str, handler: Handler) -> None:
        self._call = call
        self._path = path
        self._handler = handler
        self._initial_done = False
        self._held: bytes | None = None
        self._message_done = False
        self._received = False
        self.trailing_done = False
        self.cancel_done = False
        opened = call.opened
        self.metadata: MultiDict[Any] = MultiDict(pair for pair in opened.metadata if pair[0] != "user-agent")
        agents = [value for key, value in opened.metadata if key == "user-agent"]
        self.user_agent = agents[0] if agents else None
        left = call.time_remaining()
        self.deadline = None if left is None else Deadline.from_timeout(left)
        self.peer = Peer(call)

    async def recv_message(self) -> Any:
        """The next request; None: there are no more."""
        if self._call.opened.data is None:
            data = await self._call.receive()
        else:
            data, self._received = None if self._received else self._call.opened.data, True
        return None if data is None else CODEC.decode(data, self._handler.request_type)

    async def send_initial_metadata(self, *, metadata: Any = None) -> None:
        """Send it now; ProtocolError where it was sent."""
        if self._initial_done:
            raise ProtocolError("Initial metadata was already sent")
        self._initial_done = True
        self._call.send_initial(_pairs(metadata))

    async def send_message(self, message: Any) -> None:
        """Send one answer, once there is room for it."""
        streams = self._handler.cardinality.server_streaming
        if not streams and self._message_done:
            raise ProtocolError("Message was already sent")
        data = CODEC.encode(message, self._handler.reply_type)
        self._initial_done = True
        if streams:
            await self._call.room()
            self._call.send(data)
        else:
            self._held = data
        self._message_done = True

    async def send_trailing_metadata(
        self,
        *,
        status: Status = Status.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: Any = None,
    ) -> None:
        """End the call."""
        if self.trailing_done:
            raise ProtocolError("Trailing metadata was already sent")
        if status is Status.OK and not self._message_done and not self._handler.cardinality.server_streaming:
            raise ProtocolError(NEEDS_MESSAGE)
        rich = b"" if status_details is None else DETAILS.encode(status, status_message, status_details)
        self.trailing_done = True
        self._call.end(Ending(status.value, status_message or "", _pairs(metadata), rich, self._held))

    async def cancel(self) -> None:
        """Reset the call: the client sees CANCELLED."""
        if self.cancel_done:
            raise ProtocolError("Stream was already cancelled")
        self.cancel_done = True
        self._call.end(Ending(Status.CANCELLED.value, reset=True))

    async def finish(self, error: Exception | None) -> None:
        """End as the method left it (rules 1, 3)."""
        if self.trailing_done or self.cancel_done:
            return
        unanswered = not self._handler.cardinality.server_streaming and not self._message_done
        if isinstance(error, GRPCError):
            await self.send_trailing_metadata(
                status=error.status, status_message=error.message, status_details=error.details
            )
        elif error is not None or unanswered:
            if error is None:
                log.error("%s: %s", self._path, NEEDS_MESSAGE)
            await self.send_trailing_metadata(status=Status.UNKNOWN, status_message="Internal Server Error")
        else:
            await self.send_trailing_metadata()


def _pairs(metadata: Any) -> Pairs:
    return tuple(MultiDict(metadata or ()).items())


async def _answer(call: RpcCall, stream: Stream, handler: Handler) -> None:
    failed: Exception | None = None
    try:
        await handler.func(stream)
    except GRPCError as error:
        failed = error
    except Exception as error:
        log.exception("%s: application error", call.opened.method)
        failed = error
    deadline = call.opened.deadline_ns
    if isinstance(failed, asyncio.TimeoutError) and deadline and time.monotonic_ns() >= deadline:
        failed = GRPCError(Status.DEADLINE_EXCEEDED)
    try:
        await stream.finish(failed)
    except Exception:
        log.exception("%s: the ending cannot be sent", call.opened.method)
        if not call.ended:
            call.end(Ending(Status.UNKNOWN.value, "Internal Server Error"))
