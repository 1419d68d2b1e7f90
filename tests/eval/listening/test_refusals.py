"""The server, asked improperly: each is refused with a sentence, and nothing of it is stored."""

import json
import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tokkata.eval.listening import session
from tokkata.eval.listening.database import Database
from tokkata.eval.listening.definition import database_path
from tokkata.eval.listening.ratings import read_ratings
from tokkata.eval.listening.server import MAX_BODY_BYTES, make_app
from tokkata.eval.listening.session import load_test
from tokkata.tests.eval.listening.answering import Listener, body_of

HOUR = 3600.0


@pytest.fixture(scope="module")
def client(copy_test, tmp_path_factory):
    path = copy_test(tmp_path_factory.mktemp("refusals"))
    with Database(database_path(path)) as database:
        client = TestClient(make_app(load_test(path), database, True), raise_server_exceptions=False)
        client.test, client.database = path, database
        yield client


@pytest.fixture
def listener(client):
    """A new one, who was shown the first trial an hour ago."""
    listener = Listener.enrolled(client)
    code = listener.state()["listener"]
    client.database.submit(
        lambda connection: connection.execute(
            "UPDATE trials SET shown_at = shown_at - ? WHERE listener = ?", [HOUR, code]
        )
    ).result(10)
    return listener


@pytest.fixture
def body(listener):
    """A right answer to the first trial."""
    return body_of(listener.state()["trial"], lambda values, number: 3.0)


def num_ratings(client):
    return len(read_ratings(client.test))


def refused(response, status):
    """The response refuses with `status`, in a sentence, and says nothing of the server's insides."""
    assert response.status_code == status, response.text
    sentence = response.json()["detail"]
    assert isinstance(sentence, str)
    assert "Traceback" not in response.text
    assert "/" not in sentence
    return True


def test_the_right_answer_is_taken(client, listener, body):
    before = num_ratings(client)
    assert listener.post("ratings", body).status_code == 200
    assert num_ratings(client) == before + 1


def test_a_second_rating_of_the_same_clip(client, listener, body):
    assert listener.post("ratings", body).status_code == 200
    before = num_ratings(client)
    other = json.loads(json.dumps(body).replace("3.0", "5.0"))
    for again in (body, other):
        assert refused(listener.post("ratings", again), 409)
    assert num_ratings(client) == before


def test_the_same_answer_from_two_tabs_at_once(client, listener, body):
    """Both are in one transaction."""
    before = num_ratings(client)
    test = load_test(client.test)
    answers = [session.Answer(answer["clip"], answer["attribute"], 3.0) for answer in body["answers"]]
    futures = [
        client.database.submit(
            lambda connection: session.rate(
                connection, test, listener.token, body["trial"], answers, body["listened_s"]
            )
        )
        for _ in range(2)
    ]
    futures[0].result(10)
    with pytest.raises(session.Refused, match="answered this already"):
        futures[1].result(10)
    assert num_ratings(client) == before + 1


# --------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer ../../etc", "Bearer " + "a" * 22]
)
@pytest.mark.parametrize("path", ["state", "consent", "check", "ratings", "audio"])
def test_without_a_valid_token(client, listener, body, header, path):
    headers = {} if header is None else {"Authorization": header}
    clip = next(iter(body["listened_s"]))
    bodies = {"consent": {}, "check": {"answers": []}, "ratings": body}
    if path in bodies:
        response = client.post(f"/api/{path}", json=bodies[path], headers=headers)
    else:
        response = client.get("/api/state" if path == "state" else f"/api/audio/{clip}", headers=headers)
    assert refused(response, 401)


def test_a_strangers_token(client, listener, body):
    """Another listener can neither answer one's trials nor hear one's clips."""
    before = num_ratings(client)
    stranger = Listener.enrolled(client)
    clip = next(iter(body["listened_s"]))
    assert refused(stranger.post("ratings", body), 404)
    assert refused(stranger.get(f"audio/{clip}"), 404)
    mine = body_of(stranger.state()["trial"], lambda values, number: 3.0)
    foreign = body | {"trial": mine["trial"]}
    assert refused(stranger.post("ratings", foreign), 400)
    assert num_ratings(client) == before


# ------------------------------------------------------------------------------------ files and routes


@pytest.mark.parametrize(
    "path",
    [
        "../test.yaml",
        "..%2ftest.yaml",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/test.sqlite",
        "....//test.yaml",
        "manifest.json",
        "%00",
        "a" * 5000,
    ],
)
def test_paths_that_lead_elsewhere(client, listener, path):
    for route in ("/", "/api/", "/api/audio/"):
        response = client.get(route + path, headers=listener.headers)
        assert refused(response, 404)


def test_guessed_clips(client, listener):
    from tokkata.eval.listening.stimuli import load_manifest

    for id in [*load_manifest(client.test).stimuli, secrets.token_hex(16)]:
        assert refused(listener.get(f"audio/{id}"), 404)


def test_trials_that_come_later_or_never(client, listener, body):
    query = "SELECT id FROM trials WHERE shown_at IS NULL AND listener = ?"
    code = listener.state()["listener"]
    later = client.database.submit(lambda connection: connection.execute(query, [code]).fetchall()).result(10)
    assert refused(listener.post("ratings", body | {"trial": later[0]["id"]}), 409)
    assert refused(listener.post("ratings", body | {"trial": secrets.token_hex(8)}), 404)


def test_there_are_no_other_routes_and_methods(client):
    routes = {
        (route.path, method) for route in client.app.routes for method in sorted(route.methods - {"HEAD"})
    }
    assert routes == {
        ("/", "GET"),
        ("/page.css", "GET"),
        ("/page.js", "GET"),
        ("/player.js", "GET"),
        ("/api/test", "GET"),
        ("/api/enrol", "POST"),
        ("/api/consent", "POST"),
        ("/api/state", "GET"),
        ("/api/check", "POST"),
        ("/api/ratings", "POST"),
        ("/api/audio/{clip}", "GET"),
    }
    for path in ("/docs", "/openapi.json", "/redoc", "/test.yaml", "/page.html", "/static/page.js"):
        assert refused(client.get(path), 404)
    for method in ("DELETE", "PUT", "PATCH", "GET", "OPTIONS"):
        assert refused(client.request(method, "/api/ratings"), 405)


def test_every_response_forbids_what_the_page_does_not_need(client, listener):
    for response in (client.get("/"), listener.get("state"), client.get("/none"), client.post("/api/check")):
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "server" not in response.headers
        assert "set-cookie" not in response.headers


# --------------------------------------------------------------------------------------------- bodies


def test_oversized_bodies(client, listener):
    large = b'{"answers": [' + b" " * MAX_BODY_BYTES + b"]}"
    headers = listener.headers | {"Content-Type": "application/json"}
    assert refused(client.post("/api/check", content=large, headers=headers), 413)
    # Sent in pieces, without saying before how long it is.
    pieces = (large[k : k + 1000] for k in range(0, len(large), 1000))
    assert refused(client.post("/api/check", content=pieces, headers=headers), 413)
    lying = headers | {"Content-Length": "x"}
    assert refused(client.post("/api/check", content=b"{}", headers=lying), 413)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"trial": 3}',
        b"[" * 10000,
        b'{"a":' * 2000,
        b'{"trial": "0000000000000000", "answers": [], "listened_s": {}, "system": "zephyr"}',
    ],
)
def test_malformed_bodies(client, listener, content):
    headers = listener.headers | {"Content-Type": "application/json"}
    assert refused(client.post("/api/ratings", content=content, headers=headers), 400)


CHANGES = {
    "value above the scale": lambda body: body["answers"][0].update(value=6.0),
    "value below the scale": lambda body: body["answers"][0].update(value=0.0),
    "value between": lambda body: body["answers"][0].update(value=3.5),
    "value as text": lambda body: body["answers"][0].update(value="3"),
    "value true": lambda body: body["answers"][0].update(value=True),
    "no answer": lambda body: body["answers"].clear(),
    "answered twice": lambda body: body["answers"].append(body["answers"][0]),
    "another question": lambda body: body["answers"][0].update(attribute="musicality"),
    "another clip": lambda body: body["answers"][0].update(clip="0" * 32),
    "no time": lambda body: body["listened_s"].clear(),
    "another clip's time": lambda body: body["listened_s"].update({"0" * 32: 1.0}),
    "negative time": lambda body: body["listened_s"].update(dict.fromkeys(body["listened_s"], -1.0)),
    "injection": lambda body: body.update(trial="' OR 1=1 --"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_answers_to_something_else(client, listener, body, change):
    before = num_ratings(client)
    CHANGES[change](body)
    assert refused(listener.post("ratings", body), 400)
    assert num_ratings(client) == before


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(client, listener, body, number):
    headers = listener.headers | {"Content-Type": "application/json"}
    content = json.dumps(body).replace("3.0", number)
    assert number in content
    assert refused(client.post("/api/ratings", content=content, headers=headers), 400)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "trial": JSON_VALUES,
            "answers": JSON_VALUES,
            "listened_s": JSON_VALUES,
            "more": JSON_VALUES,
        },
    ).filter(bool)
)
def test_anything_else(client, listener, body, changes):
    assert refused(listener.post("ratings", body | changes), 400)


def test_a_full_disk_is_told_and_loses_nothing_that_was_acknowledged(client):
    def limit(num_pages):
        query = f"PRAGMA max_page_count = {num_pages}"
        client.database.submit(lambda connection: connection.execute(query).fetchone()).result(10)

    limit(1)  # SQLite takes the present number of pages instead
    tokens = []
    while (response := client.post("/api/enrol")).status_code == 200:  # there is room in some pages
        tokens.append(response.json()["token"])
    assert refused(response, 503)
    limit(1 << 30)
    tokens.append(client.post("/api/enrol").json()["token"])
    assert all(Listener(client, token).state()["stage"] == "check" for token in tokens)


# ------------------------------------------------------------------------------------------------ time


def test_answers_before_the_clip_can_be_heard(client):
    listener = Listener.enrolled(client)
    body = body_of(listener.state()["trial"], lambda values, number: 3.0)
    before = num_ratings(client)
    assert refused(listener.post("ratings", body), 422)  # at once
    assert num_ratings(client) == before


def test_answers_without_listening_to_the_end(client, listener, body):
    (clip,) = body["listened_s"]
    assert refused(listener.post("ratings", body | {"listened_s": {clip: 0.3}}), 422)
    assert refused(listener.post("ratings", body | {"listened_s": {clip: 2 * HOUR}}), 422)
    assert listener.post("ratings", body | {"listened_s": {clip: 0.49}}).status_code == 200
