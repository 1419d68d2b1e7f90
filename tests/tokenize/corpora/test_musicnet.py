"""MusicNet: the official split, whole pieces for validation, and aligned notes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import MusicNetCorpus
from tokkata.tests.made_corpora import MUSICNET_RECORDINGS, make_musicnet, write_table
from tokkata.tokenize.corpora.musicnet import MusicNet, read_notes


def corpus(root, **settings):
    return MusicNet(MusicNetCorpus(kind="musicnet", root=root, **settings))


def piece(clip):
    return clip.labels["composer"], clip.labels["composition"]


@pytest.mark.parametrize("below", ["musicnet", "."])
def test_official_splits_and_labels(tmp_path, below):
    clips = corpus(make_musicnet(tmp_path, below=below), valid_fraction=0.0).clips()
    assert {int(clip.id): clip.split for clip in clips} == {
        number: part for number, (*_, part) in MUSICNET_RECORDINGS.items()
    }
    folder = "" if below == "." else "musicnet/"
    assert clips[0].source == f"{folder}train_data/1727.wav"
    assert clips[0].labels == {
        "musicnet_id": 1727,
        "composer": "Schubert",
        "composition": "Piano Quintet in A major",
        "movement": "2. Andante",
        "ensemble": "Piano Quintet",
        "notes": f"{folder}train_labels/1727.csv",
    }


def test_the_unpacked_folder_with_the_metadata_in_it(tmp_path):
    make_musicnet(tmp_path)
    (tmp_path / "musicnet_metadata.csv").rename(tmp_path / "musicnet" / "musicnet_metadata.csv")
    inside, above = corpus(tmp_path / "musicnet").clips(), corpus(tmp_path).clips()
    assert [(clip.id, clip.split) for clip in inside] == [(clip.id, clip.split) for clip in above]


pieces = st.sampled_from([("Bach", f"Suite {i}") for i in range(8)] + [("Haydn", "Suite 1")])


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.tuples(pieces, st.sampled_from(["train", "train", "test"])), min_size=3, max_size=20),
    valid_fraction=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_no_piece_is_in_valid_and_elsewhere(tmp_path_factory, parts, valid_fraction):
    root = tmp_path_factory.mktemp("musicnet")
    rows = []
    for number, ((composer, composition), part) in enumerate(parts, start=5000):
        (root / f"{part}_labels").mkdir(exist_ok=True)
        (root / f"{part}_labels" / f"{number}.csv").touch()
        (root / f"{part}_data").mkdir(exist_ok=True)
        rows.append(
            {
                "id": number,
                "composer": composer,
                "composition": composition,
                "movement": f"{number}.",
                "ensemble": "Solo Cello",
            }
        )
    write_table(root / "musicnet_metadata.csv", rows)
    clips = corpus(root, valid_fraction=valid_fraction).clips()
    held = {piece(clip) for clip in clips if clip.split == "valid"}
    assert not held & {piece(clip) for clip in clips if clip.split != "valid"}
    assert {int(clip.id) for clip in clips if clip.split == "test"} == {
        number for number, (_, part) in enumerate(parts, start=5000) if part == "test"
    }
    untested = {named for named, _ in parts} - {named for named, part in parts if part == "test"}
    assert bool(held) == (valid_fraction > 0 and len(untested) >= 3)


def test_recordings_that_are_not_there_keep_their_official_split(tmp_path):
    make_musicnet(tmp_path)
    before = corpus(tmp_path).clips()
    for file in [
        *tmp_path.rglob("*.wav"),
        *tmp_path.rglob("train_labels/*"),
        *tmp_path.rglob("test_labels/*"),
    ]:
        file.unlink()
    assert corpus(tmp_path).clips() == before


def test_a_recording_named_twice_is_one_sentence(tmp_path):
    index = make_musicnet(tmp_path) / "musicnet_metadata.csv"
    lines = index.read_text().splitlines()
    index.write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(
        UserError, match=r"musicnet_metadata\.csv is not MusicNet's index: it names 1805 twice"
    ):
        corpus(tmp_path).clips()


def test_a_row_of_another_length_is_one_sentence(tmp_path):
    index = make_musicnet(tmp_path) / "musicnet_metadata.csv"
    index.write_text(index.read_text() + "1,2,3\n")
    with pytest.raises(UserError, match=r"line 8 has another number of columns"):
        corpus(tmp_path).clips()


@settings(max_examples=30, deadline=None)
@given(
    notes=st.lists(
        st.tuples(
            st.integers(0, 10_000_000), st.integers(1, 500_000), st.integers(1, 128), st.integers(21, 108)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_notes_are_read_in_seconds_by_onset(tmp_path_factory, notes):
    path = tmp_path_factory.mktemp("labels") / "1.csv"
    rows = [
        {
            "start_time": start,
            "end_time": start + length,
            "instrument": instrument,
            "note": pitch,
            "start_beat": 0.5,
            "end_beat": 1.0,
            "note_value": "Triplet Eighth",
        }
        for start, length, instrument, pitch in notes
    ]
    write_table(path, rows)
    read = read_notes(path)
    assert (np.diff(read.onset_s) >= 0).all()
    assert sorted(zip(read.onset_s, read.offset_s, read.instrument, read.pitch, strict=True)) == sorted(
        (start / 44100, (start + length) / 44100, instrument, pitch)
        for start, length, instrument, pitch in notes
    )


def test_notes_of_a_clip(tmp_path):
    clips = corpus(make_musicnet(tmp_path)).clips()
    notes = read_notes(tmp_path / clips[0].labels["notes"])
    assert notes.onset_s.tolist() == [0.01]
    assert notes.offset_s.tolist() == [0.05]
    assert (notes.pitch.tolist(), notes.pitch.dtype) == ([60], np.int64)


def test_notes_that_cannot_be_read_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"1\.csv, which is missing: get it from https://zenodo"):
        read_notes(tmp_path / "1.csv")
    (tmp_path / "1.csv").write_text("start_time,end_time,instrument,note\n1,2,3,C4\n")
    with pytest.raises(UserError, match="line 2: 'note' must be a whole number, not 'C4'"):
        read_notes(tmp_path / "1.csv")
    (tmp_path / "1.csv").write_text("start_time,end_time,instrument,note\n")
    assert len(read_notes(tmp_path / "1.csv").pitch) == 0
