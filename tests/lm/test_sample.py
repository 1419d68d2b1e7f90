"""The stage `generate`: which clips it asks for, and what it writes.

Shapes: K codebooks, T frames.
"""

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from tokkata.core.conditions import Conditions
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.lm.build import transformer_config
from tokkata.lm.sample import choose_requests, sample
from tokkata.lm.train import train_lm
from tokkata.lm.transformer import TransformerLM
from tokkata.tokenize.features.clip_conditions import conditions_of
from tokkata.tokenize.store import TokenStore


@pytest.fixture
def trained(lm_recipe, write_tokens):
    """`trained(model={…}, generate={…})`: a recipe whose model is there, with random weights."""

    def make(**changes):
        recipe = lm_recipe(**changes)
        store = write_tokens(recipe, train=4, valid=2, test=6)
        conditions = conditions_of(store, store.split("train"), recipe.model.conditions)
        torch.manual_seed(0)
        lm = TransformerLM(transformer_config(recipe.model, store, conditions, 50))
        with torch.no_grad():
            for parameter in lm.parameters():  # far from uniform, as trained ones are
                parameter.mul_(8 if parameter.ndim == 2 else 1)
        lm.save_pretrained(recipe.folder / "model")
        return recipe

    return make


def requests_of(recipe):
    lm = TransformerLM.from_pretrained(recipe.folder / "model")
    return choose_requests(TokenStore(recipe.folder / "tokens"), lm, recipe.generate)


def written(folder):
    """Every file of a folder of samples, with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_stage_writes_wavs_and_says_what_they_are(trained, told_codec):
    recipe = trained(model={"conditions": ["pitch"]})
    sample(recipe)
    folder = recipe.folder / "samples"
    rows = read_jsonl(folder / "samples.jsonl")
    assert [row["file"] for row in rows] == [f"{i:05d}.wav" for i in range(5)]
    names = [row["file"] for row in rows]
    assert sorted(written(folder)) == sorted(["samples.jsonl", "codes.safetensors", *names])
    codes = load_file(folder / "codes.safetensors")
    assert sorted(codes) == sorted(names)
    assert {tuple(one.shape) for one in codes.values()} == {(3, row["num_frames"]) for row in rows}
    split = TokenStore(recipe.folder / "tokens").split("test")
    pitch_of = dict(zip(split.column("id"), split.column("pitch"), strict=True))
    for i, row in enumerate(rows):
        assert row["labels"] == {"pitch": pitch_of[row["source_id"]]}
        assert (row["row"], row["seed"], row["num_frames"], row["duration_s"]) == (i, 0, 10, 0.2)
        info = soundfile.info(folder / row["file"])
        assert (info.frames, info.samplerate, info.channels) == (3200, 16000, 1)
    # The baseline is asked for the same, and is another model.
    assert read_jsonl(folder / "untrained" / "samples.jsonl") == rows
    assert written(folder / "untrained").keys() == written(folder).keys()
    assert (folder / "untrained" / "00000.wav").read_bytes() != (folder / "00000.wav").read_bytes()


def test_the_baseline_is_the_model_before_its_first_step(lm_recipe, write_tokens, told_codec):
    recipe = lm_recipe(train={"steps": 1, "lr": 1e-30, "weight_decay": 0.0}, generate={"duration_s": 0.4})
    write_tokens(recipe, train=4, valid=2, test=2)
    train_lm(recipe)
    sample(recipe)
    assert written(recipe.folder / "samples" / "untrained") == written(recipe.folder / "samples")


def test_the_baseline_can_be_left_out(trained, told_codec):
    recipe = trained(generate={"untrained_baseline": False})
    sample(recipe)
    assert not (recipe.folder / "samples" / "untrained").exists()


def test_clips_do_not_depend_on_the_batch_that_they_are_made_in(trained, told_codec):
    results = []
    for name, batch_size in [("at-once", 32), ("in-threes", 3), ("alone", 1)]:
        recipe = trained(
            name=name,
            model={"conditions": ["pitch"]},
            generate={"batch_size": batch_size, "num_clips": 7, "cfg_scale": 1.5, "top_k": 8},
        )
        sample(recipe)
        results.append(written(recipe.folder / "samples"))
    assert results[1:] == results[:1] * 2
    wavs = [content for name, content in results[0].items() if name.endswith(".wav")]
    assert len(set(wavs)) == len(wavs)


def test_the_seed_decides(trained, told_codec):
    recipes = [trained(name=name, generate={"seed": seed}) for name, seed in [("a", 1), ("b", 1), ("c", 2)]]
    for recipe in recipes:
        sample(recipe)
    first, same, other = (written(recipe.folder / "samples") for recipe in recipes)
    assert first == same
    assert all(first[name] != other[name] for name in first)


def test_more_clips_begin_with_the_same_ones(trained, told_codec):
    few, many = (
        trained(name=f"clips-{number}", generate={"num_clips": number, "batch_size": 4}) for number in (3, 6)
    )
    for recipe in (few, many):
        sample(recipe)
    fewer, more = (written(recipe.folder / "samples") for recipe in (few, many))
    assert all(more[name] == fewer[name] for name in fewer if name.endswith(".wav"))


def test_a_prompt_is_kept_and_continued(trained, told_codec):
    recipe = trained(generate={"prompt_s": 0.14, "labels_from": "test", "duration_s": 0.3})
    sample(recipe)
    split = TokenStore(recipe.folder / "tokens").split("test")
    ids = split.column("id")
    beyond = []
    for row in read_jsonl(recipe.folder / "samples" / "samples.jsonl"):
        assert row["prompt_s"] == 0.14
        samples, _ = soundfile.read(recipe.folder / "samples" / row["file"])
        codes = told_codec.codes_of(samples)
        assert codes.shape == (3, 15)
        real = split.codes(ids.index(row["source_id"]))
        np.testing.assert_array_equal(codes[:, :7], real[:, :7])
        beyond.append(codes[:, 7:].tobytes())
        assert real.shape[1] >= 7
    assert len(set(beyond)) == len(beyond)


def test_a_prompt_as_long_as_the_clip_is_refused(trained, told_codec):
    recipe = trained(generate={"prompt_s": 0.2, "duration_s": 0.2})
    with pytest.raises(UserError, match="num_frames 10 is the length with the prompt, which alone has 10"):
        sample(recipe)
    assert not (recipe.folder / "samples").exists()


def test_every_clip_of_the_split_is_asked_for_once_before_any_is_twice(trained):
    recipe = trained(model={"conditions": ["pitch"]}, generate={"num_clips": 15})
    requests = requests_of(recipe)
    sources = requests.source_ids
    assert sources[:6] == sources[6:12]
    assert sources[12:] == sources[:3]
    assert sorted(sources[:6]) == [f"test-{i:02d}" for i in range(6)]
    again = trained(name="again", model={"conditions": ["pitch"]}, generate={"num_clips": 6, "seed": 1})
    assert requests_of(again).source_ids != sources[:6]


def test_labels_that_the_model_never_met_are_passed_over(trained):
    recipe = trained(model={"conditions": ["player"]}, generate={"num_clips": 8})
    requests = requests_of(recipe)
    assert len(requests) == 8
    assert set(requests.source_ids) == {f"test-{i:02d}" for i in range(4)}
    assert requests.labels == [{"player": f"player {int(source[-2:])}"} for source in requests.source_ids]
    players = TransformerLM.from_pretrained(recipe.folder / "model").config.conditions["player"]
    rows = [players.row(label["player"]) for label in requests.labels]
    assert requests.given["player"].values[:, 0].tolist() == rows
    assert requests.given["player"].mask.all()
    assert requests.prompt is None


def test_clips_shorter_than_the_prompt_are_passed_over(trained):
    recipe = trained(generate={"prompt_s": 0.2, "num_clips": 8, "duration_s": 1.0})
    split = TokenStore(recipe.folder / "tokens").split("test")
    long_enough = {
        clip_id for clip_id, length in zip(split.column("id"), split.num_frames, strict=True) if length >= 10
    }
    assert 0 < len(long_enough) < 6
    requests = requests_of(recipe)
    assert set(requests.source_ids) == long_enough
    assert requests.prompt.shape == (8, 3, 10)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"conditions": ["place"]}},
            "no clip of the split 'test' has labels that the model knows",
        ),
        ({"generate": {"prompt_s": 3.0, "duration_s": 4.0}}, "and lasts 3 s: choose another"),
    ],
)
def test_nothing_to_ask_for(trained, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        requests_of(trained(**changes))


def test_an_empty_split(lm_recipe, write_tokens):
    recipe = lm_recipe()
    store = write_tokens(recipe, train=2)
    lm = TransformerLM(transformer_config(recipe.model, store, Conditions(), 8))
    with pytest.raises(UserError, match=r"generate\.labels_from: the split 'test' has no clips"):
        choose_requests(store, lm, recipe.generate)


def test_guidance_without_conditions_is_refused(trained, told_codec):
    with pytest.raises(UserError, match="this model was trained without conditions"):
        sample(trained(generate={"cfg_scale": 2.0}))
