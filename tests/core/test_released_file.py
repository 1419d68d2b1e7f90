"""Published files: taken where they lie, downloaded once, checked, and told of in one sentence."""

import hashlib
import http.server
import threading

import pytest

from tokkata.core.errors import UserError
from tokkata.core.released_file import ReleasedFile, released_file, sha256_of

BODY = b"weights" * 1000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `BODY` at /there, and promises more than it sends at /cut."""

    def do_GET(self):
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Content-Length", str(len(BODY) + (self.path == "/cut")))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def sentence(file):
    with pytest.raises(UserError) as caught:
        released_file("embedding x", file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_downloaded_once(address, tmp_path, capsys):
    file = ReleasedFile(f"{address}/there", tmp_path / "folder" / "x.pth", DIGEST[:8])
    assert released_file("embedding x", file) == file.path
    assert capsys.readouterr().err == f"downloading {file.url} to {file.path}\n"
    assert file.path.read_bytes() == BODY
    assert sha256_of(file.path) == DIGEST
    assert released_file("embedding x", file) == file.path
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["gone", "cut"])
def test_a_download_that_fails_leaves_nothing(address, tmp_path, name):
    file = ReleasedFile(f"{address}/{name}", tmp_path / "x.pth", DIGEST)
    told = sentence(file)
    assert told.startswith("embedding x has no weights on this machine, and they cannot be downloaded now (")
    assert told.endswith(f"): download {file.url} where there is a network, and put it at {file.path}")
    assert list(tmp_path.iterdir()) == []


def test_offline_nothing_is_tried(address, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set)" in sentence(ReleasedFile(f"{address}/there", tmp_path / "x", DIGEST))
    assert list(tmp_path.iterdir()) == []


def test_another_file_than_was_published(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(BODY[:-1])
    assert sentence(ReleasedFile("http://127.0.0.1:9/x.pth", path, DIGEST)) == (
        "the weights of embedding x are damaged, their hash is not that of http://127.0.0.1:9/x.pth:"
        f" delete {path}, and they are downloaded again"
    )
