"""`tokkata codec sample`: the same seed gives the same clips, and whoever has no prior is told so."""

import dataclasses

import pytest
import soundfile
import torch
from diffusers import AutoencoderOobleck

from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.training.mel_vae import MelVae, MelVaeConfig
from tokkata.tokenize.training.posterior import PosteriorStats


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[4, 5],
        channel_multiples=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=1,
        sampling_rate=8000,
    ).save_pretrained(folder)
    return folder


def clips(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_clips_are_the_prior_decoded(vae, tokkata, tmp_path):
    result = tokkata("codec", "sample", vae, "--num", 2, "--duration", 0.51, "--out", tmp_path / "a")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "a" / f"0000{i}.wav") for i in range(2)]
    samples, rate = soundfile.read(tmp_path / "a" / "00001.wav", dtype="float32")
    assert (rate, samples.shape) == (8000, (4080,))

    codec = load_codec(str(vae))
    quiet = tokkata(
        "codec", "sample", vae, "--num", 1, "--duration", 0.1, "--temperature", 0, "--out", tmp_path / "mean"
    )
    assert quiet.returncode == 0
    drawn, _ = soundfile.read(tmp_path / "mean" / "00000.wav", dtype="float32")
    expected = codec.decode_latents(torch.zeros(1, 4, 40))[0, 0]
    torch.testing.assert_close(torch.from_numpy(drawn), expected.clamp(-1, 1), atol=1 / 32768, rtol=0)


def test_a_clip_is_a_function_of_the_seed_and_its_number(vae, tokkata, tmp_path):
    for name, options in {"a": ["--num", 3], "b": ["--num", 2], "c": ["--num", 2, "--seed", 1]}.items():
        tokkata("codec", "sample", vae, *options, "--duration", 0.1, "--out", tmp_path / name)
    a, b, c = (clips(tmp_path / name) for name in "abc")
    assert {name: a[name] for name in b} == b
    assert len(set(a.values()) | set(c.values())) == 5


def test_latents_unlike_the_prior_are_told_of(vae, tokkata, tmp_path):
    def say(spread):
        stats = PosteriorStats()
        mean = spread * torch.randn(1, 4, 500, generator=torch.Generator().manual_seed(0))
        stats.add(mean, torch.full_like(mean, 0.1))
        stats.summary().write(vae)
        return tokkata("codec", "sample", vae, "--num", 1, "--out", tmp_path / "out").stderr

    assert say(1.0) == ""
    assert say(5.0).startswith(f"{vae}: latents of real audio have means from")
    (vae / "posterior.json").unlink()


def test_a_codec_with_codebooks_has_no_prior(tiny_codec, tokkata, tmp_path):
    result = tokkata("codec", "sample", tiny_codec, "--out", tmp_path)
    assert result.returncode == 2
    assert "has codebooks, and no prior to draw latents from: name a VAE" in result.stderr


def test_notes_of_a_mel_vae(tokkata, tmp_path):
    torch.manual_seed(0)
    config = MelVaeConfig(
        sample_rate_hz=16000, note_samples=4000, latent_dim=4, hidden_dim=16, num_mels=32, window=512
    )
    MelVae(dataclasses.replace(config, log_mel_mean=-2.0)).save(tmp_path / "model")
    for name in ("a", "b"):
        result = tokkata("codec", "sample", tmp_path / "model", "--num", 2, "--out", tmp_path / name)
        assert result.returncode == 0, result.stderr
    assert clips(tmp_path / "a") == clips(tmp_path / "b")
    assert len(set(clips(tmp_path / "a").values())) == 2
    assert soundfile.info(tmp_path / "a" / "00000.wav").frames == 4000
    refused = tokkata("codec", "sample", tmp_path / "model", "--duration", 3, "--out", tmp_path / "c")
    assert "makes notes of 0.25 s: leave --duration out" in refused.stderr
