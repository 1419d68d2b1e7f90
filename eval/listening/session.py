"""What one listener does to the database: enrol, agree, get a trial, answer it.

Each function here is one piece of work for `Database.submit`: it takes the connection first.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from .definition import Definition, load_definition
from .order import Trial, plan_trials, rated_systems
from .questions import ATTENTION_ATTRIBUTE, Asked, questions, shown_questions, storage_notice
from .stimuli import HEADPHONES, VOLUME, Manifest, Stimulus, load_manifest

# Clocks and the lengths that browsers report differ a little from the files'.
_TOLERANCE = 0.95
_SLACK_S = 2.0


class Refused(Exception):
    """A request that is not carried out: an HTTP status and one sentence for the listener."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class ListeningTest:
    """A test that can be run."""

    path: Path
    definition: Definition
    manifest: Manifest


@dataclass(frozen=True)
class Answer:
    """One value that a listener chose."""

    clip: str
    attribute: str
    value: float


def load_test(path: Path) -> ListeningTest:
    """The test defined in `path` with its clips; raises `UserError`."""
    definition, manifest = load_definition(path), load_manifest(path)
    for system in rated_systems(definition):
        if len(manifest.of_system(system)) < definition.items_per_listener:
            raise UserError(
                f"{path} asks for {definition.items_per_listener} items per listener, but there are"
                f" {len(manifest.of_system(system))} clips of '{system}': ask for fewer"
            )
    return ListeningTest(path, definition, manifest)


def estimated_minutes(test: ListeningTest) -> int:
    """About how long a listener takes: all clips once, and five seconds for each question."""
    seconds = 60.0
    for trial in plan_trials(test.definition, test.manifest, 0):
        heard = [*trial.stimuli, *([trial.reference] if trial.reference else [])]
        seconds += sum(test.manifest.stimuli[clip].duration_s for clip in heard)
        asked = len(questions(test.definition, trial.kind == "attention"))
        seconds += 5.0 * asked * (len(trial.stimuli) if test.definition.method == "mushra" else 1)
    return max(1, round(seconds / 60.0))


def register(connection: sqlite3.Connection, test: ListeningTest) -> None:
    """Note the definition before the first listener; raises `UserError` if it has changed since.

    So the exclusions, and all else, are those decided before anybody listened.
    """
    now = _fingerprints(test)
    row = connection.execute("SELECT value FROM settings WHERE key = 'definition'").fetchone()
    started = connection.execute("SELECT count(*) FROM listeners").fetchone()[0]
    if row is None or not started:
        connection.execute("INSERT OR REPLACE INTO settings VALUES ('definition', ?)", [json.dumps(now)])
        return
    before = json.loads(row["value"])
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        raise UserError(
            f"'{changed[0]}' has changed in {test.path} since the first listener came: change it back, or"
            " make a new test"
        )


def _fingerprints(test: ListeningTest) -> dict[str, Any]:
    values = test.definition.model_dump(mode="json", exclude={"contact", "max_listeners"})
    clips = sorted((clip.id, clip.system, clip.item, clip.sha256) for clip in test.manifest.stimuli.values())
    return values | {"clips": hashlib.sha256(json.dumps(clips).encode()).hexdigest()}


# ------------------------------------------------------------------------------------------- enrolment


def invite(connection: sqlite3.Connection) -> str:
    """A new listener's token, which is kept nowhere."""
    token = secrets.token_urlsafe(16)
    connection.execute(
        "INSERT INTO listeners (id, token_sha256, created_at) VALUES (?, ?, ?)",
        [secrets.token_hex(5), _digest(token), _now()],
    )
    return token


def enrol(connection: sqlite3.Connection, test: ListeningTest) -> str:
    """A new listener who has agreed to take part; returns the token. Raises `Refused` if there are enough."""
    if connection.execute("SELECT count(*) FROM listeners").fetchone()[0] >= test.definition.max_listeners:
        raise Refused(403, "This test has all the listeners that it needs. Thank you for coming.")
    token = invite(connection)
    consent(connection, test, token)
    return token


def consent(connection: sqlite3.Connection, test: ListeningTest, token: str) -> None:
    """The listener agrees to take part, and gets trials; agreeing again changes nothing."""
    listener = _listener(connection, token)
    if listener["consented_at"] is not None:
        return
    last = connection.execute("SELECT value FROM settings WHERE key = 'next_number'").fetchone()
    number = int(last["value"]) if last else 0
    connection.execute("INSERT OR REPLACE INTO settings VALUES ('next_number', ?)", [str(number + 1)])
    words = "\n".join([test.definition.introduction, *storage_notice(test.definition)])
    connection.execute(
        "UPDATE listeners SET number = ?, consented_at = ?, consent = ? WHERE id = ?",
        [number, _now(), words, listener["id"]],
    )
    _add_checks(connection, test, listener["id"])
    for position, trial in enumerate(plan_trials(test.definition, test.manifest, number)):
        _add_trial(connection, listener["id"], position, trial)


def _add_checks(connection: sqlite3.Connection, test: ListeningTest, listener: str) -> None:
    checks = [clip for clip in test.manifest.stimuli.values() if clip.role == "check"]
    for slot, clip in enumerate(sorted(checks, key=lambda clip: (clip.system != VOLUME, clip.item))):
        _add_clip(connection, listener, None, slot, clip.id)


def _add_trial(connection: sqlite3.Connection, listener: str, position: int, trial: Trial) -> None:
    id = secrets.token_hex(8)
    connection.execute(
        "INSERT INTO trials (id, listener, position, kind, item, repeat, expected)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [id, listener, position, trial.kind, trial.item, trial.repeat, trial.expected],
    )
    if trial.reference is not None:
        _add_clip(connection, listener, id, -1, trial.reference)
    for slot, stimulus in enumerate(trial.stimuli):
        _add_clip(connection, listener, id, slot, stimulus)


def _add_clip(
    connection: sqlite3.Connection, listener: str, trial: str | None, slot: int, stimulus: str
) -> None:
    connection.execute(
        "INSERT INTO clips (id, listener, trial, slot, stimulus) VALUES (?, ?, ?, ?, ?)",
        [secrets.token_hex(16), listener, trial, slot, stimulus],
    )


def _listener(connection: sqlite3.Connection, token: str) -> sqlite3.Row:
    query = "SELECT * FROM listeners WHERE token_sha256 = ?"
    row: sqlite3.Row | None = connection.execute(query, [_digest(token)]).fetchone()
    if row is None:
        raise Refused(401, "This link is not valid. Please use the whole link that you were given.")
    return row


def _taking_part(connection: sqlite3.Connection, token: str) -> sqlite3.Row:
    listener = _listener(connection, token)
    if listener["consented_at"] is None:
        raise Refused(403, "Please read and accept the first page before you go on.")
    return listener


def _digest(token: str) -> str:
    # A token is 128 random bits: there is nothing to guess that a slow hash would protect.
    return hashlib.sha256(token.encode()).hexdigest()


def _clock() -> float:
    # Not a monotonic one: a listener may go on after the server was restarted.
    return time.time()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# ---------------------------------------------------------------------------------------------- trials


def state(connection: sqlite3.Connection, test: ListeningTest, token: str) -> dict[str, Any]:
    """Where the listener is, and what the page needs to go on: the checks, a trial, or the end."""
    listener = _listener(connection, token)
    told: dict[str, Any] = {"listener": listener["id"], "stage": "consent"}
    if listener["consented_at"] is None:
        return told
    if listener["checked_at"] is None:
        return told | {"stage": "check"} | _checks(connection, test, listener["id"])
    query = "SELECT * FROM trials WHERE listener = ? AND position >= ? ORDER BY position LIMIT 2"
    num, done = connection.execute(
        "SELECT count(*), total(answered) FROM trials WHERE listener = ?", [listener["id"]]
    ).fetchone()
    told["progress"] = {"done": int(done), "total": num}
    coming = connection.execute(query, [listener["id"], int(done)]).fetchall()
    if not coming:
        return told | {"stage": "done"}
    connection.execute(
        "UPDATE trials SET shown_at = ? WHERE id = ? AND shown_at IS NULL", [_clock(), coming[0]["id"]]
    )
    shown = _shown(connection, test, coming[0])
    # What is fetched beforehand plays without a stop.
    ahead = [clip["id"] for clip in _clips(connection, coming[1]["id"])] if len(coming) > 1 else []
    return told | {"stage": "trial", "trial": shown, "ahead": ahead}


def _checks(connection: sqlite3.Connection, test: ListeningTest, listener: str) -> dict[str, Any]:
    clips = _check_clips(connection, listener)
    described = [_described(test, clip) for clip in clips]
    return {"volume": described[0], "headphones": described[1:]}


def _check_clips(connection: sqlite3.Connection, listener: str) -> list[sqlite3.Row]:
    query = "SELECT * FROM clips WHERE listener = ? AND trial IS NULL ORDER BY slot"
    return connection.execute(query, [listener]).fetchall()


def _clips(connection: sqlite3.Connection, trial: str) -> list[sqlite3.Row]:
    return connection.execute("SELECT * FROM clips WHERE trial = ? ORDER BY slot", [trial]).fetchall()


def _described(test: ListeningTest, clip: sqlite3.Row) -> dict[str, Any]:
    return {"id": clip["id"], "seconds": test.manifest.stimuli[clip["stimulus"]].duration_s}


def _shown(connection: sqlite3.Connection, test: ListeningTest, trial: sqlite3.Row) -> dict[str, Any]:
    clips = _clips(connection, trial["id"])
    reference = [_described(test, clip) for clip in clips if clip["slot"] < 0]
    return {
        "id": trial["id"],
        "practice": trial["kind"] == "practice",
        "questions": shown_questions(test.definition, trial["kind"] == "attention"),
        "prompt": test.manifest.prompts.get(trial["item"]),
        "reference": reference[0] if reference else None,
        "clips": [_described(test, clip) for clip in clips if clip["slot"] >= 0],
    }


def audio_of(connection: sqlite3.Connection, test: ListeningTest, token: str, clip: str) -> Stimulus:
    """The stimulus behind a clip of this listener; raises `Refused` for any other."""
    listener = _taking_part(connection, token)
    query = "SELECT stimulus FROM clips WHERE id = ? AND listener = ?"
    row = connection.execute(query, [clip, listener["id"]]).fetchone()
    if row is None:
        raise Refused(404, "There is no such clip.")
    return test.manifest.stimuli[row["stimulus"]]


def check(connection: sqlite3.Connection, test: ListeningTest, token: str, answers: Sequence[int]) -> None:
    """Note how many of the quietest tones were found, or with no answers that the check was skipped.

    Raises `Refused` the second time.
    """
    listener = _taking_part(connection, token)
    if listener["checked_at"] is not None:
        raise Refused(409, "The check has been done already.")
    clips = [test.manifest.stimuli[clip["stimulus"]] for clip in _check_clips(connection, listener["id"])]
    right = [int(clip.item) for clip in clips if clip.system == HEADPHONES]
    found = None
    if answers:
        if len(answers) != len(right):
            raise Refused(400, f"{len(right)} answers are expected.")
        found = sum(given == wanted for given, wanted in zip(answers, right, strict=True))
    connection.execute(
        "UPDATE listeners SET checked_at = ?, headphones_correct = ? WHERE id = ?",
        [_now(), found, listener["id"]],
    )


# --------------------------------------------------------------------------------------------- answers


def rate(
    connection: sqlite3.Connection,
    test: ListeningTest,
    token: str,
    trial_id: str,
    answers: Sequence[Answer],
    listened_s: dict[str, float],
) -> None:
    """Store a listener's answers to a trial; raises `Refused` unless all are there, once, and believable."""
    listener = _taking_part(connection, token)
    query = "SELECT * FROM trials WHERE id = ? AND listener = ?"
    trial = connection.execute(query, [trial_id, listener["id"]]).fetchone()
    if trial is None:
        raise Refused(404, "There is no such trial.")
    if trial["answered"]:
        raise Refused(409, "You have answered this already.")
    if trial["shown_at"] is None:
        raise Refused(409, "This comes later.")
    clips = _clips(connection, trial_id)
    lengths = {clip["id"]: test.manifest.stimuli[clip["stimulus"]].duration_s for clip in clips}
    _check_heard(lengths, listened_s, _clock() - trial["shown_at"])
    asked = questions(test.definition, trial["kind"] == "attention")
    rated = [clip for clip in clips if clip["slot"] >= 0]
    values = _checked_answers(asked, rated if test.definition.method == "mushra" else rated[:1], answers)
    for row in _rows(test, trial, rated, values, listened_s):
        connection.execute(
            "INSERT INTO ratings (listener, trial, system, role, attribute, method, value, against,"
            " listened_s, duration_s, answered_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [listener["id"], trial_id, *row, _now()],
        )
    connection.execute("UPDATE trials SET answered = 1 WHERE id = ?", [trial_id])
    last = "SELECT count(*) FROM trials WHERE listener = ? AND NOT answered"
    if not connection.execute(last, [listener["id"]]).fetchone()[0]:
        connection.execute("UPDATE listeners SET finished_at = ? WHERE id = ?", [_now(), listener["id"]])


def _check_heard(lengths: dict[str, float], listened_s: dict[str, float], elapsed_s: float) -> None:
    if set(listened_s) != set(lengths):
        raise Refused(400, "Say for each clip of the trial, and no other, how long it was played.")
    if any(listened_s[clip] < _TOLERANCE * seconds for clip, seconds in lengths.items()):
        raise Refused(422, "Please listen to every clip to its end.")
    if sum(listened_s.values()) > elapsed_s + _SLACK_S or sum(lengths.values()) * _TOLERANCE > elapsed_s:
        raise Refused(422, "The answer came sooner than the clips can be heard.")


def _checked_answers(
    asked: Sequence[Asked], clips: Sequence[sqlite3.Row], answers: Sequence[Answer]
) -> dict[tuple[str, str], float]:
    values = {(answer.clip, answer.attribute): answer.value for answer in answers}
    wanted = {(clip["id"], question.attribute) for clip in clips for question in asked}
    if set(values) != wanted or len(answers) != len(wanted):
        raise Refused(400, "Each question of the trial, and no other, is answered once.")
    allowed = {question.attribute: question.values for question in asked}
    for (_, attribute), value in values.items():
        if value not in allowed[attribute]:
            raise Refused(400, "An answer is not on the scale.")
    return values


def _rows(
    test: ListeningTest,
    trial: sqlite3.Row,
    clips: Sequence[sqlite3.Row],
    values: dict[tuple[str, str], float],
    listened_s: dict[str, float],
) -> list[tuple[Any, ...]]:
    """System, role, attribute, method, value, against, listened and duration of each rating."""
    method, stimuli = test.definition.method, test.manifest.stimuli
    heard = {clip["id"]: stimuli[clip["stimulus"]] for clip in clips}
    rows: list[tuple[Any, ...]] = []
    for (clip, attribute), value in values.items():
        system, against = heard[clip].system, None
        role: str = heard[clip].role
        listened, duration = listened_s[clip], heard[clip].duration_s
        if method == "ab":
            listened, duration = sum(listened_s.values()), sum(each.duration_s for each in heard.values())
            if attribute != ATTENTION_ATTRIBUTE:
                system, role, against, value = _preference(test, list(heard.values()), value)
        if trial["kind"] == "practice":
            role = "practice"
        rows.append((system, role, attribute, method, value, against, listened, duration))
    return rows


def _preference(test: ListeningTest, pair: Sequence[Stimulus], value: float) -> tuple[str, str, str, float]:
    """System, role, against and value, as if the definition's order had been the order of hearing."""
    order = rated_systems(test.definition)
    first, second = sorted(pair, key=lambda clip: order.index(clip.system))
    role = "reference" if "reference" in (first.role, second.role) else "scored"
    return first.system, role, second.system, value if first is pair[0] else 1.0 - value
