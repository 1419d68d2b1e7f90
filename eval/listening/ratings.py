"""What listeners answered, as plain values: the form that every statistic starts from."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core.errors import UserError
from .definition import Method, database_path

Role = Literal["scored", "reference", "anchor", "attention", "practice"]


@dataclass(frozen=True)
class Rating:
    """One answer of one listener."""

    listener: str
    """Opaque."""
    trial: str
    """Opaque: one screen of one listener. A MUSHRA trial has a rating for each of its stimuli."""
    item: str
    """What was heard. In a paired test (`Definition.paired`) the systems share the names of items; in
    another, the item carries its system's name, except in A/B, where it is the number of the pair."""
    system: str
    """A name from the definition, or `reference`, `reconstructed`, `anchor_3500` or `attention`."""
    role: Role
    """`reference` is the recording itself and its codec reconstruction. Answers in practice trials are
    `practice`, whatever was heard."""
    attribute: str
    """A name from the definition; `attention` in attention trials."""
    method: Method
    value: float
    """ACR: 1…5. MUSHRA: 0…100. A/B: 1 if `system` was preferred over `against`, 0 if the other, 0.5 if
    neither."""
    against: str | None
    """A/B: the other system."""
    repeat: int
    """0, or 1 in a trial that asks a second time about what the listener has rated before."""
    expected: float | None
    """Attention trials: the right answer; any other is a failure."""
    listened_s: float
    """Seconds of the stimulus that the listener played, repetitions included."""
    duration_s: float
    """Length of the stimulus; in A/B, `listened_s` and this are the sums over both."""
    answered_at: str
    """UTC, ISO 8601."""


_QUERY = """
SELECT ratings.listener, ratings.trial, item, system, role, attribute, method, value, against, repeat,
       expected, listened_s, duration_s, answered_at
FROM ratings JOIN trials ON trials.id = ratings.trial
ORDER BY ratings.rowid
"""


def read_ratings(test: Path) -> list[Rating]:
    """All ratings of the test whose definition is `test` (TEST.yaml), in the order in which they were given.

    Can be called while the test is being served. Raises `UserError` if nobody has been invited or enrolled
    yet, or if the file beside the definition is no database of a listening test.
    """
    path = database_path(test)
    if not path.exists():
        raise UserError(f"{test} has no ratings yet: serve it with 'tokkata listen serve {test}'")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return [Rating(*row) for row in database.execute(_QUERY)]
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} cannot be read as the ratings of a listening test: {error}") from error
