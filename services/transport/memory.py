"""An in-memory byte pipe: a client and a server in one trio process, without sockets, threads or files.

What lives here: `memory_pair`, for `Channel.over` on one side and `GrpcServer.serve_connection` on the other.
What must not: HTTP/2.

Rules
1. Each direction holds at most `capacity` octets: a side that does not read makes the other wait, as TCP would.
2. Closing one end gives the other the end of the stream; sending to a closed end is a broken resource, on both sides in
   the words of their own library (trio's or anyio's).
"""

from __future__ import annotations

import anyio
import anyio.abc
import trio

CAPACITY = 65_536


class _Pipe:
    """One direction."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.buffer = bytearray()
        self.ended = False  # the writer has finished
        self.deaf = False  # the reader has closed
        self._changed = trio.Event()

    def change(self) -> None:
        """Wake both sides."""
        self._changed.set()
        self._changed = trio.Event()

    async def write(self, data: bytes | bytearray | memoryview) -> bool:
        """Put all of it; False if the reader has gone or the writer has ended before."""
        view = memoryview(bytes(data))
        await trio.lowlevel.checkpoint()
        while view:
            if self.deaf or self.ended:
                return False
            room = self.capacity - len(self.buffer)
            if room:
                self.buffer += view[:room]
                view = view[room:]
                self.change()
            else:
                await self._changed.wait()
        return True

    async def read(self, limit: int) -> bytes:
        """Give what is there, at most `limit`; nothing at the end."""
        await trio.lowlevel.checkpoint()
        while not self.buffer and not self.ended and not self.deaf:
            await self._changed.wait()
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        if data:
            self.change()
        return data

    def end(self) -> None:
        """The writer has finished."""
        self.ended = True
        self.change()

    def close(self) -> None:
        """The reader has gone."""
        self.deaf = True
        self.buffer.clear()
        self.change()


class MemoryServerStream(trio.abc.HalfCloseableStream):
    """The server's end."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything; waits while the pipe is full."""
        if not await self._outgoing.write(data):
            raise trio.BrokenResourceError("the other end is closed")

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for nothing: send_all may wait."""
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Give what has come, b"" at the end."""
        data = await self._incoming.read(max_bytes or CAPACITY)
        if not data and self._incoming.deaf:
            raise trio.ClosedResourceError("this end is closed")
        return data

    async def send_eof(self) -> None:
        """End the outgoing direction."""
        self._outgoing.end()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close both directions."""
        self._outgoing.end()
        self._incoming.close()
        await trio.lowlevel.checkpoint()


class MemoryClientStream(anyio.abc.ByteStream):
    """The client's end."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def send(self, item: bytes) -> None:
        """Send everything; waits while the pipe is full."""
        if not await self._outgoing.write(item):
            raise anyio.BrokenResourceError

    async def receive(self, max_bytes: int = CAPACITY) -> bytes:
        """Give what has come; EndOfStream at the end."""
        data = await self._incoming.read(max_bytes)
        if not data:
            raise anyio.ClosedResourceError if self._incoming.deaf else anyio.EndOfStream
        return data

    async def send_eof(self) -> None:
        """End the outgoing direction."""
        self._outgoing.end()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close both directions."""
        self._outgoing.end()
        self._incoming.close()
        await trio.lowlevel.checkpoint()


def memory_pair(capacity: int = CAPACITY) -> tuple[MemoryClientStream, MemoryServerStream]:
    """Give the two ends of a connection."""
    up, down = _Pipe(capacity), _Pipe(capacity)
    return MemoryClientStream(down, up), MemoryServerStream(up, down)
