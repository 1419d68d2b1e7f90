"""MAESTRO: both forms of its index, mixed sample rates, and the paths of its MIDI files."""

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import MaestroCorpus
from tokkata.core.sections import Split
from tokkata.tests.made_corpora import make_maestro
from tokkata.tokenize.corpora.maestro import Maestro
from tokkata.tokenize.corpus import read_clip

RENDERED = Path(__file__).parents[4] / "shared" / "audio" / "maestro-chorales"


def corpus(root):
    return Maestro(MaestroCorpus(kind="maestro", root=root))


@pytest.mark.parametrize("index", ["csv", "json"])
@pytest.mark.parametrize("below", ["maestro-v3.0.0", "."])
def test_splits_and_labels(tmp_path, index, below):
    clips = corpus(make_maestro(tmp_path, below=below, index=index)).clips()
    assert {clip.id: clip.split for clip in clips} == {
        "2004/one": "train",
        "2004/two": "train",
        "2018/three": "valid",
        "2018/four": "test",
    }
    folder = "" if below == "." else f"{below}/"
    (clip,) = [clip for clip in clips if clip.split == "valid"]
    assert clip.source == f"{folder}2018/three.wav"
    assert clip.labels == {
        "composer": "Clara Schumann",
        "title": 'Scherzo, "No. 2", in C Minor',
        "year": 2018,
        "midi": f"{folder}2018/three.midi",
    }
    assert (tmp_path / clip.labels["midi"]).is_file()


def test_both_rates_come_out_at_the_rate_that_is_asked_for(tmp_path):
    made = corpus(make_maestro(tmp_path))
    assert {read_clip(made, clip, 24000, 2).samples.shape for clip in made.clips()} == {(2, 2400)}


TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8
)  # no control characters: csv and JSON differ there


@settings(max_examples=30, deadline=None)
@given(
    performances=st.dictionaries(
        st.from_regex(r"20\d\d/[a-z]{1,6}", fullmatch=True),
        st.tuples(TEXT, TEXT, st.sampled_from(["train", "validation", "test"]), st.integers(2004, 2018)),
        min_size=1,
        max_size=5,
    )
)
def test_csv_and_json_say_the_same(tmp_path_factory, performances):
    clips = [
        corpus(make_maestro(tmp_path_factory.mktemp(index), performances, index=index)).clips()
        for index in ("csv", "json")
    ]
    assert clips[0] == clips[1]
    assert {clip.id: (clip.labels["composer"], clip.labels["title"]) for clip in clips[0]} == {
        name: (composer, title) for name, (composer, title, _, _) in performances.items()
    }


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (",validation,", ",dev-clean,", "line 4: 'split' must be train, validation or test, not 'dev-clean'"),
        ("canonical_composer", "composer", "it has no 'canonical_composer'"),
        (",2018,2018/four", ",MMXVIII,2018/four", "line 5: 'year' must be a whole number, not 'MMXVIII'"),
        ("2004/two.wav", "2004/one.wav", "it names 2004/one twice"),
        ("Alban Berg", "", "line 2: 'canonical_composer' must be text, not ''"),
    ],
)
def test_a_fault_of_the_table_is_named(tmp_path, old, new, fault):
    index = make_maestro(tmp_path) / "maestro-v3.0.0" / "maestro-v3.0.0.csv"
    text = index.read_text(encoding="utf-8")
    assert old in text
    index.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        corpus(tmp_path).clips()
    assert str(caught.value).startswith(f"{index} is not MAESTRO v3's index: {fault}; get it from https://")


def test_columns_of_different_lengths_are_one_sentence(tmp_path):
    index = make_maestro(tmp_path, index="json") / "maestro-v3.0.0" / "maestro-v3.0.0.json"
    columns = json.loads(index.read_text())
    del columns["year"]["0"]
    index.write_text(json.dumps(columns))
    with pytest.raises(UserError, match="'year' must hold one value for each row"):
        corpus(tmp_path).clips()


@pytest.mark.skipif(not RENDERED.is_dir(), reason="needs the rendered chorales")
def test_rendered_chorales():
    made = corpus(RENDERED)
    clips = made.clips()
    assert len(clips) == 14
    assert all((RENDERED / clip.labels["midi"]).is_file() for clip in clips)
    titles = {
        split: {clip.labels["title"] for clip in clips if clip.split == split} for split in get_args(Split)
    }
    assert sum(map(len, titles.values())) == len(set.union(*titles.values()))
