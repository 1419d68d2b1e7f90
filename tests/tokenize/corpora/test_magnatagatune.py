"""MagnaTagATune: tags, the split by folder that keeps tracks together, and bad mp3 files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokkata.core.audio import AudioError
from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import MagnaTagATuneCorpus
from tokkata.tests.made_corpora import MAGNATAGATUNE_CLIPS, make_magnatagatune
from tokkata.tokenize.corpora.magnatagatune import MagnaTagATune, keep_top_tags, split_by_track
from tokkata.tokenize.corpus import read_clip

FOLDERS = "0123456789abcdef"


def corpus(root, **settings):
    return MagnaTagATune(MagnaTagATuneCorpus(kind="magnatagatune", root=root, **settings))


@pytest.mark.parametrize("below", [".", "mp3"])
def test_splits_and_tags(tmp_path, below):
    clips = corpus(make_magnatagatune(tmp_path, below=below), top_tags=None).clips()
    assert {clip.id: clip.labels["tags"] for clip in clips} == MAGNATAGATUNE_CLIPS
    assert [clip.split for clip in clips] == ["train", "train", "valid", "test", "test"]
    assert clips[0].source == ("" if below == "." else "mp3/") + "0/ann-songs-01-morning-0-29.mp3"


def test_the_most_frequent_tags(tmp_path):
    make_magnatagatune(tmp_path)
    tags = [clip.labels["tags"] for clip in corpus(tmp_path, top_tags=2).clips()]
    assert tags == [("guitar", "slow"), ("guitar",), ("slow",), (), ("guitar",)]


@given(
    tags=st.dictionaries(
        st.text(max_size=3), st.lists(st.sampled_from("abcdef"), unique=True).map(tuple), max_size=8
    ),
    num_tags=st.integers(1, 8),
)
def test_top_tags_are_at_least_as_frequent_as_all_others(tags, num_tags):
    kept = keep_top_tags(tags, num_tags)
    assert kept.keys() == tags.keys()
    top = {name for names in kept.values() for name in names}
    every = {name for names in tags.values() for name in names}
    assert len(top) == min(num_tags, len(every))
    counts = {name: sum(name in names for names in tags.values()) for name in every}
    assert all(counts[name] >= counts[other] for name in top for other in every - top)
    assert all(names == tuple(name for name in tags[path] if name in top) for path, names in kept.items())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(FOLDERS),
            st.sampled_from(["ann-songs-01-a", "ann-songs-02-b", "bob-airs-10-part-2", "x"]),
            st.integers(0, 20),
        ),
        unique=True,
        max_size=20,
    )
)
def test_the_clips_of_a_track_are_in_the_split_of_its_first_folder(drawn):
    paths = {f"{folder}/{track}-{29 * i}-{29 * i + 29}.mp3": (folder, track) for folder, track, i in drawn}
    splits = split_by_track(paths)
    assert splits.keys() == paths.keys()
    for path, (_, track) in paths.items():
        first = min(folder for folder, other in paths.values() if other == track)
        expected = {"c": "valid", "d": "test", "e": "test", "f": "test"}.get(first, "train")
        assert splits[path] == expected


def test_tracks_that_differ_in_a_number_are_apart():
    assert split_by_track(["0/x-y-01-z-2-0-29.mp3", "f/x-y-01-z-3-0-29.mp3", "c/whole.mp3"]) == {
        "0/x-y-01-z-2-0-29.mp3": "train",
        "f/x-y-01-z-3-0-29.mp3": "test",
        "c/whole.mp3": "valid",
    }


def test_bad_mp3_files_are_rejected_alone(tmp_path):
    made = corpus(make_magnatagatune(tmp_path))
    first, second, third, *_ = made.clips()
    (tmp_path / first.source).write_bytes(b"")
    (tmp_path / second.source).write_bytes(b"\0" * 4000)
    with pytest.raises(AudioError, match="empty file"):
        read_clip(made, first, 16000, 1)
    with pytest.raises(AudioError, match="not audio"):
        read_clip(made, second, 16000, 1)
    assert read_clip(made, third, 16000, 1).samples.shape[0] == 1


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"mp3_path"', '"path"', "it has no 'mp3_path'"),
        ("\t", ",", "it has no 'clip_id'"),
        ('"0"\t"1"', '"0"\t"maybe"', "line 2: 'guitar' must be 0 or 1, not 'maybe'"),
        ("c/bob", "songs/bob", "'mp3_path' must be such as 0/name.mp3, not 'songs/bob"),
        ("songs-01-morning-30-59", "songs-01-morning-0-29", "is named twice"),
    ],
)
def test_a_fault_of_the_table_is_named(tmp_path, old, new, fault):
    index = make_magnatagatune(tmp_path) / "annotations_final.csv"
    text = index.read_text()
    assert old in text
    index.write_text(text.replace(old, new))
    with pytest.raises(UserError) as caught:
        corpus(tmp_path).clips()
    assert fault in str(caught.value)
    assert str(caught.value).startswith(f"{index} is not MagnaTagATune's index: ")
