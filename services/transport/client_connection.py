"""A client's connection: one reader, one writer, any number of calls; on trio and on asyncio, through anyio.

What lives here: `ClientConnection`, which drives one `Connection` over one byte stream, and `NotBegun`.
What must not: what a call means (client_stream.py), choosing or opening connections (client_addresses.py).

Rules
1. Calls run in their callers' tasks and only wait here: each wait has its own anyio.Event, shared by those who wait.
2. When the connection ends, for whatever reason, every open call is told, and no new one begins on it.
3. No call begins before the server's SETTINGS are known, nor above its MAX_CONCURRENT_STREAMS.
4. `NotBegun` says that the server has not seen the call or has said so (RFC 9113 §8.7): refused with REFUSED_STREAM,
   above the last stream of a GOAWAY, or never sent. Such a call may be repeated; no other may.
5. Keepalive (gRPC's A8): while a call is open and nothing has come for `keepalive_s`, a PING; if nothing comes within
   `keepalive_timeout_s` after it, the connection is lost.
"""

from __future__ import annotations

import anyio
import anyio.abc
import anyio.lowlevel
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve.services.transport import frames, grpc
from actorserve.services.transport import streams as s
from actorserve.services.transport.connection import Connection, Settings

READ_SIZE = 65_536
LOST = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
_PING = b"areyouok"


class NotBegun(GRPCError):
    """UNAVAILABLE, and the server has not begun the call (rule 4). `at_once`: nothing is won by waiting first."""

    def __init__(self, message: str, *, at_once: bool = False) -> None:
        super().__init__(Status.UNAVAILABLE, message)
        self.at_once = at_once


class Waiter:
    """What a call leaves on its stream so that the reader and the writer can wake it."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait for the next `wake`; a call's sender and its receiver may wait at once."""
        if self.event is None:
            self.event = anyio.Event()
        await self.event.wait()

    def wake(self) -> None:
        """End the waits, if there are any."""
        if self.event is not None:
            self.event.set()
            self.event = None


class ClientConnection:
    """One HTTP/2 connection to a server."""

    def __init__(
        self,
        stream: anyio.abc.ByteStream,
        *,
        authority: bytes = b"localhost",
        secure: bool = False,
        settings: Settings | None = None,
        keepalive_s: float = 0.0,
        keepalive_timeout_s: float = 20.0,
    ) -> None:
        self.core = Connection(client=True, settings=settings)
        self.authority = authority
        self.secure = secure
        self.error: GRPCError | None = None  # why the connection has ended
        self.pinged_too_often = False  # the server said so
        self._stream = stream
        self._keepalive_s = keepalive_s
        self._keepalive_timeout_s = keepalive_timeout_s
        self._goaway = ""  # what the server said in it
        self._idle: anyio.Event | None = None
        self._opened = anyio.Event()  # the server's SETTINGS came, or the connection has ended
        self._room: anyio.Event | None = None
        self._last_read = 0.0
        self._sign: anyio.Event | None = None  # of life
        self._scope: anyio.CancelScope | None = None

    @property
    def usable(self) -> bool:
        """Whether a new call may begin here."""
        return self.error is None and not self.core.goaway_received

    async def run(self) -> None:
        """Read and write until the connection ends; close the stream; tell the calls."""
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(self._write)
                if self._keepalive_s:
                    tasks.start_soon(self._keep_alive)
                await self._read()
                tasks.cancel_scope.cancel()
        finally:
            self._lose("the connection was closed")
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(self._stream)

    async def opened(self) -> None:
        """Wait for the server's SETTINGS (rule 3)."""
        await self._opened.wait()
        if self.error is not None:
            raise NotBegun(self.error.message or "")

    async def open(self, block: bytes, waiter: Waiter) -> s.Stream:
        """Open a stream when the server has room for it."""
        await self.opened()
        while self.usable and len(self.core.streams) >= self.core.peer_max_streams:
            self._room = self._room or anyio.Event()
            await self._room.wait()
        if self.error is not None:
            raise NotBegun(self.error.message or "")
        if self.core.goaway_received:
            raise NotBegun("the server takes no more calls on this connection", at_once=True)
        stream = self.core.open_stream(block, waiter)
        self.flush()
        return stream

    def flush(self) -> None:
        """Wake the writer."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.set()

    def release(self, stream: s.Stream) -> None:
        """Forget a stream; reset it if it has not ended: with NO_ERROR where the server has, else with CANCEL."""
        if stream.ended:
            self.core.reset(stream, frames.NO_ERROR)
        self.core.release(stream)
        self._tell_room()
        self.flush()

    def lose(self, text: str) -> None:
        """Give the connection up."""
        self._lose(text)
        if self._scope is not None:
            self._scope.cancel()

    # --- its tasks ---------------------------------------------------------------------------

    async def _read(self) -> None:
        core = self.core
        while not core.broken:
            try:
                data = await self._stream.receive(READ_SIZE)
            except LOST as error:
                self._lose("the connection was lost" if str(error) == "" else f"the connection was lost: {error}")
                return
            self._last_read = now = anyio.current_time()
            if self._sign is not None:
                self._sign.set()
            for event in core.receive(data, now):
                self._handle(event)
            self._tell_room()
            if core.wants_write:
                self.flush()
            if core.goaway_received and not core.streams:
                return
        with anyio.move_on_after(1):  # let the writer say GOAWAY
            while core.wants_write:
                await anyio.sleep(0.01)  # a mere checkpoint would keep the loop busy, and a virtual clock still

    def _handle(self, event: s.Event) -> None:
        match event:
            case s.StreamEvent(stream=stream):
                stream.owner.wake()
            case s.SettingsReceived():
                self._opened.set()
            case s.GoawayReceived(last_stream_id=last, code=code, text=text):
                self._opened.set()
                if code != frames.NO_ERROR:
                    self._goaway = f"{grpc.code_name(code)} {text}".strip()
                    self.pinged_too_often = code == frames.ENHANCE_YOUR_CALM and text == "too_many_pings"
                for stream in [one for number, one in self.core.streams.items() if number > last]:
                    self.core.reset(stream, frames.REFUSED_STREAM)
                    stream.owner.wake()
            case s.ConnectionBroken(text=text):
                self._lose(f"the server broke the protocol: {text}")
            case _:
                pass

    async def _write(self) -> None:
        core = self.core
        try:
            while True:
                if not core.wants_write:
                    if core.goaway_received and not core.streams:
                        self.lose("the server takes no more calls on this connection")
                    self._idle = idle = anyio.Event()
                    await idle.wait()
                    continue
                data = core.take()
                for stream in core.relieved:
                    stream.owner.wake()
                if data:
                    await self._stream.send(bytes(data))
        except LOST as error:
            self.lose(f"the connection was lost: {error}")

    async def _keep_alive(self) -> None:
        """Look for signs of life (rule 5)."""
        self._last_read = anyio.current_time()
        while True:
            await anyio.sleep_until(self._last_read + self._keepalive_s)
            if not self.core.streams:
                self._last_read = anyio.current_time()
            elif anyio.current_time() - self._last_read >= self._keepalive_s:
                self._sign = sign = anyio.Event()
                self.core.ping(_PING)
                self.flush()
                with anyio.move_on_after(self._keepalive_timeout_s):
                    await sign.wait()
                self._sign = None
                if not sign.is_set():
                    self.lose(f"the server gave no sign of life for {self._keepalive_timeout_s:g} s after a ping")

    def _tell_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    def _lose(self, text: str) -> None:
        """End every call (rule 2)."""
        if self.error is None:
            self.error = GRPCError(Status.UNAVAILABLE, f"{text} ({self._goaway})" if self._goaway else text)
        self._opened.set()
        self._tell_room()
        for stream in list(self.core.streams.values()):
            stream.owner.wake()
