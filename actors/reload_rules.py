"""What a new config.toml makes of a registry whose server runs, as pure rules: steps, each of one model version.

They are those of a start (registry_rules.plan), but that what is under way is not dropped: a registration may still
become one, and an unregistration goes on. What must not live here: how a step is carried out (applying.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from actorserve.actors.registry_rules import Entry, Row, RowState, plan


@dataclass(frozen=True, slots=True)
class Apply:
    """Have an entry's model as it says. `is_new`: its version is not registered yet; else it is rolled out anew.

    `replaces`: the version that the entry had before, which goes once this one is READY.
    """

    entry: Entry
    is_new: bool
    replaces: str | None = None

    @property
    def model(self) -> str:
        """`name/version`."""
        return self.entry.spec.key


@dataclass(frozen=True, slots=True)
class Remove:
    """Unregister a version whose entry has gone."""

    name: str
    version: str

    @property
    def model(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Forget:
    """The API's own, or one that is leaving, or away: only that it had an entry is forgotten."""

    name: str
    version: str

    @property
    def model(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"


Step = Apply | Remove | Forget
LIVE = (RowState.REGISTERED, RowState.PENDING)


def steps(rows: Iterable[Row], entries: Mapping[str, Entry]) -> list[Step]:
    """What to do, from the rows as they are and all of config.toml's entries by model name. Their order is free."""
    rows = list(rows)
    before = {(row.name, row.version): row for row in rows}
    planned = plan(rows, entries, running=True)
    going = [row for row in rows if row.id in planned.delete]
    leaving = {row.name: row.version for row in going if row.state in LIVE}  # an entry has one version at a time
    found: list[Step] = []
    for row in planned.write:
        known = before.get((row.name, row.version))
        if row.text is None:
            found.append(Forget(row.name, row.version))
        else:
            is_new = known is None or known.state not in LIVE
            found.append(Apply(entries[row.name], is_new, leaving.pop(row.name, None)))
    found += [Remove(name, version) for name, version in leaving.items()]
    found += [Forget(row.name, row.version) for row in going if row.state not in LIVE]
    return found
