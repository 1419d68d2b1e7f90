"""Previews of adversarial models: the clips of the stage `generate`, while the model is trained."""

import pytest

from tokkata.core.files import read_jsonl
from tokkata.gan.sample import sample
from tokkata.gan.train import train_gan


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("kind", "more"), [("gansynth", {"images_per_phase": 8}), ("musika", {})])
def test_previews_are_the_first_clips_and_change_nothing(gan_run, kind, more):
    """Of a network that grows, at the resolution that it has then."""
    without, with_ = (
        gan_run(
            kind,
            name=f"previews-{number}",
            model=more,
            train={"steps": 4, "validate_every": 2, "previews": number},
            generate={"untrained_baseline": False},
        )
        for number in (0, 3)
    )
    for recipe in (without, with_):
        train_gan(recipe)
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
