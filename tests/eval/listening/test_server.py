"""The server, asked properly: whole tests by each method, and what they leave in the database."""

import io
import random
import sqlite3

import pytest
import soundfile
from starlette.testclient import TestClient

from tokkata.core.errors import UserError
from tokkata.eval.listening import session
from tokkata.eval.listening.database import Database
from tokkata.eval.listening.definition import database_path, load_definition
from tokkata.eval.listening.listeners import export_listener, forget_listener
from tokkata.eval.listening.ratings import read_ratings
from tokkata.eval.listening.server import make_app, parse_range
from tokkata.eval.listening.session import load_test, register
from tokkata.eval.listening.stimuli import load_manifest
from tokkata.tests.eval.listening.answering import Listener, body_of, clips_of

SECRETS = (b"zephyr", b"quagga", b"anchor", b"melody", b"attention_", b"scored")
"""Words that would tell a system, a role or a file."""


@pytest.fixture
def clock(monkeypatch):
    """The server's clock, put forward by hand: `clock.add(5)`."""

    class Clock:
        now = 1e9

        def add(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(session, "_clock", lambda: clock.now)
    return clock


@pytest.fixture
def serve(copy_test, tmp_path, clock):
    """`serve("ab")`: a client of the server of such a test, which has the attribute `test`."""
    databases = []

    def start(method="acr", open_enrolment=True):
        path = copy_test(tmp_path, method)
        database = Database(database_path(path))
        databases.append(database)
        test = load_test(path)
        database.submit(lambda connection: register(connection, test)).result(10)
        client = TestClient(make_app(test, database, open_enrolment))
        client.test, client.database = path, database
        return client

    yield start
    for database in databases:
        database.__exit__(None, None, None)


def answer_all(listener, clock, choose):
    """Go through the rest of a test; returns the bodies sent."""
    sent = []
    state = listener.state()
    while state["stage"] == "trial":
        body = body_of(state["trial"], choose)
        clock.add(sum(body["listened_s"].values()))
        sent.append(body)
        response = listener.post("ratings", body)
        assert response.status_code == 200, response.text
        state = response.json()
    assert state["stage"] == "done"
    return sent


# -------------------------------------------------------------------------------------- whole tests


@pytest.mark.parametrize("method", ["acr", "ab", "mushra"])
def test_the_database_holds_what_was_answered(serve, clock, method):
    client = serve(method)
    listener = Listener.enrolled(client)
    chance = random.Random(0)
    sent = answer_all(listener, clock, lambda values, number: chance.choice(values))
    ratings = read_ratings(client.test)
    by_trial = {}
    for rating in ratings:
        by_trial.setdefault(rating.trial, []).append(rating)
    assert list(by_trial) == [body["trial"] for body in sent]
    order = ["zephyr", "quagga", "reference"]
    clips = clips_in(client)
    for body in sent:
        for answer, rating in zip(body["answers"], by_trial[body["trial"]], strict=True):
            system = clips[answer["clip"]].system
            shown = [clips[clip].system for clip in body["listened_s"]]
            assert (rating.method, rating.attribute) == (method, answer["attribute"])
            if rating.against is None:
                assert (rating.system, rating.value) == (system, answer["value"])
                continue
            assert [rating.system, rating.against] == sorted(shown, key=order.index)
            assert rating.value == (answer["value"] if system == rating.system else 1 - answer["value"])


def clips_in(client):
    """The stimulus behind each clip's id, as the database has it."""
    manifest = load_manifest(client.test)
    rows = sqlite3.connect(database_path(client.test)).execute("SELECT id, stimulus FROM clips")
    return {id: manifest.stimuli[stimulus] for id, stimulus in rows}


def test_what_a_rating_says(serve, clock):
    client = serve("acr")
    sent = answer_all(Listener.enrolled(client), clock, lambda values, number: values[3])
    ratings = read_ratings(client.test)
    assert len(ratings) == len(sent) == 1 + 2 * 4 + 1 + 1
    assert ratings[0].role == "practice"
    roles = {rating.system: rating.role for rating in ratings[1:]}
    assert roles == {
        "zephyr": "scored",
        "quagga": "scored",
        "reference": "reference",
        "anchor_3500": "anchor",
        "attention": "attention",
    }
    attention = next(rating for rating in ratings if rating.role == "attention")
    assert attention.item == f"tones-{attention.expected:.0f}"
    assert (attention.duration_s, attention.attribute) == (4.0, "attention")
    repeated = next(rating for rating in ratings if rating.repeat)
    firsts = [(rating.system, rating.item) for rating in ratings if not rating.repeat]
    assert (repeated.system, repeated.item) in firsts
    assert {rating.duration_s for rating in ratings if rating.role != "attention"} == {0.5}
    assert all(rating.listened_s == rating.duration_s for rating in ratings)
    assert len({rating.listener for rating in ratings}) == 1
    assert ratings == sorted(ratings, key=lambda rating: rating.answered_at)


def test_a_reference_that_is_shown_and_hidden_are_told_apart_by_nothing(serve):
    client = serve("mushra")
    listener = Listener.enrolled(client)
    trial = listener.state()["trial"]
    responses = [listener.get(f"audio/{clip['id']}") for clip in clips_of(trial)]
    same = [response for response in responses[1:] if response.content == responses[0].content]
    assert len(same) == 1  # the hidden reference
    assert same[0].headers["etag"] != responses[0].headers["etag"]
    assert "last-modified" not in same[0].headers
    assert len({response.headers["content-length"] for response in responses}) == 1


@pytest.mark.parametrize("method", ["acr", "ab", "mushra"])
def test_nothing_that_is_sent_tells_a_system(serve, clock, method):
    client = serve(method)
    received = []

    def remember(response):
        head = f"{response.request.url} {response.headers}".encode()
        received.append((head + response.read()).lower())

    client.event_hooks = {"request": [], "response": [remember]}
    for path in ("/", "/page.css", "/page.js", "/player.js", "/api/test"):
        assert client.get(path).status_code == 200
    listener = Listener.enrolled(client)
    state = listener.state()
    while state["stage"] == "trial":
        for clip in clips_of(state["trial"]):
            assert listener.get(f"audio/{clip['id']}").status_code == 200
        body = body_of(state["trial"], lambda values, number: values[0])
        clock.add(sum(body["listened_s"].values()))
        state = listener.post("ratings", body).json()
    assert len(received) > 10
    for secret in SECRETS:
        assert not [data[:100] for data in received if secret in data]
    stimuli = [id.encode() for id in load_manifest(client.test).stimuli]
    assert not [data[:100] for data in received for id in stimuli if id in data]


def test_a_prompt_stands_beside_its_clips(make_test, tmp_path, clock):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for k in range(6):
        (folder / f"melody{k}.txt").write_text(f"tune number {k}", encoding="utf-8")
    path = make_test(tmp_path, prompts=str(folder))
    with Database(database_path(path)) as database:
        client = TestClient(make_app(load_test(path), database, True))
        client.test = path
        listener = Listener.enrolled(client)
        state = listener.state()
        prompts = {}
        while state["stage"] == "trial":
            clip = clips_in(client)[state["trial"]["clips"][0]["id"]]
            prompts[clip.item] = state["trial"]["prompt"]
            body = body_of(state["trial"], lambda values, number: values[0])
            clock.add(10)
            state = listener.post("ratings", body).json()
    tones = [item for item in prompts if not item.startswith("melody")]
    assert prompts == {
        item: None if item in tones else f"tune number {item.removeprefix('melody')}" for item in prompts
    }
    assert len(tones) == 1


# -------------------------------------------------------------------------------------------- a way in


def test_who_comes_later_goes_on_where_they_were(serve, clock):
    client = serve("acr")
    listener = Listener.enrolled(client)
    first = listener.state()
    assert listener.state() == first
    body = body_of(first["trial"], lambda values, number: 2.0)
    clock.add(10)
    second = listener.post("ratings", body).json()
    assert second["progress"] == {"done": 1, "total": 11}
    client.database.__exit__(None, None, None)  # the server ends …
    again = Listener(serve("acr"), listener.token)  # … and comes back
    assert again.state() == second
    assert len(read_ratings(client.test)) == 1


def test_by_invitation_only(serve):
    client = serve(open_enrolment=False)
    assert client.get("/api/test").json()["open"] is False
    refused = client.post("/api/enrol")
    assert refused.status_code == 403
    assert "by invitation" in refused.json()["detail"]
    invited = Listener(client, client.database.submit(session.invite).result(10))
    assert invited.state()["stage"] == "consent"
    assert invited.post("check", {"answers": []}).status_code == 403
    assert invited.post("consent", {}).json()["stage"] == "check"
    number = "SELECT number FROM listeners"
    before = sqlite3.connect(database_path(client.test)).execute(number).fetchall()
    assert invited.post("consent", {}).json()["stage"] == "check"  # agreeing twice changes nothing
    assert sqlite3.connect(database_path(client.test)).execute(number).fetchall() == before


def test_enrolment_ends_when_there_are_enough(serve, monkeypatch):
    client = serve()
    definition = load_test(client.test).definition.model_copy(update={"max_listeners": 1})
    test = session.ListeningTest(client.test, definition, load_manifest(client.test))
    client = TestClient(make_app(test, client.database, True))
    assert client.post("/api/enrol").status_code == 200
    assert client.post("/api/enrol").status_code == 403


def test_the_sound_check_is_noted(serve):
    client = serve()
    manifest, clips = load_manifest(client.test), None
    token = client.post("/api/enrol").json()["token"]
    listener = Listener(client, token)
    state = listener.state()
    clips = clips_in(client)
    right = [int(clips[clip["id"]].item) for clip in state["headphones"]]
    assert sorted(right) == [1, 2, 3]
    assert manifest.stimuli[clips[state["volume"]["id"]].id].system == "volume"
    assert listener.post("check", {"answers": right[:2]}).status_code == 400
    assert listener.post("check", {"answers": [*right[:2], right[2] % 3 + 1]}).json()["stage"] == "trial"
    assert listener.post("check", {"answers": right}).status_code == 409
    assert export_listener(client.test, state["listener"])["headphones_correct"] == 2


def test_neither_token_nor_address_is_stored(serve):
    client = serve()
    listener = Listener.enrolled(client)
    stored = database_path(client.test).read_bytes()
    journal = database_path(client.test).with_name("test.sqlite-wal")
    stored += journal.read_bytes() if journal.exists() else b""
    assert listener.state()["listener"].encode() in stored
    assert listener.token.encode() not in stored
    assert b"testclient" not in stored  # what stands for the network address


# ----------------------------------------------------------------------------------------------- audio


def test_audio_whole_in_part_and_again(serve):
    client = serve()
    listener = Listener.enrolled(client)
    clip = listener.state()["trial"]["clips"][0]
    path = f"audio/{clip['id']}"
    whole = listener.get(path)
    samples, rate = soundfile.read(io.BytesIO(whole.content))
    assert (len(samples) / rate, rate) == (clip["seconds"], 48000)
    assert whole.headers["content-type"] == "audio/wav"
    assert whole.headers["cache-control"].startswith("private")
    size = len(whole.content)
    for wanted, start, stop in (
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=10-{size * 2}", 10, size),
    ):
        part = listener.get(path, Range=wanted)
        assert (part.status_code, part.content) == (206, whole.content[start:stop])
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
    for wanted in (f"bytes={size}-", "bytes=5-4", "bytes=-", "lines=1-2", "bytes=0-1,5-6"):
        assert listener.get(path, Range=wanted).status_code == 416
    tag = whole.headers["etag"]
    assert listener.get(path, **{"If-None-Match": tag}).status_code == 304
    assert listener.get(path, **{"If-Range": '"other"', "Range": "bytes=0-1"}).status_code == 200


@pytest.mark.parametrize(
    ("wanted", "span"),
    [("bytes=0-0", (0, 1)), ("bytes=-20", (0, 10)), ("bytes=-0", None), ("bytes=a-b", None), ("", None)],
)
def test_ranges(wanted, span):
    assert parse_range(wanted, 10) == span


# ------------------------------------------------------------------------------- export and deletion


def test_one_listener_exported_and_forgotten(serve, clock):
    client = serve()
    leaver, stayer = Listener.enrolled(client), Listener.enrolled(client)
    answer_all(leaver, clock, lambda values, number: 2.0)
    answer_all(stayer, clock, lambda values, number: 4.0)
    code = leaver.state()["listener"]
    exported = export_listener(client.test, code)
    assert [row["value"] for row in exported["ratings"]] == [2.0] * 11
    assert (exported["id"], exported["number"], len(exported["trials"])) == (code, 0, 11)
    assert "token_sha256" not in exported
    assert exported["consent"].startswith("You will hear")
    assert forget_listener(client.test, code) == 11
    assert leaver.get("state").status_code == 401
    assert {rating.value for rating in read_ratings(client.test)} == {4.0}
    stored = database_path(client.test).read_bytes()
    assert stayer.state()["listener"].encode() in stored
    assert code.encode() not in stored  # overwritten, not only unlinked
    for function in (export_listener, forget_listener):
        with pytest.raises(UserError, match=f"has no listener '{code}'"):
            function(client.test, code)


def test_no_answers_yet(copy_test, tmp_path):
    path = copy_test(tmp_path)
    for function in (lambda: read_ratings(path), lambda: export_listener(path, "x")):
        with pytest.raises(UserError, match=r"has no (ratings|answers) yet"):
            function()


# ----------------------------------------------------------------------------------- pre-registration


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("max_attention_failures: 0", "max_attention_failures: 3", "exclusions"),
        ("min_listeners: 8", "min_listeners: 2", "min_listeners"),
        ("overall quality", "quality", "attributes"),
    ],
)
def test_what_was_decided_before_cannot_be_changed_after(serve, before, after, key):
    client = serve()
    text = client.test.read_text()
    changed = text.replace(before, after)
    assert changed != text

    def start():
        test = load_test(client.test)
        return client.database.submit(lambda connection: register(connection, test)).result(10)

    client.test.write_text(changed)
    start()  # nobody has come yet
    Listener.enrolled(client)
    start()
    client.test.write_text(text)
    with pytest.raises(UserError, match=f"'{key}' has changed in .* since the first listener came"):
        start()
    assert load_definition(client.test).method == "acr"
