"""The registry on disk: SQLite in `server.state_dir`, owned by one plain thread with a queue.

A job is one whole transaction, run in the thread; who asked is shielded until it is committed or has failed, so
that a cancelled change is done or not done, and known. `PRAGMA synchronous=FULL`: what is committed survives the
loss of power. Without a folder the same tables are in memory, for as long as the server lives, without a thread:
tests in virtual time need that. What a row means: registry_rules.py. What must not live here: models, decisions.
"""

from __future__ import annotations

import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import trio

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
from actorserve.errors import StartFailed, StateFailed

T = TypeVar("T")
VERSION = 2
FILE, LOCK = "registry.sqlite", "lock"
TABLES = """
CREATE TABLE IF NOT EXISTS models (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, version TEXT NOT NULL, state TEXT NOT NULL,
    spec TEXT, text TEXT, workers_min INTEGER, workers_max INTEGER,
    entry TEXT NOT NULL DEFAULT '', is_default INTEGER NOT NULL DEFAULT 0, UNIQUE (name, version)
);
CREATE TABLE IF NOT EXISTS defaults (name TEXT PRIMARY KEY, version TEXT NOT NULL);
"""
SINCE_2 = {"entry": "TEXT NOT NULL DEFAULT ''", "is_default": "INTEGER NOT NULL DEFAULT 0"}
"""Columns that format 1 had not: it had one version of a model in the file, by the model's name."""


class Registry:
    """See the module's docstring. `open`, then jobs, then `close`; any number of tasks may ask at once."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: made where it is missing; None: in memory."""
        self._folder = folder
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._owed: list[Callable[[sqlite3.Connection], object]] = []  # jobs of `record` that are still to be written

    async def open(self) -> None:
        """Lock the folder and open the tables. StartFailed names who holds it, or what is wrong with it. Idempotent."""
        if self._connection is not None:
            return
        if self._folder is not None:
            self._thread = threading.Thread(target=self._work, name="registry", daemon=True)
            self._thread.start()
        try:
            await self._in_thread(self._open)
        except BaseException:
            await self.close()
            raise

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job as one transaction; its answer, once committed. StateFailed: nothing was changed.

        Cancelled only before it begins: from then on the waiter is shielded.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._in_thread(lambda: self._transact(job))

    async def record(self, job: Callable[[sqlite3.Connection], object]) -> bool:
        """Write what has happened already: what cannot be written now (a full disk) is with the next job that can be.

        So every later job finds it written, or is not done either. Whether it is written. StateFailed: it is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._in_thread(lambda: self._record(job))

    async def close(self) -> None:
        """Finish what was asked, close the file, give the lock back, end the thread. Idempotent."""
        await self._in_thread(self._close)
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join()  # its last job is done: it ends at once

    # --- in the thread (in memory: in the caller's) ------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    async def _in_thread(self, job: Callable[[], T]) -> T:
        if self._thread is None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return job()
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        answers: list[T] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                answers.append(job())
            except Exception as error:  # noqa: BLE001  # raised where it was asked
                errors.append(error)
            finally:
                token.run_sync_soon(done.set)

        self._jobs.put(work)
        with trio.CancelScope(shield=True):
            await done.wait()
        if errors:
            raise errors[0]
        return answers[0]

    def _open(self) -> None:
        try:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._lock = _lock(self._folder)
            where = ":memory:" if self._folder is None else str(self._folder / FILE)
            self._connection = _connect(where)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise StartFailed(f"server.state_dir: {self._folder} cannot be used: {why}") from None

    def _transact(self, job: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise StateFailed("the registry is closed")
        try:
            connection.execute("BEGIN IMMEDIATE")
            for owed in self._owed:
                owed(connection)
            answer = job(connection)
            connection.execute("COMMIT")
            self._owed.clear()
        except sqlite3.Error as error:
            _roll_back(connection)
            raise StateFailed(f"the registry cannot be written: {error}; nothing was changed") from None
        except BaseException:
            _roll_back(connection)
            raise
        return answer

    def _record(self, job: Callable[[sqlite3.Connection], object]) -> bool:
        try:
            self._transact(job)
        except StateFailed:
            if self._connection is None:
                raise
            self._owed.append(job)
            return False
        return True

    def _close(self) -> None:
        if self._owed:
            with suppress(StateFailed):  # the next start puts right what is not finished
                self._transact(lambda _: None)
            self._owed.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):  # the disk is full, say: SQLite has rolled back by itself
        connection.execute("ROLLBACK")


def _lock(folder: Path) -> int:
    """The descriptor of the lock file, held until it is closed or the process ends, however it ends."""
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "that is just starting"
        os.close(file)
        raise StartFailed(f"server.state_dir: {folder} is in use by process {holder}; one server, one folder") from None
    except BaseException:
        os.close(file)
        raise
    return file


def _connect(where: str) -> sqlite3.Connection:
    connection = sqlite3.connect(where, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise StartFailed(f"server.state_dir: {where} was written by a newer release (format {version})")
        connection.executescript(TABLES)
        known = {column for _, column, *_ in connection.execute("PRAGMA table_info(models)")}
        for column in (column for column in SINCE_2 if column not in known):
            connection.execute(f"ALTER TABLE models ADD COLUMN {column} {SINCE_2[column]}")
        connection.execute(f"PRAGMA user_version={VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


# --- jobs: each is one transaction ---------------------------------------------------------------


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
