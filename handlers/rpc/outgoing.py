"""A call that this worker makes: composition. It goes to the server, which asks the target's mailbox.

    call = Outgoing(engine, "app:Doubler", method="__call__", cardinality=Cardinality.UNARY_UNARY, data=b"...")
    ending = await call.wait()              # an Ending, or CallFailed with the server's error

On the loop's thread alone. What must not live here: what the bytes are, handles.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from actorserve.actors import wire, wire_calls
from actorserve.actors.messages import Cardinality, Ending, Initial, Pairs
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, Data, Kind
from actorserve.actors.wire_calls import Opened


class Engine(Protocol):
    """What it needs of the engine (engine.py)."""

    ids: Iterator[int]
    outgoing: dict[int, Outgoing]

    def post(self, data: Data) -> None:
        """Send, from any thread."""


class CallFailed(Exception):
    """The server could not have the call answered: `error` is the name of its class in actorserve.errors."""

    def __init__(self, error: str, text: str, extra: dict[str, Any]) -> None:
        super().__init__(error, text)
        self.error = error
        self.text = text
        self.extra = extra

    def __str__(self) -> str:
        return self.text


class Outgoing:
    """See the module's docstring. `data` None: `send` and `end` follow."""

    def __init__(
        self,
        engine: Engine,
        target: str,
        *,
        method: str,
        cardinality: Cardinality,
        data: bytes | None,
        metadata: Pairs = (),
        deadline_ns: int = 0,
        request_id: str = "",
    ) -> None:
        """`target`: the name of a model, or name/version. `deadline_ns`: CLOCK_MONOTONIC, 0 for none."""
        self.initial: Initial | None = None
        self.ending: Ending | None = None
        self.error: CallFailed | None = None
        self._engine = engine
        self._id = next(engine.ids) << 32  # never the id of a call that came
        self._inbox: deque[bytes] = deque()
        self._changed: asyncio.Event = asyncio.Event()
        self._messages = CREDIT_CHUNKS
        self._bytes = CREDIT_BYTES
        self._taken = 0
        self._taken_bytes = 0
        engine.outgoing[self._id] = self
        opened = Opened(self._id, deadline_ns, cardinality, method, request_id, "", b"", metadata, data)
        engine.post(wire_calls.call(target, opened))

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.ending is not None or self.error is not None

    def hear(self, kind: int, payload: bytes) -> None:
        """Take one of the REPLY frames."""
        match kind:
            case Kind.REPLY_CHUNK:
                self._inbox.append(payload)
            case Kind.REPLY_ENDED:
                self.ending = wire_calls.read_ended(payload)
            case Kind.REPLY_FAILED:
                self.error = CallFailed(*wire_calls.read_failed(payload))
            case Kind.REPLY_INITIAL:
                self.initial = wire_calls.read_initial(payload)
            case Kind.REPLY_CREDIT:
                messages, size = wire.read_credit(payload)
                self._messages += messages
                self._bytes += size
        if self.is_over:
            self._engine.outgoing.pop(self._id, None)
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def receive(self) -> bytes | None:
        """Wait for the next message; None: it has ended well or with a status (`ending`). CallFailed."""
        while not self._inbox:
            if self.error is not None:
                raise self.error
            if self.ending is not None:
                return None
            await self._wait()
        data = self._inbox.popleft()
        self._taken += 1
        self._taken_bytes += len(data)
        if (self._taken * 2 >= CREDIT_CHUNKS or self._taken_bytes * 2 >= CREDIT_BYTES) and not self.is_over:
            self._engine.post(wire_calls.credit(Kind.CALL_CREDIT, self._id, self._taken, self._taken_bytes))
            self._taken = self._taken_bytes = 0
        return data

    async def wait(self) -> Ending:
        """Wait for the ending; of a call whose server does not stream it has the answer. CallFailed."""
        while await self.receive() is not None:
            pass
        assert self.ending is not None  # noqa: S101  # narrows the type: receive gave None
        return self.ending

    async def send(self, data: bytes) -> bool:
        """Send one message, once there is room; False: it has ended."""
        while self._messages <= 0 or self._bytes <= 0:
            if self.is_over:
                return False
            await self._wait()
        if self.is_over:
            return False
        self._messages -= 1
        self._bytes -= len(data)
        self._engine.post(wire_calls.plain(Kind.CALL_ITEM, self._id, data))
        return True

    def end(self) -> None:
        """No more messages come."""
        if not self.is_over:
            self._engine.post(wire.frame(Kind.CALL_END, self._id))

    def cancel(self) -> None:
        """Nobody waits for it any more. Idempotent."""
        if not self.is_over:
            self._engine.outgoing.pop(self._id, None)
            self.error = CallFailed("Cancelled", "the call was cancelled", {})
            self._engine.post(wire.frame(Kind.CALL_CANCEL, self._id))
            self._changed.set()
