"""What the registry means, as pure rules: who owns a row, and what a start makes of the rows and of config.toml.

    owner    config: what runs is read from config.toml at each start; the row keeps what the API has changed of it
             api:    what runs stands in the row
    state    PENDING: a registration that nobody was told of; REGISTERED; LEAVING: its unregistration has begun;
             REMOVED: unregistered by the API, while its entry in config.toml still stands
    text     the entry of config.toml that was applied last; while it stands unchanged, the API's changes win
    default  of a model's versions: the one that SetDefault chose, else the one whose entry says `default = true`, else
             the first registered. The file's word counts anew when another entry says so, or when that one is applied

What must not live here: SQL and threads (registry.py), when a change is made (registrar.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from actorserve.actors.messages import Environment, ModelSpec, Restart


class RowState(Enum):
    """See the module's docstring."""

    PENDING = "pending"
    REGISTERED = "registered"
    LEAVING = "leaving"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Row:
    """One model version. `id` grows with each registration; 0: not written yet.

    `spec`: of the API's own, as `write_spec` gives it. `workers`: min and max, where the API has set them. `entry`: the
    key of its entry, where that is not the model's name. `is_default`: its entry says so.
    """

    id: int
    name: str
    version: str
    state: RowState = RowState.REGISTERED
    spec: str | None = None
    text: str | None = None
    workers: tuple[int, int] | None = None
    entry: str = ""
    is_default: bool = False

    @property
    def said_by(self) -> str:
        """The key of its entry in config.toml, where it has one."""
        return self.entry or self.name

    @property
    def is_config(self) -> bool:
        """Whether config.toml owns it."""
        return self.spec is None


@dataclass(frozen=True, slots=True)
class Entry:
    """One `[models.NAME]` of config.toml: what it comes to, and its text in a form that only changes with it.

    The text has neither the model's name nor `is_default`: that it says `default = true`.
    """

    spec: ModelSpec
    text: str
    is_default: bool = False


LIVE = (RowState.REGISTERED, RowState.PENDING)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a start does to the table: ids to delete, rows to write; and in words, for the log.

    `dropped`: specs of the API's that are no more.
    """

    delete: tuple[int, ...]
    write: tuple[Row, ...]
    changes: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def settled(row: Row) -> Row | None:
    """A row as a start finds it: what was not finished is dropped; None: the whole row goes."""
    match row.state:
        case RowState.REGISTERED | RowState.REMOVED:
            return row
        case _ if row.text is None:
            return None
        case _:
            return replace(row, state=RowState.REMOVED, spec=None, workers=None)


def plan(rows: Iterable[Row], entries: Mapping[str, Entry], *, running: bool = False) -> Plan:
    """What to do at a start, from the rows as they are and config.toml's entries by their keys.

    `running`: at a reload, so that what is not finished is under way.
    """
    before = {(row.name, row.version): row for row in rows}
    after: dict[tuple[str, str], Row] = {}
    changes: list[str] = []
    said = {(entry.spec.name, entry.spec.version) for entry in entries.values()}
    for key, row in before.items():
        kept = _without_entry(row if running else settled(row), said)
        if kept is not None:
            after[key] = kept
        if kept is None or kept.state is not row.state:
            why = "" if row.state is RowState.REGISTERED else f": was {row.state.value}"
            changes.append(f"{row.name}/{row.version} dropped{why}")
    for name, entry in entries.items():
        key = (entry.spec.name, entry.spec.version)
        known = after.get(key)
        if known is None or known.text != entry.text:
            lives = known is not None and known.state is RowState.REGISTERED
            known = Row(known.id if known and lives else 0, *key, text=entry.text)
            if before:  # else it is the first start: nothing has changed
                changes.append(f"{entry.spec.key} applied from the configuration")
        after[key] = replace(known, entry="" if name == entry.spec.name else name, is_default=entry.is_default)
    return Plan(
        tuple(row.id for key, row in before.items() if key not in after),
        tuple(row for key, row in after.items() if before.get(key) != row),
        tuple(changes),
        tuple(row.spec for key, row in before.items() if row.spec and (key not in after or not after[key].spec)),
    )


def _without_entry(kept: Row | None, said: Collection[tuple[str, str]]) -> Row | None:
    """A row before entries that have changed are applied: one whose entry is gone is the API's or goes."""
    if kept is None or kept.text is None or (kept.name, kept.version) in said:
        return kept
    return None if kept.is_config else without_text(kept)


def without_text(row: Row) -> Row:
    """A row whose entry is gone."""
    return replace(row, text=None, entry="", is_default=False)


def default_of(
    rows: Iterable[Row], chosen: str | None, states: Collection[RowState] = (RowState.REGISTERED,)
) -> str | None:
    """The default version among one model's rows in these states; the module's docstring has the rule."""
    live = sorted((row for row in rows if row.state in states), key=lambda row: (not row.is_default, row.id))
    return next((row.version for row in live if row.version == chosen), live[0].version if live else None)


def replaced(rows: Iterable[Row], planned: Plan) -> dict[tuple[str, str], tuple[str, ...]]:
    """Of rows that are applied: the versions that each takes the place of, which are to serve until then.

    They are those that the entry had before: more than one where a change before this one is under way. Where no
    version of a model would be left, any that go.
    """
    rows = list(rows)
    before = {(row.name, row.version): row for row in rows}
    going = [row for row in rows if row.id in planned.delete and row.is_config and row.state in LIVE]
    stay = {row.name for row in rows if row.id not in planned.delete and row.state in LIVE}
    applied = [row for row in planned.write if row.text is not None and not _is_as_before(row, before)]
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for own in (True, False):
        for new in (row for row in applied if (row.name, row.version) not in found and (own or row.name not in stay)):
            old = [row for row in going if row.name == new.name and (not own or row.said_by == new.said_by)]
            if old:
                found[new.name, new.version] = tuple(row.version for row in old)
                going = [row for row in going if row not in old]
    return found


def _is_as_before(row: Row, before: Mapping[tuple[str, str], Row]) -> bool:
    known = before.get((row.name, row.version))
    return known is not None and known.text == row.text


def newly_said(rows: Iterable[Row], planned: Plan) -> dict[str, str]:
    """The versions whose entries' `default = true` counts anew, by model: new there, or of an entry that is applied."""
    before = {(row.name, row.version): row for row in rows}
    return {
        row.name: row.version
        for row in planned.write
        if row.is_default and not (_is_as_before(row, before) and before[row.name, row.version].is_default)
    }


def moved_defaults(rows: Iterable[Row], planned: Plan, chosen: Mapping[str, str]) -> dict[str, str]:
    """The defaults that a start has to choose: of entries with another version now, whose old one was the default."""
    rows = list(rows)
    found = {}
    for (name, version), old in replaced(rows, planned).items():
        own = [row for row in rows if row.name == name]
        left = {row.version for row in own if row.id not in planned.delete}
        left |= {row.version for row in planned.write if row.name == name}
        if default_of(own, chosen.get(name)) in old and len(left) > 1:
            found[name] = version
    return found


def to_spawn(rows: Iterable[Row], entries: Mapping[str, Entry], chosen: Mapping[str, str]) -> list[ModelSpec]:
    """What runs after a start, in the order to spawn it: a model's default version first, then as registered."""
    live = [row for row in rows if row.state is RowState.REGISTERED]
    names = list(dict.fromkeys(row.name for row in live))
    found = []
    for name in names:
        own = [row for row in live if row.name == name]
        default = default_of(own, chosen.get(name))
        own.sort(key=lambda row: row.version != default)
        found += [_spec(row, entries) for row in own]
    return found


def _spec(row: Row, entries: Mapping[str, Entry]) -> ModelSpec:
    spec = entries[row.said_by].spec if row.spec is None else read_spec(row.spec)
    if row.workers is None:
        return spec
    return replace(spec, workers_min=row.workers[0], workers_max=row.workers[1])


# --- a ModelSpec as text ------------------------------------------------------------------------


def write_spec(spec: ModelSpec) -> str:
    """A spec as JSON, for `read_spec`."""
    content = asdict(spec)
    content["model_dir"] = str(spec.model_dir)
    content["restart"] = spec.restart.value
    return json.dumps(content)


def read_spec(text: str) -> ModelSpec:
    """The spec that `write_spec` wrote; keys that an older release did not write have their defaults."""
    content: dict[str, Any] = _tuples(json.loads(text), ModelSpec)
    content["model_dir"] = Path(content["model_dir"])
    content["restart"] = Restart(content["restart"])
    content["environment"] = Environment(**_tuples(content["environment"], Environment))
    return ModelSpec(**content)


def _tuples(content: dict[str, Any], of: type) -> dict[str, Any]:
    """JSON has lists where the fields of our own are tuples."""
    fields = {name for name, kind in of.__annotations__.items() if str(kind).startswith("tuple[")}
    return {name: tuple(value) if name in fields else value for name, value in content.items()}


def relocate(spec: ModelSpec, folder: Path) -> ModelSpec:
    """A spec whose model was unpacked anew, with every path below its old folder in the new one."""
    old, new = (json.dumps(str(path))[1:-1] for path in (spec.model_dir, folder))
    return read_spec(write_spec(spec).replace(old, new))
