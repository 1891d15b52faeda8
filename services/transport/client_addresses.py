"""One connection to each address of a channel, and which of them the next call takes.

What lives here: `Addresses`.
What must not: calls, HTTP/2, how bytes are moved (client_tls.py), names of options.

Rules
1. Round robin over the connections that are usable; one that is being opened, or has failed, is passed over.
2. A call that finds an address without a connection has it opened, in a task of the channel. It waits for that only if
   no connection is usable, and fails (`NotBegun`) when every attempt it has seen has failed.
3. While another address is usable, one that fails is tried again after 0.1 s, then after twice as long, up to 10 s.
4. Opening includes the handshake and the server's SETTINGS, within `connect_timeout_s`.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.abc
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve.services.transport.client_connection import LOST, ClientConnection, NotBegun

AGAIN_S, AGAIN_MAX_S = 0.1, 10.0

Open = Callable[[str], Awaitable[ClientConnection]]


class _Address:
    """One address."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.connection: ClientConnection | None = None
        self.opening = False
        self.failures = 0  # in a row
        self.again_at = 0.0
        self.why = "not tried yet"

    @property
    def usable(self) -> bool:
        """Whether the next call may go here."""
        return self.connection is not None and not self.opening and self.connection.usable


class Addresses:
    """The connections of a channel. Its tasks run in the given group."""

    def __init__(
        self,
        targets: Sequence[str],
        tasks: anyio.abc.TaskGroup,
        connect: Open,
        *,
        connect_timeout_s: float,
        reconnects: bool = True,
    ) -> None:
        self._all = [_Address(target) for target in targets]
        self._tasks = tasks
        self._connect = connect
        self._connect_timeout_s = connect_timeout_s
        self._reconnects = reconnects
        self._turn = -1
        self._changed = anyio.Event()

    async def take(self) -> ClientConnection:
        """Give the connection for a call (rules 1 and 2)."""
        connection = self._next()
        if connection is None or len(self._all) > 1:
            self.begin(calm=connection is not None)
        while connection is None:
            if not any(address.opening for address in self._all):
                raise self._failure()
            await self._changed.wait()
            connection = self._next()
        return connection

    async def take_all(self) -> None:
        """Open what is not open; raise if there is nothing usable in the end."""
        self.begin()
        while any(address.opening for address in self._all):
            await self._changed.wait()
        if not any(address.usable for address in self._all):
            raise self._failure()

    def targets(self) -> tuple[str, ...]:
        """Give the targets that are usable now."""
        return tuple(address.target for address in self._all if address.usable)

    def _next(self) -> ClientConnection | None:
        count = len(self._all)
        for _ in range(count):
            self._turn = (self._turn + 1) % count
            address = self._all[self._turn]
            if address.usable:
                return address.connection
        return None

    def begin(self, *, calm: bool = False) -> None:
        """Begin to open what is missing; `calm`: something is usable, so that rule 3 holds."""
        for address in self._all:
            if address.opening or address.usable or (address.connection is not None and not self._reconnects):
                continue
            if not calm or anyio.current_time() >= address.again_at:
                address.opening = True
                self._tasks.start_soon(self._open, address)

    async def _open(self, address: _Address) -> None:
        try:
            with anyio.fail_after(self._connect_timeout_s):
                address.connection = connection = await self._connect(address.target)
                self._tasks.start_soon(connection.run)
                await connection.opened()
            address.failures = 0
        except (*LOST, NotBegun) as error:
            self._failed(address, error)
        finally:
            address.opening = False
            self._changed.set()
            self._changed = anyio.Event()

    def _failed(self, address: _Address, error: Exception) -> None:
        text = error.message if isinstance(error, NotBegun) else str(error)
        if isinstance(error, TimeoutError) and not text:
            text = f"no answer within {self._connect_timeout_s:g} s"
        if isinstance(error, ssl.SSLError):
            text = f"TLS: {error.reason or text}"
        if address.connection is not None and address.connection.error is None:
            address.connection.lose(text or "it did not open")
        address.why = f"cannot connect to {address.target}: {text or type(error).__name__}"
        address.failures += 1
        delay = min(AGAIN_S * 2 ** (address.failures - 1), AGAIN_MAX_S)
        address.again_at = anyio.current_time() + delay

    def _failure(self) -> GRPCError:
        if self._reconnects:
            return NotBegun("; ".join(address.why for address in self._all))
        connection = self._all[0].connection
        error = None if connection is None else connection.error
        return GRPCError(Status.UNAVAILABLE, error.message if error else "the connection takes no more calls")
