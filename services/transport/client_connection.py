"""A client's connection: one reader, one writer, any number of calls; on trio and on asyncio, through anyio.

What lives here: `ClientConnection`, which drives one `Connection` over one byte stream.
What must not: what a call means (client_stream.py), choosing or opening connections (actorserve.client).

Rules
1. Calls run in their callers' tasks and only wait here: each wait has its own anyio.Event.
2. When the connection ends, for whatever reason, every open call is told, and no new one begins on it.
3. No call begins before the server's SETTINGS are known, nor above its MAX_CONCURRENT_STREAMS.
"""

from __future__ import annotations

import anyio
import anyio.abc
import anyio.lowlevel
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve.services.transport import frames
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection, Settings

READ_SIZE = 65_536
LOST = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


class Waiter:
    """What a call leaves on its stream so that the reader and the writer can wake it."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait for the next `wake`."""
        self.event = anyio.Event()
        await self.event.wait()

    def wake(self) -> None:
        """End the wait, if there is one."""
        if self.event is not None:
            self.event.set()


class ClientConnection:
    """One HTTP/2 connection to a server."""

    def __init__(self, stream: anyio.abc.ByteStream, settings: Settings | None = None) -> None:
        self.core = Connection(client=True, settings=settings)
        self.error: GRPCError | None = None  # why the connection has ended
        self._stream = stream
        self._idle: anyio.Event | None = None
        self._opened = anyio.Event()  # the server's SETTINGS came, or the connection has ended
        self._room: anyio.Event | None = None

    @property
    def usable(self) -> bool:
        """Whether a new call may begin here."""
        return self.error is None and not self.core.goaway_received

    async def run(self) -> None:
        """Read and write until the connection ends; close the stream; tell the calls."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, tasks.cancel_scope)
                await self._read()
                tasks.cancel_scope.cancel()
        finally:
            self._lose("the connection was closed")
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(self._stream)

    async def open(self, block: bytes, waiter: Waiter) -> s.Stream:
        """Open a stream when the server has room for it."""
        await self._opened.wait()
        while self.usable and len(self.core.streams) >= self.core.peer_max_streams:
            self._room = self._room or anyio.Event()
            await self._room.wait()
        if self.error is not None:
            raise GRPCError(self.error.status, self.error.message)
        if self.core.goaway_received:
            raise GRPCError(Status.UNAVAILABLE, "the server takes no more calls on this connection")
        stream = self.core.open_stream(block, waiter)
        self.flush()
        return stream

    def flush(self) -> None:
        """Wake the writer."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.set()

    def release(self, stream: s.Stream) -> None:
        """Forget a stream; reset it if it has not ended."""
        self.core.release(stream)
        self._tell_room()
        self.flush()

    async def _read(self) -> None:
        core = self.core
        while not core.broken:
            try:
                data = await self._stream.receive(READ_SIZE)
            except LOST as error:
                self._lose("the connection was lost" if str(error) == "" else f"the connection was lost: {error}")
                return
            for event in core.receive(data):
                self._handle(event)
            self._tell_room()
            if core.wants_write:
                self.flush()
            if core.goaway_received and not core.streams:
                return
        with anyio.move_on_after(1):  # let the writer say GOAWAY
            while core.wants_write:
                await anyio.lowlevel.checkpoint()

    def _handle(self, event: s.Event) -> None:
        match event:
            case s.StreamEvent(stream=stream):
                stream.owner.wake()
            case s.SettingsReceived():
                self._opened.set()
            case s.GoawayReceived(last_stream_id=last):
                self._opened.set()
                for stream in [one for number, one in self.core.streams.items() if number > last]:
                    self.core.reset(stream, frames.REFUSED_STREAM)
                    stream.owner.wake()
            case s.ConnectionBroken(text=text):
                self._lose(f"the server broke the protocol: {text}")
            case _:
                pass

    async def _write(self, scope: anyio.CancelScope) -> None:
        core = self.core
        try:
            while True:
                if not core.wants_write:
                    self._idle = idle = anyio.Event()
                    await idle.wait()
                    continue
                data = core.take()
                for stream in core.relieved:
                    stream.owner.wake()
                if data:
                    await self._stream.send(bytes(data))
        except LOST as error:
            self._lose(f"the connection was lost: {error}")
            scope.cancel()

    def _tell_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    def _lose(self, text: str) -> None:
        """End every call (rule 2)."""
        if self.error is None:
            self.error = GRPCError(Status.UNAVAILABLE, text)
        self._opened.set()
        self._tell_room()
        for stream in list(self.core.streams.values()):
            stream.owner.wake()
