"""The calls that one worker has: frames to it, and what it says of each to its caller's `Exchange`.

A call begins as soon as its worker has it, so it ends with the worker's error when that dies: nobody can tell what it
has done already. What must not live here: the caller's end (exchange.py), sockets, tasks, gRPC.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from actorserve.actors import wire, wire_calls
from actorserve.actors.exchange import Exchange
from actorserve.actors.messages import Call
from actorserve.actors.reply import fail_quietly
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, MAX_FRAME_BYTES, Data, Frame, Kind
from actorserve.actors.wire_calls import Opened
from actorserve.errors import ActorserveError, BadInput, TooLarge

PAYLOAD_LIMIT = MAX_FRAME_BYTES - (1 << 20)  # metadata is smaller than that
_CHUNK, _ENDED = int(Kind.CHUNK), int(Kind.ENDED)


class _Credit:
    """What the caller has taken and the worker has not been told of yet."""

    __slots__ = ("bytes", "chunks")

    def __init__(self) -> None:
        self.chunks = 0
        self.bytes = 0


class Calls:
    """The books of one incarnation's calls. `write` queues bytes for the worker and never waits."""

    def __init__(self, write: Callable[[Data], None]) -> None:
        self._write = write
        self._open: dict[int, Exchange] = {}
        self.opened = 0  # in all

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, id: int) -> bool:
        return id in self._open

    # --- to the worker ------------------------------------------------------------------------

    def open(self, id: int, deadline_ns: int, call: Call, exchange: Exchange) -> None:
        """Open one. TooLarge or BadInput where no frame holds it: that call alone fails."""
        data = call.data
        if data is not None and len(data) > PAYLOAD_LIMIT:
            fail_quietly(exchange, TooLarge("the request", len(data), PAYLOAD_LIMIT))
            return
        metadata = tuple(call.metadata.items())
        opened = Opened(id, deadline_ns, call.cardinality, call.method, call.id, call.peer, call.auth, metadata, data)
        try:
            packed = wire_calls.open_call(opened)
        except struct.error:
            fail_quietly(exchange, BadInput("metadata", "the method, the request id or the metadata is too long"))
            return
        self._open[id] = exchange
        exchange.on_abandon = lambda: self._write(wire.frame(Kind.CANCEL, id))
        if call.cardinality.server_streams:
            credit = _Credit()
            exchange.on_taken = lambda chunks, size: self._taken(id, credit, chunks, size)
        self._write(packed)
        self.opened += 1
        if data is None:
            exchange.begin(lambda data: self._send(id, data), lambda: self._write(wire.frame(Kind.END, id)))

    def _send(self, id: int, data: bytes) -> None:
        if len(data) > PAYLOAD_LIMIT:
            raise TooLarge("the message", len(data), PAYLOAD_LIMIT)
        self._write(wire_calls.plain(Kind.MESSAGE, id, data))

    def _taken(self, id: int, credit: _Credit, chunks: int, size: int) -> None:
        """Give credit back at half (contracts §2)."""
        credit.chunks += chunks
        credit.bytes += size
        if credit.chunks * 2 >= CREDIT_CHUNKS or credit.bytes * 2 >= CREDIT_BYTES:
            self._write(wire.credit(id, credit.chunks, credit.bytes))
            credit.chunks = credit.bytes = 0

    # --- from the worker ------------------------------------------------------------------------

    def hear(self, frame: Frame) -> int:
        """Take one of INITIAL, CHUNK, ENDED, TAKEN; gives how many calls have ended. Unknown ids have ended."""
        kind, id, payload = frame
        exchange = self._open.get(id)
        if exchange is None:
            return 0
        if kind == _ENDED:
            ending = wire_calls.read_ended(payload)
            del self._open[id]
            if not exchange.is_set:
                exchange.close(ending)
            return 1
        if kind == Kind.TAKEN:
            exchange.grant(*wire.read_credit(payload))
        elif not exchange.is_set:
            exchange.push(payload if kind == _CHUNK else wire_calls.read_initial(payload))
            if exchange.buffered > CREDIT_CHUNKS + 1:  # and its initial metadata
                raise wire.WireError(f"more than {CREDIT_CHUNKS} messages of a call wait: it had no credit")
        return 0

    def abandon_all(self, error: Callable[[], ActorserveError]) -> None:
        """The worker is gone."""
        for exchange in self._open.values():
            fail_quietly(exchange, error())
        self._open.clear()
