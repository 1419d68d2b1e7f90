"""Files appear whole or not at all, whatever happens to the process that writes them."""

import json
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.files import (
    PARTIAL_PREFIX,
    atomic_file,
    atomic_folder,
    read_jsonl,
    remove_folder,
    write_json,
    write_jsonl,
    write_text,
)


class Fault(Exception):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    for text in ("one", "two"):
        before = path.read_text() if path.exists() else None
        with atomic_file(path) as partial:
            partial.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def write():
        with atomic_file(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise Fault

    with pytest.raises(Fault):
        write()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_no_new_file(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt"):
        pass  # nothing was written
    assert names(tmp_path) == []


def test_a_folder_is_replaced_when_the_block_ends(tmp_path):
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "model") as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / text).write_text(text)
        assert names(tmp_path) == ["model"]
        assert names(tmp_path / "model" / "sub") == [text], "files of the old folder are gone"


def test_an_error_leaves_the_old_folder(tmp_path):
    def write(text, error):
        with atomic_folder(tmp_path / "model") as partial:
            (partial / "a.txt").write_text(text)
            if error:
                raise Fault

    write("old", error=False)
    with pytest.raises(Fault):
        write("half", error=True)
    assert (tmp_path / "model" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


KILLED = """\
import os, signal, sys
from pathlib import Path
from tokkata.core import files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

root = Path(sys.argv[1])
match sys.argv[2]:
    case "file":
        with files.atomic_file(root / "a.txt") as partial:
            partial.write_text("new, but ha")
            die()
    case "file before its rename":
        Path.replace = die
        files.write_text(root / "a.txt", "new")
    case "folder":
        with files.atomic_folder(root / "model") as partial:
            (partial / "a.txt").write_text("new, but ha")
            die()
    case "deletion":
        files.shutil.rmtree = lambda path, **_: (path / "a.txt").unlink() or die() if path.exists() else None
        files.remove_folder(root / "model")
"""


def kill(tmp_path, where):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where], check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("where", ["file", "file before its rename"])
def test_a_killed_writer_leaves_the_old_file(tmp_path, where):
    write_text(tmp_path / "a.txt", "old")
    kill(tmp_path, where)
    assert (tmp_path / "a.txt").read_text() == "old"
    # What it leaves behind is named so that nobody takes it for a file, and the next writer clears it.
    assert names(tmp_path) == [PARTIAL_PREFIX + "a.txt", "a.txt"]
    write_text(tmp_path / "a.txt", "newer")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "newer"


def test_a_killed_writer_leaves_the_old_folder(tmp_path):
    with atomic_folder(tmp_path / "model") as partial:
        (partial / "a.txt").write_text("old")
        (partial / "b.txt").write_text("old")
    kill(tmp_path, "folder")
    assert names(tmp_path / "model") == ["a.txt", "b.txt"]
    assert (tmp_path / "model" / "a.txt").read_text() == "old"
    with atomic_folder(tmp_path / "model") as partial:
        assert names(partial) == []
        (partial / "c.txt").write_text("newer")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["c.txt"]


def test_a_killed_deletion_leaves_no_half_of_a_folder(tmp_path):
    with atomic_folder(tmp_path / "model") as partial:
        (partial / "a.txt").write_text("old")
        (partial / "b.txt").write_text("old")
    kill(tmp_path, "deletion")
    assert names(tmp_path) == [PARTIAL_PREFIX + "deleted-model"]
    remove_folder(tmp_path / "model")
    assert names(tmp_path) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4))
def test_jsonl_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_line_separators_within_a_value(tmp_path):
    rows = [{"name": "one\u2028two\u0085three\u2029four\nfive\rsix\x0bseven"}, {}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"score": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(tmp_path / "a.jsonl", [{"score": value}])
    assert names(tmp_path) == []


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "a.json", {"title": "Études", "score": 0.5})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Études" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"title": "Études", "score": 0.5}
