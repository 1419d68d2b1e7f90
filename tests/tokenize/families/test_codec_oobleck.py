"""The Oobleck autoencoder behind the codec interface, on a tiny random model in the hub's layout."""

import math
import shutil

import pytest
import torch
from diffusers import AutoencoderOobleck
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tokkata.core import schema_codecs
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import CodecInfo, load_codec, load_codec_from_config

HOP = 6
RATE = 1200
WEIGHTS = "diffusion_pytorch_model.safetensors"


def noise(batch, num_samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, 2, num_samples, generator=generator)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A diffusion pipeline's folder: no config.json at its root, the autoencoder in `vae`."""
    folder = tmp_path_factory.mktemp("hub") / "pipeline"
    torch.manual_seed(0)
    model = AutoencoderOobleck(
        encoder_hidden_size=16,
        downsampling_ratios=[2, 3],
        channel_multiples=[1, 2],
        decoder_channels=4,
        decoder_input_channels=8,
        sampling_rate=RATE,
    )
    model.save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')
    return folder


@pytest.fixture(scope="module")
def reference(pipeline):
    """The library's own model, with its weight norm."""
    return AutoencoderOobleck.from_pretrained(pipeline, subfolder="vae").eval()


@pytest.fixture(scope="module")
def codec(pipeline):
    return load_codec(str(pipeline))


def test_info(codec, pipeline, tmp_path):
    info = codec.info
    assert (info.id, info.subfolder) == (str(pipeline), "vae")
    assert (info.sample_rate, info.channels, info.hop_length, info.frame_rate) == (RATE, 2, HOP, 200.0)
    assert (info.num_codebooks, info.codebook_size, info.latent_dim) == (0, 0, 8)
    assert len(info.revision) == 12
    assert set(info.versions) == {"torch", "transformers", "diffusers"}
    info.write(tmp_path / "codec.json")
    assert CodecInfo.read(tmp_path / "codec.json") == info


def test_the_place_may_be_told(codec, pipeline):
    assert load_codec(str(pipeline), subfolder="vae").info == codec.info
    alone = load_codec(str(pipeline / "vae"))
    assert alone.info.subfolder is None
    assert alone.info.revision == codec.info.revision
    section = schema_codecs.OobleckCodec(kind="oobleck", id=str(pipeline), subfolder="vae")
    assert load_codec_from_config(section).info == codec.info


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 120), st.integers(0, 99))
def test_latents_and_audio_are_those_of_diffusers(codec, reference, batch, num_samples, seed):
    audio = noise(batch, num_samples, seed)
    padded = torch.nn.functional.pad(audio, (0, -num_samples % HOP))
    with torch.inference_mode():
        expected = reference.encode(padded).latent_dist
        sound = reference.decode(expected.mean).sample
    posterior = codec.encode_posterior(audio)
    assert posterior.mean.shape == posterior.scale.shape == (batch, 8, math.ceil(num_samples / HOP))
    # Folding the weight norm changes no bit on the device that folds it.
    assert torch.equal(posterior.mean, expected.mean)
    assert torch.equal(posterior.scale, expected.std)
    assert torch.equal(codec.encode_latents(audio), expected.mean)
    decoded = codec.decode_latents(expected.mean, num_samples=num_samples)
    assert decoded.shape == audio.shape
    common = min(num_samples, sound.shape[-1])
    assert torch.equal(decoded[..., :common], sound[..., :common])


def test_the_same_audio_gives_the_same_latents(codec):
    audio = noise(1, 120)
    assert torch.equal(codec.encode_latents(audio), codec.encode_latents(audio))


def test_weight_norm_is_folded(codec, reference):
    assert any(hasattr(module, "weight_g") for module in reference.modules())
    assert not any(hasattr(module, "weight_g") for module in codec.modules())
    assert {p.dtype for p in codec.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in codec.parameters())


def test_windows_with_context_are_the_whole_clip(codec):
    chunking = codec.chunking
    assert chunking.exact
    audio = noise(1, 300 * HOP)
    whole = codec.encode_latents(audio)[..., 100:120]

    def encoding_error(context):
        window = codec.encode_latents(audio[..., (100 - context) * HOP : (120 + context) * HOP])
        return float((window[..., context : context + 20] - whole).abs().max())

    latents = torch.randn(1, 8, 300, generator=torch.Generator().manual_seed(0))
    sound = codec.decode_latents(latents)[..., 100 * HOP : 120 * HOP]

    def decoding_error(context):
        window = codec.decode_latents(latents[..., 100 - context : 120 + context])
        return float((window[..., context * HOP : (context + 20) * HOP] - sound).abs().max())

    assert encoding_error(chunking.encoder_context) < 1e-5 < encoding_error(1)
    assert decoding_error(chunking.decoder_context) < 1e-5 < decoding_error(1)


def test_codes_are_refused(codec, pipeline):
    sentence = (
        f"codec {pipeline} is a variational autoencoder and has no codes:"
        " set tokenize.store to latents, or choose a codec with codebooks"
    )
    with pytest.raises(UserError) as caught:
        codec.encode(noise(1, 60))
    assert str(caught.value) == sentence
    with pytest.raises(UserError) as caught:
        codec.decode(torch.zeros(1, 4, 10, dtype=torch.int64))
    assert str(caught.value) == sentence


# --- what a user sees after a fault


def sentence(id, **options):
    with pytest.raises(UserError) as caught:
        load_codec(str(id), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("setting", [{"num_codebooks": 4}, {"bandwidth_kbps": 6.0}])
def test_settings_of_another_family(pipeline, setting):
    (name,) = setting
    assert sentence(pipeline, **setting) == f"codec {pipeline} is an Oobleck autoencoder: remove {name}"


@pytest.fixture
def broken(pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "copy")
    return tmp_path / "copy"


def test_no_weights(broken):
    (broken / "vae" / WEIGHTS).unlink()
    assert sentence(broken) == (
        f"{broken} is not a codec in the hub's layout: config.json and {WEIGHTS} are needed"
    )


def test_missing_and_unexpected_weights(broken):
    weights = load_file(broken / "vae" / WEIGHTS)
    weights["colour"] = weights.pop("decoder.conv1.bias")
    save_file(weights, broken / "vae" / WEIGHTS, metadata={"format": "pt"})
    assert sentence(broken) == (
        f"the weights of codec {broken} do not fit its config.json;"
        " missing: decoder.conv1.bias; not expected: colour"
    )


def test_weights_of_another_shape(broken):
    weights = load_file(broken / "vae" / WEIGHTS) | {"decoder.conv1.bias": torch.zeros(3)}
    save_file(weights, broken / "vae" / WEIGHTS, metadata={"format": "pt"})
    assert sentence(broken).endswith("; of another shape: decoder.conv1.bias")


def test_damaged_weights(broken):
    path = broken / "vae" / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    assert sentence(broken).startswith(f"the weights of codec {broken} are damaged (")


def test_a_place_where_nothing_is(pipeline):
    assert "is not a codec in the hub's layout" in sentence(pipeline, subfolder="decoder")


def test_an_unknown_id_without_a_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert sentence("someone/some-vae", subfolder="vae").startswith(
        "codec someone/some-vae is neither a folder nor in the Hugging Face cache, and cannot be downloaded"
    )
