"""One call as the worker has it: what came, what may be sent, and its one ending; for the loop and for threads alike.

A call belongs to one of both: `await`s are for code on the loop, the `..._blocking` twins for a thread of the pool.
Messages that have come and were not asked for are bounded by credit, which goes back as they are taken.
What must not live here: what the messages are, the contexts that user code sees, sockets.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from actorserve.actors import wire, wire_calls
from actorserve.actors.messages import Ending, Initial, Pairs
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, Data, Kind
from actorserve.actors.wire_calls import Opened

CANCELLED, UNKNOWN, INTERNAL = 1, 2, 13  # of gRPC's numbers
log = logging.getLogger("actorserve.rpc")
_CHUNK, _MESSAGE = Kind.CHUNK, int(Kind.MESSAGE)


class CallCancelled(Exception):
    """The caller has gone: nobody waits for an answer. Raised in threads; code on the loop is cancelled."""


class Engine(Protocol):
    """What a call needs of the engine (engine.py)."""

    loop: asyncio.AbstractEventLoop
    calls: dict[int, RpcCall]
    pool: Any

    def post(self, data: Data) -> None:
        """Send, from any thread."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task that is kept until it ends."""


class RpcCall:
    """See the module's docstring. `on_cancel` is called once, on the loop, when the caller has gone."""

    __slots__ = (
        "_condition",
        "_granted",
        "_granted_bytes",
        "_half_closed",
        "_inbox",
        "_sent",
        "_sent_bytes",
        "_taken",
        "_taken_bytes",
        "_waiters",
        "cancelled",
        "ended",
        "engine",
        "on_cancel",
        "opened",
    )

    def __init__(self, engine: Engine, opened: Opened) -> None:
        self.engine = engine
        self.opened = opened
        self.cancelled = False
        self.ended = False
        self.on_cancel: Callable[[], object] | None = None
        self._inbox: deque[bytes] | None = None
        self._half_closed = opened.data is not None
        self._waiters: list[asyncio.Future[None]] = []
        self._condition: threading.Condition | None = None
        self._granted = CREDIT_CHUNKS  # the loop counts what was granted, who sends counts what was sent
        self._granted_bytes = CREDIT_BYTES
        self._sent = 0
        self._sent_bytes = 0
        self._taken = 0
        self._taken_bytes = 0

    @property
    def is_active(self) -> bool:
        """Whether somebody waits for it still."""
        return not (self.cancelled or self.ended)

    def time_remaining(self) -> float | None:
        """Seconds until its deadline, at least 0; None: it has none."""
        deadline = self.opened.deadline_ns
        return max(0.0, (deadline - time.monotonic_ns()) / 1e9) if deadline else None

    # --- what comes, on the loop -------------------------------------------------------------

    def hear(self, kind: int, payload: bytes) -> None:
        """Take one of MESSAGE, END, CREDIT, CANCEL."""
        if kind == _MESSAGE:
            if self._inbox is None:
                self._inbox = deque()
            self._inbox.append(payload)
        elif kind == Kind.END:
            self._half_closed = True
        elif kind == Kind.CREDIT:
            chunks, size = wire.read_credit(payload)
            self._granted += chunks
            self._granted_bytes += size
        else:
            self.cancelled = True
            if self.on_cancel is not None:
                self.on_cancel()
        self._wake()

    def _wake(self) -> None:
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()
        if self._condition is not None:
            with self._condition:
                self._condition.notify_all()

    def _next(self) -> bytes | None:
        """A message that is there, and credit for it."""
        if not self._inbox:
            return None
        data = self._inbox.popleft()
        self._taken += 1
        self._taken_bytes += len(data)
        if self._taken * 2 >= CREDIT_CHUNKS or self._taken_bytes * 2 >= CREDIT_BYTES:
            self.engine.post(wire_calls.credit(Kind.TAKEN, self.opened.id, self._taken, self._taken_bytes))
            self._taken = self._taken_bytes = 0
        return data

    # --- for code on the loop -----------------------------------------------------------------

    async def receive(self) -> bytes | None:
        """Wait for the client's next message; None: it sends no more."""
        while True:
            data = self._next()
            if data is not None or self._half_closed:
                return data
            await self._wait()

    async def room(self) -> None:
        """Wait until a message may be sent."""
        while not self._has_room() and not self.ended:
            await self._wait()

    async def _wait(self) -> None:
        waiter = self.engine.loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _has_room(self) -> bool:
        return self._sent < self._granted and self._sent_bytes < self._granted_bytes

    # --- for code in a thread -------------------------------------------------------------------

    def receive_blocking(self) -> bytes | None:
        """As `receive`; CallCancelled."""
        condition = self._blocking()
        with condition:
            while True:
                if self.cancelled:
                    raise CallCancelled
                data = self._next()
                if data is not None or self._half_closed or self.ended:
                    return data
                condition.wait()

    def room_blocking(self) -> bool:
        """As `room`; False: nobody waits for a message any more."""
        if self._has_room():
            return self.is_active
        condition = self._blocking()
        with condition:
            while not self._has_room():
                if not self.is_active:
                    return False
                condition.wait()
        return self.is_active

    def _blocking(self) -> threading.Condition:
        if self._condition is None:
            self._condition = threading.Condition()
        return self._condition

    # --- running it -----------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine that is to end the call, cancelled when the caller goes; where it does not, this does.

        One that is cancelled before its first step never gets there: nothing in it is run.
        """
        task = self.engine.spawn(work)
        self.on_cancel = task.cancel
        task.add_done_callback(self._left_by)
        return task

    def _left_by(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("%s failed", self.opened.method, exc_info=error)
        if not self.ended:
            self.end(Ending(CANCELLED) if error is None else Ending(UNKNOWN, f"{type(error).__name__}: {error}"))

    # --- what goes ----------------------------------------------------------------------------

    def send_initial(self, metadata: Pairs, encoding: str = "") -> None:
        """Send the initial metadata; once, before any message."""
        if not self.ended:
            self.engine.post(wire_calls.initial(self.opened.id, Initial(metadata, encoding)))

    def send(self, data: bytes) -> None:
        """Send one message; there must be `room`."""
        if not self.ended:
            self._sent += 1
            self._sent_bytes += len(data)
            self.engine.post(wire_calls.plain(_CHUNK, self.opened.id, data))

    def end(self, ending: Ending) -> None:
        """End it. Only the first ending counts."""
        if not self.ended:
            self.ended = True
            self.on_cancel = None  # no cycle is left for the collector
            self.engine.calls.pop(self.opened.id, None)
            self.engine.post(self._packed(ending))

    def _packed(self, ending: Ending) -> Data:
        """The last frame: of what cannot be packed, such as metadata that is no text, the frame that says so."""
        try:
            return wire_calls.ended(self.opened.id, ending)
        except Exception as error:
            log.exception("%s: its ending cannot be sent", self.opened.method)
            text = f"the status, the answer or the trailing metadata cannot be sent: {type(error).__name__}: {error}"
            return wire_calls.ended(self.opened.id, Ending(INTERNAL, text))
