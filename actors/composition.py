"""Calls that a worker makes: each is asked of a mailbox here, so that deadline, cancel and supervision hold.

One task a call, in the incarnation's nursery: when the worker goes, so do its calls. The bytes of messages are opaque;
nothing is unpickled in the server. What must not live here: who may call whom (the worker's own code), gRPC.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from actorserve.actors import wire, wire_calls
from actorserve.actors.exchange import Exchange
from actorserve.actors.in_hand import LONGEST_S
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Call, Initial
from actorserve.actors.reply import fail_quietly
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, Data, Frame, Kind
from actorserve.errors import ActorserveError, Expired, Overloaded

MOST_OPEN = 10_000
"""Calls that one worker may have open."""


class _Calling:
    """One call of the worker's: what came from it and has not gone on, and what it may still be sent."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.exchange: Exchange | None = None
        self.waiting: deque[bytes | None] = deque()  # None: the half-close
        self.changed = trio.Event()
        self.chunks = CREDIT_CHUNKS
        self.bytes = CREDIT_BYTES

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Composition:
    """See the module's docstring. `find`: the mailbox of a name and a version; `write` never waits."""

    def __init__(
        self, find: Callable[[str, str], Mailbox], write: Callable[[Data], None], nursery: trio.Nursery
    ) -> None:
        """`nursery`: the incarnation's; each call is a task in it."""
        self._find = find
        self._write = write
        self._nursery = nursery
        self._open: dict[int, _Calling] = {}

    def hear(self, frame: Frame) -> None:
        """Take one of CALL, CALL_ITEM, CALL_END, CALL_CREDIT, CALL_CANCEL. Unknown ids have ended."""
        kind, id, payload = frame
        if kind == Kind.CALL:
            if id in self._open or len(self._open) >= MOST_OPEN:
                raise wire.WireError(f"the worker opened call {id} twice, or has {MOST_OPEN} open")
            target, opened = wire_calls.read_call((id, payload))
            self._open[id] = calling = _Calling()
            self._nursery.start_soon(self._run, id, calling, target, opened)
            return
        known = self._open.get(id)
        if known is None:
            return
        match kind:
            case Kind.CALL_ITEM | Kind.CALL_END:
                known.waiting.append(payload if kind == Kind.CALL_ITEM else None)
                if len(known.waiting) > CREDIT_CHUNKS + 1:
                    raise wire.WireError(f"more than {CREDIT_CHUNKS} messages of a call wait: it had no credit")
            case Kind.CALL_CREDIT:
                chunks, size = wire.read_credit(payload)
                known.chunks += chunks
                known.bytes += size
            case Kind.CALL_CANCEL:
                known.scope.cancel()
        known.wake()

    async def _run(self, id: int, calling: _Calling, target: str, opened: wire_calls.Opened) -> None:
        deadline = _on_trios_clock(opened.deadline_ns)
        try:
            with calling.scope:
                calling.scope.deadline = deadline
                await self._answer(id, calling, target, opened, deadline)
            if calling.scope.cancelled_caught and trio.current_time() >= deadline:
                self._write(_failed(id, Expired("the deadline passed")))
        except ActorserveError as error:
            self._write(_failed(id, error))
        except ExceptionGroup as group:  # what the call ended with, beside a cancel
            cause = _only(group)
            if not isinstance(cause, ActorserveError):
                raise
            self._write(_failed(id, cause))
        finally:
            del self._open[id]

    async def _answer(
        self, id: int, calling: _Calling, target: str, opened: wire_calls.Opened, deadline: float
    ) -> None:
        name, _, version = target.partition("/")
        call = Call(
            opened.method,
            opened.cardinality,
            opened.data,
            dict(opened.metadata),
            opened.request_id,
            opened.peer,
            opened.auth,
        )
        exchange = calling.exchange = self._find(name, version).ask(call, deadline)
        try:
            if opened.data is not None:
                await self._pass_back(id, calling, exchange)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, id, calling, exchange)
                await self._pass_back(id, calling, exchange)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _only(group) from None
        finally:
            exchange.abandon()

    async def _pass_on(self, id: int, calling: _Calling, exchange: Exchange) -> None:
        """What the worker streams."""
        while True:
            while not calling.waiting:
                await calling.changed.wait()
            data = calling.waiting.popleft()
            if data is None:
                exchange.end()
                return
            try:
                if not await exchange.send(data):
                    return
            except ActorserveError as error:  # too large: `_pass_back` tells it
                exchange.abandon()
                fail_quietly(exchange, error)
                return
            self._write(wire_calls.credit(Kind.REPLY_CREDIT, id, 1, len(data)))

    async def _pass_back(self, id: int, calling: _Calling, exchange: Exchange) -> None:
        """What it is answered."""
        while items := await exchange.receive():
            for item in items:
                if isinstance(item, Initial):
                    self._write(wire_calls.initial(id, item, Kind.REPLY_INITIAL))
                    continue
                while calling.chunks <= 0 or calling.bytes <= 0:
                    await calling.changed.wait()
                calling.chunks -= 1
                calling.bytes -= len(item)
                self._write(wire_calls.plain(Kind.REPLY_CHUNK, id, item))
                exchange.taken(1, len(item))
        assert exchange.ending is not None  # noqa: S101  # narrows the type: it ended well
        self._write(wire_calls.ended(id, exchange.ending, Kind.REPLY_ENDED))


def _on_trios_clock(deadline_ns: int) -> float:
    if not deadline_ns:
        return float("inf")
    return trio.current_time() + min((deadline_ns - time.monotonic_ns()) / 1e9, LONGEST_S)


def _failed(id: int, error: ActorserveError) -> bytes:
    extra: dict[str, Any] = {}
    if isinstance(error, Overloaded):
        extra = {"limit": error.limit, "retry_after_s": error.retry_after_s}
    return wire_calls.failed(id, type(error).__name__, str(error), extra)


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in a group of groups; the group where there are several."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
