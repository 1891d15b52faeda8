"""gRPC on trio: accepts connections, serves grpclib's service objects on them, drains.

What lives here: `GrpcServer` and the doors `Limits` and `CallRecord`.
What must not: anything of one connection (server_connection.py) or one call (server_stream.py).

Rules
1. A service is anything with `__mapping__()`: path -> grpclib.const.Handler.
2. A connection's faults and bugs end that connection, never the server.
3. `drain` is synchronous: it says GOAWAY everywhere and stops accepting; `serve` returns when the last call has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
import trio
from grpclib.const import Handler
from grpclib.exceptions import GRPCError

from actorserve.services.transport.server_connection import CallRecord, Limits, OnEnd, ServerConnection, Translate
from actorserve.services.transport.server_stream import ServerStream, TrioDeadline

__all__ = ["CallRecord", "GrpcServer", "HasMapping", "Limits", "ServerStream", "Statistics", "TrioDeadline"]

log = structlog.get_logger(__name__)


class HasMapping(Protocol):
    """A grpclib service."""

    def __mapping__(self) -> Mapping[str, Handler]:
        """Give the handlers by path."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the server has in hand now, and has had."""

    connections: int
    calls: int
    connections_total: int
    draining: bool


def _no_translation(_error: Exception) -> GRPCError | None:
    return None


class GrpcServer:
    """Serves one set of services; any number of listeners and connections."""

    def __init__(
        self,
        services: Iterable[HasMapping],
        *,
        limits: Limits | None = None,
        translate: Translate = _no_translation,
        on_end: OnEnd | None = None,
    ) -> None:
        self._handlers = {
            path.encode(): (path, handler) for service in services for path, handler in service.__mapping__().items()
        }
        self._limits = limits or Limits()
        self._translate = translate
        self._on_end = on_end
        self._connections: set[ServerConnection] = set()
        self._connections_total = 0
        self._accepting: set[trio.CancelScope] = set()
        self._draining = False

    async def serve_connection(self, stream: trio.abc.Stream, peer: str = "") -> None:
        """Serve one connection until it ends; close the stream. Raises nothing for what a peer did."""
        connection = ServerConnection(stream, peer, self._handlers, self._limits, self._translate, self._on_end)
        self._connections.add(connection)
        self._connections_total += 1
        if self._draining:
            connection.drain()
        try:
            await connection.run()
        except Exception:  # rule 2
            log.exception("connection failed", peer=peer)
        finally:
            self._connections.discard(connection)

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[Any]],
        *,
        task_status: trio.TaskStatus[Sequence[trio.abc.Listener[Any]]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled, or until drained. Running out of descriptors makes it pause, not end.

        The listeners are closed on the way out.
        """
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                self._accepting.add(scope)
                if self._draining:
                    scope.cancel()
                try:
                    await trio.serve_listeners(
                        self._accepted, list(listeners), handler_nursery=nursery, task_status=task_status
                    )
                finally:
                    self._accepting.discard(scope)

    async def _accepted(self, stream: trio.abc.Stream) -> None:
        await self.serve_connection(stream, _peer_of(stream))

    def drain(self) -> None:
        """Stop accepting, tell every client to go elsewhere, and let the calls in hand end."""
        self._draining = True
        for scope in self._accepting:
            scope.cancel()
        for connection in self._connections:
            connection.drain()

    def statistics(self) -> Statistics:
        """Give the present numbers."""
        return Statistics(
            connections=len(self._connections),
            calls=sum(len(connection.calls) for connection in self._connections),
            connections_total=self._connections_total,
            draining=self._draining,
        )


def _peer_of(stream: trio.abc.Stream) -> str:
    """Give host:port, or unix: where the client has no address."""
    if not isinstance(stream, trio.SocketStream):
        return ""
    try:
        name = stream.socket.getpeername()
    except OSError:
        return ""
    if not isinstance(name, tuple):
        return "unix:"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
