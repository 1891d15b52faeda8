"""The worker's main thread: the only thread that runs model code. It takes batches, steps streams, and
looks at the cancel flags before each of them.

The order of one round: take in what has arrived; run one batch; describe; feed the sequences; let every generator that
has credit give one chunk; prefill one new generation; step all that have credit. So batches, streams and newcomers
share the device fairly, and a cancelled stream is closed before its next step.

Over 250 lines: batches and streams share the rounds and what is to be written.
What must not live here: sockets, processes (worker_main.py), trio, torch (the handler brings it).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from actorserve.actors import wire
from actorserve.actors.wire import Data, Item, Kind, Outcome
from actorserve.actors.worker_batches import Batches
from actorserve.actors.worker_items import Arrival, Flags, Stream, encode, failure
from actorserve.actors.worker_sequences import Sequences
from actorserve.handlers.base import Request, Step

LATEST_FLUSH_S = 0.005
QUICK_ROUND_S = 0.0005
HOLD_S = 0.001


class Engine:
    """Runs one handler until STOP, or for ever."""

    def __init__(
        self,
        handler: Any,
        *,
        inbox: SimpleQueue[list[Arrival]],
        flags: Flags,
        send: Callable[[Data], None],
        batch_size: int = 32,
        max_batch_weight: int = 0,
    ) -> None:
        """`batch_size`: the most sequences that are fed at once. `max_batch_weight`: see worker_batches.py."""
        self._handler = handler
        self._inbox = inbox
        self._flags = flags
        self._send = send
        self._out: list[Data] = []
        self._batches: deque[tuple[int, list[Item]]] = deque()
        self._descriptions: deque[Stream] = deque()
        self._runs = Batches(handler, flags=flags, make=self._request, max_weight=max_batch_weight)
        self._newcomers: deque[Stream] = deque()
        self._streams: dict[int, Stream] = {}
        self._continuous = callable(getattr(handler, "prefill", None))
        self._sequences = Sequences(
            handler, flags=flags, make=self._request, out=self._out.append, batch_size=batch_size
        )
        self._stopping = False
        self._flushed = 0.0

    def run(self) -> None:
        """Return after STOP, once everything in hand has ended."""
        while True:
            self._take_in(block=not self._has_work())
            if self._batches:
                self._run_batch(*self._batches.popleft())
                if self._streams or self._newcomers or self._sequences:
                    self._flush()  # a batch does not wait for the streams' step
            if self._descriptions:
                self._describe(self._descriptions.popleft())
                self._flush()
            if self._sequences:
                self._sequences.run_round()
                self._flush()
            if self._streams or self._newcomers:
                self._step_and_flush()
            elif not self._batches and self._inbox.empty():
                self._flush()  # otherwise the next batch's BEGUN takes the RESULT along: one write, one wake-up less
            if self._stopping and not (self._has_begun() or self._streams):
                self._sequences.close()
                self._flush()
                return

    def _step_and_flush(self) -> None:
        """One round of the streams. Where rounds are quick, the chunks of a millisecond leave in one write."""
        began = time.monotonic()
        self._step_streams()
        now = time.monotonic()
        if now - began > QUICK_ROUND_S or now - self._flushed > HOLD_S or not self._has_work():
            self._flush()

    # --- what arrives ---------------------------------------------------------------------

    def _has_work(self) -> bool:
        if self._has_begun() or self._stopping:
            return True
        return any(s.has_credit() or self._flags.is_cancelled(s.id) for s in self._streams.values())

    def _has_begun(self) -> bool:
        """Whether something is in hand that no client holds up."""
        return bool(self._batches or self._newcomers or self._descriptions) or self._sequences.has_work()

    def _take_in(self, *, block: bool) -> None:
        if block:
            self._handle(self._inbox.get())
        while not self._inbox.empty():
            self._handle(self._inbox.get())

    def _handle(self, arrivals: list[Arrival]) -> None:
        for kind, id, content in arrivals:
            match kind:
                case Kind.BATCH:
                    self._batches.append((id, content))
                case Kind.OPEN:
                    self._newcomers.append(Stream(id, self._request(content)))
                case Kind.DESCRIBE:
                    self._descriptions.append(Stream(id, self._request(content)))
                case Kind.OPEN_SEQUENCE | Kind.ITEM | Kind.END:
                    self._sequences.hear(kind, id, content)
                case Kind.CREDIT:
                    self._give_credit(id, content)
                case Kind.CANCEL:
                    pass  # its flag is set already; this frame only ends a blocking get
                case Kind.STOP:
                    self._stopping = True
                case other:
                    raise wire.WireError(f"unexpected frame {Kind(other).name}")

    def _give_credit(self, id: int, payload: bytes) -> None:
        stream = self._streams.get(id)
        if stream is None:
            self._sequences.credit(id, payload)
        else:
            chunks, size = wire.read_credit(payload)
            stream.chunks += chunks
            stream.bytes += size

    def _request(self, item: Item) -> Request:
        flags, id = self._flags, item.id
        return Request(
            item.inputs,
            item.metadata,
            item.request_id,
            deadline_ns=item.deadline_ns,
            cancelled=lambda: flags.is_cancelled(id),
        )

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self._out:
            self._send(wire.together(self._out))
            self._out.clear()

    def _flush_if_late(self) -> None:
        """One write a round is cheapest, but no chunk waits for slow neighbours."""
        if time.monotonic() - self._flushed > LATEST_FLUSH_S:
            self._flush()

    # --- batches --------------------------------------------------------------------------

    def _run_batch(self, batch_id: int, items: list[Item]) -> None:
        self._out.append(wire.frame(Kind.BEGUN, batch_id))
        self._flush()
        self._out.append(wire.result(batch_id, self._runs.run(items)))

    def _describe(self, stream: Stream) -> None:
        """What the handler says of itself, one chunk; none where it says nothing."""
        last = wire.done(stream.id)
        dropped = self._flags.dropped(stream.id, stream.request._deadline_ns, time.monotonic_ns())  # noqa: SLF001  # same contract
        if dropped is not None:
            last = wire.error(stream.id, dropped, b"")
        elif callable(getattr(self._handler, "describe", None)):
            try:
                with self._flags.handler_call():
                    data = encode(self._handler.describe())
                self._out.append(wire.chunk(stream.id, data))
            except Exception as error:  # noqa: BLE001  # the handler's
                last = wire.error(stream.id, *failure(error))
        self._flags.forget([stream.id])
        self._out.append(last)

    # --- streams ----------------------------------------------------------------------------

    def _step_streams(self) -> None:
        for stream in list(self._streams.values()):
            if self._flags.is_cancelled(stream.id):
                self._end(stream, wire.error(stream.id, Outcome.CANCELLED, b""))
        if self._newcomers:
            self._admit(self._newcomers.popleft())
            if self._continuous:
                self._flush()  # a newcomer's first word does not wait for the others' step
            while self._newcomers and not self._continuous:
                self._admit(self._newcomers.popleft())
        runnable = [stream for stream in self._streams.values() if stream.has_credit()]
        if self._continuous:
            runnable = [stream for stream in runnable if not self._flags.is_cancelled(stream.id)]
            if runnable:
                self._step_states(runnable)
        else:
            for stream in runnable:
                if not self._flags.is_cancelled(stream.id):
                    self._next(stream)
                    self._flush_if_late()

    def _admit(self, stream: Stream) -> None:
        """Begin a stream; what is cancelled or expired never reaches the handler."""
        request = stream.request
        dropped = self._flags.dropped(stream.id, request._deadline_ns, time.monotonic_ns())  # noqa: SLF001  # same contract
        if dropped is not None:
            self._end(stream, wire.error(stream.id, dropped, b""))
            return
        self._streams[stream.id] = stream
        try:
            with self._flags.handler_call():
                if self._continuous:
                    stream.state, step = self._handler.prefill(request)
                else:
                    stream.iterator = iter(self._handler.generate(request))
                    return
        except Exception as error:  # noqa: BLE001  # the handler's
            del self._streams[stream.id]
            self._end(stream, wire.error(stream.id, *failure(error)))
            return
        self._apply(stream, step)

    def _next(self, stream: Stream) -> None:
        assert stream.iterator is not None  # noqa: S101  # narrows the type: _admit has set it
        try:
            with self._flags.handler_call():
                answer = next(stream.iterator)
            self._chunk(stream, answer)
        except StopIteration:
            self._end(stream, wire.done(stream.id, stream.request.trailers))
        except Exception as error:  # noqa: BLE001  # the handler's
            self._end(stream, wire.error(stream.id, *failure(error)))

    def _step_states(self, streams: list[Stream]) -> None:
        try:
            with self._flags.handler_call():
                steps = list(self._handler.step([stream.state for stream in streams]))
            if len(steps) != len(streams):
                raise ValueError(f"step returned {len(steps)} steps for {len(streams)} states")
        except Exception as error:  # noqa: BLE001  # the handler's
            steps = [error] * len(streams)
        for stream, step in zip(streams, steps, strict=True):
            self._apply(stream, step)

    def _apply(self, stream: Stream, step: Step | Exception) -> None:
        try:
            if isinstance(step, Exception):
                raise step  # one path for what step returned and what encoding raises
            if step.answer is not None:
                self._chunk(stream, step.answer)
            done = step.done
        except Exception as error:  # noqa: BLE001  # the handler's
            self._end(stream, wire.error(stream.id, *failure(error)))
            return
        if done:
            self._end(stream, wire.done(stream.id, stream.request.trailers))

    def _chunk(self, stream: Stream, answer: Any) -> None:
        data = encode(answer)
        stream.chunks -= 1
        stream.bytes -= len(data)
        self._out.append(wire.chunk(stream.id, data))

    def _end(self, stream: Stream, last: bytes) -> None:
        """Free what the handler holds for a stream, then say how it ended. Once per stream."""
        try:
            with self._flags.handler_call():
                self._free(stream)
        except Exception as error:  # noqa: BLE001  # the handler's
            last = wire.error(stream.id, *failure(error))
        self._streams.pop(stream.id, None)
        self._flags.forget([stream.id])
        self._out.append(last)

    def _free(self, stream: Stream) -> None:
        if self._continuous:
            if stream.id in self._streams:
                self._handler.release(stream.state)
        elif stream.iterator is not None:
            close = getattr(stream.iterator, "close", None)
            if close is not None:
                close()
