"""The recipes of VAEs run from audio to samples, with nothing changed but sizes and places."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tokkata.core.audio import write_wav
from tokkata.core.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"

SHORT = (
    "train.steps=2",
    "train.batch_size=2",
    "train.warmup_steps=1",
    "train.log_every=1",
    "eval.max_clips=1",
)


@pytest.fixture
def music(tmp_path):
    """A folder of short stereo files."""
    time = np.arange(22050) / 44100
    for number in range(12):
        tones = [0.3 * np.sin(2 * np.pi * hz * 2 ** (number / 12) * time) for hz in (220, 331)]
        write_wav(tmp_path / "music" / f"{number:02d}.wav", np.stack(tones), 44100)
    return tmp_path / "music"


def log(run):
    return [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]


def reconstruct(name, tokkata, runs_dir, *settings):
    """Train and evaluate a recipe's VAE, then sample from it; the run's folder."""
    recipe = RECIPES / f"{name}.yaml"
    for stage in ("train", "eval"):
        result = tokkata("codec", stage, recipe, f"runs_dir={runs_dir}", *SHORT, *settings)
        assert result.returncode == 0, result.stderr
    run = runs_dir / name
    assert json.loads((run / "eval" / "scores.json").read_text())
    result = tokkata(
        "codec", "sample", run / "model", "--num", 1, "--duration", 0.2, "--out", runs_dir / "heard"
    )
    assert result.returncode == 0, result.stderr
    return run


def test_vae_pocket(tokkata, tmp_path):
    run = reconstruct(
        "vae-pocket",
        tokkata,
        tmp_path,
        "data={kind: synth, num_clips: 12, duration_s: 0.3, forms: [note]}",
        "train.crop_s=0.1",
    )
    info = soundfile.info(tmp_path / "heard" / "00000.wav")
    assert (info.samplerate, info.channels, info.frames) == (16000, 1, 3200)
    size = (run / "model" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 10e6
    assert [row["valid/active_units"] for row in log(run) if "valid/active_units" in row]


def test_vae_oobleck_44khz(tokkata, tmp_path, music):
    run = reconstruct(
        "vae-oobleck-44khz",
        tokkata,
        tmp_path,
        f"data.root={music}",
        "model.latent_dim=4",
        "model.channel_multiples=[1,1,1,2,2]",
        "model.decoder_dim=4",
        "model.adversarial.periods=[2]",
        "model.adversarial.fft_sizes=[512]",
        "train.crop_s=0.1",
    )
    info = soundfile.info(tmp_path / "heard" / "00000.wav")
    assert (info.samplerate, info.channels, info.frames) == (44100, 2, 8820)
    assert all(math.isfinite(row["vae/stft"]) for row in log(run) if "vae/stft" in row)
    assert any("discriminator/loss" in row for row in log(run))


def test_mel_vae_notes(tokkata, tmp_path):
    recipe = RECIPES / "mel-vae-notes.yaml"
    settings = ("data.num_clips=12", "model.hidden_dim=16", *SHORT)
    result = tokkata("codec", "train", recipe, f"runs_dir={tmp_path}", *settings)
    assert result.returncode == 0, result.stderr
    result = tokkata(
        "codec", "sample", tmp_path / "mel-vae-notes" / "model", "--num", 1, "--out", tmp_path / "notes"
    )
    assert result.returncode == 0, result.stderr
    assert soundfile.info(tmp_path / "notes" / "00000.wav").frames == 16000


def test_the_figures_of_the_large_recipes_header():
    from diffusers import AutoencoderOobleck

    recipe = load_recipe(RECIPES / "vae-oobleck-44khz.yaml")
    model, train = recipe.model, recipe.train
    published = AutoencoderOobleck.__init__.__wrapped__.__defaults__
    ours = (
        2 * model.latent_dim,
        model.encoder_rates,
        model.channel_multiples,
        model.decoder_dim,
        model.latent_dim,
        model.channels,
        model.sample_rate_hz,
    )
    assert published == ours
    text = (RECIPES / "vae-oobleck-44khz.yaml").read_text().replace("\n# ", " ")

    def figure(pattern):
        return float(re.search(pattern, text)[1].replace(",", ""))

    hop = math.prod(model.encoder_rates)
    crop = math.ceil(round(train.crop_s * model.sample_rate_hz) / hop) * hop
    assert figure(r"a sample x ([\d,]+) samples") == crop == 65536
    a_step = operations_a_sample(model) * crop * train.batch_size * 6
    assert figure(r"([\d.]+) M operations a sample") * 1e6 == pytest.approx(
        operations_a_sample(model), rel=0.01
    )
    assert figure(r"x 6 = ([\d.e]+) a step") == pytest.approx(a_step, rel=0.05)
    assert figure(r"take one of them (\d+) hours") == pytest.approx(
        a_step * train.steps / (0.3 * 312e12) / 3600, rel=0.05
    )
    assert figure(r"= (\d+) MB") == pytest.approx(3600 * 44100 * 4 / 1e6, rel=0.01)


def operations_a_sample(model):
    """Multiplications of all convolutions, each two forward and four backward, for a sample of audio."""
    multiples = [1, *model.channel_multiples]

    def side(width, outer, inner, first, last):
        """Of an encoder; a decoder is one seen from its end."""
        rate, total = 1.0, first * outer * width
        for stride, before, after in zip(model.encoder_rates, multiples, multiples[1:], strict=False):
            units = 3 * (7 + 1) * (width * before) ** 2 * rate
            rate /= stride
            total += units + 2 * stride * width**2 * before * after * rate
        return total + last * width * multiples[-1] * inner * rate

    encoder = side(2 * model.latent_dim, model.channels, 2 * model.latent_dim, 7, 3)
    return encoder + side(model.decoder_dim, model.channels, model.latent_dim, 7, 7)
