"""Runs that train a tiny adversarial model of any kind on notes."""

import pytest

from tokkata.core.recipe import check_recipe
from tokkata.gan import train as module
from tokkata.gan.prepare import prepare
from tokkata.gan.train import train_gan
from tokkata.tests.gan.made_notes import RATE, write_notes
from tokkata.tests.gan.tiny_gans import NUM_SAMPLES, SECTIONS

_IMAGE = {"kind": "instantaneous_frequency", "window": 64, "hop": 32}
_MODELS = {kind: section.model_dump(mode="json") for kind, section in SECTIONS.items()}
_MODELS["darkgan"] = {
    "kind": "darkgan",
    "representation": _IMAGE,
    "channels": [8, 8],
    "noise_dim": 6,
    "teacher": {"steps": 1},
}
_MODELS["vqcpc_gan"]["encoder"] |= {"steps": 1, "num_mels": 16, "dim": 16, "num_negatives": 8}


@pytest.fixture
def gan_recipe(tmp_path):
    """`gan_recipe("gansynth", name="run", model={…}, train={…})`: a checked recipe of few seconds."""

    def make(kind, name="run", **changes):
        train = {
            "steps": 3,
            "batch_size": 4,
            "crop_s": NUM_SAMPLES / RATE,
            "lr": 1e-3,
            "betas": [0.0, 0.99],
            "warmup_steps": 1,
            "log_every": 1,
            "ema_decay": 0.9,
        }
        generate = {"num_clips": 3, "duration_s": NUM_SAMPLES / RATE}
        return check_recipe(
            {
                "name": name,
                "runs_dir": str(tmp_path),
                "data": {"kind": "synth"},
                "codec": {"kind": "linear", "sample_rate_hz": RATE},
                "tokenize": {"store": "latents"},
                "model": _MODELS[kind] | changes.get("model", {}),
                "train": train | changes.get("train", {}),
                "generate": generate | changes.get("generate", {}),
            }
        )

    return make


@pytest.fixture
def gan_run(gan_recipe):
    """The same with six notes for training, three held out, and what the stage `prepare` writes."""

    def make(kind, name="run", **changes):
        recipe = gan_recipe(kind, name, **changes)
        write_notes(recipe, train=6, valid=3, test=3)
        if kind in ("darkgan", "vqcpc_gan"):
            prepare(recipe)
        return recipe

    return make


@pytest.fixture
def job_of(monkeypatch):
    """What `train_gan` hands to the training loop."""

    def job(recipe):
        handed = []
        monkeypatch.setattr(module, "train", lambda job, config, folder: handed.append(job))
        train_gan(recipe)
        monkeypatch.undo()
        return handed[0]

    return job
