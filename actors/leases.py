"""Who may load which model of a multiplexed deployment now: of all replicas one at a time. Pure.

Routing (affinity.py) sends the calls for a model where it is, but goes by what replicas have said, and lets calls pass
by a holder that is saturated; so a load takes a turn besides. A replica says all the turns that it waits for or has,
by numbers of its own; who is first in a model's line has the turn until it says the number no more, or is gone.
What must not live here: how a replica is told, tasks, clocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

W = TypeVar("W", bound=Hashable)


class Turn(NamedTuple, Generic[W]):
    """One load: whose it is, and by which number."""

    who: W
    model: str
    number: int


class Leases(Generic[W]):
    """See the module's docstring. Replicas by whatever they are known by."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[Turn[W], None]] = {}  # who is first has the turn
        self._own: dict[W, set[Turn[W]]] = {}

    def say(self, who: W, wants: Iterable[tuple[str, int]]) -> list[Turn[W]]:
        """A replica says which turns it waits for or has, all of them; the turns that begin with that."""
        before = self._own.get(who, set())
        now = [Turn(who, model, number) for model, number in wants]
        begun = self._end(before.difference(now))
        for turn in now:
            line = self._lines.setdefault(turn.model, {})
            if turn not in line:
                line[turn] = None
                if len(line) == 1:
                    begun.append(turn)
        self._own[who] = set(now)
        if not now:
            del self._own[who]
        return begun

    def __len__(self) -> int:
        """How many loads have a turn, or wait for one."""
        return sum(map(len, self._lines.values()))

    def gone(self, who: W) -> list[Turn[W]]:
        """A replica has ended; the turns that begin with that."""
        return self._end(self._own.pop(who, set()))

    def _end(self, turns: Iterable[Turn[W]]) -> list[Turn[W]]:
        begun = []
        for turn in turns:
            line = self._lines[turn.model]
            was_first = next(iter(line)) == turn
            del line[turn]
            if not line:
                del self._lines[turn.model]
            elif was_first:
                begun.append(next(iter(line)))
        ended = set(turns)
        return [turn for turn in begun if turn not in ended]
