"""One model version in the supervisor's hands: its spec, its mailbox, its children, and what they are together.

What must not live here: starting, scaling and stopping children (supervisor.py).
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from actorserve.actors.autoscaler import may_scale
from actorserve.actors.autoscaling import Load
from actorserve.actors.child import Child
from actorserve.actors.claims import claims_of
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ModelSpec, ModelView, State
from actorserve.errors import ActorGone, ActorserveError, Draining, NoWorkers


class Model:
    """One model version: its spec, its mailbox, its children by index."""

    def __init__(self, spec: ModelSpec, on_demand: Callable[[], None]) -> None:
        """`on_demand` is called when it is asked and has no replica, but may have some."""
        self.spec = spec
        self._on_demand = on_demand
        self.children: dict[int, Child] = {}
        self.turn = trio.Lock()  # of replicas that are replaced one at a time
        self.mailbox = Mailbox(
            spec.name,
            limit=spec.queue_size,
            batch_size=spec.batch_size,
            max_delay_s=spec.max_batch_delay_s,
            max_sequences=spec.max_sequences,
            claims=claims_of(spec),
        )

    @property
    def state(self) -> State:
        """The state of the whole: the best that a replica is in."""
        states = {child.state for child in self.children.values()}
        if self.mailbox.closed:
            return State.DRAINING
        for state in (State.READY, State.LOADING, State.RESTARTING, State.FAILED):
            if state in states:
                return state
        return State.NO_WORKERS

    def view(self, *, is_default: bool) -> ModelView:
        """What the tree shows of it."""
        replicas = tuple(child.view() for _, child in sorted(self.children.items()))
        can = self.mailbox.capabilities
        stateful = can is not None and can.sequences
        return ModelView(self.spec, is_default, self.state, self.mailbox.waiting, replicas, stateful)

    def refresh(self) -> None:
        """Let the mailbox refuse at once where nobody will answer (design §5)."""
        if self.mailbox.closed:
            if not any(child.is_alive or child.state is State.DRAINING for child in self.children.values()):
                self.mailbox.fail_all(self.stopped)
            return
        if any(child.is_alive for child in self.children.values()):
            self.mailbox.refusal = self.mailbox.on_ask = None
            return
        if may_scale(self.spec) and not self.load().failed:
            self.mailbox.refusal, self.mailbox.on_ask = None, self._on_demand
            return
        refusal = self._refusal()
        self.mailbox.refusal = refusal
        self.mailbox.fail_all(refusal)

    def load(self) -> Load:
        """What autoscaling decides by. Replicas that drain count no more, nor does what they have in hand."""
        alive = [child for child in self.children.values() if child.is_alive]
        failed = sum(child.state is State.FAILED for child in self.children.values())
        return Load(self.mailbox.waiting + sum(child.view().in_hand for child in alive), len(alive), failed)

    def stopped(self) -> ActorserveError:
        """Say why a queued request is not answered: its model was stopped."""
        return Draining(f"model {self.spec.name} was stopped before this request was answered")

    def _refusal(self) -> Callable[[], ActorserveError]:
        name = self.spec.name
        reasons = [child.reason for child in self.children.values() if child.state is State.FAILED]
        if reasons:
            return lambda: ActorGone(f"model {name} has FAILED: {reasons[0]}")
        return lambda: NoWorkers(f"model {name} has no workers; scale it up first")
