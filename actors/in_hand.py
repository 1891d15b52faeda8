"""What one worker has in hand: batches and streams on their way, and how each of them ends.

It turns envelopes into frames and frames into endings; it starts nothing and waits for nothing. Exactly one
ending for each envelope: its answer, its own error, or what `abandon_all` says when the worker dies.

What must not live here: sockets, tasks, who is in a batch (batching.py), restarts.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import count

import trio

from actorserve.actors import wire
from actorserve.actors.calls import Calls
from actorserve.actors.duplex import Duplex
from actorserve.actors.envelope import Envelope
from actorserve.actors.exchange import Exchange
from actorserve.actors.messages import Answer, Call, Describe, Generate, Metadata
from actorserve.actors.reply import Reply, ReplyStream, fail_quietly
from actorserve.actors.sequences import Sequences
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS, MAX_FRAME_BYTES, Data, Frame, Item, Kind, Outcome
from actorserve.errors import (
    ActorserveError,
    BadInput,
    Expired,
    HandlerRaised,
    HandlerStatus,
    NoSuchSequence,
    TooLarge,
)

LONGEST_S = 100 * 365 * 24 * 3600.0
"""A deadline further away than this never comes."""
PAYLOAD_LIMIT = MAX_FRAME_BYTES - 64
_CHUNK, _RESULT = int(Kind.CHUNK), int(Kind.RESULT)  # an enum's member costs 0.2 us to read, and these two are most
_OF_CALLS = frozenset(map(int, (Kind.INITIAL, Kind.ENDED, Kind.TAKEN)))


def failure(outcome: int, data: bytes) -> ActorserveError:
    """The error that an item's ending stands for."""
    match outcome:
        case Outcome.BAD_INPUT:
            return BadInput(*wire.read_error_data(data))
        case Outcome.RAISED:
            return HandlerRaised(*wire.read_error_data(data))
        case Outcome.CODED:
            return HandlerStatus(*wire.read_status_data(data))
        case Outcome.ENDED:
            return NoSuchSequence("the model has closed the sequence")
        case Outcome.EXPIRED | Outcome.CANCELLED:
            gone = outcome == Outcome.CANCELLED
            return Expired("the caller had gone" if gone else "the deadline passed before the batch began")
        case Outcome.TOO_LARGE:
            return TooLarge("the request", *wire.read_too_large_data(data), unit="units of the model's weight")
        case other:
            raise wire.WireError(f"unknown outcome {other}")


def nanoseconds(deadline: float) -> int:
    """A deadline of trio's clock as CLOCK_MONOTONIC nanoseconds; 0 for none, and for what no frame can hold.

    The longest grpc-timeout, 99999999 hours, is 39 times what 63 bits of nanoseconds hold.
    """
    left = deadline - trio.current_time()
    if left > LONGEST_S:
        return 0
    return time.monotonic_ns() + int(left * 1e9)


class _Batch:
    """A batch that was written to the worker."""

    __slots__ = ("begun", "envelopes")

    def __init__(self, envelopes: dict[int, Envelope]) -> None:
        self.envelopes = envelopes
        self.begun = False


class _Opened:
    """A stream that was opened, and the credit that has to be given back for it."""

    __slots__ = ("bytes", "chunks", "envelope", "gathered", "size")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.gathered: list[bytes] | None = None if isinstance(envelope.message, Generate) else []
        self.size = 0
        self.chunks = 0
        self.bytes = 0


class InHand:
    """The books of one incarnation. `write` queues bytes for the worker and never waits."""

    def __init__(
        self, write: Callable[[Data], None], write_now: Callable[[Data], None] | None = None, *, gather_limit: int
    ) -> None:
        """`write_now`: for what an idle worker waits for; default `write`."""
        self._write = write
        self._write_now = write_now or write
        self._gather_limit = gather_limit
        self._ids = count(1)
        self._batches: OrderedDict[int, _Batch] = OrderedDict()
        self._streams: dict[int, _Opened] = {}
        self.sequences = Sequences(write, failure)
        self.calls = Calls(write)
        self.answered = 0

    @property
    def batches(self) -> int:
        """How many batches are on their way."""
        return len(self._batches)

    @property
    def streams(self) -> int:
        """How many streams are open, and calls; sequences are not counted: they wait for their clients most of the
        time.
        """
        return len(self._streams) + len(self.calls)

    @property
    def items(self) -> int:
        """How many envelopes are in hand."""
        streams = len(self._streams) + len(self.calls) + len(self.sequences)
        return streams + sum(len(batch.envelopes) for batch in self._batches.values())

    # --- to the worker ----------------------------------------------------------------------

    def send_batch(self, envelopes: Iterable[Envelope]) -> None:
        """Write one batch. A caller who goes later is told to the worker, which drops the item.

        What does not fit into one frame goes as several batches; what does not fit into any fails alone.
        """
        batch_id = next(self._ids)
        members: dict[int, Envelope] = {}
        items: list[Item] = []
        size = 0
        for envelope in envelopes:
            if isinstance(envelope.message, Describe):
                self.open_stream(envelope)  # it waits among the batches, and is in none
                continue
            id = next(self._ids)
            item = self._item(id, envelope)
            item_size = wire.size_of(item)
            if item_size > PAYLOAD_LIMIT:
                fail_quietly(envelope.reply, TooLarge("the request", item_size, PAYLOAD_LIMIT))
                continue
            if size + item_size > PAYLOAD_LIMIT:
                self._write_batch(batch_id, members, items)
                batch_id, members, items, size = next(self._ids), {}, [], 0
            size += item_size
            members[id] = envelope
            items.append(item)
            envelope.reply.on_abandon = lambda id=id: self._cancel(id)
        if items:
            self._write_batch(batch_id, members, items)

    def _write_batch(self, id: int, members: dict[int, Envelope], items: list[Item]) -> None:
        self._batches[id] = _Batch(members)
        self._write_now(wire.batch(id, items))

    def open_stream(self, envelope: Envelope) -> None:
        """Open one stream."""
        id = next(self._ids)
        reply = envelope.reply
        if isinstance(reply, Exchange):
            assert isinstance(envelope.message, Call)  # noqa: S101  # narrows the type: an Exchange answers a Call
            self.calls.open(id, nanoseconds(envelope.deadline), envelope.message, reply)
            return
        item = self._item(id, envelope)
        size = wire.size_of(item)
        if size > PAYLOAD_LIMIT:
            fail_quietly(reply, TooLarge("the request", size, PAYLOAD_LIMIT))
            return
        if isinstance(reply, Duplex):
            self.sequences.open(item, reply)
            return
        opened = self._streams[id] = _Opened(envelope)
        reply.on_abandon = lambda: self._cancel(id)
        if isinstance(reply, ReplyStream):
            reply.on_taken = lambda chunks, size: self._credit(id, opened, chunks, size)
        self._write(wire.open_stream(item, Kind.DESCRIBE if isinstance(envelope.message, Describe) else Kind.OPEN))

    def _item(self, id: int, envelope: Envelope) -> Item:
        message = envelope.message
        assert not isinstance(message, Call)  # noqa: S101  # narrows the type: calls go by frames of their own
        return Item(id, nanoseconds(envelope.deadline), message.id, message.inputs, message.metadata)

    def _cancel(self, id: int) -> None:
        self._write(wire.frame(Kind.CANCEL, id))

    def _credit(self, id: int, opened: _Opened, chunks: int, size: int) -> None:
        """Give credit back at half (contracts §2), so that it does not cost a frame a chunk."""
        opened.chunks += chunks
        opened.bytes += size
        if opened.chunks * 2 >= CREDIT_CHUNKS or opened.bytes * 2 >= CREDIT_BYTES:
            if id in self._streams:
                self._write(wire.credit(id, opened.chunks, opened.bytes))
            opened.chunks = opened.bytes = 0

    # --- from the worker --------------------------------------------------------------------

    def hear(self, frame: Frame) -> None:
        """Take one of BEGUN, RESULT, CHUNK, DONE, ERROR. WireError for ids that make no sense."""
        if frame.kind == _CHUNK:
            self._chunk(frame)
            return
        if frame.kind == _RESULT:
            self._result(frame)
            return
        if frame.kind in _OF_CALLS:
            self.answered += self.calls.hear(frame)
            return
        match frame.kind:
            case Kind.BEGUN:
                self._batch(frame).begun = True
            case Kind.DONE:
                trailers = wire.read_done(frame.payload)
                opened = self._streams.pop(frame.id, None)
                if opened is None:
                    self.sequences.hear(frame)
                else:
                    self._done(opened, trailers)
            case Kind.ERROR:
                error = failure(*wire.read_error(frame.payload))
                opened = self._streams.pop(frame.id, None)
                if opened is None:
                    self.sequences.hear(frame)
                else:
                    self._end(opened.envelope, error)
            case Kind.FAULT:
                self.answered += self.sequences.hear(frame)
            case other:
                raise wire.WireError(f"unexpected frame {Kind(other).name}")

    def _batch(self, frame: Frame) -> _Batch:
        try:
            return self._batches[frame.id]
        except KeyError:
            raise wire.WireError(f"no batch {frame.id}") from None

    def _result(self, frame: Frame) -> None:
        """End the items of a batch. Where the frame makes no sense, what is left of it stays in hand."""
        envelopes = self._batch(frame).envelopes
        for id, outcome, data, trailers in wire.read_result(frame.payload):
            if id not in envelopes:
                raise wire.WireError(f"no item {id} in batch {frame.id}")
            if outcome:
                error = failure(outcome, data)
                self._end(envelopes.pop(id), error)
            else:
                self._answer(envelopes.pop(id), data, trailers)
        del self._batches[frame.id]
        for envelope in envelopes.values():
            self._end(envelope, HandlerRaised("WorkerError", "the worker did not answer this item"))

    def _chunk(self, frame: Frame) -> None:
        opened = self._streams.get(frame.id)
        if opened is None:
            of = self.calls if frame.id in self.calls else self.sequences
            self.answered += of.hear(frame)
            return
        reply = opened.envelope.reply
        if isinstance(reply, ReplyStream):
            if not reply.is_set:
                reply.push(frame.payload)
                if reply.buffered > CREDIT_CHUNKS:
                    raise wire.WireError(f"more than {CREDIT_CHUNKS} chunks of a stream wait: it had no credit")
            return
        assert opened.gathered is not None  # noqa: S101  # narrows the type: not a stream
        opened.size += len(frame.payload)
        if opened.size <= self._gather_limit:
            opened.gathered.append(frame.payload)
        elif not reply.is_set:
            opened.gathered.clear()
            self._end(opened.envelope, TooLarge("the gathered answer", opened.size, self._gather_limit))
            self._cancel(frame.id)
        self._credit(frame.id, opened, 1, len(frame.payload))

    def _done(self, opened: _Opened, trailers: Metadata) -> None:
        if opened.gathered is not None:
            self._answer(opened.envelope, b"".join(opened.gathered), trailers)
        else:
            self._answer(opened.envelope, None, trailers)

    def _answer(self, envelope: Envelope, data: bytes | None, trailers: Metadata) -> None:
        """End well. `data`: the one answer, None where the chunks were pushed already."""
        self.answered += 1
        reply = envelope.reply
        if reply.is_set:
            return
        if isinstance(reply, Reply):
            reply.set(Answer(data or b"", trailers))
            return
        if data is not None:
            reply.push(data)
        reply.finish(trailers)

    def _end(self, envelope: Envelope, error: ActorserveError) -> None:
        self.answered += 1
        fail_quietly(envelope.reply, error)

    # --- the worker's end ---------------------------------------------------------------------

    def abandon_all(self, error: Callable[[], ActorserveError]) -> list[Envelope]:
        """The worker is gone: what it had begun ends with `error()`; what it had not is returned, in order."""
        untouched: list[Envelope] = []
        for batch in self._batches.values():
            for envelope in batch.envelopes.values():
                envelope.reply.on_abandon = None
                if batch.begun:
                    fail_quietly(envelope.reply, error())
                elif not envelope.reply.abandoned:
                    untouched.append(envelope)
        for opened in self._streams.values():
            fail_quietly(opened.envelope.reply, error())
        self.sequences.abandon_all(error)
        self.calls.abandon_all(error)
        self._batches.clear()
        self._streams.clear()
        return untouched
