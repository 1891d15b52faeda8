"""Which replica takes a call for a multiplexed model: one that holds the model, where it has room. Pure.

What lives here: which replicas hold which models, and who takes what of a queue. What must not: queues, tasks, clocks.

Rules
1. In order of arrival, a replica takes what it has the model for, what nobody has, and what names no model.
2. What another holds is left to it, unless it is saturated: a call that has waited for WAIT_S is taken by whoever has
   room, who then loads the model, too. What another loads is left to it until it holds it. What replicas have said may
   be out of date, so besides every load takes a turn (leases.py): no model is loaded twice at the same time.
3. Who takes a call for a model loads it, as far as others are concerned, until it has seen that call and says of itself
   what it holds and loads; what it said before it had seen the call counts for nothing. After CLAIM_S it is forgotten.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

MODEL_ID = "multiplexed_model_id"
WAIT_S = 1.0
"""How long a call waits for the replica that holds its model before that counts as saturated."""
CLAIM_S = 5.0
LOOK_AT = 512
"""How many calls of a queue are looked at: none further behind overtakes."""
NEVER = float("inf")

W = TypeVar("W", bound=Hashable)


class Chosen(NamedTuple):
    """What one replica takes, who else should look now, and when it should look again by itself."""

    taken: list[Any]
    others: list[Any]
    again: float


class Models:
    """The models of one replica: held, being loaded, and those that calls were taken for, with when."""

    __slots__ = ("claimed", "held", "loading")

    def __init__(self) -> None:
        self.held: frozenset[str] = frozenset()
        self.loading: frozenset[str] = frozenset()
        self.claimed: dict[str, tuple[float, float]] = {}  # when, and the number of the last call

    def has(self, model: str) -> bool:
        """Whether a call for it is best off here."""
        return model in self.held or self.brings(model)

    def brings(self, model: str) -> bool:
        """Whether it is about to hold it."""
        return model in self.loading or (model in self.claimed and model not in self.held)


class Affinity(Generic[W]):
    """Replicas, by whatever they are known by, and their models."""

    def __init__(self) -> None:
        self.replicas: dict[W, Models] = {}

    def __bool__(self) -> bool:
        return bool(self.replicas)

    def hold(self, who: W, held: Iterable[str], loading: Iterable[str], now: float, seen: int = 0) -> None:
        """A replica says which models it holds and loads, once it has seen so many calls. With none, it still may."""
        models = self.replicas.setdefault(who, Models())
        models.held, models.loading = frozenset(held), frozenset(loading)
        models.claimed = {
            model: (since, number)
            for model, (since, number) in models.claimed.items()
            if number > seen and now < since + CLAIM_S
        }

    def forget(self, who: W) -> None:
        """A replica takes no more."""
        self.replicas.pop(who, None)

    def choose(self, waiting: Iterable[Any], count: int, who: W, now: float) -> Chosen:
        """What `who` takes, at most `count`. `waiting` in order of arrival: envelopes."""
        own = self.replicas.setdefault(who, Models())
        chosen = Chosen([], [], NEVER)
        again = NEVER
        for envelope in islice(waiting, LOOK_AT):
            if len(chosen.taken) == count:
                break
            model = str(envelope.message.metadata.get(MODEL_ID) or "")
            others = [] if not model or own.has(model) else self._others(model)
            brought = any(self.replicas[one].brings(model) for one in others)
            if others and (brought or now < envelope.arrival + WAIT_S):
                chosen.others.extend(one for one in others if one not in chosen.others)
                again = again if brought else min(again, envelope.arrival + WAIT_S)
                continue
            chosen.taken.append(envelope)
            if model:
                own.claimed[model] = now, NEVER
        return chosen._replace(again=again)

    def opened(self, who: W, envelope: Any, number: int) -> None:
        """A call that was taken is on its way to the worker, the so-manieth."""
        model = str(envelope.message.metadata.get(MODEL_ID) or "")
        models = self.replicas.get(who)
        if models is not None and model in models.claimed:
            models.claimed[model] = models.claimed[model][0], number

    def _others(self, model: str) -> list[W]:
        return [one for one, models in self.replicas.items() if models.has(model)]
