"""`tokkata listen serve` as a process: killed in the middle, on a taken port, by invitation."""

import http.client
import signal
import socket
import threading
import time

import pytest

from tokkata.eval.listening.ratings import read_ratings
from tokkata.tests.eval.listening.answering import Listener, LoopbackClient, body_of, served


def test_what_was_acknowledged_survives_sigkill(copy_test, tmp_path, environment):
    path = copy_test(tmp_path)
    tokens, acknowledged, lock = [], {}, threading.Lock()

    def answer(address):
        try:
            listener = Listener.enrolled(LoopbackClient(address))
            with lock:
                tokens.append(listener.token)
            state = listener.state()
            while state["stage"] == "trial":
                body = body_of(state["trial"], lambda values, number: values[len(acknowledged) % 5])
                time.sleep(sum(body["listened_s"].values()))
                response = listener.post("ratings", body)
                assert response.status_code == 200
                with lock:
                    acknowledged[body["trial"]] = body["answers"][0]["value"]
                state = response.json()
        except (OSError, http.client.HTTPException):
            return  # killed

    with served(path, environment) as (process, address, _):
        threads = [threading.Thread(target=answer, args=[address]) for _ in range(12)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(acknowledged) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert 30 <= len(acknowledged) < 12 * 11
    stored = {rating.trial: rating.value for rating in read_ratings(path)}
    assert acknowledged.items() <= stored.items()
    assert len(stored) - len(acknowledged) <= 12  # committed, but the answer never arrived

    with served(path, environment) as (_, address, _):
        states = [Listener(LoopbackClient(address), token).state() for token in tokens]
    assert sum(state["progress"]["done"] for state in states) == len(stored)


def test_invitations_are_printed_and_let_in(copy_test, tmp_path, environment):
    path = copy_test(tmp_path)
    options = ("--invitations", "3", "--url", "https://listen.example.org/a")
    with served(path, environment, *options) as (process, base, links):
        assert base == "https://listen.example.org/a/"
        assert len(set(links)) == 3
        assert all(link.startswith(f"{base}#") for link in links)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 128 + signal.SIGINT
    with served(path, environment, "--invitations", "0") as (_, address, none):
        assert none == []
        client = LoopbackClient(address)
        assert client.post("/api/enrol").status_code == 403
        for elsewhere in (
            "/../test.yaml",
            "/api/audio/../../../test.yaml",
            "//etc/passwd",
            "/%2e%2e/test.sqlite",
        ):
            assert client.get(elsewhere).status_code == 404  # sent as it stands
        guest = Listener(client, links[0].split("#")[1])
        assert guest.post("consent", {}).json()["stage"] == "check"


def test_mistakes_of_the_command_line(tokkata, copy_test, tmp_path):
    path = copy_test(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = tokkata("listen", "serve", path, "--port", port)
    assert result.returncode == 2
    assert result.stderr == (
        f"127.0.0.1:{port} cannot be served on: address already in use; choose another --port\n"
    )
    result = tokkata("listen", "serve", tmp_path / "none.yaml")
    assert (result.returncode, result.stderr) == (
        2,
        f"listening test {tmp_path / 'none.yaml'} cannot be read: no such file or directory\n",
    )
    text = path.read_text()
    path.write_text(text.replace("items_per_listener: 2", "items_per_listener: 20"))
    result = tokkata("listen", "serve", path)
    assert (result.returncode, "there are 6 clips of 'zephyr'" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--system", "ours"], "'ours' is no system: write --system NAME=DIR"),
        (["--system", "a=none", "--method", "mos"], "no method 'mos': there are acr, ab, mushra"),
        (["--system", "a=none", "--attribute", "warmth"], "attribute 'warmth' needs a question"),
        (["--system", "a=none"], "is not a folder: give a folder of audio files"),
        (["--system", "a=none", "--items", "0"], "'items_per_listener' cannot be 0"),
        (["--system", "a=none", "--codec", "pocket"], "give a reference"),
    ],
)
def test_mistakes_in_new(tokkata, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    result = tokkata("listen", "new", "test.yaml", *arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_new_export_and_forget(tokkata, clip_folders, tmp_path):
    path = tmp_path / "piano.yaml"
    result = tokkata(
        *("listen", "new", path, "--system", f"zephyr={clip_folders['zephyr']}"),
        *("--reference", clip_folders["real"], "--attribute", "coherence", "--attribute", "warmth=How warm?"),
        *("--items", "3", "--contact", "lab@example.org"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"6 items, matched by file name\nTry it: tokkata listen serve {path}\n"
    text = path.read_text()
    assert text.startswith("# A listening test.")
    assert "name: warmth\n  question: How warm?" in text
    for command in ("export", "forget"):
        result = tokkata("listen", command, path, "--listener", "0123456789")
        assert (result.returncode, "has no answers yet" in result.stderr) == (2, True)
