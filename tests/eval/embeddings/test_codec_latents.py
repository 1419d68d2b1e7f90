"""Latents of codecs as embeddings, on tiny random models in the hub's layout."""

import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from tokkata.core.errors import UserError
from tokkata.eval.embedding import load_embedding
from tokkata.eval.embeddings import codec_latents
from tokkata.tokenize.codec import load_codec

RATE = 1200


def noise(*shape):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encodec_folder(tmp_path_factory):
    """An EnCodec of 200 frames/s with two channels and two bandwidths."""
    folder = tmp_path_factory.mktemp("hub") / "encodec"
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[0.8, 1.6],
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
    EncodecModel(config).save_pretrained(folder)
    return folder


def test_windows_give_the_frames_of_the_whole_clip(tiny_codec, monkeypatch):
    monkeypatch.setattr(codec_latents, "WINDOW_S", 1.5)
    embedding = load_embedding(f"codec:{tiny_codec}", device="cpu")
    codec = load_codec(str(tiny_codec))
    audio = noise(2, 1, 4 * 16000 + 77)
    frames = embedding.embed(audio)
    assert frames.shape == (2, embedding.frames(audio.shape[-1]), codec.latent_dim)
    torch.testing.assert_close(frames, codec.encode_latents(audio).transpose(1, 2), rtol=0, atol=1e-4)


def test_what_it_tells_of_itself(tiny_codec):
    info = load_embedding(f"codec:{tiny_codec}", device="cpu").info
    codec = load_codec(str(tiny_codec))
    assert (info.version, info.sample_rate, info.width) == (codec.info.revision, 16000, codec.latent_dim)
    assert info.hop_s == 1 / 50
    assert info.frame_s > info.hop_s
    assert str(tiny_codec) in info.source


def test_given_weights_stand_for_a_named_codec(tiny_codec):
    named = load_embedding("dac", weights=tiny_codec, device="cpu")
    other = load_embedding(f"codec:{tiny_codec}", device="cpu")
    assert (named.info.name, named.info.version) == ("dac", other.info.version)
    audio = noise(1, 1, 3200)
    assert torch.equal(named.embed(audio), other.embed(audio))


def test_a_stereo_codec_gets_the_clip_in_both_channels(encodec_folder):
    embedding = load_embedding(f"codec:{encodec_folder}@1.6", device="cpu")
    audio = noise(1, 1, 1000)
    expected = load_codec(str(encodec_folder), bandwidth_kbps=0.8).encode_latents(audio.expand(-1, 2, -1))
    torch.testing.assert_close(embedding.embed(audio), expected.transpose(1, 2))


def test_a_bandwidth_has_to_be_one_that_there_is(encodec_folder):
    with pytest.raises(UserError, match=r"bandwidth_kbps must be one of \[0.8, 1.6\], not 3.0"):
        load_embedding(f"codec:{encodec_folder}@3", device="cpu")
    with pytest.raises(UserError, match=r"behind '@' stands a bandwidth in kbit/s .* not 'fast'"):
        load_embedding(f"codec:{encodec_folder}@fast", device="cpu")


@pytest.mark.parametrize("name", [name for name in codec_latents._CODECS if name != "pocket"])
def test_without_weights_it_says_where_they_are(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    id = codec_latents._CODECS[name][0]
    with pytest.raises(
        UserError, match=f"codec {id} is neither a folder nor .* run `hf download {id}` where"
    ):
        load_embedding(name, device="cpu")
