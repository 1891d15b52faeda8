"""What actors say to each other, as data: here what is asked of the supervisor, and the names of the other rooms.

    messages_requests   what a caller asks of a model, and what comes back
    messages_specs      what runs
    messages_tree       what is seen of it, and how it ended

Frozen, slotted dataclasses and enums; no torch, no gRPC, no trio, no behaviour beyond a derived name.
"""

from __future__ import annotations

from dataclasses import dataclass

from actorserve.actors.messages_requests import (
    Answer,
    Call,
    Cardinality,
    Describe,
    Ending,
    Generate,
    Infer,
    Initial,
    Metadata,
    OpenSequence,
    Pairs,
)
from actorserve.actors.messages_specs import Capabilities, ChildSpec, Environment, ModelSpec, Placement, Restart
from actorserve.actors.messages_tree import (
    Crashed,
    Drained,
    Exit,
    Finished,
    Killed,
    ModelView,
    ReplicaView,
    State,
    Tree,
)

__all__ = [
    "Answer",
    "Call",
    "Capabilities",
    "Cardinality",
    "ChildSpec",
    "Crashed",
    "Describe",
    "Drained",
    "Ending",
    "Environment",
    "Exit",
    "Finished",
    "Generate",
    "Infer",
    "Initial",
    "Killed",
    "Metadata",
    "ModelSpec",
    "ModelView",
    "Observe",
    "OpenSequence",
    "Pairs",
    "Placement",
    "Replace",
    "ReplicaView",
    "Restart",
    "Scale",
    "SetDefault",
    "Spawn",
    "State",
    "Stop",
    "Tree",
    "Update",
]


@dataclass(frozen=True, slots=True)
class Spawn:
    """Register a model version and start its workers. The reply is given when every one is READY.

    `workers`: how many begin, within the bounds; None: as the spec says.
    """

    model: ModelSpec
    unregister_on_failure: bool = False
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Replace:
    """Roll a model version out anew. The reply is given when its new workers have taken over; failed, the old stay."""

    model: ModelSpec


@dataclass(frozen=True, slots=True)
class Scale:
    """Set how many workers a model version has. The reply is given when they are READY.

    `grace_s`: seconds that those which leave get for what they have in hand; None: the server's.
    """

    name: str
    version: str
    workers_min: int
    workers_max: int
    grace_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain a model version, then kill what is left after `grace_s`. The reply is given when it is gone.

    `forced`: also a default version beside others. The first of those follows.
    """

    name: str
    version: str
    grace_s: float
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """Give a model version another spec of the same name and version, in place: how many workers, and `user_config`.

    Workers are told a changed `user_config` (an option) without a restart; where one's code refuses it, all keep the
    old. Nothing else of the spec may differ. The reply is given when that is done.
    """

    model: ModelSpec


@dataclass(frozen=True, slots=True)
class SetDefault:
    """Make a version the one that calls without a version mean."""

    name: str
    version: str


Change = Spawn | Replace | Scale | Stop | SetDefault
"""What the registrar commits before the supervisor does it."""


@dataclass(frozen=True, slots=True)
class Observe:
    """Ask for a frozen snapshot of the tree."""
