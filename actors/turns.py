"""Tenants take turns in a lane, by deficit round robin (Shreedhar and Varghese, 1995). Pure, as order.py is.

Rules (contracts §3):
1. A turn adds the quantum to its tenant's deficit: the batch limit divided by the tenants that wait, at least 1.
   The turn lasts until the deficit does not cover the tenant's next item; what is left of it is kept.
2. What is put into a batch is charged: 1, or its weight where weight is limited, but never less than its share of
   the batch's places (`max_weight / batch_size`), so that many light items are not cheaper than they are. What has
   expired, was abandoned or refused is not charged; what is put back gets its charge back.
3. A tenant that has nothing waiting is forgotten, with its deficit.
4. An item that does not fit what is left closes the batch. The turn goes on with the next batch.
5. At most 1,000 tenants have a line of their own; those who come while it is so share one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic

from actorserve.actors.order import NEVER, Line, Q, number

MOST_TENANTS = 1000


class Rest:
    """The tenant that those share who came when there were 1,000."""


REST = Rest()


class Turns(Generic[Q]):
    """A lane with tenants: see the module's docstring."""

    __slots__ = ("_at_turn", "_limit", "_lines", "_share", "count", "max_weight", "weight")

    def __init__(self, batch_size: int, max_weight: int = 0) -> None:
        """`max_weight` of a batch; 0: no limit but `batch_size`."""
        self.max_weight = max_weight
        self.count = 0
        self.weight = 0
        self._limit = max_weight or batch_size
        self._share = -(-self._limit // batch_size)
        self._lines: OrderedDict[Hashable, Line[Q]] = OrderedDict()  # the first is at turn, or next
        self._at_turn = False  # whether the first has begun its turn

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Q]:
        """Everything that waits, in order of arrival."""
        return iter(sorted((entry for line in self._lines.values() for entry in line), key=number))

    def counts(self) -> dict[Hashable, int]:
        """How many of each tenant wait."""
        return {tenant: line.count for tenant, line in self._lines.items()}

    @property
    def garbage(self) -> int:
        """How much is kept that does not wait any more."""
        return sum(line.garbage for line in self._lines.values())

    @property
    def quantum(self) -> int:
        """What a turn adds now."""
        return max(1, self._limit // max(1, len(self._lines)))

    # --- who comes --------------------------------------------------------------------------

    def seat(self, tenant: Hashable) -> Hashable:
        """As whom a tenant's next request would wait: itself, or one of the rest."""
        if tenant in self._lines or len(self._lines) - (REST in self._lines) < MOST_TENANTS:
            return tenant
        return REST

    def _line(self, entry: Q) -> Line[Q]:
        tenant = entry.tenant = self.seat(entry.tenant)
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = Line(self.max_weight, self)
        return line

    def push(self, entry: Q) -> None:
        """Let the newest in."""
        self._line(entry).push(entry)
        self.count += 1
        self.weight += entry.weight

    def restore(self, entry: Q) -> None:
        """Give one that was taken its old place again, and its tenant what it has paid."""
        line = self._line(entry)
        line.restore(entry)
        line.deficit += entry.charge
        self.count += 1
        self.weight += entry.weight

    # --- who leaves -------------------------------------------------------------------------

    def oldest_arrival(self) -> float:
        """When the one that has waited longest came; infinity where nobody waits."""
        return min((line.oldest_arrival() for line in self._lines.values()), default=NEVER)

    def take(self, count: int, now: float) -> tuple[list[Q], list[Q]]:
        """Take a batch of up to `count`: what goes into it, and what was found expired on the way."""
        taken: list[Q] = []
        expired: list[Q] = []
        room = self.max_weight
        passed = 0  # turns in a row that took nothing
        while self.count and len(taken) < count:
            line = self._turn()
            entry = line.head()
            assert entry is not None  # noqa: S101  # narrows the type: an empty line is forgotten at once
            charge = max(entry.weight if self.max_weight else 1, self._share)
            if entry.deadline <= now:
                expired.append(entry)
            elif charge > line.deficit:
                passed += 1
                self._end_turn(passed)
                continue
            elif self.max_weight and entry.weight > room:
                break
            else:
                taken.append(entry)
                entry.charge = charge
                line.deficit -= charge
                room -= entry.weight
            passed = 0
            line.pop(entry)
            self._left(entry)
        return taken, expired

    def _turn(self) -> Line[Q]:
        """The line that is at turn."""
        line = next(iter(self._lines.values()))
        if not self._at_turn:
            self._at_turn = True
            line.deficit += self.quantum
        return line

    def _end_turn(self, passed: int) -> None:
        """The next, please. After a round that took nothing, as many rounds at once as it needs to be different."""
        self._at_turn = False
        self._lines.move_to_end(next(iter(self._lines)))
        if passed % len(self._lines):
            return
        lines = self._lines.values()
        short = min(self._charge_of_head(line) - line.deficit for line in lines)
        rounds = -(-short // self.quantum) - 1
        for line in lines:
            line.deficit += rounds * self.quantum

    def _charge_of_head(self, line: Line[Q]) -> int:
        entry = line.head()
        return self._share if entry is None or not self.max_weight else max(entry.weight, self._share)

    def discard(self, entry: Q) -> None:
        """Let one out from anywhere."""
        self._lines[entry.tenant].discard(entry)
        self._left(entry)

    def newest(self, tenant: Hashable) -> list[Q]:
        """The one of a tenant that came last, if any waits."""
        line = self._lines.get(tenant)
        return [] if line is None else [line.newest()]

    def _left(self, entry: Q) -> None:
        self.count -= 1
        self.weight -= entry.weight
        if not self._lines[entry.tenant].count:
            if next(iter(self._lines)) == entry.tenant:
                self._at_turn = False
            del self._lines[entry.tenant]

    def clear(self) -> list[Q]:
        """Let everybody out, in order of arrival."""
        everyone = sorted((entry for line in self._lines.values() for entry in line.clear()), key=number)
        self._lines.clear()
        self._at_turn = False
        self.count = self.weight = 0
        return everyone
