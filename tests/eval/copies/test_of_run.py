"""The search in a run: what is compared with what, in a small run with a codec of random weights."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from tokkata.core.audio import write_wav
from tokkata.core.errors import UserError
from tokkata.eval.copies.of_run import copies_of_run, held_out_codes, within_hours
from tokkata.eval.score import evaluate
from tokkata.eval.sets import ClipSet, split_clips
from tokkata.tokenize.corpus import read_clip
from tokkata.tokenize.encode import tokenize
from tokkata.tokenize.load_corpus import load_corpus
from tokkata.tokenize.store import TokenStore

NUM_SAMPLES = 8000


@pytest.fixture(scope="module")
def recipe(tiny_recipe, tmp_path_factory):
    recipe = tiny_recipe(
        tmp_path_factory.mktemp("runs"),
        data={"kind": "synth", "num_clips": 100, "duration_s": 0.5, "forms": ["note"]},
        tokenize={"shard_clips": 100},
        generate={"num_clips": 4, "duration_s": 0.5},
    )
    tokenize(recipe)
    return recipe


@pytest.fixture(scope="module")
def training_ids(recipe):
    return [clip.id for clip in split_clips(load_corpus(recipe.data), "train", 0)]


@pytest.fixture(scope="module")
def samples(recipe, training_ids):
    """A training clip as it is, one at another gain, and noise."""
    corpus = load_corpus(recipe.data)
    by_id = {clip.id: clip for clip in corpus.clips()}
    one, two = (read_clip(corpus, by_id[id], 16000, 1).samples for id in training_ids[:2])
    found = ClipSet()
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, NUM_SAMPLES)).astype(np.float32)
    for name, audio in (("0.wav", one), ("1.wav", 0.4 * two), ("2.wav", noise)):
        found.add(audio, {}, name)
    return found


def test_copies_are_flagged_with_their_sources(recipe, samples, training_ids):
    scores, section = copies_of_run(recipe, samples)
    named = {(item.name, item.training_clip) for item in scores.flagged}
    assert ("0.wav", training_ids[0]) in named
    assert ("1.wav", training_ids[1]) in named
    assert "2.wav" not in {name for name, _ in named}
    assert scores.num_training == scores.num_heard == len(training_ids)
    assert {item.name: item.held_out.num for item in scores.statistics} == {
        "tokens": 100 - len(training_ids),
        "sound": 100 - len(training_ids),
    }
    assert scores.notes == []
    assert [player.title for row in section.pairs for player in row.players] == ["Generated", "Training"] * 2


def test_nothing_is_left_in_the_run_folder(recipe, samples):
    before = sorted(path.name for path in recipe.folder.iterdir())
    copies_of_run(recipe, samples)
    assert sorted(path.name for path in recipe.folder.iterdir()) == before


def test_a_prompt_is_no_copy(recipe, samples):
    """The prompt may be a training clip: only what was added is judged."""
    noise = samples.audio[2]
    prompted = samples.with_audio([np.concatenate([audio, noise], axis=1) for audio in samples.audio])
    settings = recipe.generate.model_copy(update={"prompt_s": 0.5, "duration_s": 1.0})
    scores, _ = copies_of_run(recipe.model_copy(update={"generate": settings}), prompted)
    assert scores.flagged == []


def test_less_audio_than_there_is_can_be_heard(recipe, samples):
    settings = recipe.eval.model_copy(update={"copies_max_h": 10 * 0.5 / 3600})
    scores, _ = copies_of_run(recipe.model_copy(update={"eval": settings}), samples)
    assert scores.num_heard == 10
    assert f"The sound of 10 of {scores.num_training} training clips was compared." in scores.notes
    assert scores.tokens.exact_share > 0.0


def test_scores_are_json(recipe, samples):
    scores, _ = copies_of_run(recipe, samples)
    assert json.loads(json.dumps(asdict(scores), allow_nan=False)) == asdict(scores)


def test_held_out_tokens_are_not_those_of_training(recipe):
    store = TokenStore(recipe.folder / "tokens")
    codes = held_out_codes(store, 10, seed=0)
    assert {found.shape for found in codes} == {(store.info.num_codebooks, 10)}
    assert len(codes) == len(store.split("test")) + len(store.split("valid"))


def test_hours():
    assert within_hours([1800.0] * 5, None, 0) == [0, 1, 2, 3, 4]
    assert len(within_hours([1800.0] * 5, 1.0, 0)) == 2
    assert within_hours([1800.0] * 5, 1.0, 0) == within_hours([1800.0] * 5, 1.0, 0)
    assert within_hours([], 1.0, 0) == []


def test_without_tokens_the_stage_says_what_to_do(recipe, samples, tmp_path):
    elsewhere = recipe.model_copy(update={"runs_dir": tmp_path})
    with pytest.raises(UserError, match="holds no finished token store: run the stage tokenize first"):
        copies_of_run(elsewhere, replace(samples))


def test_the_stage_writes_them_and_the_report_plays_them(recipe, samples):
    folder = recipe.folder / "samples"
    rows = []
    for name, audio in zip(samples.names, samples.audio, strict=True):
        write_wav(folder / name, audio, 16000)
        rows.append({"file": name, "labels": {}})
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = recipe.eval.model_copy(update={"embedding": "logmel"})
    evaluate(recipe.model_copy(update={"eval": settings}))
    written = json.loads((recipe.folder / "eval" / "scores.json").read_text())
    assert {item["name"] for item in written["copies"]["flagged"]} == {"0.wav", "1.wav"}
    page = (recipe.folder / "eval" / "report.html").read_text()
    assert 'id="copies"' in page
    assert page.count('aria-label="Flagged pair') == 2
