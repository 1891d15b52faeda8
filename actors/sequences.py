"""The sequences that one worker has: frames to it, and each of its replies to the caller it is for.

A sequence stays with the replica that opened it. When the worker dies it ends with the worker's error, and is never
opened anew elsewhere: its state has gone. An idle one expires; a drain answers what was sent and then ends it.
What must not live here: the caller's end (duplex.py), placing a sequence (the mailbox's stream lane), sockets, tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from actorserve.actors import wire
from actorserve.actors.duplex import Duplex
from actorserve.actors.reply import fail_quietly
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, MAX_FRAME_BYTES, Data, Frame, Item, Kind
from actorserve.errors import ActorserveError, Draining, NoSuchSequence, TooLarge

PAYLOAD_LIMIT = MAX_FRAME_BYTES - 64


class _Credit:
    """What the caller has taken and the worker has not been told of yet."""

    __slots__ = ("bytes", "chunks")

    def __init__(self) -> None:
        self.chunks = 0
        self.bytes = 0


class Sequences:
    """The books of one incarnation's sequences. `write` queues bytes for the worker and never waits."""

    def __init__(self, write: Callable[[Data], None], failure: Callable[[int, bytes], ActorserveError]) -> None:
        """`failure`: the error that an outcome and its data stand for."""
        self._write = write
        self._failure = failure
        self._open: dict[int, Duplex] = {}

    def __len__(self) -> int:
        return len(self._open)

    # --- to the worker ------------------------------------------------------------------------

    def open(self, item: Item, duplex: Duplex) -> None:
        """Open one; its id is the item's."""
        id = item.id
        self._open[id] = duplex
        credit = _Credit()
        self._write(wire.open_sequence(item))
        duplex.on_abandon = lambda: self._write(wire.frame(Kind.CANCEL, id))
        duplex.on_taken = lambda chunks, size: self._taken(id, credit, chunks, size)
        duplex.begin(
            lambda inputs: self._send(id, inputs),
            lambda: self._write(wire.frame(Kind.END, id)),
        )

    def _send(self, id: int, inputs: Mapping[str, bytes]) -> None:
        size = wire.size_of(Item(id, 0, "", inputs, {}))
        if size > PAYLOAD_LIMIT:
            raise TooLarge("the message", size, PAYLOAD_LIMIT)
        self._write(wire.item(id, inputs))

    def _taken(self, id: int, credit: _Credit, chunks: int, size: int) -> None:
        """Give credit back at half (contracts §2)."""
        credit.chunks += chunks
        credit.bytes += size
        if credit.chunks * 2 >= CREDIT_CHUNKS or credit.bytes * 2 >= CREDIT_BYTES:
            self._write(wire.credit(id, credit.chunks, credit.bytes))
            credit.chunks = credit.bytes = 0

    def expire(self, idle_timeout_s: float) -> None:
        """End those whose client has done nothing for so many seconds."""
        since = trio.current_time() - idle_timeout_s
        for id, duplex in self._open.items():
            if not duplex.is_set and not duplex.abandoned and duplex.is_idle(since):
                self._write(wire.frame(Kind.CANCEL, id))
                duplex.fail(NoSuchSequence(f"the sequence expired after {idle_timeout_s:g} s without a message"))

    def drain(self, model: str) -> None:
        """Answer what was sent, then end every one: UNAVAILABLE, for another replica does not know its state."""
        for duplex in self._open.values():
            duplex.drain(Draining(f"the worker of model {model} that had the sequence was stopped"))

    # --- from the worker ------------------------------------------------------------------------

    def hear(self, frame: Frame) -> int:
        """Take one of CHUNK, FAULT, DONE, ERROR; gives how many items it has answered. Unknown ids have ended."""
        duplex = self._open.get(frame.id)
        if duplex is None:
            return 0
        match frame.kind:
            case Kind.CHUNK:
                return self._push(duplex, frame.payload)
            case Kind.FAULT:
                return self._push(duplex, self._failure(*wire.read_error(frame.payload)))
            case Kind.DONE:
                trailers = wire.read_done(frame.payload)
                del self._open[frame.id]
                if not duplex.is_set:
                    duplex.finish(trailers)
            case Kind.ERROR:
                error = self._failure(*wire.read_error(frame.payload))
                del self._open[frame.id]
                fail_quietly(duplex, error)
            case other:
                raise wire.WireError(f"unexpected frame {Kind(other).name}")
        return 0

    @staticmethod
    def _push(duplex: Duplex, reply: bytes | ActorserveError) -> int:
        if not duplex.is_set:
            duplex.push(reply)
            if duplex.buffered > CREDIT_CHUNKS:
                raise wire.WireError(f"more than {CREDIT_CHUNKS} replies of a sequence wait: it had no credit")
        return 1

    def abandon_all(self, error: Callable[[], ActorserveError]) -> None:
        """The worker is gone, and every state with it."""
        for duplex in self._open.values():
            fail_quietly(duplex, error())
        self._open.clear()
