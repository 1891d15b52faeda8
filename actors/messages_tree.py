"""What is seen of the tree, as data: states, how an incarnation ended, and the snapshot that Observe answers.

Frozen, slotted dataclasses and enums; no torch, no gRPC, no trio, no behaviour.
What must not live here: what an ending leads to (supervision.py), the snapshot in words (tree_text.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from actorserve.actors.messages_specs import ModelSpec


class State(Enum):
    """State of an actor. READY: loaded and warm. NO_WORKERS: of a model alone, one without replicas."""

    LOADING = "LOADING"
    READY = "READY"
    RESTARTING = "RESTARTING"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    NO_WORKERS = "NO_WORKERS"


@dataclass(frozen=True, slots=True)
class Finished:
    """The worker ended by itself: it was READY, had nothing in hand, and its exit status was 0."""


@dataclass(frozen=True, slots=True)
class Drained:
    """The child was told to drain, by a stop or because another took its place, and did."""


@dataclass(frozen=True, slots=True)
class Killed:
    """The child was cancelled before it had drained."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The child died by itself. `permanent`: no restart can mend it. `timed_out`: it was not READY in time."""

    cause: str
    permanent: bool = False
    timed_out: bool = False


Exit = Finished | Drained | Killed | Crashed


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica as it is now. `restarts`: after an end; `replaced`: in good health, because of a limit.

    `started_at`: seconds of the system's clock. `in_hand`: requests that its workers have.
    """

    name: str
    index: int
    device: str
    state: State
    incarnation: int
    pid: int | None
    restarts: int
    replaced: int
    failures_in_a_row: int
    last_exit: Exit | None
    reason: str
    started_at: float
    in_hand: int


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model version as it is now. `stateful`: its handler has sequences, as far as a READY replica has told.

    `rollout`: how its rollout fares: under way, or why the last one failed.
    """

    spec: ModelSpec
    is_default: bool
    state: State
    waiting: int
    replicas: tuple[ReplicaView, ...]
    stateful: bool = False
    rollout: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """The supervisor's tree, frozen. `leaving`: models that were unregistered and still drain."""

    models: tuple[ModelView, ...]
    leaving: tuple[ModelView, ...] = ()
