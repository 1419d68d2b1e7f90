"""DAC's continuous points: the encoder's output, and its projections into the codebooks' spaces."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DacConfig, DacModel

from tokkata.core import schema_codecs
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import load_codec, load_codec_from_config

HOP = 6


def noise(batch, num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, 1, num_samples, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "dac"
    torch.manual_seed(0)
    model = DacModel(
        DacConfig(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 3],
            decoder_hidden_size=16,
            n_codebooks=3,
            codebook_size=16,
            codebook_dim=4,
            sampling_rate=1200,
        )
    )
    # As it initialises itself, it hardly reacts to its input; louder, and its output is ±1 throughout.
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15 if name.startswith("decoder") else 0.3)
    model.save_pretrained(folder)
    return folder


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 100), st.integers(1, 3))
def test_latents_are_those_of_transformers(folder, batch, num_samples, kept):
    codec = load_codec(str(folder), num_codebooks=kept)
    audio = noise(batch, num_samples)
    padded = torch.nn.functional.pad(audio, (0, -num_samples % HOP))
    with torch.inference_mode():
        expected = codec.model.encode(padded, n_quantizers=kept)
        encoder_output = codec.model.encoder(padded)
    projected = codec.encode_projected_latents(audio)
    assert codec.projected_latent_dim == 4 * kept
    assert projected.shape == (batch, 4 * kept, math.ceil(num_samples / HOP))
    assert torch.equal(projected, expected.projected_latents)
    assert torch.equal(codec.encode_latents(audio), encoder_output)


def test_quantised_projections_decode_as_their_codes(folder):
    for kept in (1, 2, 3):
        codec = load_codec(str(folder), num_codebooks=kept)
        codes = codec.encode(noise(2, 90))
        vectors = codec.model.quantizer.from_codes(codes)[1]
        decoded = codec.decode_projected_latents(vectors, num_samples=77)
        expected = codec.decode(codes, num_samples=77)
        assert expected.abs().mean() < 0.9
        torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)


def test_nothing_is_quantised(folder):
    codec = load_codec(str(folder))
    projected = codec.encode_projected_latents(noise(1, 90))
    moved = codec.decode_projected_latents(projected + 1e-3)
    assert not torch.equal(moved, codec.decode_projected_latents(projected))


def test_a_recipe_that_says_another_kind(folder):
    section = schema_codecs.OobleckCodec(kind="oobleck", id=str(folder))
    with pytest.raises(UserError) as caught:
        load_codec_from_config(section)
    assert str(caught.value) == f"codec {folder} is a DAC: its kind is 'dac', not 'oobleck'"


def test_another_width_is_refused(folder):
    codec = load_codec(str(folder), num_codebooks=2)
    with pytest.raises(ValueError, match=r"^latents \[B, 8, T\] expected, not \[1, 12, 5\]$"):
        codec.decode_projected_latents(torch.zeros(1, 12, 5))
