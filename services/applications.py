"""Calls to applications: which one a call means, and what a script asks of its server.

What lives here: `Board` (the applications that take calls), `AppRoutes` (rpcs of schemas that applications answer),
Ray's own service (Healthz, ListApplications), and the private service of `serve.run`. What must not: what an
application is made of (actors/applications.py), starting one (apps.py), the user's code.

Rules (docs/adr/0010-which-application.md)
1. The metadata `application` names it; given twice, the last one counts; empty, it is not set.
2. With one application, a call that names none is its. On listeners with `compatibility = "ray"` so is a call that
   names another, as Ray's proxy has it; elsewhere that is NOT_FOUND.
3. Every call has a request id: the client's (`request_id`, `x-request-id`), or one that is made. It goes to the
   application and comes back in the trailers, however the call ends.
4. A path that does not begin with "/" is nobody's: what handles call has such names.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import trio
from grpclib.const import Handler
from grpclib.exceptions import GRPCError

from actorserve.actors.exchange import Exchange
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Call, Cardinality, Initial, Metadata
from actorserve.errors import BadInput, Draining, Expired, NoSuchApplication
from actorserve.proto.applications_grpc import ApplicationsBase
from actorserve.proto.applications_pb2 import (
    CallResponse,
    DeleteResponse,
    DeployResponse,
    StatusResponse,
)
from actorserve.proto.ray_serve_grpc import RayServeAPIServiceBase
from actorserve.proto.ray_serve_pb2 import HealthzResponse, ListApplicationsResponse
from actorserve.services.access import check_model
from actorserve.services.servicers import NEVER, STATUSES, ServicerSchema, call_of, converse, handler_of

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream

APPLICATION = "application"
REQUEST_ID = "request_id"
LAST_BYTES_S = 5.0
"""Seconds that a client has to take what is queued when its call's deadline has passed."""
Translate = Callable[[Exception, "ServerStream"], GRPCError | None]
Pick = Callable[["ServerStream"], Mailbox]


@dataclass(frozen=True, slots=True)
class Taken:
    """An application that takes calls. `mailbox`: its ingress deployment's; may raise NoSuchModel."""

    name: str
    ingress: str
    mailbox: Callable[[], Mailbox]


class Board:
    """The applications by name."""

    def __init__(self) -> None:
        self.taken: dict[str, Taken] = {}
        self.draining = False
        self.settled = trio.Event()  # once those of the file are known; until then, calls wait

    def names(self) -> list[str]:
        """All of them, as they came."""
        return list(self.taken)

    def pick(self, metadata: Any, *, lenient: bool) -> Taken:
        """Which application a call means (rules 1 and 2); NoSuchApplication."""
        return choose(self.taken, named_in(metadata), lenient=lenient)

    def picking(self, *, lenient: bool) -> Pick:
        """What finds the mailbox of a call, for a listener. NotAllowed: its token is for other models."""

        def pick(stream: ServerStream) -> Mailbox:
            taken = self.pick(stream.metadata, lenient=lenient)
            check_model(stream, taken.name)
            if lenient:
                stream.about = taken  # for what Ray says of an ingress that has failed
            return taken.mailbox()

        return pick


def named_in(metadata: Any) -> str:
    """The application that a call's metadata names; empty: none."""
    found = metadata.getall(APPLICATION, []) if hasattr(metadata, "getall") else [metadata.get(APPLICATION, "")]
    return str(found[-1]) if found else ""


def choose(taken: Mapping[str, Taken], name: str, *, lenient: bool) -> Taken:
    """See `Board.pick`. Pure."""
    if len(taken) == 1 and (lenient or not name):
        return next(iter(taken.values()))
    found = taken.get(name)
    if found is None:
        raise NoSuchApplication(name, sorted(taken))
    return found


class AppRoutes:
    """A grpclib service of the rpcs of a schema, answered by whichever application a call means."""

    def __init__(
        self, schema: ServicerSchema, pick: Pick, translate: Translate, settled: trio.Event | None = None
    ) -> None:
        """Calls wait for `settled`."""
        self.schema = schema
        self._settled = settled
        self._pick = pick
        self._translate = translate
        self._mapping = {path: self._handler(cardinality) for path, cardinality in schema.methods.items()}

    def __mapping__(self) -> Mapping[str, Handler]:
        return self._mapping

    def _handler(self, cardinality: Cardinality) -> Handler:
        plain = handler_of(cardinality, self._ask)
        return Handler(self._serve, plain.cardinality, plain.request_type, plain.reply_type)

    def _ask(self, stream: ServerStream, data: bytes | None) -> Exchange:
        return self._pick(stream).ask(call_of(stream, data), NEVER if stream.expires is None else stream.expires)

    async def _serve(self, stream: ServerStream) -> None:
        """Carry a call through. Its deadline ends here, so that the id is in the trailers then, too (rule 3)."""
        id, expires = stream.ensure_request_id(), NEVER if stream.expires is None else stream.expires
        stream.scope.deadline = math.inf
        try:
            with trio.move_on_at(expires) as limit:
                if self._settled is not None and not self._settled.is_set():
                    await self._settled.wait()
                await converse(stream, self._ask, ((REQUEST_ID, id),))
            if limit.cancelled_caught:
                raise Expired("the deadline passed")
        except Exception as error:
            known = self._translate(_single(error), stream)
            if known is None or stream.status is not None:
                raise
            await stream.send_trailing_metadata(
                status=known.status,
                status_message=known.message,
                status_details=known.details,
                metadata={REQUEST_ID: id},
            )
        finally:
            stream.scope.deadline = max(expires, trio.current_time() + LAST_BYTES_S)


def _single(error: Exception) -> Exception:
    """The one exception in groups of one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class RayService(RayServeAPIServiceBase):  # type: ignore[misc]  # generated, without types
    """What Ray's proxy says of itself."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def Healthz(self, stream: Any) -> None:  # noqa: N802  # the rpc's name
        """Whether calls are taken."""
        await self._answer(stream, HealthzResponse(message="success"))

    async def ListApplications(self, stream: Any) -> None:  # noqa: N802  # the rpc's name
        """The names of the applications."""
        await self._answer(stream, ListApplicationsResponse(application_names=self._board.names()))

    async def _answer(self, stream: Any, message: Any) -> None:
        await stream.recv_message()
        if self._board.draining:
            raise Draining("the server is shutting down")
        await stream.send_message(message)


# --- the script's private service -------------------------------------------------------------------


class Manager(Protocol):
    """What starts and ends applications: sent_apps.py."""

    async def deploy_sent(self, request: Any) -> str:
        """Start what a script has sent; the name of its ingress, once it is READY. LoadFailed and others."""

    async def delete(self, name: str) -> None:
        """End an application; returns when it is gone. NoSuchApplication."""

    def status_json(self) -> str:
        """How all of them are."""

    def mailbox_of(self, application: str, deployment: str) -> Mailbox:
        """The mailbox of a deployment; empty: of the ingress. NoSuchApplication, NoSuchModel."""


class ApplicationsService(ApplicationsBase):  # type: ignore[misc]  # as above
    """What a script asks: to run, to end, to say how things are, to call."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def Deploy(self, stream: Any) -> None:  # noqa: N802  # the rpc's name
        """Start an application."""
        request = await stream.recv_message()
        if not request.name:
            raise BadInput("name", "an application needs one")
        await stream.send_message(DeployResponse(ingress=await self._manager.deploy_sent(request)))

    async def Delete(self, stream: Any) -> None:  # noqa: N802  # the rpc's name
        """End one. Nothing to do, and no error, where it is not there."""
        request = await stream.recv_message()
        with contextlib.suppress(NoSuchApplication):
            await self._manager.delete(request.name)
        await stream.send_message(DeleteResponse())

    async def Status(self, stream: Any) -> None:  # noqa: N802  # the rpc's name
        """How all are."""
        await stream.recv_message()
        await stream.send_message(StatusResponse(json=self._manager.status_json()))

    async def Call(self, stream: Any) -> None:  # noqa: N802  # the rpc's name
        """One call of a handle."""
        request = await stream.recv_message()
        mailbox = self._manager.mailbox_of(request.application, request.deployment)
        metadata: Metadata = {
            key: getattr(request, key) for key in ("multiplexed_model_id", "session_id") if getattr(request, key)
        }
        kind = "stream" if request.stream else "one"
        cardinality = Cardinality.UNARY_STREAM if request.stream else Cardinality.UNARY_UNARY
        call = Call(
            f"handle/{kind}/{request.method}", cardinality, request.payload, metadata, stream.ensure_request_id()
        )
        exchange = mailbox.ask(call, NEVER if stream.expires is None else stream.expires)
        try:
            await _hand_back(stream, exchange)
        finally:
            exchange.abandon()


async def _hand_back(stream: Any, exchange: Exchange) -> None:
    while items := await exchange.receive():
        for item in items:
            if not isinstance(item, Initial):
                await stream.send_message(CallResponse(item=item))
        sizes = [len(item) for item in items if not isinstance(item, Initial)]
        await stream.drained()
        exchange.taken(len(sizes), sum(sizes))
    ending = exchange.ending
    assert ending is not None  # noqa: S101  # narrows the type: it ended well
    if ending.status:
        raise GRPCError(STATUSES[ending.status], ending.details)
    if ending.data is not None:
        await stream.send_message(CallResponse(item=ending.data))
