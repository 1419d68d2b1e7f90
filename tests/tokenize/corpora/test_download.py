"""Downloads from a server that fails in every way that servers do, and archives that mean harm."""

import dataclasses
import errno
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.tokenize.corpora.dataset_facts import DATASETS, Archive
from tokkata.tokenize.corpora.download import download, get_dataset
from tokkata.tokenize.corpora.unpack import JoinedFile, unpack

CONTENT = np.random.default_rng(0).bytes(300_000)
AT_ONCE = (0.0, 0.0)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; each request may be answered with a fault first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = {"/file": CONTENT}
        self.etag = '"1"'
        self.ranges = True
        self.cut = []  # after how many bytes to break off, one a request
        self.status = []  # what to answer instead, one a request
        self.asked = []  # the header Range of each request

    def url(self, name="file"):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        status = server.status.pop(0) if server.status else None
        content = server.content.get(self.path)
        if content is None or status is not None:
            self.send_response(status or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        wanted = self.headers.get("Range")
        if server.ranges and wanted and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = server.cut.pop(0) if server.cut else len(content)
        self.wfile.write(content[start : start + stop])
        if stop < len(content) - start:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def archive(server, **changes):
    known = Archive(server.url(), len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    return dataclasses.replace(known, **changes)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_connection_that_breaks_off_is_gone_on_with(server, tmp_path):
    server.cut = [100_000, 1, 50_000]
    path = download(archive(server), tmp_path, pauses_s=AT_ONCE)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=100001-", "bytes=150001-"]
    assert names(tmp_path) == ["file"]
    download(archive(server), tmp_path, pauses_s=AT_ONCE)  # it is there
    assert len(server.asked) == 4


def test_the_same_call_goes_on_later(server, tmp_path):
    server.cut, server.status = [100_000], [None, 503, 503, 503]
    with pytest.raises(
        UserError, match=r"answers with status 503; what is there is kept, and the same command"
    ):
        download(archive(server), tmp_path, pauses_s=AT_ONCE)
    assert names(tmp_path) == ["file.part", "file.part.json"]
    assert download(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=100000-"


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cut = False, [200_000, 100_000]
    assert download(archive(server), tmp_path, pauses_s=AT_ONCE).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=200000-", "bytes=100000-"]


def test_a_server_without_a_validator_starts_again(server, tmp_path):
    server.etag, server.cut = None, [200_000]
    assert download(archive(server), tmp_path, pauses_s=AT_ONCE).read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_file_that_changes_meanwhile_starts_again(server, tmp_path):
    server.cut, server.status = [100_000], [None, 500]
    with pytest.raises(UserError, match="answers with status 500"):
        download(archive(server), tmp_path, pauses_s=())
    other = CONTENT[::-1]
    server.content["/file"], server.etag = other, '"2"'
    changed = archive(server, sha256=hashlib.sha256(other).hexdigest())
    assert download(changed, tmp_path, pauses_s=AT_ONCE).read_bytes() == other
    assert server.asked[-1] == "bytes=100000-"


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    wrong = archive(server, sha256=None, md5="0" * 32)
    with pytest.raises(
        UserError, match=f"has the md5 {hashlib.md5(CONTENT).hexdigest()}, but 0+ is published"
    ):
        download(wrong, tmp_path)
    assert names(tmp_path) == []
    download(dataclasses.replace(wrong, md5=None), tmp_path)
    with pytest.raises(UserError, match=r"delete it, and run the same command again"):
        download(wrong, tmp_path)
    assert names(tmp_path) == ["file"]  # a file that somebody put there is not deleted


def test_another_size_is_told_before_it_is_downloaded(server, tmp_path):
    with pytest.raises(UserError, match="has 300000 bytes, but 5 are expected"):
        download(archive(server, num_bytes=5), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (404, "has no such file"),
        (403, "refuses access"),
        (410, "has it no longer"),
        (418, "does not give it"),
    ],
)
def test_a_server_that_does_not_give_it(server, tmp_path, status, told):
    server.status = [status]
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:\d+ {told} \(status {status}\)"):
        download(archive(server), tmp_path, pauses_s=AT_ONCE)
    assert len(server.asked) == 1


def test_no_server_and_no_network(server, tmp_path):
    with pytest.raises(UserError, match=r"cannot be reached: there is no network, or no host\.invalid$"):
        download(Archive("http://host.invalid/file"), tmp_path)
    url = server.url()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot be reached \(.*refused\); what is there is kept"):
        download(Archive(url), tmp_path, pauses_s=AT_ONCE)


def test_a_full_disk_is_one_sentence(server, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"GB free, but downloading and unpacking need at least .* GB: give a folder"
    ):
        get_dataset(facts(archive(server, num_bytes=10**18)), tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tokkata.tokenize.corpora.download.write_json", full)
    with pytest.raises(
        UserError, match=r"file\.part cannot be written: the disk is full; the same command goes on"
    ):
        download(archive(server), tmp_path)


# --- datasets


def facts(*archives):
    return dataclasses.replace(DATASETS["maestro"], archives=archives)


def tar_gz(**members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def serve(server, name, content):
    server.content[f"/{name}"] = content
    return Archive(server.url(name), len(content), md5=hashlib.md5(content).hexdigest())


def test_a_dataset_is_downloaded_unpacked_and_then_left_alone(server, tmp_path):
    packed = zipped(**{f"{i}/{i}.mp3": CONTENT[: i * 20_000] for i in range(1, 6)})
    thirds = [packed[i : i + 100_001] for i in range(0, len(packed), 100_001)]
    dataset = facts(
        serve(server, "a-train.tar.gz", tar_gz(**{"a/x.wav": b"x", "a/train.json": b"{}"})),
        serve(server, "a-test.tar.gz", tar_gz(**{"a/y.wav": b"y"})),
        *(serve(server, f"mp3.zip.{i:03d}", part) for i, part in enumerate(thirds, start=1)),
        serve(server, "index.csv", b"id\n"),
    )
    assert len(thirds) == 4
    get_dataset(dataset, tmp_path / "to", pauses_s=())
    assert names(tmp_path / "to") == ["1", "2", "3", "4", "5", "a", "downloads.json", "index.csv"]
    assert names(tmp_path / "to" / "a") == ["train.json", "x.wav", "y.wav"]
    assert (tmp_path / "to" / "5" / "5.mp3").read_bytes() == CONTENT[:100_000]
    asked = len(server.asked)
    get_dataset(dataset, tmp_path / "to", pauses_s=())
    assert len(server.asked) == asked
    get_dataset(dataset, tmp_path / "kept", keep_archives=True)
    assert {"a-train.tar.gz", "mp3.zip.001", "mp3.zip.004"} < {*names(tmp_path / "kept")}


def test_a_dataset_goes_on_after_the_archive_that_failed(server, tmp_path):
    first, second = serve(server, "a.tar.gz", tar_gz(a=b"1")), serve(server, "b.zip", zipped(b=b"2"))
    content = server.content.pop("/b.zip")
    with pytest.raises(UserError, match=r"b\.zip: .* has no such file"):
        get_dataset(facts(first, second), tmp_path)
    server.content["/b.zip"] = content
    server.content.pop("/a.tar.gz")
    get_dataset(facts(first, second), tmp_path)
    assert names(tmp_path) == ["a", "b", "downloads.json"]


def test_gtzan_has_no_address(tmp_path, tokkata):
    told = tokkata("data", "get", "gtzan", "--to", tmp_path / "x")
    assert told.returncode == 2
    assert "GTZAN has no stable official address: get it as http://marsyas.info" in told.stderr
    assert not (tmp_path / "x").exists()
    told = tokkata("data", "get", "nsynt", "--to", tmp_path)
    assert told.returncode == 2
    assert told.stderr == "no dataset 'nsynt': there are nsynth, gtzan, musicnet, maestro, magnatagatune\n"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x"])
def test_archives_that_reach_out_are_refused(tmp_path, name):
    (tmp_path / "to").mkdir()
    for file, content in (("a.tar", tar_gz(**{name: b"x"})), ("a.zip", zipped(**{"fine": b"y", name: b"x"}))):
        (tmp_path / file).write_bytes(content)
        if file == "a.tar" and name.startswith("/"):  # tarfile's filter takes the slash away
            continue
        with pytest.raises(UserError, match="would land outside of its folder"):
            unpack([tmp_path / file], tmp_path / "to", lambda done, total: None)
        assert names(tmp_path / "to") == []
    assert names(tmp_path) == ["a.tar", "a.zip", "to"]


@pytest.mark.parametrize("make", [tar_gz, zipped])
def test_a_damaged_archive_leaves_nothing(tmp_path, make):
    whole = make(a=CONTENT, b=CONTENT)
    for i, content in enumerate(
        [whole[: len(whole) // 2], whole[:5000] + b"?" * 50 + whole[5050:], b"no archive"]
    ):
        path = tmp_path / f"{i}.{'zip' if make is zipped else 'tar.gz'}"
        path.write_bytes(content)
        (tmp_path / f"to{i}").mkdir()
        with pytest.raises(UserError, match=r"is damaged \(.*\): delete it and run the same command again"):
            unpack([path], tmp_path / f"to{i}", lambda done, total: None)
        assert names(tmp_path / f"to{i}") == []


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), data=st.data())
def test_joined_files_are_one(tmp_path_factory, sizes, data):
    folder = tmp_path_factory.mktemp("parts")
    paths, whole = [], b""
    for i, size in enumerate(sizes):
        paths.append(folder / str(i))
        paths[-1].write_bytes(CONTENT[len(whole) : len(whole) + size])
        whole += CONTENT[len(whole) : len(whole) + size]
    with io.BufferedReader(JoinedFile(paths), 8) as joined, io.BytesIO(whole) as plain:
        for _ in range(5):
            at, count = data.draw(st.integers(0, 50)), data.draw(st.integers(-1, 50))
            whence = data.draw(st.sampled_from([0, 2]))
            offset = at if whence == 0 else -min(at, len(whole))
            assert joined.seek(offset, whence) == plain.seek(offset, whence)
            assert joined.read(count) == plain.read(count)
