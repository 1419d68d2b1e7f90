"""GTZAN: the layouts that are about, and the fault-filtered split's lists."""

import pytest

from tokkata.core.audio import AudioError
from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import GtzanCorpus
from tokkata.tests.made_corpora import GTZAN_CLIPS, make_gtzan, write_noise
from tokkata.tokenize.corpora.gtzan import GENRES, Gtzan
from tokkata.tokenize.corpus import read_clip


def corpus(root):
    return Gtzan(GtzanCorpus(kind="gtzan", root=root))


@pytest.mark.parametrize("genres", ["genres", "genres_original", "Data/genres_original", "."])
@pytest.mark.parametrize("suffix", [".au", ".wav"])
@pytest.mark.parametrize("flat", [False, True])
def test_layouts(tmp_path, genres, suffix, flat):
    made = corpus(make_gtzan(tmp_path, genres=genres, suffix=suffix, flat=flat))
    clips = made.clips()
    assert {clip.id: clip.split for clip in clips} == {
        f"{name.partition('.')[0]}/{name}": split for split, names in GTZAN_CLIPS.items() for name in names
    }
    for clip in clips:
        assert clip.labels == {"genre": clip.id.partition("/")[0]}
        assert clip.source.endswith(suffix)
        assert read_clip(made, clip, 22050, 1).samples.shape == (1, 2205)


def test_the_folder_of_genres_itself_with_the_lists_beside_it(tmp_path):
    make_gtzan(tmp_path)
    inside = corpus(tmp_path / "genres").clips()
    assert [clip.id for clip in inside] == [clip.id for clip in corpus(tmp_path).clips()]
    assert inside[0].source == "blues/blues.00000.au"


def test_the_original_is_taken_where_a_clip_is_there_twice(tmp_path):
    make_gtzan(tmp_path)
    (tmp_path / "genres" / "jazz" / "jazz.00054.wav").write_bytes(b"damaged")
    (clip,) = [clip for clip in corpus(tmp_path).clips() if clip.id == "jazz/jazz.00054"]
    assert clip.source == "genres/jazz/jazz.00054.au"


@pytest.mark.parametrize("suffix", [".au", ".wav"])
def test_a_damaged_clip_is_rejected_alone(tmp_path, suffix):
    made = corpus(make_gtzan(tmp_path, suffix=suffix))
    (tmp_path / "genres" / "jazz" / f"jazz.00054{suffix}").write_bytes(b"\0\1\2\3" * 4000)
    clips = {clip.id: clip for clip in made.clips()}
    with pytest.raises(AudioError, match="not audio"):
        read_clip(made, clips["jazz/jazz.00054"], 22050, 1)
    read_clip(made, clips["rock/rock.00000"], 22050, 1)


def test_an_empty_clip_is_rejected(tmp_path):
    made = corpus(make_gtzan(tmp_path))
    clip = made.clips()[0]
    (tmp_path / clip.source).write_bytes(b"")
    with pytest.raises(AudioError, match="empty file"):
        read_clip(made, clip, 22050, 1)


def test_clips_that_no_list_names_are_left_out(tmp_path):
    make_gtzan(tmp_path)
    write_noise(tmp_path / "genres" / "blues" / "blues.00099.au")
    assert len(corpus(tmp_path).clips()) == sum(map(len, GTZAN_CLIPS.values()))


def test_a_clip_in_two_lists_is_one_sentence(tmp_path):
    make_gtzan(tmp_path, GTZAN_CLIPS | {"test": ["blues.00000"]})
    with pytest.raises(UserError, match=r"test_filtered\.txt names blues\.00000, .* the split valid already"):
        corpus(tmp_path).clips()


@pytest.mark.parametrize(
    "line", ["polka/polka.00001.au", "blues/blues.29.au", "blues", "../blues.00000.au/x"]
)
def test_a_line_that_names_no_clip_is_one_sentence(tmp_path, line):
    make_gtzan(tmp_path)
    (tmp_path / "train_filtered.txt").write_text(f"blues.00029.wav\n\n{line}\n")
    with pytest.raises(UserError, match=r"line 3 of .*train_filtered\.txt names no clip of GTZAN"):
        corpus(tmp_path).clips()


def test_a_folder_without_genres_is_one_sentence(tmp_path):
    (tmp_path / "polka").mkdir()
    with pytest.raises(UserError, match=r"holds no folder of GTZAN's genres, such as genres/blues"):
        corpus(tmp_path).clips()


def test_without_lists_the_published_split_is_taken(tmp_path):
    for genre in GENRES:
        (tmp_path / "genres" / genre).mkdir(parents=True)
    made = corpus(tmp_path)
    clips = made.clips()
    counts = {name: sum(clip.split == name for clip in clips) for name in made.facts.splits}
    assert counts == {name: facts.num_clips for name, facts in made.facts.splits.items()}
    assert {clip.labels["genre"] for clip in clips} == set(GENRES)
    assert made.facts.known_faults <= {clip.id for clip in clips}
    with pytest.raises(AudioError, match="file is missing"):
        made.audio(clips[0])


def test_lists_are_taken_all_or_none(tmp_path):
    make_gtzan(tmp_path)
    (tmp_path / "valid_filtered.txt").unlink()
    with pytest.raises(UserError, match=r"valid_filtered\.txt"):
        corpus(tmp_path).clips()
