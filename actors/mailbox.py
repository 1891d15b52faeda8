"""The bounded mailbox of one model version: callers `ask`, its replicas take. It outlives them.

Two lanes share one bound: what goes out in batches, and what is opened as a stream. Which message goes
where depends on what the handler can do, so everything queues in the batch lane until the first replica
is READY (`learn`). Who is next in a lane is decided by order.py or, with tenants, by turns.py.

`ask` never waits: full -> Overloaded, and a mailbox that must not be used raises its refusal. Closing the
door (`close`) IS drain: what is queued is still taken. What must not live here: who runs a replica.
Over 250 lines: everybody who may change what is queued, in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import count
from typing import overload

import trio

from actorserve.actors.affinity import NEVER, Affinity
from actorserve.actors.batching import is_full
from actorserve.actors.claims import PRIORITY, Claims, Message, priority_of
from actorserve.actors.duplex import Duplex, Seats
from actorserve.actors.envelope import Claimed, Envelope
from actorserve.actors.exchange import Exchange
from actorserve.actors.leases import Leases
from actorserve.actors.messages import Answer, Call, Capabilities, Describe, Generate, Infer, OpenSequence
from actorserve.actors.order import Line, number
from actorserve.actors.overload import DrainRate, who_gives_way
from actorserve.actors.reply import Reply, ReplyStream, fail_quietly
from actorserve.actors.turns import Turns
from actorserve.actors.waiters import Signal, Waiters
from actorserve.errors import ActorserveError, Expired, NotStateful, Overloaded, Unsupported

NO_CLAIMS = Claims()
Lane = Line[Envelope] | Turns[Envelope]


class Mailbox:
    """See the module's docstring. `limit`: how many may wait. `tickets`: only as many as replicas are idle."""

    def __init__(
        self,
        name: str,
        *,
        limit: int,
        batch_size: int,
        max_delay_s: float,
        max_sequences: int = 100,
        claims: Claims = NO_CLAIMS,
        tickets: bool = False,
    ) -> None:
        self.name = name
        self.seats = Seats(name, max_sequences)
        self.capabilities: Capabilities | None = None
        self.closed = False
        self.refusal: Callable[[], ActorserveError] | None = None
        self.asked = 0  # how often, refusals not counted
        self.refused = 0  # how often for want of a ticket
        self.on_ask: Callable[[], None] | None = None  # called after each ask, where nobody takes as yet
        self._numbers = count()
        self._tickets = tickets
        self._lay_out(limit, batch_size, max_delay_s, claims)
        self.idle = Waiters()  # replicas with nothing in hand
        self.busy = Waiters()  # replicas with one batch in hand, which may take a full one ahead of time
        self.roomy = Waiters()  # replicas that may open streams
        self.affinity: Affinity[Signal] = Affinity()  # where deployments multiplex models
        self.leases: Leases[Callable[[int], None]] = Leases()  # who loads which of those models
        self._drained = DrainRate()
        self._emptied = trio.Event()

    def _lay_out(self, limit: int, batch_size: int, max_delay_s: float, claims: Claims) -> None:
        """Take rules, and have empty lanes that go by them."""
        self.limit = limit
        self.batch_size = batch_size
        self.max_delay_s = max_delay_s
        self.max_weight = claims.max_weight
        self._claims = None if claims == NO_CLAIMS else claims
        self._first = next(self._numbers)  # of those who came under these rules
        self.batch_lane: Lane = Line(claims.max_weight)
        self.stream_lane: Lane = Line()
        if claims.tenant_key:
            self.batch_lane = Turns(batch_size, claims.max_weight)
            self.stream_lane = Turns(batch_size)
        self._lanes = self._lanes_for(self.capabilities)

    @property
    def waiting(self) -> int:
        """How many envelopes are queued."""
        return self.batch_lane.count + self.stream_lane.count

    # --- callers ---------------------------------------------------------------------------

    @overload
    def ask(self, message: Infer | Describe, deadline: float = ...) -> Reply[Answer]: ...
    @overload
    def ask(self, message: Generate, deadline: float = ...) -> ReplyStream: ...
    @overload
    def ask(self, message: OpenSequence, deadline: float = ...) -> Duplex: ...
    @overload
    def ask(self, message: Call, deadline: float = ...) -> Exchange: ...
    def ask(self, message: Message, deadline: float = float("inf")) -> Reply[Answer] | ReplyStream | Duplex | Exchange:
        """Queue a message. `deadline` in trio's clock.

        Raises at once: the refusal (FAILED, no workers, gone), Overloaded, BadInput where the metadata claims
        nonsense, TooLarge above the weight of a batch, or for a sequence TooManySequences. A sequence whose model has
        none fails with NotStateful, at the latest when a replica is READY.
        """
        if self.refusal is not None:
            raise self.refusal()
        lane = self._lanes.get(type(message))
        if lane is None:
            raise self._misfit(message)
        now = trio.current_time()
        plain = self._claims is None and PRIORITY not in message.metadata
        waiting = self.batch_lane.count + self.stream_lane.count
        if self._tickets and waiting >= len(self.idle):
            self.refused += 1
            if self.on_ask is not None:  # nobody is there, but may come: for the next one who asks
                self.on_ask()
            raise Overloaded(self.name, 0, self._drained.retry_after(waiting + 1, now))
        if plain and waiting < self.limit:
            reply = Reply() if isinstance(message, Infer) else self._reply_to(message)
            envelope = Envelope(message, reply, deadline, now, next(self._numbers))
        else:
            envelope = self._claimed(message, lane, deadline, now)
            reply = envelope.reply
        if not waiting:
            self._drained.begin(now)
        lane.push(envelope)
        reply.on_abandon = lambda: self._discard(envelope)
        self._wake_for(lane)
        self.asked += 1
        if self.on_ask is not None:
            self.on_ask()
        return reply

    def _claimed(self, message: Message, lane: Lane, deadline: float, now: float) -> Envelope:
        """An envelope with its claims, in a full mailbox in place of another; BadInput, TooLarge, Overloaded."""
        priority = priority_of(message.metadata)
        tenant, weight = self._claims.read(message) if self._claims is not None else ("", 1)
        full = self.waiting >= self.limit
        reply = self._instead_of_another(message, lane, tenant, now) if full else self._reply_to(message)
        envelope = Claimed(message, reply, deadline, now, next(self._numbers))
        envelope.priority = priority
        envelope.tenant = tenant
        envelope.weight = weight
        return envelope

    def _reply_to(self, message: Message) -> Reply[Answer] | ReplyStream | Duplex | Exchange:
        if isinstance(message, Call):
            return Exchange()
        if isinstance(message, Infer | Describe):
            return Reply()
        if isinstance(message, Generate):
            return ReplyStream()
        return self.seats.open()

    def _misfit(self, message: Message) -> ActorserveError:
        """Why the handler cannot answer this kind of message."""
        if isinstance(message, OpenSequence):
            return NotStateful(f"model {self.name} has no sequences")
        if isinstance(message, Call):
            return Unsupported(f"model {self.name} takes no calls of a schema of its own")
        if self.capabilities is not None and self.capabilities.calls:
            return Unsupported(f"{self.name} is not a model: it answers the calls of its own schema only")
        return Unsupported(f"model {self.name} answers sequences only: StreamPredictions2 opens them")

    def _lanes_for(self, can: Capabilities | None) -> dict[type[Message], Lane]:
        """Which kind of message waits where; what the handler cannot answer is not in it."""
        batch, stream = self.batch_lane, self.stream_lane
        if can is None:
            return {Infer: batch, Generate: batch, OpenSequence: batch, Describe: batch, Call: batch}
        if can.calls:
            return {Call: stream}
        lanes: dict[type[Message], Lane] = {Describe: batch}
        if can.infer or can.streams:
            lanes[Infer] = batch if can.infer else stream
            lanes[Generate] = stream if can.streams else batch
        if can.sequences:
            lanes[OpenSequence] = stream
        return lanes

    def _instead_of_another(
        self, message: Message, lane: Lane, tenant: Hashable, now: float
    ) -> Reply[Answer] | ReplyStream | Duplex | Exchange:
        """A place taken from a tenant above its share for one below; Overloaded where nobody has to give way."""
        refusal = Overloaded(self.name, self.limit, self._drained.retry_after(self.waiting, now))
        other = self.stream_lane if lane is self.batch_lane else self.batch_lane
        if not isinstance(lane, Turns) or not isinstance(other, Turns):
            raise refusal
        waiting = lane.counts()
        for name, many in other.counts().items():
            waiting[name] = waiting.get(name, 0) + many
        loser = who_gives_way(waiting, lane.seat(tenant), self.limit)
        if loser is None:
            raise refusal
        reply = self._reply_to(message)
        newest = max((*lane.newest(loser), *other.newest(loser)), key=number)
        newest.lane.discard(newest)
        fail_quietly(newest.reply, refusal)
        return reply

    def _discard(self, envelope: Envelope) -> None:
        """Its caller has gone: free its place at once. Already taken: its replica knows by itself."""
        if envelope.lane is not None:
            envelope.lane.discard(envelope)
            self._note_emptied()

    def _note_emptied(self) -> None:
        if not self.waiting:
            self._emptied.set()

    def _wake_for(self, lane: Lane) -> None:
        if lane is self.stream_lane:
            self.roomy.wake()
            return
        full = lane.count >= self.batch_size or (self.max_weight and self._is_full())  # each ask comes by here
        if self.idle:
            if not self.max_delay_s or full or lane.count == 1:
                self.idle.wake()
        elif full:
            self.busy.wake()

    def _is_full(self) -> bool:
        return is_full(self.batch_lane.count, self.batch_size, self.batch_lane.weight, self.max_weight)

    # --- replicas --------------------------------------------------------------------------

    def learn(self, capabilities: Capabilities) -> None:
        """A replica is READY and says what the handler can do: sort what is queued into its lanes."""
        if capabilities == self.capabilities:
            return
        self.capabilities = capabilities
        self._lanes = self._lanes_for(capabilities)
        self._sort(self._clear())

    def _clear(self) -> list[Envelope]:
        return sorted((*self.batch_lane.clear(), *self.stream_lane.clear()), key=number)

    def _sort(self, queued: Iterable[Envelope]) -> None:
        """Put what was queued into the lanes that there are now, in the order of arrival."""
        for envelope in map(self._fitted, queued):
            lane = self._lanes.get(type(envelope.message))
            if lane is None:
                fail_quietly(envelope.reply, self._misfit(envelope.message))
            else:
                lane.push(envelope)
        self._note_emptied()

    def _fitted(self, envelope: Envelope) -> Envelope:
        """One that came under other rules with what these ask of it; they do not refuse what those let in."""
        if envelope.number >= self._first or self._claims is None:
            return envelope
        fitted = Claimed(envelope.message, envelope.reply, envelope.deadline, envelope.arrival, envelope.number)
        fitted.priority, fitted.charge = envelope.priority, 0
        fitted.tenant, fitted.weight = self._claims.read_leniently(envelope.message)
        envelope.reply.on_abandon = lambda: self._discard(fitted)
        return fitted

    def take(self, lane: Lane, count: int) -> list[Envelope]:
        """Take up to `count` of those who are next; whose deadline has passed ends here and costs nothing."""
        now = trio.current_time()
        taken, expired = lane.take(count, now)
        for envelope in expired:
            fail_quietly(envelope.reply, Expired("the deadline passed in the queue"))
        waiting = self.batch_lane.count + self.stream_lane.count
        if taken and (waiting or self._drained.saturated):
            self._drained.took(len(taken), waiting, now)
        if not waiting:
            self._emptied.set()
        return taken

    def take_streams(self, count: int, who: Signal) -> tuple[list[Envelope], float]:
        """Take up to `count` streams for a replica; with when it should look again, where models decide."""
        if not self.affinity or not count:
            return self.take(self.stream_lane, count), NEVER
        now = trio.current_time()
        chosen = self.affinity.choose(iter(self.stream_lane), count, who, now)
        taken: list[Envelope] = []
        for envelope in chosen.taken:
            self.stream_lane.discard(envelope)
            if envelope.deadline <= now:
                fail_quietly(envelope.reply, Expired("the deadline passed in the queue"))
            else:
                taken.append(envelope)
        for other in chosen.others:
            self.roomy.wake_one(other)
        if taken and (self.waiting or self._drained.saturated):
            self._drained.took(len(taken), self.waiting, now)
        self._note_emptied()
        return taken, chosen.again

    def put_back(self, envelopes: Iterable[Envelope]) -> None:
        """Return what was taken and never begun to its old place, with its old arrival times."""
        for envelope in sorted(envelopes, key=number, reverse=True):  # so that each goes in front
            if envelope.reply.abandoned:
                continue
            if self.refusal is not None and not self.closed:
                fail_quietly(envelope.reply, self.refusal())
                continue
            lane = self._lanes.get(type(envelope.message))
            if lane is None:
                fail_quietly(envelope.reply, self._misfit(envelope.message))
                continue
            envelope = self._fitted(envelope)  # noqa: PLW2901  # the same request
            envelope.reply.on_abandon = lambda envelope=envelope: self._discard(envelope)
            lane.restore(envelope)
        self.wake_next()

    def wake_next(self) -> None:
        """Hand what is left to the next replica; called after a take, and when a replica ends.

        An idle replica looks whatever the delay says: the one that kept its time may be the one that ended.
        """
        if self.batch_lane.count:
            if self.idle:
                self.idle.wake()
            elif self._is_full():
                self.busy.wake()
        if self.stream_lane.count:
            self.roomy.wake()

    # --- its owner -------------------------------------------------------------------------

    def change(
        self, *, limit: int, batch_size: int, max_delay_s: float, max_sequences: int, claims: Claims, tickets: bool
    ) -> None:
        """Go by other rules from now on. What is queued keeps its place, and nothing of it is refused."""
        queued = self._clear()
        self.seats.limit = max_sequences
        self._tickets = tickets
        self._lay_out(limit, batch_size, max_delay_s, claims)
        self._sort(queued)
        self.wake_all()

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
            if self._emptied.is_set():
                self._emptied = trio.Event()  # others may wait for the one that is not
            await self._emptied.wait()

    def fail_all(self, error: Callable[[], ActorserveError]) -> None:
        """End everything that is queued."""
        for lane in (self.batch_lane, self.stream_lane):
            for envelope in lane.clear():
                fail_quietly(envelope.reply, error())
        self._note_emptied()
