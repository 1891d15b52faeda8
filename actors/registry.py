"""The registry on disk: SQLite in `server.state_dir`, owned by one plain thread with a queue.

A job is one whole transaction, run in the thread; who asked is shielded until it is committed or has failed, so
that a cancelled change is done or not done, and known. `PRAGMA synchronous=FULL`: what is committed survives the
loss of power. Without a folder the same tables are in memory, for as long as the server lives, without a thread:
tests in virtual time need that.

What must not live here: what a job does (registry_jobs.py), what a row means (registry_rules.py), models, decisions.
"""

from __future__ import annotations

import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

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
            self._connection = connect(where)
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


def connect(where: str) -> sqlite3.Connection:
    """Open a registry's file, in today's format. sqlite3.Error; StartFailed where a newer release wrote it."""
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
