"""VAE training: its loss, that it learns, resumes, and leaves an autoencoder that diffusers reads.

Shapes: B batch, C channels, N samples, D latent width, T frames.
"""

import json
import signal

import numpy as np
import pytest
import torch
from diffusers import AutoencoderOobleck
from torch.distributions import Normal, kl_divergence

from tokkata.core.audio import write_wav
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.loop import StoppedError
from tokkata.core.schema import VaeModel
from tokkata.tests.core.device_waits import DEVICES, waits_of_steps
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.training import train_vae as module
from tokkata.tokenize.training.audio_store import AudioStore
from tokkata.tokenize.training.oobleck_vae import OobleckVae
from tokkata.tokenize.training.prepare import prepare
from tokkata.tokenize.training.reconstruction_terms import with_mid_and_side
from tokkata.tokenize.training.train_vae import VaeLoss, kl_weight, train_vae

TINY = {
    "kind": "vae",
    "latent_dim": 8,
    "encoder_rates": [4, 4, 5],
    "channel_multiples": [1, 1, 4],
    "decoder_dim": 16,
}


@pytest.fixture
def vae_recipe(tmp_path, tiny_recipe):
    """`vae_recipe(train={"steps": 3})`: a VAE's recipe whose audio is prepared."""

    def make(name="vae", data=None, train=None, **model):
        settings = {"steps": 4, "batch_size": 2, "crop_s": 0.1, "save_every": 2, "log_every": 1}
        recipe = tiny_recipe(
            tmp_path,
            name=name,
            codec=None,
            data=data or {"kind": "synth", "num_clips": 12, "duration_s": 0.3},
            model={**TINY, **model},
            train={**settings, **(train or {})},
        )
        prepare(recipe)
        return recipe

    return make


def curve(recipe, name):
    """The values of one metric in the log."""
    return [row[name] for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if name in row]


def loss_of(audio, step=10**6, **settings):
    """The loss of a fresh VAE, and what the network gave."""
    config = VaeModel(**{**TINY, **settings})
    torch.manual_seed(0)
    vae = OobleckVae(config)
    noise = torch.randn(len(audio), 8, audio.shape[-1] // 80, generator=torch.Generator().manual_seed(1))
    batch = {"audio": audio, "noise": noise, "step": torch.tensor(step)}
    return vae, VaeLoss(config, 1, None, NOISE)({"vae": vae}, batch), vae(audio, noise)


NOISE = 0.1 * torch.randn(2, 1, 1600, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_its_terms():
    settings = {"mel_weight": 3.0, "waveform_weight": 2.0, "stft_weight": 0.5, "kl_weight": 0.25}
    _, loss, out = loss_of(NOISE, **settings)
    kl = kl_divergence(Normal(out.mean, out.scale), Normal(0, 1)).sum(1).mean()
    torch.testing.assert_close(loss.metrics["kl"], kl)
    waveform = (out.audio - NOISE).abs().mean() / NOISE.abs().mean()
    torch.testing.assert_close(loss.metrics["waveform"], waveform)
    terms = 3 * loss.metrics["mel"] + 2 * waveform + 0.5 * loss.metrics["stft"] + 0.25 * kl
    torch.testing.assert_close(loss.mean, terms)
    assert (loss.weight, loss.made["decoded"].shape) == (2, NOISE.shape)


def test_the_divergence_grows_in():
    config = VaeModel(**TINY, kl_weight=0.5, kl_warmup_steps=10)
    assert [kl_weight(config, step) for step in (0, 5, 10, 11)] == [0.0, 0.25, 0.5, 0.5]
    assert kl_weight(VaeModel(**TINY, kl_weight=0.5), 0) == 0.5
    _, loss, _ = loss_of(NOISE, step=5, mel_weight=0, waveform_weight=0, kl_weight=0.5, kl_warmup_steps=10)
    torch.testing.assert_close(loss.mean, 0.25 * loss.metrics["kl"])


def test_stereo_is_also_heard_as_sum_and_difference():
    left, right = torch.randn(2, 3, 1, 100)
    found = with_mid_and_side(torch.cat([left, right], dim=1))
    assert torch.equal(found, torch.cat([left, right, left + right, left - right], dim=1))
    assert with_mid_and_side(left) is left


@pytest.mark.parametrize("level", [0.0, 1e-6, 50.0], ids=["silence", "almost silence", "clipping"])
def test_no_crop_gives_a_gradient_that_is_not_finite(level):
    audio = (level * NOISE).clamp(-1, 1)
    vae, loss, _ = loss_of(audio, stft_weight=1.0)
    loss.mean.backward()
    assert torch.isfinite(loss.mean)
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)


def test_stopped_and_resumed_is_bitwise_undisturbed(vae_recipe, monkeypatch):
    adversarial = {"start_step": 1, "periods": [], "fft_sizes": [64], "bands": [[0.0, 0.5], [0.5, 1.0]]}
    whole, parts = (vae_recipe(name, adversarial=adversarial) for name in ("whole", "parts"))
    train_vae(whole)

    read, drawn = AudioStore.crop_channels, 0

    def crop(self, clip, start, num_samples):
        nonlocal drawn
        if num_samples == 1600:
            drawn += 1
            if drawn == 5:  # in the third step of two clips
                signal.raise_signal(signal.SIGTERM)
        return read(self, clip, start, num_samples)

    monkeypatch.setattr(AudioStore, "crop_channels", crop)
    with pytest.raises(StoppedError, match="with a checkpoint; to resume, run the same command again"):
        train_vae(parts)
    monkeypatch.undo()
    assert not (parts.folder / "model").exists()
    train_vae(parts)
    for file in ("diffusion_pytorch_model.safetensors", "config.json", "posterior.json"):
        assert (parts.folder / "model" / file).read_bytes() == (whole.folder / "model" / file).read_bytes()
    for metric in ("vae/loss", "vae/kl", "vae/mel", "discriminator/loss", "valid/loss", "valid/kl"):
        assert curve(parts, metric) == curve(whole, metric)
        assert curve(whole, metric)
    assert len(curve(whole, "vae/adversarial")) == 3


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_what_is_saved_is_an_autoencoder_of_diffusers(vae_recipe, store):
    recipe = vae_recipe(store=store, train={"steps": 2})
    train_vae(recipe)
    folder = recipe.folder / "model"
    model, codec = AutoencoderOobleck.from_pretrained(folder).eval(), load_codec(str(folder))
    assert (codec.sample_rate, codec.hop_length, codec.frame_rate, codec.latent_dim) == (16000, 80, 200.0, 8)
    with torch.no_grad():
        theirs = model.encode(NOISE).latent_dist
        posterior = codec.encode_posterior(NOISE)
        assert torch.equal(posterior.mean, theirs.mean)
        assert torch.equal(posterior.scale, theirs.std)
        decoded = model.decode(theirs.mean).sample
    assert torch.equal(codec.decode_latents(posterior.mean)[..., : decoded.shape[-1]], decoded)
    text = (folder / "README.md").read_text()
    assert "AutoencoderOobleck" in text
    statistics = json.loads((folder / "posterior.json").read_text())
    assert len(statistics["std"]) == 8


def test_what_is_saved_sounds_as_what_was_trained(tmp_path):
    from tokkata.tokenize.training.oobleck_vae import save_oobleck

    config = VaeModel(**TINY)
    torch.manual_seed(0)
    vae = OobleckVae(config).eval()
    save_oobleck(vae, tmp_path, config)
    with torch.no_grad():
        out = vae(NOISE)
    codec = load_codec(str(tmp_path))
    torch.testing.assert_close(codec.encode_latents(NOISE), out.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(codec.decode_latents(out.mean), out.audio, atol=1e-6, rtol=1e-5)


def test_stereo(vae_recipe, tmp_path):
    time = np.arange(4800) / 16000
    tones = np.stack([0.3 * np.sin(2 * np.pi * hz * time) for hz in (330, 550)])
    for name in ("a", "b"):
        write_wav(tmp_path / "two" / f"{name}.wav", tones, 16000)
    data = {"kind": "folder", "root": str(tmp_path / "two")}
    recipe = vae_recipe(data=data, channels=2, channel_multiples=[1, 2, 4], train={"steps": 1})
    store = AudioStore(recipe.folder / "audio")
    assert store.channels == 2
    np.testing.assert_allclose(store.crop_channels(store.clips[0], 0, 4800), tones, atol=1 / 32768)
    train_vae(recipe)
    codec = load_codec(str(recipe.folder / "model"))
    assert codec.channels == 2
    assert codec.decode_latents(codec.encode_latents(torch.zeros(1, 2, 800))).shape == (1, 2, 800)


def test_it_learns_one_clip(vae_recipe, tmp_path):
    seconds = np.arange(4800) / 16000
    bell = sum(np.sin(2 * np.pi * hz * seconds) for hz in (1500, 2330, 3100)) / 6
    write_wav(tmp_path / "one" / "bell.wav", (bell * np.exp(-5 * seconds))[None, :1600], 16000)
    recipe = vae_recipe(
        data={"kind": "folder", "root": str(tmp_path / "one")},
        train={"steps": 30, "batch_size": 1, "crop_s": 0.1, "lr": 3e-3, "warmup_steps": 5, "save_every": 40},
    )
    train_vae(recipe)
    for name, share in (("loss", 0.7), ("mel", 0.7), ("waveform", 1.0)):
        values = curve(recipe, name)
        assert len(values) == 30
        assert values[-1] < share * values[0], name


def test_what_the_log_tells_of_the_posterior(vae_recipe):
    recipe = vae_recipe(train={"steps": 2})
    train_vae(recipe)
    for name in ("loss", "si_sdr_db", "kl", "active_units", "posterior_scale", "aggregate_std"):
        assert len(curve(recipe, f"valid/{name}")) == 1
    assert 0 <= curve(recipe, "valid/active_units")[0] <= 8
    assert len(curve(recipe, "posterior_scale")) == len(curve(recipe, "mean_rms")) == 2


def test_a_network_that_is_too_narrow(vae_recipe):
    recipe = vae_recipe(decoder_dim=2)
    with pytest.raises(UserError, match=r"^model\.encoder_rates: 2 channels cannot hold the 4 samples"):
        train_vae(recipe)


def test_settings_that_do_not_fit(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match=r"channel_multiples \[1, 2\] needs one number for each of the 3"):
        tiny_recipe(tmp_path, codec=None, model={**TINY, "channel_multiples": [1, 2]})


@pytest.mark.parametrize("device", DEVICES)
def test_no_step_waits_for_a_gpu(vae_recipe, device, monkeypatch):
    recipe, handed = vae_recipe(mel_floor_end=1e-5), []
    monkeypatch.setattr(module, "train", lambda job, config, folder: handed.append(job))
    train_vae(recipe)
    assert waits_of_steps(handed[0], recipe.train, recipe.folder, device, monkeypatch) == [0] * 5
