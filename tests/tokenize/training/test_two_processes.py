"""Two processes that share a batch do what one does with all of it.

In float32 the same sums in another order differ in the last digits, and codebooks and Adam's first steps make
much of them: an entry that is as near as another one, a gradient near 0. In float64 all agrees closely, which
is no matter of rounding.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokkata.core.audio import write_wav
from tokkata.core.files import read_jsonl
from tokkata.core.recipe import dump_recipe
from tokkata.core.run import run_stage
from tokkata.tests.forked import run_forked
from tokkata.tokenize.training.prepare import prepare

ADVERSARIAL = {"periods": [], "fft_sizes": [64], "bands": [[0.0, 1.0]], "start_step": 2}
UPKEEP = {"below": 0.5, "decay": 0.5}
DAC = {
    "kind": "dac",
    "encoder_dim": 8,
    "encoder_rates": [4, 4, 4, 5],
    "decoder_dim": 64,
    "num_codebooks": 4,
    "codebook_size": 64,
    "start": "random",
    "quantizer_dropout": 0.5,
    "dead_codes": UPKEEP,
    "balancer": {"decay": 0.5},
}
AVERAGES = {**DAC, "codebook_decay": 0.9}
REFIT = {"kind": "dac", "refit_codebooks": True, "codebook_decay": 0.9, "dead_codes": UPKEEP}
ENCODEC = {
    "kind": "encodec",
    "sample_rate_hz": 16000,
    "num_filters": 4,
    "upsampling_ratios": [5, 4, 4, 4],
    "hidden_size": 16,
    "codebook_size": 64,
    "bandwidths_kbps": [0.6, 1.2],
    "dead_codes": UPKEEP,
}
VAE = {
    "kind": "vae",
    "latent_dim": 8,
    "encoder_rates": [4, 4, 5],
    "channel_multiples": [1, 1, 4],
    "decoder_dim": 16,
}


@pytest.mark.parametrize(
    "model", [DAC, AVERAGES, REFIT, ENCODEC, VAE], ids=["dac", "averages", "refit", "encodec", "vae"]
)
def test_two_processes_are_one(model, tiny_recipe, tiny_codec, tmp_path, environment):
    """Dead entries, dropout of codebooks, noise of the posterior, balancer and discriminators included."""
    if model is REFIT:
        model = {**model, "source": str(tiny_codec)}
    for number in range(4):
        noise = 0.1 * (1 + number) * np.random.default_rng(number).standard_normal((1, 8000))
        write_wav(tmp_path / "noise" / f"{number}.wav", noise, 16000)
    recipes = [
        tiny_recipe(
            tmp_path,
            name=name,
            codec=None,
            data={
                "kind": "folder",
                "root": str(tmp_path / "noise"),
                "valid_fraction": 0.0,
                "test_fraction": 0.0,
            },
            model={**model, "stft_weight": 1.0, "adversarial": ADVERSARIAL},
            train={"batch_size": 4, "steps": 4, "save_every": 4, "crop_s": 0.2, "log_every": 1},
        )
        for name in ("one", "two")
    ]
    for recipe in recipes:
        run_stage(recipe, "prepare", prepare)
    # Both in processes of their own: windows that another test has computed in float32 are kept in memory.
    program = Path(__file__).with_name("in_float64.py")
    environ = {**environment, "ACCELERATE_USE_CPU": "true"}
    for number, recipe in enumerate(recipes, start=1):
        path = tmp_path / f"{recipe.name}.yaml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        ended = run_forked(tmp_path, number, environ, program, path, f"train.grad_accumulation={number}")
        assert ended.returncode == 0, ended.stderr
    weights = [
        load_file(recipe.folder / "checkpoints" / "step-000004" / "model.safetensors") for recipe in recipes
    ]
    assert all(tensor.dtype in (torch.float64, torch.int64) for tensor in weights[0].values())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-8)
    of_one, of_two = (
        [row for row in read_jsonl(r.folder / "logs" / "train.jsonl") if "lr" in row] for r in recipes
    )
    timings = {name for name in of_one[0] if "per_s" in name or "gib" in name.lower() or name.endswith("_s")}
    for mine, theirs in zip(of_one, of_two, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - timings:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5), name
    if model is not VAE:
        assert sum(row["codebooks/dead"] for row in of_one) > 0
