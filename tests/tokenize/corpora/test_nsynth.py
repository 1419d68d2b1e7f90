"""NSynth: splits, labels, and what a damaged entry is told as."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import NSynthCorpus
from tokkata.tests.made_corpora import NSYNTH_NOTES, make_nsynth, nsynth_note
from tokkata.tokenize.corpora.nsynth import NSynth
from tokkata.tokenize.corpus import read_clip

RENDERED = Path(__file__).parents[4] / "shared" / "audio" / "nsynth-fluid"


def corpus(root):
    return NSynth(NSynthCorpus(kind="nsynth", root=root))


def test_splits_and_labels(tmp_path):
    clips = corpus(make_nsynth(tmp_path)).clips()
    assert {clip.id: clip.split for clip in clips} == {
        f"{split}/{name}": split for split, names in NSYNTH_NOTES.items() for name in names
    }
    (clip,) = [clip for clip in clips if clip.split == "test"]
    assert clip.source == "nsynth-test/audio/vocal_acoustic_003-065-127.wav"
    assert clip.labels == {
        "pitch": 65,
        "velocity": 127,
        "instrument": "vocal_acoustic_003",
        "instrument_family": "vocal",
        "instrument_source": "acoustic",
        "qualities": ("bright", "percussive"),
    }


@pytest.mark.parametrize("splits", [["test"], ["valid", "test"], ["train"]])
def test_some_splits_suffice(tmp_path, splits):
    make_nsynth(tmp_path, {split: NSYNTH_NOTES[split] for split in splits})
    assert {clip.split for clip in corpus(tmp_path).clips()} == set(splits)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"pitch": "high"}, "'pitch' must be a whole number, not 'high'"),
        ({"pitch": True}, "'pitch' must be a whole number, not True"),
        ({"velocity": None}, "'velocity' must be a whole number, not None"),
        ({"instrument_str": 7}, "'instrument_str' must be text, not 7"),
        ({"qualities_str": "bright"}, "'qualities_str' must be a list of texts, not 'bright'"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path, change, fault):
    make_nsynth(tmp_path)
    index = tmp_path / "nsynth-test" / "examples.json"
    name = NSYNTH_NOTES["test"][0]
    index.write_text(json.dumps({name: nsynth_note(name) | change}))
    with pytest.raises(UserError) as caught:
        corpus(tmp_path).clips()
    told = f"{index} is not NSynth's index: {name}: {fault}; get it from https://magenta"
    assert str(caught.value).startswith(told)


def test_an_index_cut_short_is_one_sentence(tmp_path):
    make_nsynth(tmp_path)
    index = tmp_path / "nsynth-train" / "examples.json"
    index.write_text(index.read_text()[:-40])
    with pytest.raises(UserError, match=r"examples\.json is not NSynth's index: no JSON"):
        corpus(tmp_path).clips()


@given(qualities=st.lists(st.sampled_from(["bright", "dark", "long_release", "reverb"]), unique=True))
def test_qualities_are_kept_in_order(tmp_path_factory, qualities):
    folder = tmp_path_factory.mktemp("nsynth")
    (folder / "nsynth-valid").mkdir()
    name = NSYNTH_NOTES["valid"][0]
    note = nsynth_note(name) | {"qualities_str": qualities}
    (folder / "nsynth-valid" / "examples.json").write_text(json.dumps({name: note}))
    (clip,) = corpus(folder).clips()
    assert clip.labels["qualities"] == tuple(qualities)


@pytest.mark.skipif(not RENDERED.is_dir(), reason="needs the rendered notes")
def test_rendered_notes():
    made = corpus(RENDERED)
    clips = made.clips()
    assert len(clips) == 200
    instruments = {
        split: {clip.labels["instrument"] for clip in clips if clip.split == split}
        for split in ("train", "valid", "test")
    }
    assert not instruments["train"] & (instruments["valid"] | instruments["test"])
    assert read_clip(made, clips[0], 16000, 1).samples.shape == (1, 64000)
