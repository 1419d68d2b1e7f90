"""The synthesised corpus: reproducible, split by instrument, in tune."""

import dataclasses
import subprocess
import sys
from collections import defaultdict

import librosa
import numpy as np
import pytest

from tokkata.core.errors import UserError
from tokkata.core.schema_corpora import SynthCorpus
from tokkata.tokenize.corpora.synth import FAMILIES, VELOCITIES, Synth, Timbre, pitch_to_hz, render_note
from tokkata.tokenize.corpus import read_clip

RATE = 16000


def corpus(**settings):
    return Synth(SynthCorpus(kind="synth", **{"num_clips": 60, "duration_s": 0.5, **settings}))


def read(synth, index, sample_rate=RATE, channels=1):
    return read_clip(synth, synth.clip(index), sample_rate, channels)


def test_the_same_seed_gives_the_same_clips():
    one, other = corpus(seed=3), corpus(seed=3)
    assert one.clips() == other.clips()
    for clip in one.clips()[:12]:
        first, second = read_clip(one, clip, RATE, 1), read_clip(other, clip, RATE, 1)
        assert first.sha256 == second.sha256
        np.testing.assert_array_equal(first.samples, second.samples)


@pytest.mark.parametrize("seed", [1, -1])
def test_another_seed_gives_other_clips(seed):
    hashes = {read(synth, i).sha256 for synth in (corpus(), corpus(seed=seed)) for i in range(6)}
    assert len(hashes) == 12


def test_a_clip_made_alone_equals_the_clip_in_the_whole():
    whole = corpus()
    hashes = [read_clip(whole, clip, RATE, 1).sha256 for clip in whole.clips()[:10]]
    alone = corpus(num_clips=8)
    assert read(alone, 7).sha256 == hashes[7]
    assert alone.clips() == whole.clips()[:8]


def test_samples_do_not_depend_on_the_number_of_threads():
    program = (
        "from tokkata.core.schema_corpora import SynthCorpus\n"
        "from tokkata.tokenize.corpora.synth import Synth\n"
        "from tokkata.tokenize.corpus import read_clip\n"
        "synth = Synth(SynthCorpus(kind='synth', num_clips=12, duration_s=0.5))\n"
        "print([read_clip(synth, clip, 16000, 1).sha256 for clip in synth.clips()])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == str([read(corpus(), index).sha256 for index in range(12)])


def test_ids_are_sorted_and_labels_are_typed():
    synth = corpus(num_clips=200, pitch_min=50, pitch_max=52)
    clips = synth.clips()
    assert [clip.id for clip in clips] == sorted({clip.id for clip in clips})
    for clip in clips:
        assert {name: type(value) for name, value in clip.labels.items()} == synth.label_types
        assert clip.labels["instrument"].startswith(clip.labels["instrument_family"])
    assert {clip.labels["pitch"] for clip in clips} == {50, 51, 52}
    assert {clip.labels["velocity"] for clip in clips} == set(VELOCITIES)
    assert {clip.labels["form"] for clip in clips} == {"note", "phrase", "chord"}
    assert {clip.labels["form"] for clip in corpus(forms=["chord"]).clips()} == {"chord"}
    few = corpus(num_clips=200, families=["organ", "reed"])
    assert {clip.labels["instrument_family"] for clip in few.clips()} == {"organ", "reed"}


def test_no_instrument_is_in_two_splits_and_every_family_is_in_all():
    splits_of_instrument, splits_of_family = defaultdict(set), defaultdict(set)
    for clip in corpus(num_clips=2000).clips():
        splits_of_instrument[clip.labels["instrument"]].add(clip.split)
        splits_of_family[clip.labels["instrument_family"]].add(clip.split)
    assert len(splits_of_instrument) == 6 * 20
    assert all(len(splits) == 1 for splits in splits_of_instrument.values())
    assert splits_of_family == {family: {"train", "valid", "test"} for family in FAMILIES}


def test_a_tiny_corpus_has_every_split():
    assert {clip.split for clip in corpus(num_clips=7).clips()} == {"train", "valid", "test"}


@pytest.mark.parametrize("duration_s", [0.05, 0.33337, 2.0])
@pytest.mark.parametrize("form", ["note", "phrase", "chord"])
def test_duration_is_exact_and_the_end_is_silent(duration_s, form):
    synth = corpus(duration_s=duration_s, forms=[form])
    for index in range(6):
        samples = read(synth, index).samples
        assert samples.shape == (1, round(duration_s * RATE))
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert np.abs(samples[:, -2:]).max() < 1e-3


def test_velocity_is_the_peak():
    synth = corpus()
    for clip in synth.clips()[:20]:
        peak = np.abs(read_clip(synth, clip, RATE, 1).samples).max()
        assert peak == pytest.approx(0.2 + 0.7 * (clip.labels["velocity"] - 25) / 102, abs=1e-6)


def test_other_rates_and_channels():
    synth = corpus()
    mono, stereo = read(synth, 5), read(synth, 5, 24000, 2)
    assert stereo.samples.shape == (2, 12000)
    assert stereo.sha256 == mono.sha256
    np.testing.assert_array_equal(stereo.samples[0], stereo.samples[1])
    # Both hold the same sound: equal energy a second.
    assert np.mean(stereo.samples**2) == pytest.approx(np.mean(mono.samples**2), rel=0.01)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_notes_are_in_tune(family):
    synth = corpus(forms=["note"], num_clips=400, duration_s=0.6)
    clips = [clip for clip in synth.clips() if clip.labels["instrument_family"] == family][:3]
    assert len(clips) == 3
    for clip in clips:
        samples = read_clip(synth, clip, RATE, 1).samples[0]
        hz, voiced, _ = librosa.pyin(
            samples, fmin=60, fmax=1000, sr=RATE, frame_length=1024, hop_length=512, resolution=0.2
        )
        heard = 69 + 12 * np.log2(np.median(hz[voiced]) / 440)
        assert heard == pytest.approx(clip.labels["pitch"], abs=0.5), clip.source


def test_louder_notes_are_brighter():
    synth = corpus(forms=["note"])
    timbre = synth._timbre("keys_000")
    centroids = []
    for velocity in VELOCITIES:
        note = render_note(timbre, 60, velocity, 0.4, RATE, np.random.default_rng(0))
        power = np.abs(np.fft.rfft(note)) ** 2
        centroids.append((power * np.arange(len(power))).sum() / power.sum())
    assert centroids == sorted(centroids)
    assert centroids[-1] > 1.2 * centroids[0]


@pytest.mark.parametrize("decay_s", [None, np.full(16, 30.0)], ids=["sustained", "struck"])
def test_nothing_folds_back_at_nyquist(decay_s):
    """Sixteen equal harmonics of 660 Hz at a rate of 8 kHz: only the five below 4 kHz may be there."""
    timbre = Timbre(
        np.arange(1, 17), np.ones(16), attack_s=0.05, release_s=0.05, soft_tilt=0, decay_s=decay_s
    )
    note = render_note(timbre, 76, 127, 0.95, 8000, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(note * np.hanning(len(note)))) ** 2
    hz = np.fft.rfftfreq(len(note), 1 / 8000)
    harmonic = np.round(hz / pitch_to_hz(76))
    inside = (np.abs(hz - harmonic * pitch_to_hz(76)) < 20) & (harmonic >= 1) & (harmonic <= 5)
    assert power[~inside].sum() < 1e-4 * power.sum()
    assert all(power[inside & (harmonic == k)].sum() > 0.1 * power.sum() for k in range(1, 6))


def test_a_clip_of_a_few_samples_is_refused():
    with pytest.raises(UserError, match=r"data\.duration_s 0\.001 is below 0\.05"):
        corpus(duration_s=0.001)


def test_a_pitch_above_nyquist_is_refused():
    with pytest.raises(UserError, match=r"data\.pitch_max 108 .* data\.sample_rate_hz 8000"):
        corpus(pitch_max=108, sample_rate_hz=8000)
    highest = corpus(pitch_min=105, pitch_max=106, sample_rate_hz=8000)  # chords go beyond: they are folded
    for index in range(12):
        assert np.abs(read(highest, index, 8000).samples).max() >= 0.19


@pytest.mark.parametrize("family", FAMILIES)
def test_oscillators_start_with_the_note_unless_told_otherwise(family: str) -> None:
    timbre = dataclasses.replace(FAMILIES[family](np.random.default_rng(3)), noise=0.0, vibrato_cents=0.0)

    def played(seed: int, random_phase: bool) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return render_note(timbre, 60, 100, 0.5, 16000, rng, random_phase=random_phase)

    np.testing.assert_array_equal(played(0, False), played(1, False))
    assert np.abs(played(0, True) - played(1, True)).max() > 0.1
