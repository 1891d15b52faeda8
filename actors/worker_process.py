"""The server's end of one worker: the socket as frames, the process as something to wait for and to kill,
its output as lines of the log.

What must not live here: how a process comes about (forkserver.py), what is said over the socket
(in_hand.py), when it is started again (child.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import structlog
import trio

from actorserve.actors.messages import ChildSpec
from actorserve.actors.wire import MAX_PARTS, Data, Frame, FrameReader, together, unsent

READ_BYTES = 1 << 16
LINE_BYTES = 8192
LINES_A_SECOND = 200

log = structlog.get_logger("actorserve.worker")


class Process(Protocol):
    """A worker's process, or what stands for one in a test."""

    pid: int | None
    stuck: bool
    """Whether it runs on although it was killed, as a thread does that hangs; set once `wait` has returned."""
    sees_all_devices: bool
    """Whether a device has the server's name in it, since no environment of its own narrows what it sees."""

    async def wait(self) -> int:
        """Wait for its end; the exit status as `subprocess` counts it: negative is a signal.

        One task at a time; may be called again after a cancellation, and after the end.
        """

    def kill(self) -> None:
        """SIGKILL. Without effect once it has ended."""

    def outputs(self) -> list[tuple[str, int]]:
        """(name, descriptor) of the pipes that carry its stdout and stderr; the caller closes them."""


class Spawner(Protocol):
    """Makes workers."""

    async def prepare(self, child: ChildSpec) -> None:
        """Have what a worker of this child needs, however long that takes: a worker's start has a limit.

        LoadFailed if it cannot be had.
        """

    async def spawn(self, child: ChildSpec) -> Worker:
        """A new worker that waits for LOAD. OSError if none can be had."""


class Worker(trio.abc.AsyncResource):
    """One worker as its actor sees it. Writes never wait; `run_writer` carries them out."""

    def __init__(self, stream: trio.abc.Stream, process: Process, sock: socket.socket | None = None) -> None:
        """`sock`: the stream's socket, which does not block, for what need not wait and for what is large."""
        self.process = process
        self._sock = sock
        self._writing = False
        self._stream = stream
        self._reader = FrameReader()
        self._pending: list[Data] = []
        self._wake = trio.Event()

    def write(self, data: Data) -> None:
        """Queue frames; what is queued in one scheduler tick leaves in one write."""
        self._pending.append(data)
        self._wake.set()

    def write_now(self, data: Data) -> None:
        """Queue frames that begin work: what the socket takes at once leaves at once, which saves two turns."""
        if self._sock is not None and not self._pending and not self._writing:
            try:
                if isinstance(data, list):
                    data = unsent(data, self._sock.sendmsg(data[:MAX_PARTS]))
                else:
                    data = data[self._sock.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # the worker is gone; the reader says how it ended
        if data:
            self.write(data)

    async def run_writer(self) -> None:
        """Write until cancelled, or until the worker is gone (the reader says how it ended)."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                data, self._pending = together(self._pending), []
                self._writing = True
                for part in data if isinstance(data, list) else (data,):
                    await self._stream.send_all(part)
                self._writing = False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._pending = []

    async def receive(self) -> list[Frame]:
        """Wait for frames; an empty list is the end of the socket. WireError if they make no sense."""
        if self._reader.broken:
            self._reader.feed(b"")  # raises
        while True:
            frames = await self._receive_some()
            if frames is None or frames:
                return frames or []

    async def _receive_some(self) -> list[Frame] | None:
        """Wait for bytes; give the frames that are whole with them, None at the end."""
        reader = self._reader
        if reader.room is None or self._sock is None:
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except trio.BrokenResourceError:
                return None
            return reader.feed(data) if data else None
        await trio.lowlevel.checkpoint()  # a worker that is always quicker must not keep the loop
        while True:  # a large frame: its bytes go where they belong
            try:
                size = self._sock.recv_into(reader.room)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except OSError:
                return None
            else:
                return reader.filled(size) if size else None

    async def aclose(self) -> None:
        """Close the socket, which ends the worker."""
        await self._stream.aclose()


class LineLimit:
    """At most so many lines a second; the rest are counted. Pure: the caller tells the time."""

    def __init__(self, limit: int = LINES_A_SECOND) -> None:
        self._limit = limit
        self._second = 0
        self._count = 0
        self.dropped = 0

    def allows(self, now: float) -> bool:
        """Whether one more line may be logged now (seconds)."""
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        if self._count > self._limit:
            self.dropped += 1
            return False
        return True

    def take_dropped(self) -> int:
        """How many were not allowed since this was last asked."""
        dropped, self.dropped = self.dropped, 0
        return dropped


def dropped_lines(count: int) -> str:
    """What the log says instead of lines that were too many."""
    return f"({count} lines dropped: more than {LINES_A_SECOND} a second)"


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class OutputPump:
    """Reads one of a worker's output pipes, always, so that a handler that prints never blocks."""

    def __init__(self, descriptor: int, emit: Callable[[str], None], limit: LineLimit) -> None:
        self._descriptor = descriptor
        self._emit = emit
        self._limit = limit
        self._rest = b""

    async def run(self, ended: Callable[[], Awaitable[Any]]) -> None:
        """Until the pipe ends, or `ended()` has returned and what is in the pipe has been read.

        A grandchild may hold the pipe open: its end is not waited for. Closes the descriptor.
        """
        os.set_blocking(self._descriptor, False)
        with closing(self._descriptor):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_eof, nursery.cancel_scope)
                    await ended()
                    nursery.cancel_scope.cancel()
            finally:
                self._read_available()
                self._flush()

    async def _until_eof(self, scope: trio.CancelScope) -> None:
        while self._read_available():
            with trio.move_on_after(1.0 if self._limit.dropped else float("inf")) as quiet:
                await trio.lowlevel.wait_readable(self._descriptor)
            if quiet.cancelled_caught:
                self._say_dropped()
        scope.cancel()

    def _read_available(self) -> bool:
        """Read what is there now; False at the pipe's end."""
        for _ in range(64):
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._line(line)
            if len(self._rest) > LINE_BYTES:
                self._flush()
        return True

    def _flush(self) -> None:
        if self._rest:
            self._line(self._rest)
            self._rest = b""
        self._say_dropped()

    def _say_dropped(self) -> None:
        dropped = self._limit.take_dropped()
        if dropped:
            self._emit(dropped_lines(dropped))

    def _line(self, line: bytes) -> None:
        if self._limit.allows(trio.current_time()):
            self._say_dropped()
            self._emit(line[:LINE_BYTES].decode(errors="replace"))
