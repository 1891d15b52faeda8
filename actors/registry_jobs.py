"""What is written to the registry and read from it: each function is a job of its own, in one transaction.

What must not live here: how it is committed (registry.py), what a row means (registry_rules.py), models.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from actorserve.actors.registry_rules import (
    LIVE,
    Entry,
    Plan,
    Row,
    RowState,
    default_of,
    moved_defaults,
    newly_said,
    plan,
)


def rows_of(connection: sqlite3.Connection, name: str | None = None) -> list[Row]:
    """All rows, or those of one model, in the order of their registration."""
    found = connection.execute("SELECT * FROM models WHERE ? IS NULL OR name = ? ORDER BY id", (name, name))
    return [
        Row(number, name_, version, RowState(state), spec, text, None if least is None else (least, most), *said)
        for number, name_, version, state, spec, text, least, most, *said in map(_with_bool, found)
    ]


def _with_bool(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return *row[:-1], bool(row[-1])


def defaults_of(connection: sqlite3.Connection) -> dict[str, str]:
    """The versions that SetDefault has chosen, by model."""
    return dict(connection.execute("SELECT name, version FROM defaults").fetchall())


def write(connection: sqlite3.Connection, row: Row) -> int:
    """Write a row, in place of what has its id or its name and version; its id. An id of 0 gets a new one."""
    found = connection.execute(
        "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            *(row.id or None, row.name, row.version, row.state.value, row.spec, row.text),
            *(row.workers or (None, None)),
            *(row.entry, row.is_default),
        ),
    ).fetchall()  # the insertion is over when the last row is read
    return int(found[0][0])


def delete(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Delete rows by id, and choices of versions that are left without one. Unknown ids have no effect."""
    connection.executemany("DELETE FROM models WHERE id = ?", [(number,) for number in ids])
    connection.execute(
        "DELETE FROM defaults WHERE NOT EXISTS (SELECT 1 FROM models WHERE models.name = defaults.name"
        " AND models.version = defaults.version AND state IN ('pending', 'registered'))"
    )


def set_default(connection: sqlite3.Connection, name: str, version: str) -> None:
    """Choose a default version."""
    connection.execute("INSERT OR REPLACE INTO defaults VALUES (?, ?)", (name, version))


def forget_choice(connection: sqlite3.Connection, name: str, version: str) -> None:
    """Have the file's word count again, where it is of a version that is there."""
    connection.execute(
        "DELETE FROM defaults WHERE name = ? AND EXISTS (SELECT 1 FROM models WHERE models.name = defaults.name"
        " AND models.version = ? AND state IN ('pending', 'registered'))",
        (name, version),
    )


def start(connection: sqlite3.Connection, entries: Mapping[str, Entry]) -> tuple[Plan, list[Row], dict[str, str]]:
    """Decide and write what a start makes of the rows; then the rows as they are, and the chosen versions."""
    rows = rows_of(connection)
    planned = plan(rows, entries)
    moved = moved_defaults(rows, planned, defaults_of(connection))
    for row in planned.write:
        write(connection, row)
    for name, version in newly_said(rows, planned).items():
        moved.pop(name, None)
        forget_choice(connection, name, version)
    for name, version in moved.items():
        set_default(connection, name, version)
    delete(connection, planned.delete)
    return planned, rows_of(connection), defaults_of(connection)


def restore(connection: sqlite3.Connection, name: str, rows: Iterable[Row], default: str | None) -> None:
    """Put one model's rows back as they were."""
    connection.execute("DELETE FROM models WHERE name = ?", (name,))
    connection.execute("DELETE FROM defaults WHERE name = ?", (name,))
    for row in rows:
        write(connection, row)
    if default is not None:
        set_default(connection, name, default)


@dataclass(frozen=True, slots=True)
class Intent:
    """What was committed: the row's id, the row; and the model's rows and chosen version from before, for `restore`."""

    number: int
    after: Row
    before: list[Row]
    chosen: str | None


def intend(
    connection: sqlite3.Connection, name: str, version: str, become: Callable[[Row | None], Row], *, choose: bool
) -> Intent:
    """Write what a change makes of a row (None: there is none yet); `choose` its version as the default."""
    before = rows_of(connection, name)
    chosen = defaults_of(connection).get(name)
    after = become(next((row for row in before if row.version == version), None))
    number = write(connection, after)
    if choose:
        set_default(connection, name, version)
    elif after.is_default and (current := _default_beside(before, version, chosen)) is not None:
        set_default(connection, name, current)
    delete(connection, ())
    return Intent(number, replace(after, id=number), before, chosen)


def _default_beside(before: Iterable[Row], version: str, chosen: str | None) -> str | None:
    """The default of a model beside a version that was not there; None where it was. The API's registering it in its
    entry's place does not make it the default.
    """
    live = [row for row in before if row.state in LIVE]
    return None if any(row.version == version for row in live) else default_of(live, chosen, LIVE)


def take_back(connection: sqlite3.Connection, number: int, before: Row | None) -> None:
    """Put the row of a change that has failed back as it was, but for workers that were set meanwhile.

    Without effect where another registration has taken its place, or where its unregistration has begun.
    """
    row = next((row for row in rows_of(connection) if row.id == number), None)
    if row is None or row.state is not RowState.REGISTERED:
        return
    if before is None:
        delete(connection, [number])
        return
    if before.text is not None:  # a later file may have said more of it
        before = replace(before, entry=row.entry, is_default=row.is_default)
    write(connection, replace(before, workers=row.workers or before.workers))


def settle(connection: sqlite3.Connection, number: int, state: RowState) -> None:
    """Write that a registration is REGISTERED, or that it is REMOVED: kept then only where config.toml has its text.

    Without effect where another registration has taken the row's place, or where its unregistration has begun.
    """
    if state is RowState.REGISTERED:
        connection.execute("UPDATE models SET state = 'registered' WHERE id = ? AND state = 'pending'", (number,))
        return
    connection.execute(
        "UPDATE models SET state = ?, spec = NULL, workers_min = NULL, workers_max = NULL WHERE id = ?",
        (state.value, number),
    )
    connection.execute("DELETE FROM models WHERE id = ? AND text IS NULL", (number,))
    delete(connection, ())
