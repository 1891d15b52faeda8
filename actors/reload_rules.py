"""What a new config.toml makes of a registry whose server runs, as pure rules: steps, each of one model version.

They are those of a start (registry_rules.plan), but that what is under way is not dropped: a registration may still
become one, and an unregistration goes on. What must not live here: how a step is carried out (applying.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from actorserve.actors.registry_rules import LIVE, Entry, Row, newly_said, plan, replaced


@dataclass(frozen=True, slots=True)
class Apply:
    """Have an entry's model as it says. `is_new`: its version is not registered yet; else it is rolled out anew.

    `replaces`: the version that the entry had before, which goes once this one is READY. `called`: the entry's key,
    where that is not the model's name. `mark`: what the file says of the default, once it is READY.
    """

    entry: Entry
    is_new: bool
    replaces: str | None = None
    called: str = ""
    mark: Mark | None = None

    @property
    def model(self) -> str:
        """`name/version`."""
        return self.entry.spec.key


@dataclass(frozen=True, slots=True)
class Mark:
    """A version's entry is called otherwise (`row`), or what the file says of the model's default is different.

    `says`, `counts`: see registry_said.mark.
    """

    row: Row
    says: bool | None
    counts: bool

    @property
    def model(self) -> str:
        """`name/version`."""
        return f"{self.row.name}/{self.row.version}"


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


Step = Apply | Mark | Remove | Forget


def steps(rows: Iterable[Row], entries: Mapping[str, Entry]) -> list[Step]:
    """What to do, from the rows as they are and all of config.toml's entries by their keys. Their order is free."""
    rows = list(rows)
    before = {(row.name, row.version): row for row in rows}
    planned = plan(rows, entries, running=True)
    going = [row for row in rows if row.id in planned.delete]
    old, newly = replaced(rows, planned), newly_said(rows, planned)
    said = {entry.spec.name for entry in entries.values() if entry.is_default}
    found: list[Step] = []
    for row in planned.write:
        known = before.get((row.name, row.version))
        lost = known is not None and known.is_default and row.name not in said
        says = True if row.is_default else False if lost else None
        mark = Mark(row, says, counts=newly.get(row.name) == row.version)
        if row.text is None:
            found.append(Forget(row.name, row.version))
        elif known is None or known.text != row.text:
            is_new = known is None or known.state not in LIVE
            replaces = old.get((row.name, row.version))
            found.append(Apply(entries[row.said_by], is_new, replaces, row.entry, None if says is None else mark))
        elif says is not None or known.entry != row.entry:
            found.append(mark)
    goes_later = {(name, version) for (name, _), version in old.items()}
    for row in going:
        if row.state not in LIVE:
            found.append(Forget(row.name, row.version))
        elif (row.name, row.version) not in goes_later:
            found.append(Remove(row.name, row.version))
    return found
