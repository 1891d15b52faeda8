"""The ports of drivers: each listens on loopback while its application runs.

    bind: every port that an application wants is listened on, or none is -> serve -> close: calls in hand end
    an application that changes: a port that it had already is handed over, without a moment at which nobody listens

What must not live here: replicas, which application runs (apps.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import trio

from actorserve.actors.applications import Application
from actorserve.actors.mailbox import Mailbox
from actorserve.errors import StartFailed
from actorserve.listening import address_of, close_all, open_address
from actorserve.services import status
from actorserve.services.applications import AppRoutes, Board, RayService
from actorserve.services.reflection import AlphaReflectionService, ReflectionService
from actorserve.services.schemas import Schema
from actorserve.services.servicers import ServicerSchema
from actorserve.services.transport.server import GrpcServer

HOST = "127.0.0.1"


@dataclass(slots=True)
class Port:
    """A driver's own listener. `asked`: the number that it wants; `number`: the one that it has."""

    asked: int
    number: int
    server: GrpcServer
    listeners: list[trio.SocketListener]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Ports:
    """See the module's docstring."""

    def __init__(self, board: Board, find: Callable[[str], Mailbox]) -> None:
        """`find` gives the mailbox of a model by its name, or NoSuchModel."""
        self.used: set[int] = set()  # by the file's listeners, which serve what a driver there would
        self._board = board
        self._find = find
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def bind(
        self,
        application: Application,
        drivers: Mapping[str, ServicerSchema],
        before: Mapping[str, Port] = MappingProxyType({}),
    ) -> dict[str, Port]:
        """Listen on the ports of the drivers; nobody accepts yet. StartFailed: one cannot be had, and none is.

        A port that one of `before`, the application's own until now, has is shared with it.
        """
        made: dict[str, Port] = {}
        old = dict(before)
        try:
            for name, schema in drivers.items():
                number = port_of(application, name)
                if number is None or number in self.used:
                    continue  # the file's own listener serves it
                listeners = await self._listen(application, name, number, old)
                bound = int(address_of(listeners[0]).rpartition(":")[2])
                made[name] = Port(number, bound, self._server(application.model(name), schema), listeners)
        except BaseException:
            self.release(made)
            raise
        return made

    async def _listen(
        self, application: Application, name: str, number: int, old: dict[str, Port]
    ) -> list[trio.SocketListener]:
        if number:
            shared = next((one for one, port in old.items() if number == port.number), None)
        else:
            shared = name if name in old and not old[name].asked else None
        if shared is not None:
            return [trio.SocketListener(one.socket.dup()) for one in old.pop(shared).listeners]
        try:
            return await open_address(f"driver {name}", f"{HOST}:{number}")
        except StartFailed as error:
            why = str(error).partition(": ")[2].partition(";")[0]
            raise StartFailed(f"application {application.name}: driver {name}: {why}") from None

    def _server(self, model: str, schema: ServicerSchema) -> GrpcServer:
        schemas: list[Schema] = [schema.described]
        ray = RayService(self._board)
        reflection = (ReflectionService(schemas), AlphaReflectionService(schemas))
        schemas.append(Schema.of([ray, *reflection]))
        routes = AppRoutes(schema, lambda _stream: self._find(model), status.translate)
        return GrpcServer([routes, ray, *reflection], translate=status.translate)

    def serve(self, ports: Mapping[str, Port]) -> None:
        """Accept on them from now on."""
        assert self._nursery is not None  # noqa: S101  # run() has begun
        for port in ports.values():
            self._nursery.start_soon(_serve, port)

    @staticmethod
    def release(ports: Mapping[str, Port]) -> None:
        """Close ports that were never served."""
        for port in ports.values():
            close_all(port.listeners)

    @staticmethod
    def close(port: Port, grace_s: float) -> None:
        """Accept no more; calls in hand have so long to end."""
        port.server.drain()
        port.scope.deadline = min(port.scope.deadline, trio.current_time() + grace_s)


def port_of(application: Application, name: str) -> int | None:
    """The port that a driver wants; None: it wants none."""
    return next((one.port for one in application.deployments if one.name == name), None)


async def _serve(port: Port) -> None:
    with port.scope:
        await port.server.serve(port.listeners)
