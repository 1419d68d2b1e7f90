"""The codec that ships: small, loadable without a network, and good enough to be worth shipping."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderOobleck
from transformers import DacModel

from tokkata.core.schema_corpora import SynthCorpus
from tokkata.eval.pitch import RESOLUTION, median_pitch
from tokkata.tokenize.codec import Codec, load_codec, load_codec_from_info
from tokkata.tokenize.codec_hub import SHIPPED
from tokkata.tokenize.corpora.synth import Synth
from tokkata.tokenize.corpus import read_clip
from tokkata.tokenize.fidelity import si_sdr


@pytest.fixture(scope="module")
def pocket() -> Codec:
    return load_codec("pocket")


@pytest.fixture(scope="module")
def notes() -> torch.Tensor:
    """[B, 1, N]: notes of instruments that training has not heard."""
    corpus = Synth(SynthCorpus(kind="synth", num_clips=80, duration_s=1.0, forms=["note"], random_phase=True))
    held_out = [clip for clip in corpus.clips() if clip.split == "test"]
    return torch.from_numpy(np.stack([read_clip(corpus, clip, 16000, 1).samples for clip in held_out]))


def test_what_it_is(pocket: Codec) -> None:
    assert sum(file.stat().st_size for file in SHIPPED["pocket"].iterdir()) < 10_000_000
    assert (pocket.sample_rate, pocket.channels, pocket.hop_length, pocket.frame_rate) == (16000, 1, 320, 50)
    assert (pocket.num_codebooks, pocket.codebook_size) == (8, 1024)


def test_it_follows_the_waveform_of_held_out_notes(pocket: Codec, notes: torch.Tensor) -> None:
    decoded = pocket.decode(pocket.encode(notes), num_samples=notes.shape[-1])
    assert decoded.shape == notes.shape
    fidelity = si_sdr(decoded[:, 0], notes[:, 0]).median()
    assert fidelity > 4
    # The later codebooks carry their share of it.
    half = pocket.encode(notes)
    half[:, 4:] = 0
    assert fidelity > si_sdr(pocket.decode(half)[:, 0], notes[:, 0]).median() + 1


def test_transformers_loads_the_same_codec(pocket: Codec, notes: torch.Tensor) -> None:
    model = DacModel.from_pretrained(SHIPPED["pocket"], dtype=torch.float32).eval()
    with torch.inference_mode():
        codes = model.encode(notes[:2]).audio_codes
    assert torch.equal(codes, pocket.encode(notes[:2]))


@pytest.fixture(scope="module")
def pocket_vae() -> Codec:
    return load_codec("pocket_vae")


def test_what_the_autoencoder_is(pocket_vae: Codec) -> None:
    assert sum(file.stat().st_size for file in SHIPPED["pocket_vae"].iterdir()) < 10_000_000
    assert (pocket_vae.sample_rate, pocket_vae.channels, pocket_vae.frame_rate) == (16000, 1, 50)
    assert (pocket_vae.latent_dim, pocket_vae.num_codebooks) == (32, 0)
    again = load_codec_from_info(pocket_vae.info)
    assert again.info == pocket_vae.info


def test_the_autoencoder_keeps_the_pitch_of_held_out_notes(pocket_vae: Codec, notes: torch.Tensor) -> None:
    decoded = pocket_vae.decode_latents(pocket_vae.encode_latents(notes), notes.shape[-1])
    for one, other in zip(notes[:6].numpy(), decoded[:6].numpy(), strict=True):
        before, after = (median_pitch(audio, 16000, 40, 84) for audio in (one, other))
        assert before is not None
        assert after == pytest.approx(before, abs=RESOLUTION + 1e-6)  # at most the tracker's next place


def test_diffusers_loads_the_same_autoencoder(pocket_vae: Codec, notes: torch.Tensor) -> None:
    model = AutoencoderOobleck.from_pretrained(SHIPPED["pocket_vae"], torch_dtype=torch.float32).eval()
    with torch.inference_mode():
        latents = model.encode(notes[:2]).latent_dist.mode()
    torch.testing.assert_close(latents, pocket_vae.encode_latents(notes[:2]), atol=1e-4, rtol=1e-4)
