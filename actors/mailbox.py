"""The bounded mailbox of one model version: callers `ask`, its replicas take. It outlives them.

Two lanes share one bound: what goes out in batches, and what is opened as a stream. Which message goes
where depends on what the handler can do, so everything queues in the batch lane until the first replica
is READY (`learn`). Order inside a lane is arrival order.

`ask` never waits: full -> Overloaded, and a mailbox that must not be used raises its refusal. Closing the
door (`close`) IS drain: what is queued is still taken. What must not live here: who runs a replica.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count, pairwise
from typing import overload

import trio

from actorserve.actors.messages import Answer, Capabilities, Generate, Infer
from actorserve.actors.reply import Reply, ReplyStream, fail_quietly
from actorserve.errors import ActorserveError, Expired, Overloaded

SHORTEST_RETRY_S = 0.1


class Signal:
    """A flag that one task waits for again and again. Setting it twice wakes once."""

    __slots__ = ("_event", "_flag")

    def __init__(self) -> None:
        self._event: trio.Event | None = None
        self._flag = False

    def set(self) -> None:
        """Wake the task that waits, or the next that will."""
        self._flag = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Wait until set, then clear. A checkpoint always."""
        if self._flag:
            await trio.lowlevel.checkpoint()
        else:
            self._event = trio.Event()
            await self._event.wait()
            self._event = None
        self._flag = False


class Envelope:
    """A message on its way. Built by `Mailbox.ask` alone. Times are trio's clock, in seconds."""

    __slots__ = ("arrival", "deadline", "message", "number", "reply")

    def __init__(
        self,
        message: Infer | Generate,
        reply: Reply[Answer] | ReplyStream,
        deadline: float,
        arrival: float,
        number: int,
    ) -> None:
        self.message = message
        self.reply = reply
        self.deadline = deadline
        self.arrival = arrival
        self.number = number  # the order of arrival, where the clock cannot tell


class Waiters:
    """Replicas that can take one kind of work, in line, longest first.

    One that was woken and has not run yet is still counted: it is as good as free, so nobody else should
    take more than his share. It leaves when it looks (`discard`).
    """

    __slots__ = ("_line", "_woken")

    def __init__(self) -> None:
        self._line: dict[Signal, None] = {}
        self._woken: set[Signal] = set()

    def __len__(self) -> int:
        return len(self._line) + len(self._woken)

    def add(self, signal: Signal) -> None:
        """Wait, behind the others."""
        self._line.setdefault(signal)

    def discard(self, signal: Signal) -> None:
        """Do not wait any more."""
        self._line.pop(signal, None)
        self._woken.discard(signal)

    def wake(self) -> None:
        """Wake the one that has waited longest, if any."""
        if self._line:
            signal = next(iter(self._line))
            del self._line[signal]
            self._woken.add(signal)
            signal.set()

    def wake_all(self) -> None:
        """Wake everyone."""
        while self._line:
            self.wake()


class Mailbox:
    """See the module's docstring. `limit`: how many may wait."""

    def __init__(self, name: str, *, limit: int, batch_size: int, max_delay_s: float) -> None:
        self.name = name
        self.limit = limit
        self.batch_size = batch_size
        self.max_delay_s = max_delay_s
        self.capabilities: Capabilities | None = None
        self.closed = False
        self.refusal: Callable[[], ActorserveError] | None = None
        self.asked = 0  # how often, refusals not counted
        self.on_ask: Callable[[], None] | None = None  # called after each ask, where nobody takes as yet
        self.batch_lane: deque[Envelope] = deque()
        self.stream_lane: deque[Envelope] = deque()
        self.idle = Waiters()  # replicas with nothing in hand
        self.busy = Waiters()  # replicas with one batch in hand, which may take a full one ahead of time
        self.roomy = Waiters()  # replicas that may open streams
        self._numbers = count()
        self._emptied = trio.Event()

    @property
    def waiting(self) -> int:
        """How many envelopes are queued."""
        return len(self.batch_lane) + len(self.stream_lane)

    # --- callers ---------------------------------------------------------------------------

    @overload
    def ask(self, message: Infer, deadline: float = ...) -> Reply[Answer]: ...
    @overload
    def ask(self, message: Generate, deadline: float = ...) -> ReplyStream: ...
    def ask(self, message: Infer | Generate, deadline: float = float("inf")) -> Reply[Answer] | ReplyStream:
        """Queue a message. `deadline` in trio's clock.

        Raises at once: the refusal (FAILED, no workers, gone), or Overloaded.
        """
        if self.refusal is not None:
            raise self.refusal()
        now = trio.current_time()
        if self.waiting >= self.limit:
            raise Overloaded(self.name, self.limit, self._retry_after(now))
        reply: Reply[Answer] | ReplyStream = Reply() if isinstance(message, Infer) else ReplyStream()
        envelope = Envelope(message, reply, deadline, now, next(self._numbers))
        lane = self._lane(message)
        lane.append(envelope)
        reply.on_abandon = lambda: self._discard(envelope)
        self._wake_for(lane)
        self.asked += 1
        if self.on_ask is not None:
            self.on_ask()
        return reply

    def _lane(self, message: Infer | Generate) -> deque[Envelope]:
        can = self.capabilities
        if can is None or (can.infer and (isinstance(message, Infer) or not can.streams)):
            return self.batch_lane
        return self.stream_lane

    def _retry_after(self, now: float) -> float:
        """How long what is queued has taken so far: an estimate of how long it takes to get through."""
        oldest = min(lane[0].arrival for lane in (self.batch_lane, self.stream_lane) if lane)
        return max(SHORTEST_RETRY_S, now - oldest)

    def _discard(self, envelope: Envelope) -> None:
        """Its caller has gone: free its place at once. Already taken: its replica knows by itself."""
        for lane in (self.batch_lane, self.stream_lane):
            if envelope in lane:
                lane.remove(envelope)
        self._note_emptied()

    def _note_emptied(self) -> None:
        if not self.waiting:
            self._emptied.set()

    def _wake_for(self, lane: deque[Envelope]) -> None:
        if lane is self.stream_lane:
            self.roomy.wake()
            return
        waiting = len(lane)
        if self.idle:
            if not self.max_delay_s or waiting == 1 or waiting >= self.batch_size:
                self.idle.wake()
        elif waiting >= self.batch_size:
            self.busy.wake()

    # --- replicas --------------------------------------------------------------------------

    def learn(self, capabilities: Capabilities) -> None:
        """A replica is READY and says what the handler can do: sort what is queued into its lanes."""
        if capabilities == self.capabilities:
            return
        self.capabilities = capabilities
        queued = sorted((*self.batch_lane, *self.stream_lane), key=lambda envelope: envelope.number)
        self.batch_lane.clear()
        self.stream_lane.clear()
        for envelope in queued:
            self._lane(envelope.message).append(envelope)

    def take(self, lane: deque[Envelope], count: int) -> list[Envelope]:
        """Take up to `count` from the head; those whose deadline has passed end here and cost nothing."""
        now = trio.current_time()
        taken: list[Envelope] = []
        while lane and len(taken) < count:
            envelope = lane.popleft()
            if envelope.deadline <= now:
                fail_quietly(envelope.reply, Expired("the deadline passed in the queue"))
            else:
                envelope.reply.on_abandon = None
                taken.append(envelope)
        self._note_emptied()
        return taken

    def put_back(self, envelopes: Iterable[Envelope]) -> None:
        """Return what was taken and never begun to its old place, with its old arrival times."""
        for envelope in reversed(list(envelopes)):
            if envelope.reply.abandoned:
                continue
            if self.refusal is not None and not self.closed:
                fail_quietly(envelope.reply, self.refusal())
                continue
            envelope.reply.on_abandon = lambda envelope=envelope: self._discard(envelope)
            lane = self._lane(envelope.message)
            lane.appendleft(envelope)
        for lane in (self.batch_lane, self.stream_lane):
            if any(later.number < earlier.number for earlier, later in pairwise(lane)):  # two workers died in turn
                in_order = sorted(lane, key=lambda envelope: envelope.number)
                lane.clear()
                lane.extend(in_order)
        self.wake_next()

    def wake_next(self) -> None:
        """Hand what is left to the next replica; called after a take, and when a replica ends.

        An idle replica looks whatever the delay says: the one that kept its time may be the one that ended.
        """
        if self.batch_lane:
            if self.idle:
                self.idle.wake()
            elif len(self.batch_lane) >= self.batch_size:
                self.busy.wake()
        if self.stream_lane:
            self.roomy.wake()

    # --- its owner -------------------------------------------------------------------------

    def close(self, refusal: Callable[[], ActorserveError]) -> None:
        """Shut the door: `ask` raises `refusal()`, what is queued is still answered."""
        self.closed = True
        self.refusal = refusal
        self.wake_all()

    def wake_all(self) -> None:
        """Let every replica look again."""
        for waiters in (self.idle, self.busy, self.roomy):
            waiters.wake_all()

    async def wait_empty(self) -> None:
        """Wait until nothing is queued. For the owner, once the door is shut."""
        while self.waiting:
            self._emptied = trio.Event()
            await self._emptied.wait()

    def fail_all(self, error: Callable[[], ActorserveError]) -> None:
        """End everything that is queued."""
        for lane in (self.batch_lane, self.stream_lane):
            while lane:
                fail_quietly(lane.popleft().reply, error())
        self._note_emptied()
