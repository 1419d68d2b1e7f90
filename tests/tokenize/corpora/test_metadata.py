"""Folders with a metadata file: labels, captions, splits and groups, and what is said of its faults."""

import csv
import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio import AudioError
from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import FolderCorpus
from tokkata.tokenize.corpora.columns import RESERVED, Row, describe
from tokkata.tokenize.corpora.folder import Folder
from tokkata.tokenize.store_writer import _columns


def folder(root, **changes):
    return Folder(FolderCorpus(kind="folder", root=root, **changes))


def fill(root, names, metadata=None, suffix=".jsonl"):
    """Empty audio files and a metadata file: nothing here reads audio."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if metadata is not None:
        if suffix == ".jsonl" and not isinstance(metadata, str):
            metadata = "\n".join(json.dumps(row, ensure_ascii=False) for row in metadata)
        (root / f"metadata{suffix}").write_text(metadata, encoding="utf-8")


def test_jsonl_gives_labels_of_every_kind(tmp_path):
    rows = [
        {
            "file_name": "b.wav",
            "caption": "slow",
            "bpm": 60,
            "energy": 1,
            "genre": "jazz",
            "tags": ["a", "b"],
        },
        {"file_name": "x/a.wav", "text": "no caption", "bpm": 90, "energy": 0.5, "loop": True, "tags": []},
    ]
    fill(tmp_path, ["b.wav", "x/a.wav"], rows)
    corpus = folder(tmp_path)
    assert corpus.label_types == {
        "bpm": int, "energy": float, "genre": str, "tags": tuple, "text": str, "loop": str,
    }  # fmt: skip
    first, second = corpus.clips()
    assert first.labels == {
        "bpm": 60, "energy": 1.0, "genre": "jazz", "tags": ("a", "b"), "text": "", "loop": "",
    }  # fmt: skip
    assert (first.caption, second.caption) == ("slow", None)
    assert (second.id, second.labels["loop"], second.labels["tags"]) == ("x/a.wav", "true", ())
    assert isinstance(first.labels["energy"], float)


def test_csv_tells_numbers_from_names(tmp_path):
    cells = [
        ["file_name", "bpm", "gain", "title", "catalogue", "tags", "text"],
        ["a.wav", "60", "1", "Ode", "007", "a; b", 'so "they", say'],
        [],
        ["b.wav", "-7", "2.5e-1", "1999", "12", "", ""],
    ]
    text = io.StringIO()
    csv.writer(text).writerows(cells)
    fill(tmp_path, ["a.wav", "b.wav"])
    (tmp_path / "metadata.csv").write_text(text.getvalue(), encoding="utf-8-sig")
    corpus = folder(tmp_path)
    assert corpus.label_types == {"bpm": int, "gain": float, "title": str, "catalogue": str, "tags": str}
    first, second = corpus.clips()
    assert first.labels == {"bpm": 60, "gain": 1.0, "title": "Ode", "catalogue": "007", "tags": "a; b"}
    assert second.labels == {"bpm": -7, "gain": 0.25, "title": "1999", "catalogue": "12", "tags": ""}
    assert first.caption == 'so "they", say'

    named = folder(tmp_path, labels={"bpm": "float", "title": "str", "tags": "tags"}, caption="title")
    assert named.label_types == {"bpm": float, "title": str, "tags": tuple}
    assert [clip.labels["tags"] for clip in named.clips()] == [("a", "b"), ()]
    assert [clip.caption for clip in named.clips()] == ["Ode", "1999"]
    assert folder(tmp_path, labels=[]).label_types == {}
    assert folder(tmp_path, metadata=False).clips()[0].labels == {}


def test_rows_without_a_file_and_files_without_a_row(tmp_path):
    fill(
        tmp_path, ["a.wav", "b.wav", "c.wav"], [{"file_name": "a.wav", "genre": "x"}, {"file_name": "d.wav"}]
    )
    with pytest.raises(UserError, match=r"has no row for b\.wav and 1 other files: add what is missing"):
        folder(tmp_path)
    corpus = folder(tmp_path, allow_unlisted=True)
    assert [(clip.id, clip.labels["genre"]) for clip in corpus.clips()] == [
        ("a.wav", "x"), ("b.wav", ""), ("c.wav", ""), ("d.wav", ""),
    ]  # fmt: skip
    assert corpus.audio(corpus.clips()[0]) == tmp_path / "a.wav"
    with pytest.raises(AudioError, match="file is missing"):
        corpus.audio(corpus.clips()[3])
    fill(tmp_path, [], [{"file_name": "a.wav", "bpm": 60}])
    with pytest.raises(UserError, match=r"file b\.wav: bpm is empty, and a number is needed in every row"):
        folder(tmp_path, allow_unlisted=True)


def test_metadata_files_may_lie_in_folders(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / split, ["a.wav"], [{"file_name": "./a.wav", "split": split, "n": len(split)}])
    clips = folder(tmp_path).clips()
    assert [(clip.id, clip.split, clip.labels) for clip in clips] == [
        ("test/a.wav", "test", {"n": 4}),
        ("train/a.wav", "train", {"n": 5}),
    ]
    fill(tmp_path, [], [{"file_name": "test/a.wav"}])
    with pytest.raises(
        UserError, match=r"test/metadata\.jsonl line 1: 'test/a\.wav' has a row already, metadata"
    ):
        folder(tmp_path)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "metadata.csv")
    with pytest.raises(UserError, match=r"metadata\.csv and .*metadata\.jsonl: keep one format"):
        folder(tmp_path)


JSONL_FAULTS = [
    ('{"file_name": "a.wav", "bpm": 60}\n{"file_name": "b.wav", "bpm": "x"}',
     r"metadata\.jsonl line 2: bpm is 'x', but a whole number in .* line 1: make .*\{bpm: str\}"),
    ('{"file_name": "a.wav", "bpm": 60}\n\n{"file_name": "b.wav"}', r"line 3: bpm is empty, and a number"),
    ('{"file_name": "a.wav"}\n{"file_name": "b.wav"}\n{"file_name": "./a.wav"}',
     r"line 3: file_name '\./a\.wav' has a row already, metadata\.jsonl line 1"),
    ('{"file_name": "a.wav"}\n{"file_name": "b.wav",}', r"line 2: not JSON"),
    ('{"file_name": "a.wav"}\n["b.wav"]', r"line 2: an object such as"),
    ('{"file_name": "a.wav"}\n{"name": "b.wav"}', r"line 2: column 'file_name' is empty"),
    ('{"file_name": "a.wav"}\n{"file_name": "../b.wav"}', r"line 2: file_name '\.\./b\.wav' lies outside"),
    ('{"file_name": "a.wav"}\n{"file_name": "/b.wav"}', r"line 2: file_name '/b\.wav' lies outside"),
    ('{"file_name": "a.wav"}\n{"file_name": "b.wav", "split": "later"}', r"line 2: split is 'later'"),
    ('{"file_name": "a.wav", "text": 5}\n{"file_name": "b.wav"}', r"line 1: text is '5', but a cap"),
]  # fmt: skip

CSV_FAULTS = [
    (
        "file_name,bpm\na.wav,60\nb.wav,fast",
        r"metadata\.csv line 3: bpm is 'fast', but a whole number in .*line 2",
    ),
    ("file_name,bpm\na.wav,60\nb.wav,", r"line 3: bpm is empty, and a number"),
    ("file_name,bpm\na.wav,60\nb.wav", r"line 3: 1 cells, but the header has 2"),
    ("file_name;bpm\na.wav;60\nb.wav;70", r"line 1: a column 'file_name' is expected, and commas between"),
    ("file_name,bpm,bpm\na.wav,1,2\nb.wav,1,2", r"line 1: column 'bpm' is there twice"),
    ('file_name,title\na.wav,"x\nb.wav,"y"', r"line 3: not CSV"),
    ("\n", r"metadata\.csv is empty"),
]


@pytest.mark.parametrize(("text", "told"), JSONL_FAULTS)
def test_faults_of_jsonl_are_one_sentence(tmp_path, text, told):
    fill(tmp_path, ["a.wav", "b.wav"], text)
    with pytest.raises(UserError, match=told) as fault:
        folder(tmp_path)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(("text", "told"), CSV_FAULTS)
def test_faults_of_csv_are_one_sentence(tmp_path, text, told):
    fill(tmp_path, ["a.wav", "b.wav"], text, ".csv")
    with pytest.raises(UserError, match=told) as fault:
        folder(tmp_path)
    assert "\n" not in str(fault.value)


def test_another_encoding_is_told_with_its_line(tmp_path):
    fill(tmp_path, ["a.wav"])
    (tmp_path / "metadata.csv").write_bytes("file_name,title\na.wav,Für Elise\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"metadata\.csv line 2: not UTF-8, save the file in that encoding"):
        folder(tmp_path)
    (tmp_path / "metadata.csv").write_bytes("file_name,title\na.wav,x\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"line 1: not UTF-8"):
        folder(tmp_path)


def test_settings_that_name_no_column(tmp_path):
    fill(tmp_path, ["a.wav"], [{"file_name": "a.wav", "genre": "x", "notes": [1, 2], "source": "y"}])
    assert folder(tmp_path).label_types == {
        "genre": str
    }  # lists of numbers are none, and a store has `source`
    for changes, told in [
        (
            {"labels": ["mood"]},
            r"data\.labels: 'mood' is no column: there are file_name, genre, notes, source",
        ),
        ({"caption": "mood"}, r"data\.caption 'mood' is no column"),
        ({"group_by": "album"}, r"data\.group_by 'album' is no column"),
        ({"labels": ["notes"]}, r"line 1: notes is '\[1, 2\]', which cannot be a label"),
        ({"labels": ["source"]}, r"'source' is the name of a column of the token store"),
        ({"labels": {"genre": "int"}}, r"line 1: genre is 'x', but a whole number is expected"),
    ]:
        with pytest.raises(UserError, match=told):
            folder(tmp_path, **changes)
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"data\.group_by 'album' is no column: there are none"):
        folder(tmp_path, group_by="album")


def test_reserved_names_are_the_columns_of_a_store():
    arrays = dict.fromkeys(["codes", "latents", "latents_scale", "gains"], "float32")
    assert set(_columns(arrays, {})) == RESERVED


def test_groups_fall_into_one_split(tmp_path):
    names = [f"{album}/{track}.wav" for album in range(40) for track in range(3)]
    fill(tmp_path, names, [{"file_name": name, "album": int(name.split("/")[0]) // 2} for name in names])
    by_folder = {clip.id: clip.split for clip in folder(tmp_path, group_by="folder").clips()}
    by_album = {clip.id: clip.split for clip in folder(tmp_path, group_by="album").clips()}
    alone = {clip.id: clip.split for clip in folder(tmp_path).clips()}
    assert set(by_folder.values()) == set(by_album.values()) == {"train", "valid", "test"}
    folders = [{by_folder[f"{album}/{track}.wav"] for track in range(3)} for album in range(40)]
    assert all(len(splits) == 1 for splits in folders)
    albums = [
        {by_album[name] for name in names if int(name.split("/")[0]) // 2 == album} for album in range(20)
    ]
    assert all(len(splits) == 1 for splits in albums)
    assert any(len({alone[f"{album}/{track}.wav"] for track in range(3)}) > 1 for album in range(40))


def test_a_split_that_nothing_is_given_takes_its_share(tmp_path):
    names = [f"{i:03d}.wav" for i in range(200)]
    fill(tmp_path, names, [{"file_name": n, "split": "test" if n < "020" else "Training"} for n in names])
    splits = {clip.id: clip.split for clip in folder(tmp_path).clips()}
    assert {name for name, split in splits.items() if split == "test"} == set(names[:20])
    assert 5 < list(splits.values()).count("valid") < 40
    kept = {clip.id: clip.split for clip in folder(tmp_path, valid_fraction=0.0).clips()}
    assert set(kept.values()) == {"train", "test"}


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.lists(st.text(max_size=2))
)


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(scalars, min_size=1, max_size=5),
    kind=st.sampled_from([None, "int", "float", "str", "tags"]),
)
def test_labels_are_of_their_kind_or_refused(values, kind):
    config = FolderCorpus(kind="folder", root=".", labels=["x"] if kind is None else {"x": kind})
    rows = [Row(f"row {i}", {"x": value}) for i, value in enumerate(values)]
    try:
        found = describe(rows, config)
    except UserError:
        return
    (expected,) = found.label_types.values()
    for value, labels in zip(values, found.labels, strict=True):
        label = labels["x"]
        assert type(label) is expected
        assert not isinstance(label, float) or math.isfinite(label)
        if type(value) is expected and value != "":
            assert label == value
