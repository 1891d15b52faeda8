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

    `replaces`: the versions that the entry had before, which go once this one is READY; more than one where the
    change before this one is still under way. `called`: the entry's key, where that is not the model's name. `mark`:
    what the file says of the default, once it is READY.
    """

    entry: Entry
    is_new: bool
    replaces: tuple[str, ...] = ()
    called: str = ""
    mark: Mark | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.entry.spec.name

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
    def name(self) -> str:
        """The model's name."""
        return self.row.name

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
class Retire:
    """Unregister versions that an entry had before, once the one that it has now, `heir`, is there for good.

    The change that registered the heir is under way, or has not got so far.
    """

    name: str
    heir: str
    versions: tuple[str, ...]

    @property
    def model(self) -> str:
        """`name/version` of the heir."""
        return f"{self.name}/{self.heir}"


@dataclass(frozen=True, slots=True)
class Forget:
    """The API's own, or one that is leaving, or away: only that it had an entry is forgotten."""

    name: str
    version: str

    @property
    def model(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"


Step = Apply | Mark | Remove | Retire | Forget


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
            replaces = old.get((row.name, row.version), ())
            found.append(Apply(entries[row.said_by], is_new, replaces, row.entry, None if says is None else mark))
        elif says is not None or known.entry != row.entry:
            found.append(mark)
    goes_later = {(name, version) for (name, _), versions in old.items() for version in versions}
    found += _leaving([row for row in going if (row.name, row.version) not in goes_later], before, entries)
    return found


def _leaving(
    going: Iterable[Row], before: Mapping[tuple[str, str], Row], entries: Mapping[str, Entry]
) -> Iterable[Step]:
    """The steps of rows that go, where nothing that is applied now takes their place."""
    retired: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in going:
        entry = entries.get(row.said_by)
        heir = before.get((row.name, entry.spec.version)) if entry and entry.spec.name == row.name else None
        if row.state not in LIVE:
            yield Forget(row.name, row.version)
        elif heir is not None and heir.state in LIVE:
            retired[row.name, heir.version] = (*retired.get((row.name, heir.version), ()), row.version)
        else:
            yield Remove(row.name, row.version)
    for (name, heir_version), versions in retired.items():
        yield Retire(name, heir_version, versions)
