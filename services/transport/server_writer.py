"""The writing side of a server's connection: one write a tick, by a task that is there once it is needed.

What lives here: `ServerWriter`: who writes, and when. What must not: reading, time (server_connection.py), what is
written (outgoing.py), system calls (writing.py).

Rules
1. Only the writer writes; a `flush` in this tick is one write in the next, however many calls have asked.
2. It comes into being with the first `flush` after the greeting. Until then the reader writes what it has to say itself
   (SETTINGS, a PING now and then, the last GOAWAY): a connection that never makes a call is one task.
"""

from __future__ import annotations

from abc import abstractmethod

import trio

from actorserve.services.transport import frames
from actorserve.services.transport.pieces import Octets
from actorserve.services.transport.server_calls import ServerCalls
from actorserve.services.transport.writing import LINGER_S, send_parts

LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


class ServerWriter(ServerCalls):
    """The calls of a connection, and what writes their answers; `ServerConnection` adds reading and time."""

    _stream: trio.abc.Stream
    _closing = False  # what is queued now is the last
    _lost = False  # nothing can be written any more
    _sent = 0  # octets that the peer's side took
    _writing = False
    _by_reader = True  # what is to be written now is the reader's to write (rule 2)
    _idle: trio.Event | None = None  # there: the writer waits for it
    _written: trio.Event | None = None  # there: there is a writer; set: it has ended

    @abstractmethod
    def _stop(self) -> None:
        """Read no more."""

    def flush(self) -> None:
        """Wake the writer (rules 1 and 2)."""
        idle = self._idle
        if idle is not None:
            self._idle = None
            idle.set()
        elif self._written is None and not self._by_reader:
            self._written = trio.Event()
            self._nursery.start_soon(self._write, self._written)

    async def _write(self, ended: trio.Event) -> None:
        core = self.core
        try:
            while True:
                if not core.wants_write:
                    if self._closing or (self._draining and not self.calls and not core.streams):
                        break
                    self._idle = idle = trio.Event()
                    await idle.wait()
                    continue
                parts = core.take_parts()
                for stream in core.relieved:
                    if stream.owner is not None:
                        stream.owner.wake()
                if parts:
                    await self._send(parts)
            if self._draining and not self._closing:
                if core.goaway_sent == frames.MAX_STREAM_ID:
                    core.goaway(frames.NO_ERROR)
                    await self._send(core.take_parts())
                self._nursery.cancel_scope.cancel()
        except LOST:
            self._lose()
        ended.set()

    async def _write_own(self, limit_s: float) -> None:
        """Have written what the reader has to say (rule 2). A peer that does not take it in that time is lost."""
        if self._written is not None or self.calls:
            self._by_reader = False
            self.flush()
            return
        self._by_reader = True
        with trio.move_on_after(limit_s) as taken:
            try:
                await self._send(self.core.take_parts())
            except LOST:
                self._lose()
        self._by_reader = False
        if taken.cancelled_caught:
            self._lose()
        elif self.core.wants_write:  # said meanwhile
            self.flush()

    async def _write_last(self) -> None:
        """Write what was said at the end, where the peer takes it in LINGER_S."""
        with trio.move_on_after(LINGER_S):
            if not self._lost and self.core.wants_write:
                await self._write_own(LINGER_S)
            if not self._lost and self._written is not None:
                self.flush()
                await self._written.wait()

    async def _send(self, parts: list[Octets]) -> None:
        """Write, where the watch sees how long it takes."""
        self._writing = True
        await send_parts(self._stream, parts, self._progressed)
        self._writing = False

    def _progressed(self, octets: int) -> None:
        self._sent += octets

    def _lose(self) -> None:
        """Nothing gets through any more: end the connection and its calls, without a word."""
        self._lost = True
        self._stop()
