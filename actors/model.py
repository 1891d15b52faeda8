"""One model version in the supervisor's hands: its spec, its mailbox, its children, and what they are together.

What must not live here: starting, scaling and stopping children (staffing.py, retiring.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import trio

from actorserve.actors.autoscaler import may_scale
from actorserve.actors.autoscaling import Load
from actorserve.actors.child import Child
from actorserve.actors.claims import claims_of
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import ModelSpec, ModelView, State
from actorserve.actors.rollout import Rollout
from actorserve.errors import ActorGone, ActorserveError, Draining, NoWorkers


class Model:
    """One model version: its spec, its mailbox, its children by index."""

    def __init__(self, spec: ModelSpec, on_demand: Callable[[], None]) -> None:
        """`on_demand` is called when it is asked and has no replica, but may have some."""
        self.spec = spec
        self._on_demand = on_demand
        self.children: dict[int, Child] = {}
        self.turn = trio.Lock()  # of replicas that are replaced one at a time
        self.rollout: Rollout | None = None
        self.dismissed: set[Child] = set()  # of rollouts that did not take over, until they are gone
        self.rollouts = 0  # how many have taken over
        self.rollout_failure = ""  # why the last one did not
        self.mailbox = Mailbox(spec.name, **_rules_of(spec))

    @property
    def alive(self) -> int:
        """How many replicas answer, or will; those of a rollout are not among them yet."""
        return len(self.staff())

    def staff(self) -> list[Child]:
        """Those that answer, or will, without those of a rollout."""
        return [child for child in self.children.values() if child.is_alive]

    def forget_failed(self) -> None:
        """Let go of the children that are FAILED: what is started from now on may have their places."""
        for index in [index for index, child in self.children.items() if child.state is State.FAILED]:
            del self.children[index]

    def everyone(self) -> Iterator[Child]:
        """Every child, those of rollouts included."""
        yield from self.children.values()
        yield from self.dismissed
        if self.rollout is not None:
            yield from self.rollout.children.values()

    def free_index(self) -> int:
        """The lowest index that no child has."""
        taken = {child.spec.index for child in self.everyone()}
        return next(index for index in range(len(taken) + 1) if index not in taken)

    def change(self, spec: ModelSpec) -> None:
        """Go by another spec from now on; what is queued stays queued."""
        self.spec = spec
        self.mailbox.change(**_rules_of(spec))

    def drop_rollout(self, why: ActorserveError) -> None:
        """Give up the rollout that is under way, if there is one; its task dismisses its children."""
        rollout, self.rollout = self.rollout, None
        if rollout is not None:
            self.dismissed |= {child for child in rollout.children.values() if not child.gone.is_set()}
            rollout.abort(why)

    @property
    def state(self) -> State:
        """The state of the whole: the best that a replica is in."""
        states = {child.state for child in self.children.values()}
        if self.mailbox.closed:
            return State.DRAINING
        if self.rollout is not None:
            states.add(State.LOADING)
        for state in (State.READY, State.LOADING, State.RESTARTING, State.FAILED):
            if state in states:
                return state
        return State.NO_WORKERS

    def view(self, *, is_default: bool) -> ModelView:
        """What the tree shows of it."""
        can = self.mailbox.capabilities
        stateful = can is not None and can.sequences
        children = sorted(self.everyone(), key=lambda child: child.spec.index)
        rollout = "under way" if self.rollout is not None else self.rollout_failure
        replicas = tuple(child.view() for child in children)
        return ModelView(self.spec, is_default, self.state, self.mailbox.waiting, replicas, stateful, rollout)

    def refresh(self) -> None:
        """Let the mailbox refuse at once where nobody will answer (design §5)."""
        if self.mailbox.closed:
            if not any(child.is_alive or child.state is State.DRAINING for child in self.everyone()):
                self.mailbox.fail_all(self.stopped)
            return
        if self.alive or self.rollout is not None:
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
        alive = self.staff()
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


def _rules_of(spec: ModelSpec) -> dict[str, Any]:
    """What a mailbox goes by."""
    return {
        "limit": spec.queue_size,
        "batch_size": spec.batch_size,
        "max_delay_s": spec.max_batch_delay_s,
        "max_sequences": spec.max_sequences,
        "claims": claims_of(spec),
        "tickets": spec.job_tickets,
    }
