"""Two processes that share a batch do what one does with all of it.

In float64, because in float32 the same sums in another order differ in the last digits, and Adam's first
steps make much of gradients near 0.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokkata.core.files import read_jsonl
from tokkata.core.recipe import dump_recipe
from tokkata.tests.forked import run_forked

STEPS = 5
# Of 8 clips a step: the lower resolution in steps 0 and 1, the fade in steps 2 and 3, then the higher one.
FADE = {"images_per_phase": 16, "loss": {"kind": "wgan_gp", "drift_weight": 1e-3}}


@pytest.mark.parametrize(("kind", "more"), [("wavegan", {"discriminator_steps": 2}), ("gansynth", FADE)])
def test_two_processes_are_one(kind, more, gan_run, tmp_path, environment):
    """Shifted phases and penalties on gradients included, and deviations within groups of clips, weights
    without a gradient, and verdicts on pitches."""
    train = {"steps": STEPS, "batch_size": 8, "save_every": STEPS, "validate_every": STEPS}
    recipes = [gan_run(kind, name=name, model=more, train=train) for name in ("one", "two")]
    environ = {**environment, "ACCELERATE_USE_CPU": "true"}
    for num_processes, recipe in enumerate(recipes, start=1):
        path = tmp_path / f"{recipe.name}.yaml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        program = Path(__file__).with_name("train_in_float64.py")
        ended = run_forked(tmp_path, num_processes, environ, program, path)
        assert ended.returncode == 0, ended.stderr
    for name in ("model", "model_1", "averaged"):
        mine, theirs = (
            load_file(recipe.folder / "checkpoints" / f"step-{STEPS:06d}" / f"{name}.safetensors")
            for recipe in recipes
        )
        assert all(tensor.dtype == torch.float64 for tensor in mine.values())
        torch.testing.assert_close(theirs, mine, rtol=1e-7, atol=1e-10)
    of_one, of_two = (read_jsonl(recipe.folder / "logs" / "train.jsonl") for recipe in recipes)
    for mine, theirs in zip(of_one, of_two, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"time_s", "clips_per_s"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5), name
