"""What a store holds besides codes: latents, gains, labels of all types, facts about the audio, checksums."""

import dataclasses
import hashlib
import json

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.audio_stream import AudioFacts
from tokkata.core.errors import UserError
from tokkata.tokenize.codec import Chunking, CodecInfo
from tokkata.tokenize.latent_stats import LatentStats
from tokkata.tokenize.store import TokenRow, TokenStore, TokenWriter, read_manifest

D = 5
INFO = CodecInfo(
    id="x/y",
    revision="abc",
    sample_rate=16000,
    channels=1,
    hop_length=320,
    frame_rate=50.0,
    num_codebooks=2,
    codebook_size=1024,
    latent_dim=64,
    versions={"torch": "2"},
    chunking=Chunking(exact=False, encoder_context=8, decoder_context=10, window_frames=100),
    precision="bf16",
)
LATENT_INFO = dataclasses.replace(INFO, latents="latents")
SPLITS = ("train", "valid", "test")


def row(i, split="train", **changed):
    fields = {
        "id": f"clip-{i:03d}",
        "split": split,
        "codes": None,
        "num_samples": 1000 + i,
        "source": f"{i}.wav",
        "sha256": f"{i:064x}",
        "labels": {},
        "caption": None,
    }
    return TokenRow(**{**fields, **changed})


def latents(i, num_frames=None):
    rng = np.random.default_rng(i)
    num_frames = 1 + i % 9 if num_frames is None else num_frames
    return (rng.normal(3.0, 2.0, (D, num_frames)) * np.arange(1, D + 1)[:, None]).astype(np.float32)


def write(folder, info, shards, label_types=None, **more):
    writer = TokenWriter(folder, info, label_types or {}, len(shards), **more)
    for number, rows in enumerate(shards):
        writer.write(number, rows, [])
    writer.finish()
    return TokenStore(folder)


# --- latents


def test_latents_come_back_in_crops(tmp_path):
    rows = [row(i, latents=latents(i), latents_scale=latents(100 + i, 1 + i % 9)) for i in range(12)]
    store = write(tmp_path, LATENT_INFO, [rows[:5], [], rows[5:]], has_scale=True)
    split = store.split("train")
    assert store.info.latent_dim == D  # of what is stored, which need not be the encoder's output
    for i, clip in enumerate(rows):
        found = split.latents(i)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, clip.latents)
        np.testing.assert_array_equal(split.latents_scale(i), clip.latents_scale)
        np.testing.assert_array_equal(split.latents(i, 1, 2), clip.latents[:, 1:3])
        np.testing.assert_array_equal(split.latents_scale(i, 1, 2), clip.latents_scale[:, 1:3])
        assert split.num_frames[i] == clip.latents.shape[1]
    first = store.dataset[3]["latents"]
    assert first == rows[3].latents.T.reshape(-1).tolist()  # frame-major
    assert store.dataset.features["latents"] == datasets.List(datasets.Value("float32"))
    assert split.gains(0) is None


def test_a_codec_that_is_no_vae_has_no_scale(tmp_path):
    split = write(tmp_path, LATENT_INFO, [[row(1, latents=latents(1))]]).split("train")
    assert split.latents_scale(0) is None


def test_mean_and_std_are_those_of_all_training_frames(tmp_path):
    rows = [row(i, SPLITS[i % 3], latents=latents(i, 40 * i + 1)) for i in range(30)]
    rows.append(row(30, latents=latents(30, 9000)))  # more than goes into float64 at once
    info = write(tmp_path, LATENT_INFO, [rows[:7], rows[7:8], rows[8:]]).info
    frames = np.concatenate([clip.latents for clip in rows if clip.split == "train"], axis=1).astype(
        np.float64
    )
    np.testing.assert_allclose(info.latent_mean, frames.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(info.latent_std, frames.std(axis=1), rtol=1e-12)


def test_without_training_frames_there_are_no_statistics(tmp_path):
    info = write(tmp_path, LATENT_INFO, [[row(1, "test", latents=latents(1))]]).info
    assert (info.latent_mean, info.latent_std, info.latent_dim) == (None, None, D)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(-300, 300), st.integers(0, 2**32))
def test_merged_statistics_are_those_of_the_whole(lengths, offset, seed):
    """Far from zero too, where the naive sum of squares cancels."""
    rng = np.random.default_rng(seed)
    parts = [(rng.normal(size=(3, n)) + 100.0 * offset).astype(np.float32) for n in lengths]
    stats = LatentStats.none(3)
    for part in parts:
        stats = stats.merge(LatentStats.from_json(json.loads(json.dumps(LatentStats.of(part).to_json()))))
    whole = np.concatenate(parts, axis=1).astype(np.float64)
    assert stats.num_frames == whole.shape[1]
    if stats.num_frames:
        np.testing.assert_allclose(stats.mean, whole.mean(axis=1), rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(stats.std, whole.std(axis=1), rtol=1e-9, atol=1e-9)


# --- gains, labels, facts


def test_gains_and_their_median(tmp_path):
    codes = np.zeros((2, 3), dtype=np.int64)
    gains = [[0.5], [0.1, 0.7], [9.0, 9.0, 9.0], [0.2]]
    splits = ["train", "train", "valid", "train"]
    rows = [row(i, splits[i], codes=codes, gains=np.float32(gains[i])) for i in range(4)]
    store = write(tmp_path, INFO, [rows[:1], [], rows[1:]], has_gains=True)
    np.testing.assert_array_equal(store.split("train").gains(1), np.float32([0.1, 0.7]))
    np.testing.assert_array_equal(store.split("valid").gains(0), np.float32([9, 9, 9]))
    assert store.info.median_gain == np.median(np.float32([0.5, 0.1, 0.7, 0.2]))


def test_labels_of_all_types(tmp_path):
    types = {"pitch": int, "tempo": float, "family": str, "tags": tuple}
    labels = [
        {"pitch": 60, "tempo": 0.1, "family": "organ", "tags": ("slow", "für Élise")},
        {"pitch": -1, "tempo": 120.0, "family": "", "tags": ()},
        {"pitch": 2**40, "tempo": -0.0, "family": "夜曲", "tags": ("one",)},
    ]
    rows = [row(i, codes=np.zeros((2, 1), int), labels=found) for i, found in enumerate(labels)]
    store = write(tmp_path, INFO, [rows], types)
    split = store.split("train")
    for name in types:
        assert split.column(name) == [found[name] for found in labels]
    assert store.dataset.features["tempo"] == datasets.Value("float64")
    assert store.dataset.features["tags"] == datasets.List(datasets.Value("string"))
    with pytest.raises(UserError, match="have no label 'mood': they have pitch, tempo, family, tags"):
        split.column("mood")


def test_what_was_done_to_the_audio(tmp_path):
    facts = AudioFacts(
        original_sample_rate=44100,
        original_channels=2,
        original_duration_s=10.25,
        trim_start_s=0.5,
        duration_s=9.0,
        gain_db=-3.25,
        loudness_lufs=None,
    )
    measured = dataclasses.replace(facts, loudness_lufs=-14.5)
    codes = np.zeros((2, 1), int)
    rows = [row(0, codes=codes, facts=facts), row(1, codes=codes, facts=measured), row(2, codes=codes)]
    found = write(tmp_path, INFO, [rows]).dataset
    for name in (
        "original_sample_rate",
        "original_channels",
        "original_duration_s",
        "trim_start_s",
        "gain_db",
    ):
        assert found[name][:] == [getattr(facts, name)] * 2 + [None]
    assert found["loudness_lufs"][:] == [None, -14.5, None]


# --- codec.json and shards.json


def test_codec_json_says_how_the_codes_were_made(tmp_path):
    rows = [row(0, codes=np.zeros((2, 1), int))]
    assert write(tmp_path, INFO, [rows]).info == INFO


def test_the_manifest_has_the_sha256_of_every_file(tmp_path):
    rows = [row(i, codes=np.full((2, 4), i)) for i in range(4)]
    write(tmp_path, INFO, [rows[:3], rows[3:], []])
    manifest = read_manifest(tmp_path)
    assert manifest == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tmp_path.iterdir()
        if path.name not in ("shards.json", "dataset_info.json", "state.json")
    }
    assert len(manifest) == 5  # three shards, codec.json, rejects.jsonl


# --- refusals


def test_codes_and_latents_are_not_taken_for_each_other(tmp_path):
    codes = write(tmp_path / "codes", INFO, [[row(0, codes=np.zeros((2, 1), int))]])
    latent = write(tmp_path / "latents", LATENT_INFO, [[row(0, latents=latents(0))]])
    with pytest.raises(UserError) as caught:
        latent.require("codes", "a language model")
    assert str(caught.value) == (
        f"a language model needs codes, but {tmp_path / 'latents'} holds latents:"
        " set tokenize.store to 'codes'"
    )
    codes.require("codes", "a language model")
    latent.require("latents", "a diffusion model")
    with pytest.raises(UserError, match=r"holds codes: set tokenize\.store to 'latents'"):
        codes.split("train").latents(0)
    with pytest.raises(UserError, match=r"holds latents: set tokenize\.store to 'codes'"):
        latent.split("train").codes(0)
