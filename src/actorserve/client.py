"""The client: grpclib's generated stubs on trio and on asyncio.

    async with Channel("127.0.0.1:7070") as channel:
        reply = await SomeStub(channel).Method(request, timeout=5)

What lives here: `Channel`, its options, and the door `Retry`.
What must not: the server's side; importing it needs neither torch nor the actors.

Rules
1. One connection to each address, opened by the first call, and anew by the first call after it was lost or drained;
   calls go round robin over those that are usable (client_addresses.py).
2. Its tasks live in the channel's own task group: when the block is left, nothing of it runs.
3. Errors are grpclib's: GRPCError with a status; a server that cannot be reached is UNAVAILABLE.
4. A call that no server has begun is repeated (client_retry.py); no other ever is.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import anyio
import anyio.abc
from grpclib.const import Cardinality
from grpclib.metadata import Deadline

from actorserve.services.transport import client_tls, compression
from actorserve.services.transport.client_addresses import Addresses
from actorserve.services.transport.client_connection import ClientConnection
from actorserve.services.transport.client_retry import Retry
from actorserve.services.transport.client_stream import ClientStream
from actorserve.services.transport.values import MetadataLike

__all__ = ["Channel", "Options", "Retry"]

_DEFAULT_LIMIT = 6_553_500
_ONCE = Retry(attempts=1)


class Options(TypedDict, total=False):
    """What a channel can be told. Sizes in bytes, times in seconds; docs/client.md says more."""

    tls: ssl.SSLContext | bool  # True: the system's certificate authorities
    server_hostname: str | None  # the name in the certificate, where it is not the target's host
    compression: str | None  # of what is sent: "gzip", "deflate", None
    retry: Retry | None  # None: nothing is repeated
    keepalive_s: float  # a ping after so long without a sign of life while calls are open; 0: none
    keepalive_timeout_s: float
    connect_timeout_s: float
    max_receive_bytes: int
    max_send_bytes: int
    connect: Callable[[str], Awaitable[anyio.abc.ByteStream]]  # opens a byte stream to a target, in place of sockets


class Channel:
    """A way to one server or to several equal ones.

    `target` is "host:port", "[address]:port" or "unix:PATH", several of them with commas between, or a list of them.
    """

    def __init__(self, target: str | Sequence[str], **options: Unpack[Options]) -> None:
        """ValueError for a target or an option that makes no sense."""
        self.targets = tuple(part.strip() for part in target.split(",")) if isinstance(target, str) else tuple(target)
        unknown = set(options) - Options.__annotations__.keys()
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        if not self.targets:
            raise ValueError("a channel needs a target")
        self._connect = options.get("connect", client_tls.connect)
        if "connect" not in options:
            for one in self.targets:
                if not one.startswith("unix:"):
                    client_tls.split(one)
        self.user_agent = b"actorserve"
        self.max_receive_bytes = options.get("max_receive_bytes", _DEFAULT_LIMIT)
        self.max_send_bytes = options.get("max_send_bytes", _DEFAULT_LIMIT)
        self.encoding = compression.encoding_of(options.get("compression"))
        self.retry = options.get("retry", Retry()) or _ONCE
        self._tls = client_tls.context(options.get("tls", False))
        self._server_hostname = options.get("server_hostname")
        self._keepalive_s = options.get("keepalive_s", 0.0)
        self._keepalive_timeout_s = options.get("keepalive_timeout_s", 20.0)
        self._connect_timeout_s = options.get("connect_timeout_s", 10.0)
        self._reconnects = True
        self._latest: dict[str, ClientConnection] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._addresses: Addresses

    @classmethod
    def over(cls, stream: anyio.abc.ByteStream, **options: Unpack[Options]) -> Channel:
        """Give a channel over a byte stream that is open already; it cannot be opened anew."""

        async def give(_target: str) -> anyio.abc.ByteStream:
            return stream

        options["connect"] = give
        channel = cls("localhost", **options)
        channel._reconnects = False
        return channel

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._addresses = Addresses(
            self.targets,
            self._tasks,
            self._open,
            connect_timeout_s=self._connect_timeout_s,
            reconnects=self._reconnects,
        )
        if not self._reconnects:
            self._addresses.begin()  # the other end of a stream that is open waits for us
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
        return ClientStream(self, name, cardinality, reply_type, timeout, metadata)

    async def connect(self) -> tuple[str, ...]:
        """Open the connections now instead of with the first call; give the targets that are open.

        Raises:
            GRPCError: UNAVAILABLE, none is.
        """
        self._check_open()
        await self._addresses.take_all()
        return self._addresses.targets()

    async def connected(self) -> ClientConnection:
        """Give the connection for the next call; open one if there is none."""
        self._check_open()
        return await self._addresses.take()

    def _check_open(self) -> None:
        if self._tasks is None:
            raise RuntimeError("the channel is not open: use it as `async with Channel(...) as channel`")

    async def _open(self, target: str) -> ClientConnection:
        stream = await self._connect(target)
        if self._tls is not None:
            stream = await client_tls.secure(stream, self._tls, self._server_hostname or _host(target))
        before = self._latest.get(target)
        if before is not None and before.pinged_too_often:
            self._keepalive_s *= 2  # gRPC's A8: the server decides how many pings it bears
        connection = self._latest[target] = ClientConnection(
            stream,
            authority=client_tls.authority(target),
            secure=self._tls is not None,
            keepalive_s=self._keepalive_s,
            keepalive_timeout_s=self._keepalive_timeout_s,
        )
        return connection


def _host(target: str) -> str:
    return (
        target.removeprefix("unix:") if target.startswith("unix:") or ":" not in target else client_tls.split(target)[0]
    )
