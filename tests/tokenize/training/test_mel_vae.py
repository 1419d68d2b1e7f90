"""The mel-frame VAE: its bound beside PyTorch's distributions, what it hears, and its run.

Shapes: B batch, N samples, M mel bands, T frames, D latent width.
"""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.tokenize.training.mel_vae import MelVae, MelVaeConfig, negative_elbo
from tokkata.tokenize.training.posterior import PosteriorSummary
from tokkata.tokenize.training.prepare import prepare
from tokkata.tokenize.training.publish import is_codec
from tokkata.tokenize.training.train_mel_vae import train_mel_vae

TINY = MelVaeConfig(
    sample_rate_hz=16000, note_samples=4000, latent_dim=4, hidden_dim=16, num_mels=32, window=512
)


def tone(hz):
    """[1, N]"""
    time = torch.arange(TINY.note_samples) / TINY.sample_rate_hz
    return 0.5 * torch.sin(2 * math.pi * hz * time)[None]


def test_the_bound_is_that_of_the_distributions():
    torch.manual_seed(0)
    vae = MelVae(TINY)
    spectrogram = torch.randn(3, 32, TINY.num_frames)
    out = vae(spectrogram)
    likelihood, divergence = negative_elbo(spectrogram, out, beta=0.5)
    expected = -Normal(out.decoded, 1.0).log_prob(spectrogram).sum((1, 2)).mean()
    torch.testing.assert_close(likelihood, expected)
    torch.testing.assert_close(
        divergence, 0.5 * kl_divergence(Normal(out.mean, out.scale), Normal(0, 1)).sum(1).mean()
    )


def test_what_is_decoded_is_the_mean_or_a_sample():
    vae, spectrogram = MelVae(TINY), torch.randn(2, 32, TINY.num_frames)
    noise = torch.randn(2, 4)
    out, sampled = vae(spectrogram), vae(spectrogram, noise)
    assert torch.equal(out.decoded, vae.decoder(out.mean))
    assert torch.equal(sampled.decoded, vae.decoder(out.mean + out.scale * noise))


@pytest.mark.parametrize("hz", [440, 1200])
def test_a_spectrogram_is_heard_at_its_pitch(hz):
    vae = MelVae(TINY)
    spectrogram = vae.spectrogram(tone(hz))
    assert spectrogram.shape == (1, 32, TINY.num_frames)
    torch.manual_seed(0)
    audio = vae.audio(spectrogram)[0].numpy()
    assert audio.shape == (TINY.note_samples,)
    strongest = np.fft.rfftfreq(len(audio), 1 / 16000)[np.abs(np.fft.rfft(audio)).argmax()]
    assert strongest == pytest.approx(hz, rel=0.1)  # a mel band's width
    assert np.abs(audio).max() == pytest.approx(0.5, rel=0.5)


def test_silence_stays_silence():
    vae = MelVae(TINY)
    spectrogram = vae.spectrogram(torch.zeros(1, TINY.note_samples))
    assert torch.isfinite(spectrogram).all()
    assert vae.audio(spectrogram).abs().max() == 0


def test_saved_and_loaded(tmp_path):
    vae = MelVae(TINY).eval()
    vae.save(tmp_path)
    loaded = MelVae.load(tmp_path)
    assert loaded.config == TINY
    spectrogram = torch.randn(1, 32, TINY.num_frames)
    assert torch.equal(loaded(spectrogram).decoded, vae(spectrogram).decoded)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="holds no whole VAE of kind mel_vae"):
        MelVae.load(tmp_path)


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    model = {"kind": "mel_vae", "latent_dim": 4, "hidden_dim": 32, "num_mels": 32, "window": 512}
    return tiny_recipe(
        tmp_path,
        codec=None,
        data={"kind": "synth", "num_clips": 24, "duration_s": 0.25, "forms": ["note"]},
        model=model,
        train={"steps": 60, "batch_size": 16, "crop_s": 0.25, "lr": 3e-3, "log_every": 1, "save_every": 30},
    )


def test_it_learns_notes(recipe):
    prepare(recipe)
    train_mel_vae(recipe)
    log = read_jsonl(recipe.folder / "logs" / "train.jsonl")
    errors = [row["squared_error"] for row in log if "squared_error" in row]
    assert errors[0] == pytest.approx(1, rel=0.2)  # standardised, and nothing is known yet
    assert np.mean(errors[-5:]) < 0.5
    assert any("valid/active_units" in row for row in log)
    vae = MelVae.load(recipe.folder / "model")
    assert vae.config.log_mel_std > 0
    assert len(PosteriorSummary.read(recipe.folder / "model").std) == 4
    card = (recipe.folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "4 numbers for the log-mel" in card
    assert "| active_units |" in card
    assert is_codec(recipe.folder / "model")  # and so can be pushed


def test_a_note_shorter_than_the_window(recipe):
    prepare(recipe)
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"crop_s": 0.01})})
    with pytest.raises(UserError, match=r"^train\.crop_s: notes of 160 samples are shorter"):
        train_mel_vae(short)
