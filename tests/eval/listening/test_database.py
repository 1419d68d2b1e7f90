"""Work on the database: whole or not at all, told only after the commit, and none in the way of another."""

import sqlite3
import threading

import pytest

from tokkata.core.errors import UserError
from tokkata.eval.listening.database import Database, connect


def insert(key):
    return lambda connection: connection.execute("INSERT INTO settings VALUES (?, '')", [key]).rowcount


def keys(path):
    connection = sqlite3.connect(path)
    return {key for (key,) in connection.execute("SELECT key FROM settings")}


def test_what_is_told_is_in_the_file(tmp_path):
    path = tmp_path / "test.sqlite"
    with Database(path) as database:
        for k in range(20):
            assert database.submit(insert(f"{k}")).result(10) == 1
            assert f"{k}" in keys(path)  # seen by another connection: committed


def test_it_waits_for_the_disk(tmp_path):
    with Database(tmp_path / "test.sqlite") as database:
        asked = ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        told = [
            database.submit(lambda connection, name=name: connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in asked
        ]
        assert [future.result(10) for future in told] == ["wal", 2, 1, 1]  # 2 is FULL


def test_a_fault_undoes_its_own_work_and_no_other(tmp_path):
    path = tmp_path / "test.sqlite"
    gate = threading.Event()

    def half(connection):
        insert("half")(connection)
        raise ValueError("in the middle")

    with Database(path) as database:
        database.submit(lambda connection: gate.wait(10))  # so that all below are one transaction
        before, fault = database.submit(insert("before")), database.submit(half)
        twice, after = database.submit(insert("before")), database.submit(insert("after"))
        gate.set()
        assert (before.result(10), after.result(10)) == (1, 1)
        with pytest.raises(ValueError, match="in the middle"):
            fault.result(10)
        with pytest.raises(sqlite3.IntegrityError):
            twice.result(10)
    assert keys(path) == {"before", "after"}


def test_nobody_is_told_of_success_if_the_commit_fails(tmp_path):
    path = tmp_path / "test.sqlite"
    with Database(path) as database:
        database.submit(insert("before")).result(10)
        # A row that refers to nobody, checked at the end of the transaction.
        defer = database.submit(lambda connection: connection.execute("PRAGMA defer_foreign_keys = ON"))
        gate = threading.Event()
        database.submit(lambda connection: gate.wait(10))
        defer = database.submit(lambda connection: connection.execute("PRAGMA defer_foreign_keys = ON"))
        orphan = database.submit(
            lambda connection: connection.execute(
                "INSERT INTO clips (id, listener, slot, stimulus) VALUES ('c', 'nobody', 0, 's')"
            )
        )
        together = database.submit(insert("together"))
        gate.set()
        for future in (defer, orphan, together):
            with pytest.raises(sqlite3.IntegrityError):
                future.result(10)
        assert database.submit(insert("later")).result(10) == 1
    assert keys(path) == {"before", "later"}


def test_a_listener_who_goes_away_stops_nothing(tmp_path):
    gate = threading.Event()
    path = tmp_path / "test.sqlite"
    with Database(path) as database:
        database.submit(lambda connection: gate.wait(10))
        gone = database.submit(insert("gone"))
        assert gone.cancel()
        gate.set()
        assert database.submit(insert("here")).result(10) == 1
    assert keys(path) == {"here"}


def test_many_at_once(tmp_path):
    path = tmp_path / "test.sqlite"
    with Database(path) as database:
        threads = [
            threading.Thread(
                target=lambda k=k: [database.submit(insert(f"{k} {n}")).result(10) for n in range(10)]
            )
            for k in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(keys(path)) == 200


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "test.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(UserError, match="cannot be used as the database"):
        connect(path)
    path.unlink()
    connect(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match="another version of Tokkata: format 7, not 1"):
        connect(path)
