"""The rpc worker's loop: frames in, calls begun, frames out. asyncio in the main thread, a pool of threads for `def`s.

The loop itself reads the socket, so that no other thread has to be woken for a call. A watchdog looks once a second:
where code of the user's keeps the loop for longer, it reads in its stead, answers PING with how long that has
been, and leaves the rest to the loop. What is queued in one turn of the loop leaves in one write.

What must not live here: what a method is and how it is run (servicer.py, deployments), what a call says (call.py).
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from itertools import count
from queue import SimpleQueue
from typing import Any, Protocol

from actorserve.actors import wire, wire_calls
from actorserve.actors.messages import Ending
from actorserve.actors.wire import Data, Frame, FrameReader, Kind
from actorserve.handlers.rpc.call import RpcCall
from actorserve.handlers.rpc.methods import Method
from actorserve.handlers.rpc.outgoing import Outgoing

READ_BYTES = 1 << 18
LOOK_EVERY_S = 1.0
UNIMPLEMENTED = 12
_OPEN_CALL, _MESSAGE, _PING = int(Kind.OPEN_CALL), int(Kind.MESSAGE), int(Kind.PING)

log = logging.getLogger("actorserve.rpc")


class Host(Protocol):
    """What answers: methods by the name that a call has, and the answers to CONTROL."""

    methods: Mapping[str, Method]

    async def control(self, content: dict[str, Any]) -> dict[str, Any]:
        """Answer a CONTROL frame."""


class Pool:
    """Threads for plain functions, started as they are needed, each in a context of its own."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._tasks: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = SimpleQueue()

    def submit(self, run: Callable[..., None], *args: Any) -> None:
        """Run it in a thread, once one is free. On the loop's thread alone; `run` must not raise."""
        self._tasks.put((run, args))
        if not self._idle.acquire(blocking=False) and self._started < self._size:
            self._started += 1
            threading.Thread(target=self._work, name=f"call-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while True:
            run, args = self._tasks.get()
            try:
                contextvars.Context().run(run, *args)
            except BaseException:
                log.exception("a call's thread failed")
            del run, args
            self._idle.release()


class Engine:
    """See the module's docstring. Made and run on the loop."""

    def __init__(self, host: Host, send: Callable[[Data], None], *, threads: int) -> None:
        """`send` writes, from any thread. `threads`: of the pool."""
        self.loop = asyncio.get_running_loop()
        self.pool = Pool(threads)
        self.calls: dict[int, RpcCall] = {}
        self.outgoing: dict[int, Outgoing] = {}
        self.ids: Iterator[int] = count(1)
        self._host = host
        self._send = send
        self._thread = threading.get_ident()
        self._out: list[Data] = []
        self._due = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = self.loop.create_future()
        self._sock: socket.socket
        self._reader: FrameReader
        self._reading = threading.Lock()
        self._late: deque[Frame] = deque()  # what the watchdog has read
        self._turns = 0
        self.opened = 0  # calls, in all
        self.on_may_load: Callable[[int], None] = lambda _number: None

    async def run(self) -> None:
        """Return after STOP."""
        await self._stopped
        self._flush()

    # --- out ----------------------------------------------------------------------------------

    def post(self, data: Data) -> None:
        """Send, from any thread; from the loop at the end of its turn, with all that it queues until then."""
        if threading.get_ident() != self._thread:
            self._send(data)
            return
        self._out.append(data)
        if not self._due:
            self._due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._due = False
        out = self._out
        if out:
            self._send(out[0] if len(out) == 1 else wire.together(out))
            self._out = []

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task that is kept until it ends."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- in -----------------------------------------------------------------------------------

    def begin(self, sock: socket.socket, reader: FrameReader, frames: list[Frame]) -> None:
        """Take the socket over, with what has been read of it."""
        self._sock, self._reader = sock, reader
        self._handle(frames)
        self.loop.add_reader(sock.fileno(), self._readable)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _readable(self) -> None:
        self._turns += 1
        with self._reading:
            frames = self._read()
        self._take_late()
        self._handle(frames)

    def _read(self) -> list[Frame]:
        """What is there now. The server gone, or nonsense: the process ends at once, as every worker does."""
        reader = self._reader
        try:
            if reader.room is None:
                data = self._sock.recv(READ_BYTES, socket.MSG_DONTWAIT)
                size, frames = len(data), reader.feed(data)
            else:
                size = self._sock.recv_into(reader.room, 0, socket.MSG_DONTWAIT)
                frames = reader.filled(size)
        except BlockingIOError:
            return []
        except (OSError, wire.WireError):
            leave(1)
        if not size:
            leave(0)
        return frames

    def _take_late(self) -> None:
        self._turns += 1
        while self._late:
            self._handle([self._late.popleft()])

    def _handle(self, frames: list[Frame]) -> None:
        calls = self.calls
        for frame in frames:
            kind, id, payload = frame
            if kind == _OPEN_CALL:
                self._open(id, payload)
            elif kind == _PING:
                self.post(wire.pong(0.0))
            elif (call := calls.get(id)) is not None and kind in _OF_CALLS:
                call.hear(kind, payload)
            elif (outgoing := self.outgoing.get(id)) is not None and kind in _OF_OUTGOING:
                outgoing.hear(kind, payload)
            elif kind == Kind.MAY_LOAD:
                self.on_may_load(wire_calls.read_may_load(payload))
            elif kind == Kind.CONTROL:
                self.spawn(self._control(id, json.loads(payload)))
            elif kind == Kind.STOP and not self._stopped.done():
                self._stopped.set_result(None)

    def _open(self, id: int, payload: bytes) -> None:
        opened = wire_calls.read_open_call((id, payload))
        self.opened += 1
        method = self._host.methods.get(opened.method)
        if method is None or method.cardinality not in (None, opened.cardinality):
            self.post(wire_calls.ended(id, Ending(UNIMPLEMENTED, "Method not found!")))
            return
        call = self.calls[id] = RpcCall(self, opened)
        method.begin(call)

    async def _control(self, id: int, content: dict[str, Any]) -> None:
        try:
            answer = await self._host.control(content)
        except Exception as error:  # noqa: BLE001  # the user's
            answer = {"error": f"{type(error).__name__}: {error}"[:4000]}
        self.post(wire.frame(Kind.CONTROLLED, id, json.dumps(answer).encode()))

    # --- when the loop is kept ----------------------------------------------------------------

    def _watch(self) -> None:
        """The watchdog's whole life. `stuck`: since when the loop has not looked although something was there."""
        there = select.poll()
        there.register(self._sock, select.POLLIN)
        seen, stuck = -1, None
        while True:
            time.sleep(LOOK_EVERY_S)
            if seen != self._turns:
                seen, stuck = self._turns, None
                continue
            if not there.poll(0):
                continue
            stuck = stuck or time.monotonic()
            with self._reading:
                if seen != self._turns:
                    continue
                frames = self._read()
                for frame in frames:
                    if frame.kind == _PING:
                        self._send(wire.pong(time.monotonic() - stuck))
                    else:
                        self._late.append(frame)
            self.loop.call_soon_threadsafe(self._take_late)


_OF_CALLS = frozenset(map(int, (Kind.MESSAGE, Kind.END, Kind.CREDIT, Kind.CANCEL)))
_OF_OUTGOING = frozenset(
    map(int, (Kind.REPLY_INITIAL, Kind.REPLY_CHUNK, Kind.REPLY_ENDED, Kind.REPLY_FAILED, Kind.REPLY_CREDIT))
)


def leave(status: int) -> Any:
    """End the process, whatever its threads do."""
    os._exit(status)
