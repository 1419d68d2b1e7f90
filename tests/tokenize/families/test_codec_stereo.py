"""Stereo through mono codecs: the order of the codebooks, and that the channels do not touch."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from tokkata.core import schema_codecs
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import CodecInfo, load_codec, load_codec_from_config
from tokkata.tokenize.families.codec_stereo import Stereo

HOP = 6
RATE = 1200


def noise(batch, channels, num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, channels, num_samples, generator=generator)


def tiny_encodec(channels, **settings):
    config = EncodecConfig(
        target_bandwidths=[1.6],
        sampling_rate=RATE,
        audio_channels=channels,
        num_filters=4,
        upsampling_ratios=[3, 2],
        hidden_size=8,
        codebook_size=16,
        codebook_dim=8,
        num_lstm_layers=1,
        **{"normalize": False, "chunk_length_s": None} | settings,
    )
    model = EncodecModel(config).eval()
    with torch.no_grad():
        residual = model.encoder(noise(1, channels, 320 * HOP))[0].T  # [T, D]
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(residual[::20])
            nearest = torch.cdist(residual, layer.codebook.embed).argmin(dim=-1)
            residual = residual - layer.codebook.embed[nearest]
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    tiny_encodec(1).save_pretrained(root / "encodec")
    tiny_encodec(2).save_pretrained(root / "two-channels")
    tiny_encodec(1, normalize=True).save_pretrained(root / "with-gains")
    model = DacModel(
        DacConfig(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 3],
            decoder_hidden_size=16,
            n_codebooks=3,
            codebook_size=16,
            codebook_dim=4,
            sampling_rate=RATE,
        )
    )
    # As it initialises itself, it hardly reacts to its input; louder, and its output is ±1 throughout.
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15 if name.startswith("decoder") else 0.3)
    model.save_pretrained(root / "dac")
    return root


@pytest.fixture(scope="module")
def dac(folders):
    return load_codec(str(folders / "dac"), stereo=True)


@pytest.fixture(scope="module")
def encodec(folders):
    return load_codec(str(folders / "encodec"), stereo=True)


@pytest.fixture(params=["dac", "encodec"])
def stereo(request):
    return request.getfixturevalue(request.param)


def test_info(dac, folders, tmp_path):
    mono = load_codec(str(folders / "dac")).info
    expected = dataclasses.replace(mono, stereo=True, channels=2, num_codebooks=6, latent_dim=32)
    assert dac.info == expected
    assert dac.chunking == load_codec(str(folders / "dac")).chunking
    assert dac.device == torch.device("cpu")
    dac.info.write(tmp_path / "codec.json")
    assert CodecInfo.read(tmp_path / "codec.json") == dac.info


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 100))
@pytest.mark.parametrize("name", ["dac", "encodec"])
def test_each_channel_is_that_of_the_mono_codec(name, request, batch, num_samples):
    stereo = request.getfixturevalue(name)
    mono = stereo.codec
    audio = noise(batch, 2, num_samples)
    # In one batch, as the wrapper does it, or the sums of convolutions could differ in their last bit.
    clips = audio.reshape(2 * batch, 1, num_samples)  # left, right, left, right …
    codes = stereo.encode(audio)
    assert codes.shape == (batch, stereo.num_codebooks, math.ceil(num_samples / HOP))
    expected = mono.encode(clips)
    assert torch.equal(codes[:, 0::2], expected[0::2])
    assert torch.equal(codes[:, 1::2], expected[1::2])
    decoded = stereo.decode(codes, num_samples=num_samples)
    assert decoded.shape == audio.shape
    assert torch.equal(decoded.reshape(clips.shape), mono.decode(expected, num_samples=num_samples))
    latents = stereo.encode_latents(audio)
    assert latents.shape == (batch, stereo.latent_dim, codes.shape[-1])
    left, right = latents.chunk(2, dim=1)
    expected = mono.encode_latents(clips)
    assert torch.equal(left, expected[0::2])
    assert torch.equal(right, expected[1::2])
    sound = stereo.decode_latents(latents, num_samples=num_samples)
    assert torch.equal(sound.reshape(clips.shape), mono.decode_latents(expected, num_samples=num_samples))


def test_a_channel_does_not_hear_the_other(dac):
    audio = noise(1, 2, 90)
    silent = audio.clone()
    silent[:, 1] = 0.0
    codes, other = dac.encode(audio), dac.encode(silent)
    assert torch.equal(codes[:, 0::2], other[:, 0::2])
    assert not torch.equal(codes[:, 1::2], other[:, 1::2])
    assert torch.equal(dac.decode(codes)[:, 0], dac.decode(other)[:, 0])


def test_the_order_is_that_of_musicgen_stereo(encodec, folders):
    text = T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, vocab_size=9)
    decoder = MusicgenDecoderConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=8,
        num_codebooks=4,
        audio_channels=2,
        pad_token_id=16,
        bos_token_id=16,
    )
    codec_model = EncodecModel.from_pretrained(folders / "encodec").eval()
    config = MusicgenConfig(text_encoder=text, audio_encoder=codec_model.config, decoder=decoder)
    musicgen = MusicgenForConditionalGeneration(config).eval()
    musicgen.audio_encoder = codec_model
    audio = noise(2, 2, 20 * HOP)
    prepared = musicgen._prepare_audio_encoder_kwargs_for_generation(audio, {})
    theirs = prepared["decoder_input_ids"].reshape(2, 4, 20)
    assert torch.equal(encodec.encode(audio), theirs)
    assert not torch.equal(theirs[:, :2], theirs[:, 2:])


def test_sample_codecs_have_one_codebook_a_channel():
    stereo = load_codec("mulaw:8000", stereo=True)
    codes = stereo.encode(torch.tensor([[[0.0, 0.5], [-1.0, 1.0]]]))
    assert codes[0, :, 0].tolist() == [128, 0]
    assert stereo.num_codebooks == 2


def test_a_codec_of_two_channels_is_refused(folders):
    folder = folders / "two-channels"
    with pytest.raises(UserError) as caught:
        load_codec(str(folder), stereo=True)
    assert str(caught.value) == f"codec {folder} has 2 channels already: remove 'stereo'"
    with pytest.raises(UserError, match="has 2 channels already"):
        Stereo(load_codec("pocket", stereo=True))


def test_a_codec_with_gains_is_refused(folders):
    folder = folders / "with-gains"
    with pytest.raises(UserError) as caught:
        load_codec(str(folder), stereo=True)
    assert str(caught.value) == (f"codec {folder} encodes in segments, which are not joined: remove 'stereo'")


def test_codes_of_the_mono_codec_are_refused(dac, folders):
    # Six codebooks of a mono codec would have the same shape.
    mono = dataclasses.replace(dac.info, stereo=False)
    with pytest.raises(UserError) as caught:
        dac.info.check_matches(mono, "samples")
    assert str(caught.value) == "samples: codec stereo is False, but True is needed"


def test_the_sections_of_a_recipe(folders, dac, encodec):
    section = schema_codecs.DacCodec(kind="dac", id=str(folders / "dac"), num_codebooks=3, stereo=True)
    assert load_codec_from_config(section).info == dac.info
    section = schema_codecs.EncodecCodec(
        kind="encodec", id=str(folders / "encodec"), bandwidth_kbps=1.6, stereo=True
    )
    assert load_codec_from_config(section).info == encodec.info
    pocket = load_codec_from_config(schema_codecs.PocketCodec(kind="pocket", stereo=True))
    assert (pocket.channels, pocket.num_codebooks) == (2, 16)
