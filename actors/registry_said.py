"""Transactions that write what config.toml says of a version beyond what runs: whose entry it is, which is the default.

What must not live here: tables and the other jobs (registry.py), what it means (registry_rules.py).
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from actorserve.actors.registry_jobs import defaults_of, delete, forget_choice, rows_of, write
from actorserve.actors.registry_rules import LIVE, Row, RowState, default_of, without_text


def mark(connection: sqlite3.Connection, row: Row, *, says: bool | None, counts: bool) -> str | None:
    """Write whose entry a version is, by the row as it is to be, and what the file says of the default.

    `says`: that this is it; that this was it, and no entry of the model says so any more; None: nothing of it.
    `counts`: over what the API chose. Gives the default version, where that may be another now.
    """
    known = next((one for one in rows_of(connection, row.name) if one.version == row.version), None)
    if known is None or known.text is None:
        return None
    write(connection, replace(known, entry=row.entry, is_default=known.is_default if says is None else says))
    if says:
        connection.execute("UPDATE models SET is_default = id = ? WHERE name = ?", (known.id, row.name))
    if says and counts:
        forget_choice(connection, row.name, row.version)
    if says is None or (says is known.is_default and not counts):
        return None
    return _running_default(connection, row.name)


def _running_default(connection: sqlite3.Connection, name: str) -> str | None:
    return default_of(rows_of(connection, name), defaults_of(connection).get(name), LIVE)


def forget(connection: sqlite3.Connection, name: str, version: str) -> str | None:
    """Write that a version has no entry in config.toml any more; one that was away because of the API goes.

    Gives the default version, where that may be another now.
    """
    known = next((row for row in rows_of(connection, name) if row.version == version), None)
    if known is None:
        return None
    if known.state is RowState.REMOVED:
        delete(connection, [known.id])
    else:
        write(connection, without_text(known))
    return _running_default(connection, name) if known.is_default else None
