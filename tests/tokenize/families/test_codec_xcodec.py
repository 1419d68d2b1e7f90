"""X-Codec behind the codec interface, on a tiny random model saved in the hub's layout."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import XcodecConfig, XcodecModel

from tokkata.core import schema_codecs
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import load_codec, load_codec_from_config

HOP = 6
RATE = 1200


def noise(batch, num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, 1, num_samples, generator=generator)


def tiny_config():
    return XcodecConfig(
        target_bandwidths=[0.8, 1.6, 3.2],  # 200 frames/s · 4 bits = 0.8 kbps a codebook
        sample_rate=RATE,
        codebook_size=16,
        acoustic_model_config={
            "model_type": "dac",
            "encoder_hidden_size": 4,
            "downsampling_ratios": [3, 2],
            "upsampling_ratios": [3, 2],
            "decoder_hidden_size": 16,
            "hidden_size": 8,
            "sampling_rate": RATE,
        },
        semantic_model_config={
            "model_type": "hubert",
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "conv_dim": [4, 4],
            "conv_kernel": [4, 2],
            "conv_stride": [3, 2],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "xcodec"
    torch.manual_seed(0)
    model = XcodecModel(tiny_config()).eval()
    # As they initialise themselves, these hardly react to their input.
    for module in (model.acoustic_encoder, model.acoustic_decoder, model.fc, model.fc2):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)  # the codebooks are zeros still
    codec = load_codec(str(folder), bandwidth_kbps=3.2)
    # Codebooks out of what the encoder gives, or a handful of codes would win everywhere.
    residual = codec.encode_latents(noise(1, 320 * HOP))[0].T  # [T, D]
    for quantizer in model.quantizer.quantizers:
        quantizer.codebook.embed.copy_(residual[::20])
        nearest = torch.cdist(residual, quantizer.codebook.embed).argmin(dim=-1)
        residual = residual - quantizer.codebook.embed[nearest]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec(folder):
    return load_codec(str(folder), bandwidth_kbps=1.6)


def test_info(codec):
    info = codec.info
    assert (info.sample_rate, info.channels, info.hop_length, info.frame_rate) == (RATE, 1, HOP, 200.0)
    assert (info.num_codebooks, info.codebook_size, info.latent_dim) == (2, 16, 16)
    assert len(info.revision) == 12


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 120), st.integers(0, 99))
def test_codes_and_audio_are_those_of_transformers(codec, batch, num_samples, seed):
    audio = noise(batch, num_samples, seed)
    padded = torch.nn.functional.pad(audio, (0, -num_samples % HOP))
    with torch.inference_mode():
        expected = codec.model.encode(padded, bandwidth=1.6).audio_codes
        sound = codec.model.decode(expected).audio_values
    codes = codec.encode(audio)
    assert codes.shape == (batch, 2, math.ceil(num_samples / HOP))
    assert torch.equal(codes, expected)
    decoded = codec.decode(codes, num_samples=num_samples)
    assert decoded.shape == audio.shape
    common = min(num_samples, sound.shape[-1])
    assert torch.equal(decoded[..., :common], sound[..., :common])


def test_many_codes_are_used(codec):
    assert len(codec.encode(noise(1, 200 * HOP)).unique()) == 16


def test_latents_are_what_is_quantised_and_decoded(codec):
    audio = noise(2, 20 * HOP)
    latents = codec.encode_latents(audio)
    assert latents.shape == (2, 16, 20)
    quantizer = codec.model.quantizer
    codes = quantizer.encode(latents, 1.6)  # [K, B, T]
    assert torch.equal(codes.transpose(0, 1), codec.encode(audio))
    expected = codec.decode(codes.transpose(0, 1))
    assert torch.equal(codec.decode_latents(quantizer.decode(codes)), expected)


def test_a_lower_bandwidth_has_the_first_codebooks(folder):
    audio = noise(1, 90)
    codes = {b: load_codec(str(folder), bandwidth_kbps=b).encode(audio) for b in (0.8, 1.6, 3.2)}
    assert [c.shape[1] for c in codes.values()] == [1, 2, 4]
    assert torch.equal(codes[0.8], codes[3.2][:, :1])
    assert torch.equal(codes[1.6], codes[3.2][:, :2])


def test_no_frame_that_is_kept_sees_an_edge_in_a_convolution(codec):
    # Without HuBERT's attention and normalisation over time, windows with this context are the whole clip.
    context = codec.chunking.encoder_context
    assert codec.chunking.exact is False
    audio = noise(1, 120 * HOP)
    hubert = codec.model.semantic_model
    skipped = [hubert.feature_extractor.conv_layers[0].layer_norm]
    skipped += [layer.attention for layer in hubert.encoder.layers]
    hooks = [m.register_forward_hook(lambda _m, inputs, out: unmixed(inputs, out)) for m in skipped]
    try:
        whole = codec.encode_latents(audio)[..., 60:80]

        def error(context):
            first = 60 - context
            window = codec.encode_latents(audio[..., first * HOP : (80 + context) * HOP])
            return float((window[..., context : context + 20] - whole).abs().max())

        assert error(context) < 1e-5
        assert error(1) > 1e-3
    finally:
        for hook in hooks:
            hook.remove()
    assert error(context) > 1e-5, "attention makes windows differ"


@pytest.mark.parametrize("size", [1, 7, 40])
def test_codes_in_parts_are_decoded_as_the_whole(codec, size):
    codes = torch.randint(codec.codebook_size, (2, codec.num_codebooks, 60))
    whole = codec.decode(codes)
    streamed = torch.cat(list(codec.decode_stream(codes.split(size, dim=2), 60)), dim=2)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=2e-5 * float(whole.abs().max()))


def unmixed(inputs, output):
    """The input instead, in the place of a normalisation (a tensor) or of an attention (a tuple)."""
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return inputs[0]


@pytest.mark.parametrize("bandwidth", [None, 1.0])
def test_a_bandwidth_that_the_codec_has_not(folder, bandwidth):
    with pytest.raises(UserError) as caught:
        load_codec(str(folder), bandwidth_kbps=bandwidth)
    assert str(caught.value) == (
        f"codec {folder}: bandwidth_kbps must be one of [0.8, 1.6, 3.2], not {bandwidth}"
    )


def test_settings_of_another_family(folder):
    with pytest.raises(UserError) as caught:
        load_codec(str(folder), num_codebooks=2)
    assert str(caught.value) == f"codec {folder} is an X-Codec: choose bandwidth_kbps, not num_codebooks"


def test_the_section_of_a_recipe(folder):
    section = schema_codecs.XcodecCodec(kind="xcodec", id=str(folder), bandwidth_kbps=3.2)
    assert load_codec_from_config(section).num_codebooks == 4
    with pytest.raises(ValueError, match="bandwidth_kbps"):
        schema_codecs.XcodecCodec(kind="xcodec", id=str(folder))
