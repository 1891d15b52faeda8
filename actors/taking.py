"""What one replica takes from its mailbox, as batching.py decides, and in which lines it waits for more.

What must not live here: tasks, waiting (model_actor.py), what becomes of what was taken (in_hand.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from actorserve.actors import batching
from actorserve.actors.in_hand import InHand
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.waiters import Signal


class Taking:
    """See the module's docstring. `signal` is set when the replica should look again."""

    def __init__(self, mailbox: Mailbox, signal: Signal) -> None:
        self._mailbox = mailbox
        self._signal = signal
        self.retiring = False  # takes nothing more

    def retire(self) -> None:
        """Leave the place to another: take nothing more. What is in hand goes on."""
        self.retiring = True
        self._signal.set()

    def hold(self, held: Iterable[str] = (), loading: Iterable[str] = (), seen: int = 0) -> None:
        """Say which models the replica holds and loads (affinity.py); nothing any more once it retires."""
        if not self.retiring:
            self._mailbox.affinity.hold(self._signal, held, loading, trio.current_time(), seen)

    def leave(self) -> None:
        """Wait for nothing any more, and hold no models."""
        self._mailbox.affinity.forget(self._signal)
        self.leave_lines()

    def leave_lines(self) -> None:
        """Wait for nothing, for now."""
        for waiters in (self._mailbox.idle, self._mailbox.busy, self._mailbox.roomy):
            waiters.discard(self._signal)

    def take(self, in_hand: InHand) -> float:
        """Take what the decision gives; returns when to look again, at the latest."""
        mailbox, signal = self._mailbox, self._signal
        self.leave_lines()
        took, until = self._take_streams(in_hand)
        while True:
            decision = self._decide(in_hand)
            if not isinstance(decision, batching.Take):
                break
            envelopes = mailbox.take(mailbox.batch_lane, decision.count)
            if envelopes:
                in_hand.send_batch(envelopes)
                took = True
        if isinstance(decision, batching.WaitUntil):
            until = min(until, decision.time)
        if not in_hand.batches:
            mailbox.idle.add(signal)
        elif in_hand.batches <= batching.PREFETCH:
            mailbox.busy.add(signal)
        if in_hand.streams < mailbox.batch_size:
            mailbox.roomy.add(signal)
        if took and mailbox.waiting:
            mailbox.wake_next()
        return until

    def _decide(self, in_hand: InHand) -> batching.Decision:
        mailbox = self._mailbox
        lane = mailbox.batch_lane
        now = trio.current_time()
        return batching.decide(
            now=now,
            waiting=lane.count,
            oldest_arrival=lane.oldest_arrival() if mailbox.max_delay_s else now,
            in_hand=in_hand.batches,
            others_idle=len(mailbox.idle) > 0,
            batch_size=mailbox.batch_size,
            max_delay_s=0.0 if mailbox.closed else mailbox.max_delay_s,
            weight=lane.weight,
            max_weight=mailbox.max_weight,
        )

    def _take_streams(self, in_hand: InHand) -> tuple[bool, float]:
        """Whether it took any, and when it should look again."""
        mailbox = self._mailbox
        share = batching.stream_share(
            waiting=mailbox.stream_lane.count,
            room=mailbox.batch_size - in_hand.streams,
            idle_others=len(mailbox.roomy),
        )
        envelopes, again = mailbox.take_streams(share, self._signal)
        for envelope in envelopes:
            in_hand.open_stream(envelope)
            if mailbox.affinity:
                mailbox.affinity.opened(self._signal, envelope, in_hand.calls.opened)
        return bool(envelopes), again
