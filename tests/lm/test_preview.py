"""Previews of language models: the first clips of the stage `generate`, while the model is trained."""

import pytest

from tokkata.core.files import read_jsonl
from tokkata.core.recipe import check_recipe
from tokkata.lm.sample import sample
from tokkata.lm.train import train_lm

MODELS = {
    "transformer": {"conditions": ["pitch"]},
    "rnn": {"kind": "rnn", "dim": 16, "num_layers": 1, "conditions": ["pitch"]},
}


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def recipe_of(lm_recipe, kind, name, **train):
    values = lm_recipe(name=name, train={"steps": 4, "validate_every": 2, **train}).model_dump()
    values["model"] = (values["model"] if kind == "transformer" else {}) | MODELS[kind]
    values["generate"] |= {"num_clips": 5, "prompt_s": 0.06, "untrained_baseline": False}
    return check_recipe(values)


@pytest.mark.parametrize("kind", MODELS)
def test_previews_are_the_first_clips_and_change_nothing(lm_recipe, write_tokens, told_codec, kind):
    without, with_ = (recipe_of(lm_recipe, kind, f"previews-{number}", previews=number) for number in (0, 3))
    for recipe in (without, with_):
        write_tokens(recipe, train=8, valid=2, test=6)
        train_lm(recipe)
    weights = [(recipe.folder / "model" / "model.safetensors").read_bytes() for recipe in (without, with_)]
    assert weights[0] == weights[1]
    assert not (without.folder / "previews").exists()
    first, last = sorted((with_.folder / "previews").iterdir())
    assert (first.name, last.name) == ("step-000002", "step-000004")
    # The same clips each time, of another model.
    notes = read_jsonl(first / "samples.jsonl")
    assert len(notes) == 3
    assert notes == read_jsonl(last / "samples.jsonl")
    assert written(first).keys() == written(last).keys()
    assert (first / "codes.safetensors").read_bytes() != (last / "codes.safetensors").read_bytes()
    sample(with_)
    of_stage = written(with_.folder / "samples")
    wavs = {name: data for name, data in written(last).items() if name.endswith(".wav")}
    assert len(wavs) == 3
    assert all(of_stage[name] == data for name, data in wavs.items())
    assert read_jsonl(with_.folder / "samples" / "samples.jsonl")[:3] == notes
