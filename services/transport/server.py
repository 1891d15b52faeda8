"""gRPC on trio: accepts connections, serves grpclib's service objects on them, drains.

What lives here: `GrpcServer` and the doors `Limits` and `CallRecord`.
What must not: anything of one connection (server_connection.py) or one call (server_stream.py).

Rules
1. A service is anything with `__mapping__()`: path -> grpclib.const.Handler.
2. A connection's faults and bugs end that connection, never the server.
3. Beyond max_connections one that is idle makes room, those first that never made a call; where the first few looked
   at all have calls, the new one gets GOAWAY. Clients go elsewhere at once instead of waiting in the kernel's queue.
4. `drain` is synchronous: it says GOAWAY everywhere and stops accepting; `serve` returns when the last call has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol

import structlog
import trio
from grpclib.const import Handler
from grpclib.exceptions import GRPCError

from actorserve.services.transport import frames
from actorserve.services.transport.connection import Connection
from actorserve.services.transport.handshakes import Handshakes
from actorserve.services.transport.interceptors import Events, Interceptor, compose
from actorserve.services.transport.limits import Limits
from actorserve.services.transport.pace import Pace, PacedListener
from actorserve.services.transport.server_call import TrioDeadline
from actorserve.services.transport.server_calls import ANY, CallRecord, OnEnd, Translate
from actorserve.services.transport.server_connection import ServerConnection
from actorserve.services.transport.server_stream import ServerStream
from actorserve.services.transport.tls import Certificates, PeerIdentity, release
from actorserve.services.transport.writing import let_ahead

__all__ = ["CallRecord", "GrpcServer", "HasMapping", "Limits", "ServerStream", "Statistics", "TrioDeadline"]

LOOK_AT = 64  # connections, when there are too many

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
    drained: int = 0  # connections that have said GOAWAY and wait for their calls
    refused: int = 0  # connections beyond max_connections
    closed: Mapping[str, int] = field(default_factory=dict)  # by reason: peer, fault, handshake, slow, stall, idle ...


def _no_translation(_error: Exception, _call: ServerStream) -> GRPCError | None:
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
        interceptors: Iterable[Interceptor] = (),
        certificates: Certificates | None = None,
    ) -> None:
        """`certificates`: connections that `serve` accepts must speak TLS."""
        self._handlers = {
            path.encode(): (path, handler) for service in services for path, handler in service.__mapping__().items()
        }
        self._limits = limits or Limits()
        self._translate = translate
        self._on_end = on_end
        self.interceptors = tuple(interceptors)
        self._handshakes = None if certificates is None else Handshakes(certificates, self._limits)
        self._coming, self._going = Pace(self._limits.connection_rate), Pace(self._limits.connection_rate / 2)
        self.__dispatch__ = Events(self._compose)  # grpclib.events.listen finds it under this name
        self._listened = False
        self._invoke = compose(self.interceptors) if self.interceptors else None
        self._connections: dict[ServerConnection, None] = {}  # in the order of coming, or of having been looked at
        self._refused = 0
        self._lingering = 0
        self._closed: Counter[str] = Counter()
        self._connections_total = 0
        self._accepting: set[trio.CancelScope] = set()
        self._draining = False

    def add(self, service: HasMapping) -> None:
        """Serve one service more, from now on; it replaces methods of the same name."""
        for path, handler in service.__mapping__().items():
            self._handlers[path.encode()] = (path, handler)

    def remove(self, service: HasMapping) -> None:
        """Serve it no longer, as far as its methods are those that are served. Calls in hand go on."""
        for path, handler in service.__mapping__().items():
            if self._handlers.get(path.encode(), ("", None))[1] is handler:
                del self._handlers[path.encode()]

    def otherwise(self, handler: Handler | None) -> None:
        """Have a handler take the calls of methods that no service has; None: they are UNIMPLEMENTED."""
        self._handlers.pop(ANY, None)
        if handler is not None:
            self._handlers[ANY] = ("", handler)

    def find(self, path: str) -> Handler | None:
        """What answers a method's full name."""
        found = self._handlers.get(path.encode())
        return None if found is None else found[1]

    @property
    def limits(self) -> Limits:
        """The limits of connections to come; those that are open keep theirs."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        if self._handshakes is not None:
            self._handshakes.limits = limits

    def _compose(self) -> None:
        """Somebody listens to grpclib's events: they become the innermost interceptor."""
        if not self._listened:
            self._listened = True
            self._invoke = compose((*self.interceptors, self.__dispatch__.intercept))

    async def serve_connection(
        self, stream: trio.abc.Stream, peer: str = "", identity: PeerIdentity | None = None
    ) -> None:
        """Serve one connection until it ends; close the stream. Raises nothing for what a peer did."""
        limit = self._limits.max_connections
        if limit and len(self._connections) >= limit and not self._make_room():
            await self._turn_away(stream)
            return
        connection = ServerConnection(
            stream,
            peer,
            self._handlers,
            self._limits,
            self._translate,
            self._on_end,
            self._invoke,
            identity,
            self._going.place,
        )
        self._connections[connection] = None
        self._connections_total += 1
        if self._draining:
            connection.drain()
        try:
            await connection.run()
        except Exception:  # rule 2
            connection.reason = "bug"
            log.exception("connection failed", peer=peer)
        finally:
            del self._connections[connection]
            self._closed[connection.reason] += 1

    def _make_room(self) -> bool:
        """Drain a connection without calls, if one of the next few is (rule 3)."""
        looked_at = list(islice(self._connections, LOOK_AT))
        idle = [one for one in looked_at if not (one.calls or one.core.streams or one.draining)]
        for connection in looked_at:
            del self._connections[connection]
            self._connections[connection] = None
        if not idle or len(self._connections) >= self._limits.max_connections + LOOK_AT:
            return False
        min(idle, key=lambda one: (one.core.highest > 0, one.heard_at)).drain("room")
        return True

    async def _turn_away(self, stream: trio.abc.Stream) -> None:
        self._refused += 1
        core = Connection(client=False)
        core.goaway(frames.ENHANCE_YOUR_CALM, text="too many connections")
        try:
            self._lingering += 1
            with trio.move_on_after(1 if self._lingering <= LOOK_AT else 0.01):
                await stream.send_all(core.take())
                if isinstance(stream, trio.abc.HalfCloseableStream):
                    await stream.send_eof()
                    await stream.receive_some(4096)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._lingering -= 1
            await trio.aclose_forcefully(stream)

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
                    async with trio.open_nursery() as accepting:
                        paced = [PacedListener(one, self._coming) for one in listeners]
                        serve = partial(trio.serve_listeners, self._accepted, paced, handler_nursery=nursery)
                        await accepting.start(serve)
                        task_status.started(listeners)
                finally:
                    self._accepting.discard(scope)

    async def _accepted(self, stream: trio.abc.Stream) -> None:
        peer = _peer_of(stream)
        if isinstance(stream, trio.SocketStream):
            let_ahead(stream)
        if self._handshakes is None or not isinstance(stream, trio.SocketStream):
            await self.serve_connection(stream, peer)
            return
        limit = self._limits.max_connections
        if limit and self._handshakes.open >= limit:
            self._refused += 1
            await trio.aclose_forcefully(stream)
            return
        secured = await self._handshakes.shake(stream)
        if secured is not None:
            try:
                await self.serve_connection(secured[0], peer, secured[1])
            finally:
                release(secured[0])
        else:
            self._closed["handshake"] += 1

    def drain(self) -> None:
        """Stop accepting, tell every client to go elsewhere, and let the calls in hand end."""
        self._draining = True
        for scope in self._accepting:
            scope.cancel()
        for connection in list(self._connections):
            connection.drain()

    def statistics(self) -> Statistics:
        """Give the present numbers."""
        return Statistics(
            connections=len(self._connections),
            calls=sum(len(connection.calls) for connection in self._connections),
            connections_total=self._connections_total,
            draining=self._draining,
            drained=sum(connection.draining for connection in self._connections),
            refused=self._refused,
            closed=dict(self._closed),
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
