"""What a listener can ask for: all that is stored about them, and that it be deleted."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from .database import connect
from .definition import database_path


def export_listener(test: Path, listener: str) -> dict[str, Any]:
    """All that is stored about `listener` (the code that the page shows); raises `UserError`."""
    with _database(test) as connection:
        row = _found(connection, test, listener)
        about = {key: row[key] for key in row.keys() if key != "token_sha256"}  # noqa: SIM118 - no dict
        for table, key in (("trials", "position"), ("clips", "rowid"), ("ratings", "rowid")):
            rows = connection.execute(f"SELECT * FROM {table} WHERE listener = ? ORDER BY {key}", [listener])
            about[table] = [dict(each) for each in rows]
        return about


def forget_listener(test: Path, listener: str) -> int:
    """Delete all that is stored about `listener`, from the file too; returns how many ratings it was."""
    with _database(test) as connection:
        _found(connection, test, listener)
        query = "SELECT count(*) FROM ratings WHERE listener = ?"
        num: int = connection.execute(query, [listener]).fetchone()[0]
        connection.execute("DELETE FROM listeners WHERE id = ?", [listener])
        # The journal still holds the pages as they were before.
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise UserError(
                f"listener '{listener}' is deleted, but {test.stem}.sqlite-wal is in use and still holds"
                " their answers: they go when the server ends"
            )
        return num


@contextlib.contextmanager
def _database(test: Path) -> Iterator[sqlite3.Connection]:
    path = database_path(test)
    if not path.exists():
        raise UserError(f"{test} has no answers yet: {path} is not there")
    with contextlib.closing(connect(path)) as connection:
        yield connection


def _found(connection: sqlite3.Connection, test: Path, listener: str) -> sqlite3.Row:
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM listeners WHERE id = ?", [listener]
    ).fetchone()
    if row is None:
        raise UserError(f"{test} has no listener '{listener}': give the code that the page shows")
    return row
