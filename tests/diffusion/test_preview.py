"""Previews of diffusion models: the clips of the stage `generate`, while the model is trained."""

from tokkata.core.files import read_jsonl
from tokkata.diffusion.sample import sample
from tokkata.diffusion.train import train_diffusion


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_previews_are_the_first_clips_and_change_nothing(diffusion_recipe, write_latents):
    changes = {
        "model": {"conditions": ["pitch"], "condition_dropout": 0.5},
        "generate": {"num_clips": 3, "cfg_scale": 2.0, "untrained_baseline": False},
    }
    without, with_ = (
        diffusion_recipe(
            name=f"previews-{number}",
            train={"steps": 4, "validate_every": 2, "previews": number},
            **changes,
        )
        for number in (0, 3)
    )
    for recipe in (without, with_):
        write_latents(recipe, train=8, valid=2, test=4)
        train_diffusion(recipe)
    weights = [(recipe.folder / "model" / "model.safetensors").read_bytes() for recipe in (without, with_)]
    assert weights[0] == weights[1]
    assert not (without.folder / "previews").exists()
    first, last = sorted((with_.folder / "previews").iterdir())
    assert (first.name, last.name) == ("step-000002", "step-000004")
    # The same clips each time, of another model.
    assert (first / "samples.jsonl").read_bytes() == (last / "samples.jsonl").read_bytes()
    assert (first / "00000.wav").read_bytes() != (last / "00000.wav").read_bytes()
    sample(with_)
    assert written(last) == written(with_.folder / "samples")
    assert len(read_jsonl(last / "samples.jsonl")) == 3
