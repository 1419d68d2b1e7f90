"""Mimi behind the codec interface, on a tiny random model saved in the hub's layout."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MimiConfig, MimiModel

from tokkata.core import schema_codecs
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import Chunking, load_codec, load_codec_from_config

HOP = 12
RATE = 1200


def noise(batch, num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, 1, num_samples, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "mimi"
    torch.manual_seed(0)
    config = MimiConfig(
        sampling_rate=RATE,
        frame_rate=RATE / HOP,
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[3, 2],
        codebook_size=16,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=4,
        num_hidden_layers=2,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=16,
        upsample_groups=16,
        layer_scale_initial_scale=0.5,
    )
    model = MimiModel(config).eval()
    # Codebooks out of what the encoder gives, or a handful of codes would win everywhere.
    with torch.no_grad():
        latents = model.encoder(noise(1, 320 * HOP)).latents
        for quantizer in (
            model.quantizer.semantic_residual_vector_quantizer,
            model.quantizer.acoustic_residual_vector_quantizer,
        ):
            residual = quantizer.input_proj(latents)[0].T  # [T, D]
            for layer in quantizer.layers:
                layer.codebook.embed_sum.copy_(residual[::20])
                nearest = torch.cdist(residual, layer.codebook.embed_sum).argmin(dim=-1)
                residual = residual - layer.codebook.embed_sum[nearest]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec(folder):
    return load_codec(str(folder), num_codebooks=3)


def test_info(codec):
    info = codec.info
    assert (info.sample_rate, info.channels, info.hop_length, info.frame_rate) == (RATE, 1, HOP, 100.0)
    assert (info.num_codebooks, info.codebook_size, info.latent_dim) == (3, 16, 16)
    assert len(info.revision) == 12


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 200), st.integers(0, 99))
def test_codes_and_audio_are_those_of_transformers(codec, batch, num_samples, seed):
    audio = noise(batch, num_samples, seed)
    num_frames = math.ceil(num_samples / HOP)
    padded = torch.nn.functional.pad(audio, (0, -num_samples % HOP))
    with torch.inference_mode():
        expected = codec.model.encode(padded, num_quantizers=3).audio_codes
        sound = codec.model.decode(expected).audio_values
    codes = codec.encode(audio)
    assert codes.shape == (batch, 3, num_frames)
    assert torch.equal(codes, expected)
    assert torch.equal(codec.decode(codes), sound)
    assert torch.equal(codec.decode(codes, num_samples=num_samples), sound[..., :num_samples])


def test_many_codes_are_used(codec):
    assert len(codec.encode(noise(1, 200 * HOP)).unique()) == 16


def test_latents_are_what_is_quantised_and_decoded(codec):
    audio = noise(2, 20 * HOP)
    latents = codec.encode_latents(audio)
    assert latents.shape == (2, 16, 20)
    quantizer = codec.model.quantizer
    assert torch.equal(quantizer.encode(latents, 3).transpose(0, 1), codec.encode(audio))
    quantised = quantizer.decode(codec.encode(audio))
    assert torch.equal(codec.decode_latents(quantised), codec.decode(codec.encode(audio)))


def test_fewer_codebooks_are_the_first_ones(folder):
    audio = noise(2, 200)
    everything = load_codec(str(folder)).encode(audio)
    assert everything.shape[1] == 4
    for kept in (1, 2, 3):
        few = load_codec(str(folder), num_codebooks=kept)
        assert torch.equal(few.encode(audio), everything[:, :kept])
        assert few.decode(everything[:, :kept]).shape == (2, 1, 204)


def test_nothing_depends_on_what_comes_later(codec):
    audio = noise(1, 60 * HOP)
    later = audio.clone()
    later[..., 40 * HOP :] = 0.0
    assert torch.equal(codec.encode(audio)[..., :40], codec.encode(later)[..., :40])
    codes = codec.encode(audio)
    changed = codes.clone()
    changed[..., 40:] = 0
    assert torch.equal(codec.decode(codes)[..., : 40 * HOP], codec.decode(changed)[..., : 40 * HOP])


def test_windows_are_near_the_whole_clip_but_not_equal(codec):
    # 16 positions of attention, two of them a frame: a quarter of the window is two frames.
    assert codec.chunking == Chunking(exact=False, encoder_context=0, decoder_context=0, warm_up=2)
    audio = noise(1, 200 * HOP)
    whole = codec.encode_latents(audio)[..., 100:]

    def error(context):
        window = codec.encode_latents(audio[..., (100 - context) * HOP :])[..., context:]
        return float((window - whole).abs().max())

    errors = [error(context) for context in (0, 2, 8, 32)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[0] > 1e-3
    # Two layers of attention reach back 2 · 15 positions: 15 frames, and the convolutions hardly more.
    assert errors[3] < 1e-5


@pytest.mark.parametrize("number", [0, 5, -1])
def test_a_number_of_codebooks_that_the_codec_has_not(folder, number):
    with pytest.raises(UserError) as caught:
        load_codec(str(folder), num_codebooks=number)
    assert str(caught.value) == f"codec {folder}: num_codebooks must be from 1 to 4, not {number}"


def test_settings_of_another_family(folder):
    with pytest.raises(UserError) as caught:
        load_codec(str(folder), bandwidth_kbps=1.1)
    assert str(caught.value) == f"codec {folder} is a Mimi: choose num_codebooks, not bandwidth_kbps"


def test_the_section_of_a_recipe(folder):
    section = schema_codecs.MimiCodec(kind="mimi", id=str(folder), num_codebooks=2)
    assert load_codec_from_config(section).info == load_codec(str(folder), num_codebooks=2).info
    with pytest.raises(ValueError, match="num_codebooks"):
        schema_codecs.MimiCodec(kind="mimi", id=str(folder))
