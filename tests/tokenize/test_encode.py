"""The stage tokenize, in one process: what a store holds in the end, what is refused, and a full disk."""

import dataclasses
import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tokkata.core.audio_stream import open_audio
from tokkata.core.errors import UserError
from tokkata.tests.tokenize.frame_codec import INFO, FrameCodec, FrameVae
from tokkata.tokenize.codec import Chunking
from tokkata.tokenize.corpus import Clip
from tokkata.tokenize.encode import tokenize
from tokkata.tokenize.segments import SegmentedCodec, Segments
from tokkata.tokenize.store import TokenStore, read_manifest, read_rejects

RATE = 16000
LABELS = {"pitch": int, "tempo": float, "family": str, "tags": tuple}


class Corpus:
    """Files with labels of all types; listed in another order than that of their ids."""

    label_types = LABELS

    def __init__(self, folder):
        self.folder = folder

    def clips(self):
        names = sorted(path.name for path in self.folder.iterdir())
        splits = ("train", "valid", "train", "test")
        clips = [
            Clip(
                name,
                splits[i % 4],
                f"folder/{name}",
                {"pitch": i, "tempo": i / 7, "family": "organ", "tags": ("a", "b")[: i % 3]},
                caption=f"clip {i}" if i % 2 else None,
            )
            for i, name in enumerate(names)
        ]
        return list(reversed(clips))

    def audio(self, clip):
        return self.folder / clip.id


@pytest.fixture
def audio(tmp_path):
    """Twelve files of three lengths, stereo at 22.05 kHz, with silence before and after."""
    folder = tmp_path / "audio"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        samples = 0.3 * rng.normal(size=(22050 * [1, 2, 5][i % 3], 2))
        samples[:2000] = samples[-3000:] = 0
        soundfile.write(folder / f"{i:02d}.flac", samples.clip(-1, 1), 22050)
    return folder


@pytest.fixture
def stage(tmp_path, audio, tiny_values, monkeypatch):
    """`stage(codec, audio={…}, store="latents")` runs it and returns the store."""
    from tokkata.core.recipe import check_recipe

    def run(codec, folder=tmp_path / "runs", audio_settings=None, **settings):
        monkeypatch.setattr("tokkata.tokenize.encode.load_codec_from_config", lambda *_: codec)
        monkeypatch.setattr("tokkata.tokenize.encode.load_corpus", lambda *_: Corpus(audio))
        recipe = check_recipe(
            tiny_values(
                folder,
                audio=audio_settings or {},
                model={"conditions": []},
                tokenize={"shard_clips": 5, "window_s": 1.0, **settings},
            )
        )
        tokenize(recipe)
        return TokenStore(recipe.folder / "tokens")

    return run


SPLITS = ("train", "valid", "test")


def test_a_store_of_codes(stage, audio):
    """Every column of every row is what the corpus, the audio and the codec say, sorted by id."""
    settings = {"trim_silence_db": 30.0, "loudness_lufs": -20.0, "max_duration_s": 3.0}
    store = stage(FrameCodec(), audio_settings=settings)
    rows = list(store.dataset)
    assert [row["id"] for row in rows] == [f"{i:02d}.flac" for i in range(12)]
    clips = {clip.id: clip for clip in Corpus(audio).clips()}
    from tokkata.core.schema import Audio

    for row in rows:
        clip = clips[row["id"]]
        stream = open_audio(audio / clip.id, RATE, 1, Audio(**settings))
        codes = FrameCodec().encode(torch.from_numpy(stream.read())[None])[0]
        facts = dataclasses.asdict(stream.facts)
        facts.pop("duration_s")
        labels = {name: list(v) if isinstance(v, tuple) else v for name, v in clip.labels.items()}
        assert row == {
            "id": clip.id,
            "split": clip.split,
            "codes": codes.T.reshape(-1).tolist(),
            "num_frames": codes.shape[1],
            "num_samples": stream.num_samples,
            "source": clip.source,
            "sha256": stream.sha256,
            "caption": clip.caption,
            **facts,
            **labels,
        }
    assert rows[2]["num_samples"] == 3 * RATE
    assert rows[0]["trim_start_s"] > 0.08
    assert rows[0]["original_channels"] == 2
    for name in SPLITS:
        split = store.split(name)
        wanted = [clip for clip in sorted(clips.values(), key=lambda clip: clip.id) if clip.split == name]
        for label in LABELS:
            assert split.column(label) == [clip.labels[label] for clip in wanted]


def test_codec_json_tells_how(stage):
    store = stage(FrameCodec())
    assert store.info == dataclasses.replace(INFO, chunking=FrameCodec.chunking)
    assert sorted(read_manifest(store.folder)) == [
        "codec.json",
        *(f"data-{i:05d}-of-00003.arrow" for i in range(3)),
        "rejects.jsonl",
    ]


def test_the_window_is_recorded_where_it_decides(stage, monkeypatch):
    inexact = Chunking(exact=False, encoder_context=1, decoder_context=0)
    monkeypatch.setattr(FrameCodec, "chunking", inexact)
    assert stage(FrameCodec()).info.chunking == dataclasses.replace(inexact, window_frames=100)


@pytest.mark.parametrize("codec_class", [FrameCodec, FrameVae])
def test_a_store_of_latents(stage, audio, codec_class):
    store = stage(codec_class(), store="latents")
    assert (store.info.latents, store.info.latent_dim) == ("latents", 2)
    frames = []
    for name in SPLITS:
        split = store.split(name)
        for i, clip_id in enumerate(split.column("id")):
            whole = torch.from_numpy(open_audio(audio / clip_id, RATE, 1).read())[None]
            wanted = FrameCodec().encode_latents(whole)[0].numpy()
            np.testing.assert_array_equal(split.latents(i), wanted)
            scale = split.latents_scale(i)
            if codec_class is FrameVae:
                np.testing.assert_array_equal(scale, (torch.from_numpy(wanted) / 10 + 1).numpy())
            else:
                assert scale is None
            if name == "train":
                frames.append(wanted)
    every = np.concatenate(frames, axis=1).astype(np.float64)
    np.testing.assert_allclose(store.info.latent_mean, every.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(store.info.latent_std, every.std(axis=1), rtol=1e-9)


def test_gains_of_segments(stage, audio):
    """Overlapping segments, each with its gain; one window a segment, whatever window_s says."""

    def segmented():
        return SegmentedCodec(FrameCodec(), Segments(160, length=1600, stride=1440), normalize=True)

    store = stage(segmented())
    gains = []
    for name in SPLITS:
        split = store.split(name)
        for i, clip_id in enumerate(split.column("id")):
            whole = torch.from_numpy(open_audio(audio / clip_id, RATE, 1).read())[None]
            encoded = segmented().encode_segments(whole)
            np.testing.assert_array_equal(split.codes(i), encoded.codes[0].numpy())
            np.testing.assert_array_equal(split.gains(i), encoded.gains[0].numpy())
            if name == "train":
                gains.append(split.gains(i))
    assert store.info.median_gain == np.median(np.concatenate(gains))


def test_settings_that_change_no_bit(stage, tmp_path):
    def files(store):
        return {path.name: path.read_bytes() for path in store.folder.iterdir()}

    one = files(stage(FrameCodec(), tmp_path / "one", num_readers=1))
    assert files(stage(FrameCodec(), tmp_path / "five", num_readers=5)) == one


# --- what is refused


@pytest.mark.parametrize(
    ("codec", "settings", "told"),
    [
        (
            FrameCodec(dataclasses.replace(INFO, num_codebooks=0, codebook_size=0)),
            {},
            "codec frames has no codebooks, so no codes: set tokenize.store to 'latents'",
        ),
        (
            FrameCodec(),
            {"store": "projected_latents"},
            "codec frames has no projected latents, only a DAC has: set tokenize.store to 'latents'",
        ),
        (
            SegmentedCodec(FrameCodec(), Segments(160, length=1600, stride=1440), normalize=True),
            {"store": "latents"},
            "codec frames encodes overlapping segments, whose latents make no sequence:"
            " set tokenize.store to 'codes'",
        ),
        (
            FrameCodec(dataclasses.replace(INFO, codebook_size=1 << 17)),
            {},
            "codec frames has codebooks of 131072, the store takes 65536",
        ),
        (FrameCodec(), {"precision": "bf16"}, "codec frames has no networks that run in bf16"),
        (FrameCodec(), {"window_s": 0.02}, "window_s: 0.02 s is too short for a codec that needs"),
    ],
    ids=["no codes", "no projection", "segments", "large codebook", "bf16", "window"],
)
def test_what_a_codec_cannot_do(stage, tmp_path, codec, settings, told):
    with pytest.raises(UserError) as caught:
        stage(codec, **settings)
    assert str(caught.value).startswith(told)
    assert not (tmp_path / "runs" / "tiny" / "tokens").exists()


def test_a_language_model_is_not_trained_on_latents(stage, tmp_path, tiny_recipe):
    from tokkata.lm.train import train_lm

    folder = stage(FrameCodec(), store="latents").folder
    with pytest.raises(UserError) as caught:
        train_lm(tiny_recipe(tmp_path / "runs"))
    assert str(caught.value) == (
        f"a language model needs codes, but {folder} holds latents: set tokenize.store to 'codes'"
    )


# --- a full disk

PAGE, NUM_PAGES = 4096, 50


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={PAGE * NUM_PAGES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(stage, small_disk, tmp_path):
    """Something else takes the room between two shards; when it is gone, the same command goes on."""
    undisturbed = stage(FrameCodec(), tmp_path / "undisturbed").folder
    first = "data-00000-of-00003.arrow"
    pages = -(-(undisturbed / first).stat().st_size // PAGE)
    other = small_disk / "other"
    other.write_bytes(bytes(NUM_PAGES * PAGE - (pages + 2) * PAGE))
    with pytest.raises(UserError) as caught:
        stage(FrameCodec(), small_disk)
    tokens = small_disk / "tiny" / "tokens"
    assert str(caught.value) == (
        f"the disk of {tokens} is full after 5 of 12 clips, which are kept: free some space, and the same"
        " command goes on"
    )
    kept = {path.name: path.stat().st_mtime_ns for path in tokens.iterdir()}
    assert sorted(name for name in kept if name.startswith("data")) == [first]
    assert not [name for name in kept if name.startswith(".partial")]  # what was begun gives its room back
    other.unlink()
    stage(FrameCodec(), small_disk)
    assert {path.name: path.read_bytes() for path in tokens.iterdir()} == {
        path.name: path.read_bytes() for path in undisturbed.iterdir()
    }
    assert (tokens / first).stat().st_mtime_ns == kept[first]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_the_end(stage, tmp_path, monkeypatch, fault):
    replace = Path.replace

    def full(path, target):
        if target.name == "shards.json":
            raise OSError(fault, os.strerror(fault))
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(UserError, match="is full after 12 of 12 clips"):
            stage(FrameCodec())
    assert len(stage(FrameCodec()).dataset) == 12


def test_no_clip_can_be_used(stage, audio, tmp_path):
    for path in audio.iterdir():
        soundfile.write(path, np.zeros(8000), RATE)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"none of the 12 clips can be used, the first \(folder/00.flac\)"
        ):
            stage(FrameCodec())
    tokens = tmp_path / "runs" / "tiny" / "tokens"
    assert [reject.reason for reject in read_rejects(tokens)] == ["silent"] * 12
