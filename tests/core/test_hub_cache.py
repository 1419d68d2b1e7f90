"""Models of the Hub: from the cache without a network, and downloads from a hub that runs on this machine."""

import http.server
import json
import threading
from urllib.parse import unquote

import pytest

from tokkata.core.errors import UserError
from tokkata.core.hub_cache import hub_snapshot

ID = "someone/some-codec"
COMMIT, OLDER = "a" * 40, "b" * 40
LAYOUTS = [("config.json", "model.safetensors"), ("vae/config.json", "vae/weights.safetensors")]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a hub that refuses connections."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub" / "models--someone--some-codec"


def put(cache, *files, commit=COMMIT, ref="main"):
    """Put files into the cache as the library lays them out."""
    (cache / "refs").mkdir(parents=True, exist_ok=True)
    (cache / "refs" / ref).write_text(commit)
    for file in files:
        path = cache / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{file} of {commit}")


def sentence(revision=None, id=ID):
    with pytest.raises(UserError) as caught:
        hub_snapshot(id, revision, LAYOUTS, "codec")
    assert "\n" not in str(caught.value)
    return str(caught.value)


NOT_FOUND = (
    f"codec {ID} is neither a folder nor in the Hugging Face cache, and cannot be downloaded now: run"
    f" `hf download {ID}` where there is a network, or give a folder in the hub's layout"
)


# --- without a network


@pytest.mark.parametrize("files", LAYOUTS)
def test_what_is_cached_needs_no_network(cache, files):
    put(cache, *files)
    snapshot = hub_snapshot(ID, None, LAYOUTS, "codec")
    assert snapshot.folder == cache / "snapshots" / COMMIT
    assert snapshot.revision == COMMIT
    assert (snapshot.folder / files[0]).read_text() == f"{files[0]} of {COMMIT}"


def test_a_revision_is_that_revision(cache):
    put(cache, *LAYOUTS[0])
    put(cache, *LAYOUTS[0], commit=OLDER, ref="v1")
    found = {
        name: hub_snapshot(ID, name, LAYOUTS, "codec").revision for name in ("main", "v1", COMMIT, OLDER)
    }
    assert found == {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}
    assert sentence("v2") == NOT_FOUND.replace(f"download {ID}`", f"download {ID} --revision v2`")


@pytest.mark.parametrize("files", [(), ("config.json",), ("model.safetensors",), ("vae/config.json",)])
def test_half_a_model_is_none(cache, files):
    put(cache, *files)
    assert sentence() == NOT_FOUND


def test_the_offline_mode_tries_nothing(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert sentence() == NOT_FOUND
    put(cache, *LAYOUTS[0])
    assert hub_snapshot(ID, None, LAYOUTS, "codec").revision == COMMIT


def test_a_name_that_is_no_id(cache):
    assert sentence(id="no such codec!").startswith("codec no such codec! is neither a folder nor")


def test_a_hub_is_asked_once_and_not_for_long(cache, monkeypatch):
    """The libraries' own way is six times, with 23 s of waiting between."""
    asked = []

    def ask(_, id, *, revision, timeout):
        asked.append((id, revision, timeout))
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    assert sentence() == NOT_FOUND
    assert asked == [(ID, None, 5.0)]


# --- from a hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as a download asks for."""

    files = ()
    status, error = 200, None
    requests = 0

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        type(self).requests += 1
        path = unquote(self.path.split("?")[0])
        headers = {"X-Repo-Commit": COMMIT}
        if self.status != 200:
            body, headers = b"{}", {"X-Error-Code": self.error}
        elif path.startswith(f"/api/models/{ID}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(name), "oid": f"{i:040}"}
                for i, name in enumerate(self.files)
            ]
            body = json.dumps(entries).encode()
        elif path.startswith(f"/api/models/{ID}"):
            listing = {"id": ID, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]}
            body = json.dumps(listing).encode()
        else:
            name = path.removeprefix(f"/{ID}/resolve/{COMMIT}/")
            body = name.encode()
            headers["ETag"] = f'"{self.files.index(name):040}"'
        self.send_response(self.status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        return body

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(cache, monkeypatch):
    """`hub(files=…)`: a hub that has the model, or answers with an error."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}" + "/{repo_id}/resolve/{revision}/{filename}",
    )

    def has(**state):
        for name, value in state.items():
            monkeypatch.setattr(Hub, name, value)
        monkeypatch.setattr(Hub, "requests", 0)

    yield has
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("files", LAYOUTS)
def test_a_download_brings_what_is_needed_and_is_cached(cache, hub, files):
    hub(files=(*files, "README.md", "model-of-another-kind.safetensors"))
    snapshot = hub_snapshot(ID, None, LAYOUTS, "codec")
    assert (snapshot.folder, snapshot.revision) == (cache / "snapshots" / COMMIT, COMMIT)
    there = {str(path.relative_to(snapshot.folder)) for path in snapshot.folder.rglob("*") if path.is_file()}
    assert there == set(files)
    assert (snapshot.folder / files[1]).read_text() == files[1]
    hub()
    assert hub_snapshot(ID, COMMIT, LAYOUTS, "codec") == snapshot
    assert Hub.requests == 0


def test_a_model_without_the_files(hub):
    hub(files=("config.json", "pytorch_model.bin"))
    assert sentence() == (
        f"codec {ID} on the Hugging Face Hub lacks the files that are needed: config.json with"
        " model.safetensors or vae/config.json with vae/weights.safetensors"
    )


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (
            401,
            "RepoNotFound",
            f"codec {ID} is neither a folder nor on the Hugging Face Hub; if it is private there,"
            " run `hf auth login`",
        ),
        (
            403,
            "GatedRepo",
            f"codec {ID} is open only to those who accepted its licence: accept it at"
            f" https://huggingface.co/{ID}, then run `hf auth login`",
        ),
        (404, "RevisionNotFound", f"codec {ID} has no revision 'v9' on the Hugging Face Hub"),
    ],
)
def test_what_the_hub_refuses(hub, status, error, told):
    hub(status=status, error=error)
    assert sentence("v9") == told
