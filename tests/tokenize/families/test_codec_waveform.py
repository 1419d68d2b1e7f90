"""The μ-law and linear codecs of single samples, against closed forms and torchaudio."""

import math

import pytest
import torch
import torchaudio
from hypothesis import given
from hypothesis import strategies as st

from tokkata.core import schema_codecs
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import load_codec, load_codec_from_config

RATE = 16000
MULAW = load_codec(f"mulaw:{RATE}")
LINEAR = load_codec(f"linear:{RATE}")
CODECS = pytest.mark.parametrize("codec", [MULAW, LINEAR], ids=["mulaw", "linear"])

samples = st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=50)
loud_samples = st.lists(st.floats(-8.0, 8.0, width=32), min_size=1, max_size=50)


def clip(values):
    return torch.tensor(values, dtype=torch.float32)[None, None]


@CODECS
def test_info(codec):
    info = codec.info
    assert (info.sample_rate, info.channels, info.hop_length) == (RATE, 1, 1)
    assert (info.frame_rate, info.num_codebooks, info.codebook_size, info.latent_dim) == (16000.0, 1, 256, 1)
    assert info.revision is None
    assert codec.device == torch.device("cpu")
    assert not list(codec.parameters())


@CODECS
def test_every_class_survives_decoding_and_encoding(codec):
    codes = torch.arange(256)[None, None]
    assert torch.equal(codec.encode(codec.decode(codes)), codes)
    latents = codec.encode_latents(codec.decode(codes))
    torch.testing.assert_close(codec.decode_latents(latents), codec.decode(codes), rtol=0, atol=1e-6)


@CODECS
@given(loud_samples)
def test_louder_is_never_a_lower_class(codec, values):
    codes = codec.encode(clip(sorted(values)))[0, 0]
    assert (codes.diff() >= 0).all()
    assert 0 <= codes.min() <= codes.max() <= 255


@given(samples)
def test_linear_errs_by_half_a_class_at_most(values):
    audio = clip(values)
    assert (LINEAR.decode(LINEAR.encode(audio)) - audio).abs().max() <= 1 / 256


def compressed(x):
    return math.copysign(math.log1p(255 * abs(x)) / math.log(256), x)


@given(samples)
def test_mulaw_errs_by_half_a_class_of_the_companded_scale_at_most(values):
    decoded = MULAW.decode(MULAW.encode(clip(values)))[0, 0].tolist()
    for x, y in zip(values, decoded, strict=True):
        assert abs(compressed(x) - compressed(y)) <= 1 / 255 + 1e-6


@given(samples)
def test_mulaw_latents_are_the_companded_signal(values):
    audio = clip(values)
    latents = MULAW.encode_latents(audio)
    expected = clip([compressed(x) for x in values])
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(MULAW.decode_latents(latents), audio, rtol=0, atol=2e-6)


@CODECS
def test_around_silence(codec):
    codes = codec.encode(clip([-1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0]))[0, 0]
    assert codes.tolist() == [0, 127, 128, 128, 128, 255]
    below, above = codec.decode(torch.tensor([[[127, 128]]]))[0, 0].tolist()
    assert below == -above
    assert above == pytest.approx({MULAW: (256 ** (1 / 255) - 1) / 255, LINEAR: 1 / 256}[codec], rel=1e-6)


@CODECS
def test_what_is_beyond_full_scale_is_clipped(codec):
    assert codec.encode(clip([-3.0, 3.0]))[0, 0].tolist() == [0, 255]
    assert codec.encode_latents(clip([-3.0, 3.0]))[0, 0].tolist() == [-1.0, 1.0]
    assert codec.decode_latents(clip([-3.0, 3.0]))[0, 0].tolist() == pytest.approx([-1.0, 1.0])


def test_mulaw_is_that_of_torchaudio():
    # Edges are tabulated in float64 here, and torchaudio takes a float32 logarithm: they can only differ
    # where the companded value lies on an edge to float32's precision.
    audio = clip(torch.linspace(-1.0, 1.0, 500_001).tolist())
    ours, theirs = MULAW.encode(audio), torchaudio.functional.mu_law_encoding(audio, 256)
    differ = ours != theirs
    steps = (MULAW.encode_latents(audio).double() + 1) / 2 * 255
    assert ((steps % 1 - 0.5).abs()[differ] < 1e-4).all()
    assert differ.float().mean() < 1e-4
    codes = torch.arange(256)[None, None]
    decoded = torchaudio.functional.mu_law_decoding(codes, 256)
    torch.testing.assert_close(MULAW.decode(codes), decoded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("id", ["mulaw:", "mulaw:fast", "linear:0", "linear:-5", "mulaw:16e3", "linear:8:2"])
def test_a_rate_that_is_none(id):
    with pytest.raises(UserError) as caught:
        load_codec(id)
    family = id.partition(":")[0]
    assert str(caught.value) == (
        f"codec {id}: a sample rate in Hz must follow the colon, as in {family}:16000"
    )


@pytest.mark.parametrize(
    "setting", [{"num_codebooks": 1}, {"bandwidth_kbps": 6.0}, {"revision": "v1"}, {"subfolder": "vae"}]
)
def test_settings_that_it_does_not_have(setting):
    (name,) = setting
    with pytest.raises(UserError) as caught:
        load_codec("mulaw:8000", **setting)
    assert str(caught.value) == f"codec mulaw:8000 is a codec of single samples: remove {name}"


def test_the_section_of_a_recipe():
    section = schema_codecs.WaveformCodec(kind="mulaw", sample_rate_hz=8000)
    assert load_codec_from_config(section).info == load_codec("mulaw:8000").info
    stereo = schema_codecs.WaveformCodec(kind="linear", sample_rate_hz=8000, stereo=True)
    assert load_codec_from_config(stereo).info == load_codec("linear:8000", stereo=True).info
