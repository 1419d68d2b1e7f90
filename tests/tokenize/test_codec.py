"""Codecs behind one interface, on tiny random models saved in the hub's layout."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, DacConfig, DacModel, EncodecConfig, EncodecModel

from tokkata.core import schema, schema_codecs
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import CodecInfo, load_codec, load_codec_from_config
from tokkata.tokenize.families.codec_dac import build_original, save_dac, to_hub

HOP = 6
RATE = 1200


def noise(batch, channels, num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, channels, num_samples, generator=generator)


@pytest.fixture(scope="module")
def dac_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "dac"
    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 3],
        decoder_hidden_size=16,
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=4,
        sampling_rate=RATE,
    )
    model = DacModel(config)
    # As it initialises itself, it hardly reacts to its input.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encodec_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "encodec"
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[0.8, 1.6, 3.2],  # 200 frames/s · 4 bits = 0.8 kbps a codebook
        sampling_rate=RATE,
        audio_channels=2,
        num_filters=4,
        upsampling_ratios=[3, 2],
        hidden_size=8,
        codebook_size=16,
        codebook_dim=8,
        num_lstm_layers=1,
        normalize=False,
        chunk_length_s=None,
    )
    model = EncodecModel(config)
    # Codebooks out of what the encoder gives, or a handful of codes would win everywhere.
    with torch.no_grad():
        residual = model.encoder(noise(1, 2, 320 * HOP))[0].T  # [T, D]
        for number, layer in enumerate(model.quantizer.layers):
            # Other frames for each, because nothing is left of those that the layer before took.
            layer.codebook.embed.copy_(residual[number::20])
            nearest = torch.cdist(residual, layer.codebook.embed).argmin(dim=-1)
            residual = residual - layer.codebook.embed[nearest]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dac_codec(dac_folder):
    return load_codec(str(dac_folder))


@pytest.fixture(scope="module")
def encodec_codec(encodec_folder):
    return load_codec(str(encodec_folder), bandwidth_kbps=1.6)


@pytest.fixture(params=["dac", "encodec"])
def codec(request):
    return request.getfixturevalue(f"{request.param}_codec")


@pytest.fixture
def offline(monkeypatch):
    """What a machine without a network sees, whether or not this one has it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# --- what a codec tells of itself


def test_dac_info(dac_codec, dac_folder):
    info = dac_codec.info
    assert (info.id, info.sample_rate, info.channels) == (str(dac_folder), RATE, 1)
    assert (info.hop_length, info.frame_rate) == (HOP, 200.0)
    assert (info.num_codebooks, info.codebook_size, info.latent_dim) == (3, 16, 16)
    assert len(info.revision) == 12, "a folder's weights are pinned by their hash"
    assert set(info.versions) == {"torch", "transformers"}


def test_encodec_info(encodec_codec):
    info = encodec_codec.info
    assert (info.sample_rate, info.channels, info.hop_length, info.frame_rate) == (RATE, 2, HOP, 200.0)
    assert (info.num_codebooks, info.codebook_size, info.latent_dim) == (2, 16, 8)


def test_properties_are_those_of_the_info(codec):
    for name in ("sample_rate", "channels", "hop_length", "frame_rate"):
        assert getattr(codec, name) == getattr(codec.info, name)
    for name in ("num_codebooks", "codebook_size", "latent_dim"):
        assert getattr(codec, name) == getattr(codec.info, name)


def test_weights_are_frozen_and_float32(codec):
    assert not codec.training
    assert {(p.requires_grad, p.dtype) for p in codec.parameters()} == {(False, torch.float32)}


def test_the_info_round_trips(codec, tmp_path):
    codec.info.write(tmp_path / "codec.json")
    assert CodecInfo.read(tmp_path / "codec.json") == codec.info


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"id": "x", "colour": 3}', "\x00"])
def test_a_file_that_describes_no_codec(tmp_path, text):
    (tmp_path / "codec.json").write_text(text)
    with pytest.raises(UserError, match=r"codec\.json does not describe a codec"):
        CodecInfo.read(tmp_path / "codec.json")
    with pytest.raises(UserError, match=r"none\.json does not describe a codec"):
        CodecInfo.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "other"),
        ("revision", "abc"),
        ("sample_rate", 5),
        ("hop_length", 5),
        ("num_codebooks", 2),
        ("codebook_size", 5),
    ],
)
def test_codes_of_another_codec_are_refused(dac_codec, name, value):
    other = dataclasses.replace(dac_codec.info, **{name: value})
    with pytest.raises(UserError) as caught:
        dac_codec.info.check_matches(other, "samples")
    mine = getattr(dac_codec.info, name)
    assert str(caught.value) == f"samples: codec {name} is {value}, but {mine} is needed"
    newer = dataclasses.replace(dac_codec.info, versions={"torch": "99"})
    dac_codec.info.check_matches(newer, "samples")


# --- shapes and values


LENGTHS = st.tuples(st.integers(1, 3), st.integers(1, 120))


@settings(max_examples=25, deadline=None)
@given(LENGTHS)
@pytest.mark.parametrize("name", ["dac", "encodec"])
def test_shapes_over_lengths(name, request, size):
    codec = request.getfixturevalue(f"{name}_codec")
    batch, num_samples = size
    num_frames = math.ceil(num_samples / HOP)
    assert codec.num_frames(num_samples) == num_frames
    audio = noise(batch, codec.channels, num_samples)
    codes = codec.encode(audio)
    assert codes.shape == (batch, codec.num_codebooks, num_frames)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < codec.codebook_size
    decoded = codec.decode(codes, num_samples=num_samples)
    assert decoded.shape == audio.shape
    assert decoded.dtype == torch.float32
    whole = codec.decode(codes)
    assert whole.shape == (batch, codec.channels, num_frames * HOP)
    assert torch.equal(whole[..., :num_samples], decoded)
    latents = codec.encode_latents(audio)
    assert latents.shape == (batch, codec.latent_dim, num_frames)
    assert codec.decode_latents(latents, num_samples=num_samples).shape == audio.shape


def padded(audio):
    return torch.nn.functional.pad(audio, (0, -audio.shape[-1] % HOP))


@pytest.mark.parametrize("num_samples", [6, 100, 600])
def test_dac_gives_the_codes_of_transformers(dac_codec, num_samples):
    audio = noise(2, 1, num_samples)
    with torch.inference_mode():
        expected = dac_codec.model.encode(padded(audio))
        sound = dac_codec.model.decode(audio_codes=expected.audio_codes).audio_values
    assert len(expected.audio_codes.unique()) > 8 or num_samples == 6
    assert torch.equal(dac_codec.encode(audio), expected.audio_codes)
    ours = dac_codec.decode(expected.audio_codes)[:, 0]
    torch.testing.assert_close(ours[:, : sound.shape[-1]], sound.reshape(2, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_samples", [6, 100, 600])
def test_encodec_gives_the_codes_of_transformers(encodec_codec, num_samples):
    audio = noise(2, 2, num_samples)
    with torch.inference_mode():
        expected = encodec_codec.model.encode(padded(audio), bandwidth=1.6)
        sound = encodec_codec.model.decode(expected.audio_codes, expected.audio_scales).audio_values
    (codes,) = expected.audio_codes
    assert len(codes.unique()) > 8 or num_samples == 6
    assert torch.equal(encodec_codec.encode(audio), codes)
    torch.testing.assert_close(encodec_codec.decode(codes), sound, rtol=0, atol=1e-6)


def test_fewer_codebooks_are_the_first_ones(dac_folder, dac_codec):
    audio = noise(2, 1, 90)
    all_codes = dac_codec.encode(audio)
    for kept in (1, 2, 3):
        codec = load_codec(str(dac_folder), num_codebooks=kept)
        assert codec.num_codebooks == kept
        assert torch.equal(codec.encode(audio), all_codes[:, :kept])
        assert codec.decode(all_codes[:, :kept]).shape == (2, 1, 90)


def test_a_lower_bandwidth_has_the_first_codebooks(encodec_folder):
    audio = noise(1, 2, 90)
    codes = {b: load_codec(str(encodec_folder), bandwidth_kbps=b).encode(audio) for b in (0.8, 1.6, 3.2)}
    assert [c.shape[1] for c in codes.values()] == [1, 2, 4]
    assert torch.equal(codes[0.8], codes[3.2][:, :1])
    assert torch.equal(codes[1.6], codes[3.2][:, :2])


def test_the_batch_does_not_matter(codec):
    audio = noise(3, codec.channels, 90)
    together = codec.encode(audio)
    for i in range(3):
        assert torch.equal(codec.encode(audio[i : i + 1]), together[i : i + 1])


def test_wrong_shapes(codec):
    for audio in (torch.zeros(5), torch.zeros(1, 3, 5)):
        with pytest.raises(ValueError, match=r"^audio \[B, . N\] expected, not \[".replace(". N", r"\d, N")):
            codec.encode(audio)
    for codes in (torch.zeros(1, 2), torch.zeros(1, 9, 2)):
        with pytest.raises(ValueError, match=r"^codes \[B, \d, T\] expected, not \["):
            codec.decode(codes.long())


def test_codecs_without_gains(codec):
    audio = noise(1, codec.channels, 90)
    encoded = codec.encode_segments(audio)
    assert not codec.has_gains
    assert encoded.gains is None
    assert torch.equal(encoded.codes, codec.encode(audio))
    assert torch.equal(codec.encode_window(audio).codes, encoded.codes)
    assert codec.num_samples(encoded.codes.shape[-1]) == codec.decode(encoded.codes).shape[-1] == 90
    gains = torch.ones(1, 1)
    for refuse in (codec.decode, codec.decode_latents):
        with pytest.raises(ValueError, match=r"scales no segments: it takes no gains$"):
            refuse(encoded.codes, 90, gains)
    with pytest.raises(ValueError, match=r"scales no segments: it takes no gains$"):
        codec.decode_windows(encoded.codes[0], 90, 10, gains[0])


# --- the original DAC


def test_to_hub_is_the_original(tmp_path):
    config = schema.DacModel(
        kind="dac", encoder_dim=8, encoder_rates=[2, 3], decoder_dim=32, num_codebooks=3, codebook_size=32
    )
    torch.manual_seed(0)
    original = build_original(config).eval()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    save_dac(original, tmp_path / "codec", "float32")
    codec = load_codec(str(tmp_path / "codec"))
    assert (codec.num_codebooks, codec.codebook_size, codec.hop_length) == (3, 32, 6)
    audio = noise(2, 1, 600)
    with torch.inference_mode():
        expected = original(audio, config.sample_rate_hz)
    codes = codec.encode(audio)
    assert len(codes.unique()) > 8
    assert torch.equal(codes, expected["codes"])
    decoded = codec.decode(codes, num_samples=expected["audio"].shape[-1])
    torch.testing.assert_close(decoded, expected["audio"], rtol=0, atol=1e-5)
    # Folding the weight norm is done on a copy: the original goes on learning.
    after = original.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_float16_halves_the_file_and_is_read_as_float32(tmp_path):
    config = schema.DacModel(kind="dac", encoder_dim=8, encoder_rates=[2, 3], decoder_dim=32)
    original = build_original(config)
    for store in ("float32", "float16"):
        save_dac(original, tmp_path / store, store)
    sizes = [(tmp_path / store / "model.safetensors").stat().st_size for store in ("float32", "float16")]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    codec = load_codec(str(tmp_path / "float16"))
    assert {parameter.dtype for parameter in codec.parameters()} == {torch.float32}
    exact = to_hub(original).state_dict()
    for name, value in codec.model.state_dict().items():
        assert torch.equal(value, exact[name].half().float())


# --- what a user sees after a fault


def sentence(id, **options):
    with pytest.raises(UserError) as caught:
        load_codec(str(id), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def broken(dac_folder, tmp_path):
    """A copy of the DAC whose weights can be spoilt."""
    (tmp_path / "config.json").write_bytes((dac_folder / "config.json").read_bytes())
    weights = load_file(dac_folder / "model.safetensors")

    def write(spoil):
        spoil(weights)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return write


NAME = "encoder.conv1.weight"


def test_missing_weights(broken):
    folder = broken(lambda weights: weights.pop(NAME))
    assert sentence(folder) == f"the weights of codec {folder} do not fit its config.json; missing: {NAME}"


def test_unexpected_weights(broken):
    folder = broken(lambda weights: weights.update(colour=torch.zeros(1), beard=torch.zeros(1)))
    assert sentence(folder).endswith("do not fit its config.json; not expected: beard, colour")


def test_weights_of_another_shape(broken):
    folder = broken(lambda weights: weights.update({NAME: torch.zeros(3)}))
    assert sentence(folder).endswith(f"do not fit its config.json; of another shape: {NAME}")


def test_renamed_weights(broken):
    folder = broken(lambda weights: weights.update({"x." + NAME: weights.pop(NAME)}))
    assert sentence(folder).endswith(f"missing: {NAME}; not expected: x.{NAME}")


def test_damaged_weights(broken):
    folder = broken(lambda weights: None)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert sentence(folder).startswith(f"the weights of codec {folder} are damaged (")


def test_no_weights(broken):
    folder = broken(lambda weights: None)
    (folder / "model.safetensors").unlink()
    needed = f"{folder} is not a codec in the hub's layout: config.json and model.safetensors are needed"
    assert sentence(folder) == needed
    (folder / "config.json").unlink()
    assert sentence(folder) == needed


def test_an_unknown_id_without_a_network(offline):
    assert sentence("someone/some-codec") == (
        "codec someone/some-codec is neither a folder nor in the Hugging Face cache, and cannot be downloaded"
        " now: run `hf download someone/some-codec` where there is a network, or give a folder in the hub's"
        " layout"
    )
    assert "run `hf download someone/some-codec --revision v2` where" in sentence(
        "someone/some-codec", revision="v2"
    )


@pytest.mark.parametrize(("name", "choice"), [("dac", {}), ("encodec", {"bandwidth_kbps": 1.6})])
def test_a_codec_in_the_cache_needs_no_network(name, choice, request, offline, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = request.getfixturevalue(f"{name}_folder")
    cache = tmp_path / "models--someone--some-codec"
    commit = "0123456789" * 4
    shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    codec = load_codec("someone/some-codec", **choice)
    assert (codec.info.id, codec.info.revision) == ("someone/some-codec", commit)
    assert load_codec("someone/some-codec", revision=commit, **choice).info == codec.info
    audio = noise(1, codec.channels, 90)
    assert torch.equal(codec.encode(audio), load_codec(str(folder), **choice).encode(audio))


def test_a_name_that_is_no_id(offline):
    assert sentence("no such codec!").startswith("codec no such codec! is neither a folder nor")


def test_a_model_of_another_family(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    assert sentence(tmp_path) == (
        f"codec {tmp_path} is of family 'bert'; known are 'dac', 'encodec', 'mimi', 'xcodec' and 'oobleck'"
    )


def test_settings_of_the_other_family(dac_folder, encodec_folder):
    assert sentence(dac_folder, bandwidth_kbps=6.0) == (
        f"codec {dac_folder} is a DAC: choose num_codebooks, not bandwidth_kbps"
    )
    assert sentence(encodec_folder, num_codebooks=2) == (
        f"codec {encodec_folder} is an EnCodec: choose bandwidth_kbps, not num_codebooks"
    )


@pytest.mark.parametrize("number", [0, 4, -1])
def test_a_number_of_codebooks_that_the_codec_has_not(dac_folder, number):
    assert sentence(dac_folder, num_codebooks=number) == (
        f"codec {dac_folder} has 3 codebooks: num_codebooks cannot be {number}"
    )


@pytest.mark.parametrize("bandwidth", [None, 1.0, 6.0])
def test_a_bandwidth_that_the_codec_has_not(encodec_folder, bandwidth):
    assert sentence(encodec_folder, bandwidth_kbps=bandwidth) == (
        f"codec {encodec_folder}: bandwidth_kbps must be one of [0.8, 1.6, 3.2], not {bandwidth}"
    )


def test_the_section_of_a_recipe(dac_folder, encodec_folder):
    section = schema_codecs.DacCodec(kind="dac", id=str(dac_folder), num_codebooks=2)
    assert load_codec_from_config(section).info == load_codec(str(dac_folder), num_codebooks=2).info
    other = schema_codecs.EncodecCodec(kind="encodec", id=str(encodec_folder), bandwidth_kbps=3.2)
    assert load_codec_from_config(other).num_codebooks == 4


def test_the_only_bandwidth_needs_no_choice(encodec_folder, tmp_path):
    config = json.loads((encodec_folder / "config.json").read_text())
    model = EncodecModel(EncodecConfig(**(config | {"target_bandwidths": [1.6]})))
    model.save_pretrained(tmp_path)
    assert load_codec(str(tmp_path)).num_codebooks == 2
