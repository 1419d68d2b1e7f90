"""One vector a clip: a codec's mean latents, a CLAP's mean vector; long clips in windows."""

import dataclasses

import pytest
import torch

from tokkata.core.errors import UserError
from tokkata.core.schema_features import StyleFeature
from tokkata.eval.embedding import load_embedding
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.features import feature as module
from tokkata.tokenize.features import style
from tokkata.tokenize.features.feature import load_feature, load_feature_from_info


def section(encoder, **more):
    return StyleFeature(kind="style", encoder=str(encoder), **more)


def noise(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@pytest.mark.parametrize("num_samples", [4000, 60000])
def test_a_codecs_style_is_the_mean_of_its_latents(monkeypatch, tiny_codec, num_samples):
    """Also of a clip in several windows."""
    monkeypatch.setattr(style, "WINDOW_S", 1.2)
    audio = noise(2, 1, num_samples)
    codec = load_codec(str(tiny_codec))
    wanted = codec.encode_latents(audio).mean(dim=2)
    feature = load_feature(section(tiny_codec))
    assert (len(feature.plan(num_samples)) > 3) == (num_samples > 10000)
    found = feature.encode_audio(audio, codec.sample_rate)
    assert found[0].shape == (1, codec.latent_dim)
    torch.testing.assert_close(torch.cat(found), wanted, rtol=0, atol=1e-5)


def test_the_pocket_codec_needs_no_download():
    feature = load_feature(section("pocket"))
    found = feature.encode_audio(noise(1, 2, 44100), 44100)[0]
    assert found.shape == (1, feature.dim)
    assert (feature.info.encoder, feature.sample_rate, feature.channels) == ("pocket", 16000, 1)
    assert feature.frame_rate is None
    assert load_feature_from_info(feature.info).info == feature.info


@pytest.mark.parametrize("num_samples", [3000, 4800, 11000])
def test_claps_style_is_the_vector_that_scores_take(clap, num_samples):
    feature = load_feature(section(clap))
    audio = noise(2, 1, num_samples)
    wanted = load_embedding(f"clap:{clap}", device="cpu").embed_clip(audio)
    found = feature.encode_audio(audio, 4800)
    assert found[0].shape == (1, 12)
    torch.testing.assert_close(torch.cat(found), wanted, rtol=0, atol=1e-5)
    assert load_feature_from_info(feature.info).info == feature.info


def told(config):
    with pytest.raises(UserError) as caught:
        load_feature(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_an_encoder_of_style(clap, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert told(section("mulaw:16000")) == (
        "style encoder mulaw:16000 has no network: choose a codec that has one, such as pocket"
    )
    assert told(section(clap, bandwidth_kbps=6.0)) == (
        f"style encoder {clap} is a CLAP: remove bandwidth_kbps"
    )
    assert told(section("laion/larger_clap_music")).startswith(
        "style encoder laion/larger_clap_music is neither a folder nor in the Hugging Face cache"
    )
    (tmp_path / "config.json").write_text("{")
    assert told(section(tmp_path)) == f"{tmp_path / 'config.json'} is not JSON: download it again"


def test_a_codec_that_has_changed_since(tiny_codec):
    info = load_feature(section(tiny_codec)).info
    with pytest.raises(UserError, match="feature 'style' as it is now: revision is"):
        load_feature_from_info(dataclasses.replace(info, revision="abc"))


def test_infos_are_read_back_or_refused(tmp_path):
    assert module.read_features(tmp_path) == {}
    info = load_feature(section("pocket")).info
    module.write_features(tmp_path, [info])
    assert module.read_features(tmp_path) == {"style": info}
    for text in ("{", '[{"name": 1}]', "7"):
        (tmp_path / "features.json").write_text(text)
        with pytest.raises(UserError, match="does not describe"):
            module.read_features(tmp_path)
