import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from tokkata.core.audio import AudioError, Samples, write_wav
from tokkata.eval.sets import (
    ClipSet,
    Skipped,
    choose,
    crops,
    generated_clips,
    real_clips,
    reconstruct,
    split_clips,
    white_noise,
)
from tokkata.tokenize.corpus import Clip


class RampCorpus:
    """Clips at 16 kHz whose samples rise from 0 in steps of 2⁻²¹, so that a crop tells where it was cut."""

    def __init__(self, durations_s: dict[str, float], broken: tuple[str, ...] = ()) -> None:
        self.label_types = {"pitch": int}
        self.durations_s, self.broken = durations_s, broken

    def clips(self) -> list[Clip]:
        return [Clip(id, "test", f"{id}.wav", {"pitch": 60}) for id in sorted(self.durations_s)]

    def audio(self, clip: Clip) -> Samples:
        if clip.id in self.broken:
            raise AudioError("empty file (0 bytes)")
        num_samples = round(self.durations_s[clip.id] * 16000)
        return Samples(np.arange(num_samples, dtype=np.float32)[None] / 2**21, 16000)


@given(st.integers(1, 500), st.integers(1, 100), st.integers(1, 8), st.integers(0, 99))
def test_crops_lie_inside_and_do_not_overlap(num_samples: int, size: int, max_crops: int, seed: int):
    samples = np.arange(num_samples, dtype=np.float32)[None]
    found = crops(samples, size, max_crops, np.random.default_rng(seed))
    covered = np.concatenate([crop[0] for crop in found])
    assert len(set(covered)) == len(covered)
    assert 1 <= len(found) <= max_crops
    if num_samples > size:
        assert len(found) == min(max_crops, num_samples // size)
        assert all(crop.shape == (1, size) and (np.diff(crop) == 1).all() for crop in found)
    else:
        np.testing.assert_array_equal(found[0], samples)


def read(corpus: RampCorpus, codec: object, max_clips: int, skipped: list[Skipped], seed: int = 0) -> ClipSet:
    return real_clips(
        corpus,
        split_clips(corpus, "test", seed),
        codec,
        set_name="reference",
        duration_s=0.1,
        max_clips=max_clips,
        seed=seed,
        skipped=skipped,
    )


def test_long_files_give_several_crops(coarse_codec: object):
    clips = read(RampCorpus({"long": 60.0, "longer": 90.0}), coarse_codec, 20, [])
    assert len(clips) == 20
    assert clips.names.count("long") == 10
    assert {audio.shape for audio in clips.audio} == {(1, 1600)}


def test_many_files_give_one_crop_each_and_the_seed_chooses(coarse_codec: object):
    corpus = RampCorpus({f"{i:03d}": 0.3 for i in range(50)})
    clips, again, other = (read(corpus, coarse_codec, 10, [], seed) for seed in (0, 0, 1))
    assert len(set(clips.names)) == 10
    assert clips.names == again.names != other.names
    assert [audio[0, 0] for audio in clips.audio] == [audio[0, 0] for audio in again.audio]


def test_the_choice_does_not_depend_on_what_else_there_is():
    clips = RampCorpus({f"{i:03d}": 0.3 for i in range(50)}).clips()
    chosen = [clip.id for clip in choose(clips, 3)]
    assert [clip.id for clip in choose(clips[::-1], 3)] == chosen
    assert [clip.id for clip in choose(clips[:20], 3)] == [id for id in chosen if id < "020"]


def test_short_files_stay_whole_and_broken_ones_are_noted(coarse_codec: object):
    skipped: list[Skipped] = []
    clips = read(RampCorpus({"a": 0.06, "b": 0.2, "c": 0.2}, broken=("b",)), coarse_codec, 8, skipped)
    assert sorted(audio.shape[1] for audio in clips.audio) == [960, 1600, 1600]
    assert skipped == [Skipped("reference", "b.wav", "empty file (0 bytes)")]


def test_generated_clips(tmp_path: Path, coarse_codec: object, tone: SimpleNamespace):
    write_wav(tmp_path / "00000.wav", tone.at(60), 16000)
    write_wav(tmp_path / "00001.wav", np.zeros((1, 800), np.float32), 16000)
    (tmp_path / "00002.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "00004.wav", np.full(800, np.nan), 16000, subtype="FLOAT")
    rows = [{"file": f"{i:05d}.wav", "labels": {"pitch": 60 + i}} for i in range(6)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipped: list[Skipped] = []
    clips = generated_clips(tmp_path, coarse_codec, set_name="generated", max_clips=5, skipped=skipped)
    # Silence is what the model made, and is scored; files that are broken or missing cannot be.
    assert clips.names == ["00000.wav", "00001.wav"]
    assert clips.labels == [{"pitch": 60}, {"pitch": 61}]
    np.testing.assert_allclose(clips.audio[0], tone.at(60), atol=1e-4)
    assert [skip.clip for skip in skipped] == ["00002.wav", "00003.wav", "00004.wav"]
    assert skipped[2].reason == "contains NaN or infinite samples"


def test_reconstruction_keeps_lengths_and_order(coarse_codec: object):
    levels = [0.25, -0.5, 0.125, 0.75]
    clips = ClipSet()
    for index, (level, num_samples) in enumerate(zip(levels, (1600, 1000, 1600, 1), strict=True)):
        clips.add(np.full((1, num_samples), level, np.float32), {}, str(index))
    decoded = reconstruct(coarse_codec, clips)
    assert decoded.names == clips.names
    for original, copy in zip(clips.audio, decoded.audio, strict=True):
        assert copy.shape == original.shape
        assert copy[0, 0] == pytest.approx(original[0, 0], abs=1e-2 if original.shape[1] > 1 else 1.0)


def test_noise_has_the_lengths_and_the_loudness_of_the_clips():
    clips = ClipSet()
    for rms, num_samples in ((0.1, 20000), (0.3, 10000)):
        clips.add(np.full((2, num_samples), rms, np.float32), {}, "x")
    noise = white_noise(clips, seed=0)
    assert [audio.shape for audio in noise.audio] == [audio.shape for audio in clips.audio]
    assert [float(np.sqrt(np.mean(audio**2))) for audio in noise.audio] == pytest.approx([0.2, 0.2], rel=0.02)
    np.testing.assert_array_equal(noise.audio[0], white_noise(clips, seed=0).audio[0])
    assert (noise.audio[0] != white_noise(clips, seed=1).audio[0]).any()
