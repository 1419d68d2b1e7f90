"""CLAP, on a tiny random model in the hub's layout, against transformers' own extractor and model."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ClapFeatureExtractor, ClapModel

from tokkata.core.clap import ClapFrontEnd
from tokkata.core.errors import UserError
from tokkata.core.released_file import sha256_of
from tokkata.eval.embedding import TextEmbedding, load_embedding
from tokkata.eval.embeddings import clap as module
from tokkata.eval.embeddings.clap import IDS
from tokkata.tests.made_networks import CLAP_WORDS as WORDS
from tokkata.tests.made_networks import save_clap


def noise(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clap(tmp_path_factory.mktemp("hub") / "clap")


@pytest.fixture(scope="module")
def embedding(folder) -> TextEmbedding:
    return load_embedding(f"clap:{folder}", device="cpu")


@pytest.fixture(scope="module")
def model(folder):
    return ClapModel.from_pretrained(folder).eval()


# --- audio


@pytest.mark.parametrize("seconds", [0.7, 3.0, 10.0])
def test_features_are_those_of_transformers_extractor_at_the_published_sizes(seconds):
    extractor = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    front_end = ClapFrontEnd(extractor, torch.device("cpu"))
    audio = noise(1, round(48000 * seconds)) * torch.linspace(0, 1, round(48000 * seconds))
    ours = front_end.log_mel(front_end.cut(audio)[:, 0])
    theirs = extractor(audio[0].numpy(), sampling_rate=48000, return_tensors="pt")["input_features"]
    assert ours.shape == theirs.shape == (1, 1, 1001, 64)
    # Powers far below the loudest are what float32 leaves of them; theirs are float64.
    assert (ours - theirs).abs().median() < 1e-4
    assert ((ours - theirs).abs()[theirs > theirs.max() - 60] < 0.05).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 16000))
def test_windows_cover_the_clip(embedding, num_samples):
    front_end = embedding._front_end
    samples = torch.arange(1.0, num_samples + 1)[None]
    windows = front_end.cut(samples)
    assert windows.shape == (1, embedding.frames(num_samples), 4800)
    assert set(samples[0].tolist()) <= set(windows.flatten().tolist())
    if num_samples >= 4800:
        assert windows[0, -1, -1] == num_samples
        assert (windows > 0).all(), "nothing is filled up"


@pytest.mark.parametrize("num_samples", [700, 4800])
def test_vectors_are_those_of_transformers(folder, embedding, model, num_samples):
    audio = noise(2, 1, num_samples)
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    features = extractor([clip[0].numpy() for clip in audio], sampling_rate=4800, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_audio_features(input_features=features["input_features"].float()).pooler_output
    vectors = embedding.embed(audio)
    assert vectors.shape == (2, 1, 12)
    torch.testing.assert_close(vectors[:, 0], expected, rtol=0, atol=1e-4)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


def test_a_long_clips_vector_is_the_mean_of_its_windows(embedding, monkeypatch):
    monkeypatch.setattr(module, "WINDOWS_AT_ONCE", 2)
    audio = noise(2, 1, 4800 * 2 + 100)
    frames = embedding.embed(audio)
    assert frames.shape == (2, 3, 12)
    alone = torch.cat([embedding.embed(audio[..., s : s + 4800]) for s in (0, 4800, 4900)], dim=1)
    torch.testing.assert_close(frames, alone, rtol=0, atol=1e-5)
    clips = embedding.embed_clip(audio)
    torch.testing.assert_close(clips.norm(dim=-1), torch.ones(2))
    assert torch.allclose(clips, torch.nn.functional.normalize(frames.mean(1), dim=-1))


# --- sentences


def test_sentences_are_embedded_alone_or_together(embedding, model):
    texts = ["a slow piano", "drum", "a loud loud drum"]
    vectors = embedding.embed_text(texts)
    assert vectors.shape == (3, 12)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([[0, *(WORDS.index(word) for word in text.split()), 2]])
        with torch.no_grad():
            expected = model.get_text_features(input_ids=ids).pooler_output[0]
        torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)


def test_long_sentences_are_cut_and_none_is_an_error(embedding):
    long, longer = embedding.embed_text(["piano " * 30, "piano " * 40])
    torch.testing.assert_close(long, longer)
    with pytest.raises(ValueError, match="no sentences"):
        embedding.embed_text([])


# --- loading


def test_what_it_tells_of_itself(embedding, folder):
    info = embedding.info
    assert isinstance(embedding, TextEmbedding)
    assert info.name == f"clap:{folder}"
    assert info.version == sha256_of(folder / "model.safetensors")[:12]
    assert (info.sample_rate, info.width, info.frame_s, info.hop_s) == (4800, 12, 1.0, 1.0)
    assert "64 Slaney-mel bands 50-2300 Hz" in info.preprocessing
    given = load_embedding("clap-music", weights=folder, device="cpu").info
    assert (given.name, given.version) == ("clap-music", info.version)


def sentence(name, **options):
    with pytest.raises(UserError) as caught:
        load_embedding(name, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", IDS)
def test_without_weights_it_says_how_to_get_them(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert sentence(name) == (
        f"embedding {IDS[name]} is neither a folder nor in the Hugging Face cache, and cannot be downloaded"
        f" now: run `hf download {IDS[name]}` where there is a network, or give a folder in the hub's layout"
    )


def test_a_folder_that_lacks_something(folder, tmp_path):
    assert sentence("clap", weights=tmp_path) == (
        f"embedding clap: {tmp_path} is not a model in the hub's layout, it lacks config.json,"
        " preprocessor_config.json, tokenizer.json, tokenizer_config.json,"
        " model.safetensors or pytorch_model.bin"
    )


def test_models_that_fuse_random_crops_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["enable_fusion"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "fuses random crops of a clip, so what it gives would be random too" in sentence(
        f"clap:{tmp_path}"
    )
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    assert "is of type 'clip', not 'clap'" in sentence(f"clap:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    assert sentence(f"clap:{tmp_path}") == f"{tmp_path / 'config.json'} is not JSON: download it again"


def test_damaged_and_foreign_weights(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    for content in (whole[:1000], b""):
        (tmp_path / "model.safetensors").write_bytes(content)
        told = sentence(f"clap:{tmp_path}")
        assert told.endswith(f"the weights in {tmp_path} are damaged: download them again")
    (tmp_path / "model.safetensors").write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 20
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "do not fit its config.json; of another shape: text_model" in sentence(f"clap:{tmp_path}")


def test_it_is_the_same_each_time(embedding, folder):
    audio = noise(1, 1, 9000)
    again = load_embedding(f"clap:{folder}", device="cpu").embed(audio)
    np.testing.assert_array_equal(embedding.embed(audio), again)
