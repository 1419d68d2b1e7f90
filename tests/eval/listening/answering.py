"""A listener without ears: goes through a test over HTTP, and remembers what was answered."""

import http.client
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from json import dumps, loads


@dataclass
class Listener:
    """Answers with a client such as `starlette.testclient.TestClient`."""

    client: object
    token: str

    @classmethod
    def enrolled(cls, client):
        """A new one, who has skipped the sound check."""
        listener = cls(client, client.post("/api/enrol").json()["token"])
        assert listener.post("check", {"answers": []}).status_code == 200
        return listener

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.token}"}

    def get(self, path, **headers):
        return self.client.get(f"/api/{path}", headers=self.headers | headers)

    def post(self, path, body):
        return self.client.post(f"/api/{path}", json=body, headers=self.headers)

    def state(self):
        return self.get("state").json()


def clips_of(trial):
    """All clips of a trial as the page gets them, the shown reference first."""
    return [*([trial["reference"]] if trial["reference"] else []), *trial["clips"]]


def body_of(trial, choose):
    """What the page would send; `choose(values, clip number)` picks among the values of a question."""
    single = bool(trial["questions"][0]["values"])
    rated = trial["clips"][:1] if single else trial["clips"]
    answers = [
        {
            "clip": clip["id"],
            "attribute": question["attribute"],
            "value": choose(question["values"] or list(range(101)), number),
        }
        for number, clip in enumerate(rated)
        for question in trial["questions"]
    ]
    listened = {clip["id"]: clip["seconds"] for clip in clips_of(trial)}
    return {"trial": trial["id"], "answers": answers, "listened_s": listened}


class LoopbackClient:
    """Asks a server in another process, on a connection that stays open."""

    def __init__(self, address):
        self._connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=20)

    def request(self, method, path, json=None, headers=None):
        content = None if json is None else dumps(json)
        headers = {"Content-Type": "application/json"} | (headers or {})
        self._connection.request(method, path, content, headers)
        response = self._connection.getresponse()
        return Response(response.status, response.read())

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, json=None, headers=None):
        return self.request("POST", path, json, headers)


@dataclass
class Response:
    status_code: int
    content: bytes

    def json(self):
        return loads(self.content)

    @property
    def text(self):
        return self.content.decode()


@contextmanager
def served(path, environment, *options):
    """`tokkata listen serve` in a process of its own: the process, its address, and the lines before it."""
    command = ["tokkata", "listen", "serve", str(path), "--port", "0", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        lines = []
        while not lines or " is open to " not in lines[-1]:
            line = process.stdout.readline()
            assert line, "the server has ended"
            lines.append(line.strip())
        yield process, lines[-1].split()[0], lines[:-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
