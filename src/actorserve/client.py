"""The client: grpclib's generated stubs on trio and on asyncio.

    async with Channel("127.0.0.1:7070") as channel:
        reply = await SomeStub(channel).Method(request, timeout=5)

What lives here: `Channel`, which opens connections and gives calls.
What must not: the server's side; importing it needs neither torch nor the actors.

Rules
1. One connection at a time, opened by the first call, and anew by the first call after it was lost or drained.
2. Its tasks live in the channel's own task group: when the block is left, nothing of it runs.
3. Errors are grpclib's: GRPCError with a status; a server that cannot be reached is UNAVAILABLE.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from grpclib.metadata import Deadline

from actorserve.services.transport import grpc
from actorserve.services.transport.client_connection import ClientConnection
from actorserve.services.transport.client_stream import ClientStream
from actorserve.services.transport.grpc import MetadataLike

__all__ = ["Channel"]

_DEFAULT_LIMIT = 6_553_500


class Channel:
    """A way to one server. `target` is "host:port", "[address]:port" or "unix:PATH"."""

    def __init__(
        self, target: str, *, max_receive_bytes: int = _DEFAULT_LIMIT, max_send_bytes: int = _DEFAULT_LIMIT
    ) -> None:
        self.target = target
        self.authority = b"localhost" if target.startswith("unix:") else target.encode()
        self.user_agent = b"actorserve"
        self.max_receive_bytes = max_receive_bytes
        self.max_send_bytes = max_send_bytes
        self._given: anyio.abc.ByteStream | None = None
        self._connection: ClientConnection | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._connecting: anyio.Lock

    @classmethod
    def over(
        cls,
        stream: anyio.abc.ByteStream,
        *,
        max_receive_bytes: int = _DEFAULT_LIMIT,
        max_send_bytes: int = _DEFAULT_LIMIT,
    ) -> Channel:
        """Give a channel over a byte stream that is open already; it cannot be opened anew."""
        channel = cls("localhost", max_receive_bytes=max_receive_bytes, max_send_bytes=max_send_bytes)
        channel._given = stream
        return channel

    async def __aenter__(self) -> Self:
        self._connecting = anyio.Lock()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        if self._given is not None:
            self._run(ClientConnection(self._given))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks is not None:
            tasks, self._tasks = self._tasks, None
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)  # the block's own error goes on as it is, in no group

    def request(
        self,
        name: str,
        cardinality: Cardinality,
        request_type: type[Any],
        reply_type: type[Any],
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
        metadata: MetadataLike | None = None,
    ) -> ClientStream:
        """Give a call that has not begun; grpclib's generated stubs ask for it."""
        if deadline is not None:
            left = deadline.time_remaining()
            timeout = left if timeout is None else min(timeout, left)
        block = grpc.encode_metadata(metadata) if metadata else b""
        return ClientStream(self, name, cardinality, reply_type, timeout, block)

    async def connected(self) -> ClientConnection:
        """Give the connection; open it if there is none."""
        if self._tasks is None:
            raise RuntimeError("the channel is not open: use it as `async with Channel(...) as channel`")
        connection = self._connection
        if connection is not None and (connection.usable or self._given is not None):
            return connection
        async with self._connecting:
            if self._connection is None or not self._connection.usable:
                self._run(ClientConnection(await self._connect()))
            assert self._connection is not None  # noqa: S101  _run has just set it
            return self._connection

    def _run(self, connection: ClientConnection) -> None:
        assert self._tasks is not None  # noqa: S101  checked by the callers
        self._connection = connection
        self._tasks.start_soon(connection.run)

    async def _connect(self) -> anyio.abc.ByteStream:
        try:
            if self.target.startswith("unix:"):
                return await anyio.connect_unix(self.target.removeprefix("unix:"))
            host, _, port = self.target.rpartition(":")
            return await anyio.connect_tcp(host.strip("[]") or "127.0.0.1", int(port))
        except OSError as error:
            raise GRPCError(Status.UNAVAILABLE, f"cannot connect to {self.target}: {error}") from error
