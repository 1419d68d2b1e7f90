"""The answers, in SQLite: nothing is acknowledged before it is on the disk.

One thread owns the connection. Whatever waits for it is done in one transaction with one fsync, so that many
listeners who answer in the same moment do not wait for one another's.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ...core.errors import UserError

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]

FORMAT = 1
_MAX_TOGETHER = 256  # pieces of work in a transaction

_SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE listeners (
    id TEXT PRIMARY KEY,
    token_sha256 TEXT NOT NULL UNIQUE,   -- the token itself is in the listener's link alone
    created_at TEXT NOT NULL,
    number INTEGER UNIQUE,               -- set with the consent; decides the order
    consented_at TEXT,
    consent TEXT,                        -- the words agreed to
    checked_at TEXT,
    headphones_correct INTEGER,          -- NULL if the check was skipped
    finished_at TEXT
) STRICT;
CREATE TABLE trials (
    id TEXT PRIMARY KEY,
    listener TEXT NOT NULL REFERENCES listeners ON DELETE CASCADE,
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,
    item TEXT NOT NULL,
    repeat INTEGER NOT NULL,
    expected REAL,
    shown_at REAL,                       -- seconds since 1970
    answered INTEGER NOT NULL DEFAULT 0,
    UNIQUE (listener, position)
) STRICT;
CREATE TABLE clips (
    id TEXT PRIMARY KEY,                 -- of one clip in one trial: a listener never meets an id twice
    listener TEXT NOT NULL REFERENCES listeners ON DELETE CASCADE,
    trial TEXT REFERENCES trials ON DELETE CASCADE,
    slot INTEGER NOT NULL,               -- from 0 on; -1 is the shown reference
    stimulus TEXT NOT NULL
) STRICT;
CREATE INDEX clips_of_trial ON clips (trial);
CREATE INDEX clips_of_listener ON clips (listener);
CREATE TABLE ratings (
    listener TEXT NOT NULL REFERENCES listeners ON DELETE CASCADE,
    trial TEXT NOT NULL REFERENCES trials ON DELETE CASCADE,
    system TEXT NOT NULL,
    role TEXT NOT NULL,
    attribute TEXT NOT NULL,
    method TEXT NOT NULL,
    value REAL NOT NULL,
    against TEXT,
    listened_s REAL NOT NULL,
    duration_s REAL NOT NULL,
    answered_at TEXT NOT NULL,
    UNIQUE (trial, system, attribute)
) STRICT;
CREATE INDEX ratings_of_listener ON ratings (listener);
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the database at `path`, made with its tables if it is not there.

    Raises `UserError` if it is something else, or was written by another version.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what a listener has deleted is overwritten
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be used as the database of a listening test: {error}") from error
    if found not in (0, FORMAT):
        connection.close()
        raise UserError(f"{path} was written by another version of Tokkata: format {found}, not {FORMAT}")
    return connection


class Database:
    """Does pieces of work on the database, each wholly or not at all, and tells when they are on the disk."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._waiting: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ratings", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._connection.close()

    def submit(self, work: Work[Result]) -> Future[Result]:
        """Have `work` done; its result, or what it raises, comes after the commit.

        If it raises, nothing of it stays.
        """
        future: Future[Result] = Future()
        self._waiting.put((work, future))
        return future

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < _MAX_TOGETHER and not self._waiting.empty():
                batch.append(self._waiting.get())
            # From here on a listener who goes away can no longer cancel.
            self._do([entry for entry in batch if entry and entry[1].set_running_or_notify_cancel()])
            if None in batch:
                return

    def _do(self, batch: list[tuple[Work[Any], Future[Any]]]) -> None:
        done: list[Callable[[], None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                done.append(self._do_one(work, future))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:  # a full disk, or a lock that stays: nobody is told of success
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            for _, future in batch:
                future.set_exception(error)
            return
        for tell in done:
            tell()

    def _do_one(self, work: Work[Any], future: Future[Any]) -> Callable[[], None]:
        self._connection.execute("SAVEPOINT one")
        try:
            result = work(self._connection)
        except Exception as error:  # it belongs to whoever waits for the future
            if not self._connection.in_transaction:
                raise  # SQLite has given up the whole transaction
            self._connection.execute("ROLLBACK TO one")
            self._connection.execute("RELEASE one")
            failure = error
            return lambda: future.set_exception(failure)
        self._connection.execute("RELEASE one")
        return lambda: future.set_result(result)
