"""Chroma: that of transformers' extractor for MusicGen's melody model, in windows as of the whole."""

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MusicgenMelodyFeatureExtractor

from tokkata.core.schema_features import MelodyFeature
from tokkata.tokenize.features.feature import load_feature, load_feature_from_info
from tokkata.tokenize.features.melody import SAMPLE_RATE

FFT, HOP = 16384, 4096


@pytest.fixture(scope="module")
def melody():
    return load_feature(MelodyFeature(kind="melody"))


@pytest.fixture(scope="module")
def extractor():
    return MusicgenMelodyFeatureExtractor()


def music(num_samples, seed=0):
    """Notes of a third of a second with two overtones and some noise, `[1, 1, N]`."""
    rng = np.random.default_rng(seed)
    frequencies = 440 * 2 ** (rng.integers(-24, 24, num_samples // 10000 + 1) / 12)
    phase = np.cumsum(np.repeat(frequencies, 10000)[:num_samples]) * 2 * np.pi / SAMPLE_RATE
    samples = sum(np.sin(k * phase) / k for k in (1, 2, 3)) / 4 + 0.02 * rng.normal(size=num_samples)
    return torch.from_numpy(samples.astype(np.float32))[None, None]


@pytest.mark.parametrize("num_samples", [1, 5000, FFT - 1, FFT, FFT + 1, 10 * HOP, 300_000, 960_000])
def test_frames_are_those_of_transformers(melody, extractor, num_samples):
    audio = music(num_samples)
    theirs = extractor(audio[0, 0].numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    ours = melody.encode_audio(audio, SAMPLE_RATE)[0]
    assert torch.equal(ours, theirs[0])


def test_thirty_seconds_are_musicgens_length(melody):
    frames = melody.encode_audio(music(30 * SAMPLE_RATE), SAMPLE_RATE)[0]
    assert frames.shape == (235, 12)
    assert (frames.sum(dim=1) == 1).all()


def test_filters_are_librosas(melody):
    """Which audiocraft takes them from."""
    wanted = librosa.filters.chroma(sr=SAMPLE_RATE, n_fft=FFT, tuning=0, n_chroma=12)
    np.testing.assert_allclose(melody._filters.numpy(), wanted, atol=1e-6)


def test_the_windows_of_a_long_clip_change_nothing(melody, extractor):
    for num_samples in (20 * SAMPLE_RATE, 20 * SAMPLE_RATE + 1, 2_601_000):
        audio = music(num_samples, seed=num_samples)
        windows = melody.plan(num_samples)
        ours = melody.encode_audio(audio, SAMPLE_RATE)[0]
        assert torch.equal(ours, extractor._torch_extract_fbank_features(audio[0])[0])
    assert len(windows) == 5


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5_000_000))
def test_windows_hold_what_their_frames_hear(melody, num_samples):
    windows = melody.plan(num_samples)
    frame = 0
    for window in windows:
        start, end = window.start, window.start + window.num_samples
        assert start == (frame - window.drop_frames) * HOP
        for kept in (frame, frame + window.keep_frames - 1):
            assert start <= max(0, kept * HOP - FFT // 2)
            assert end >= min(num_samples, kept * HOP + FFT // 2)
        assert end <= num_samples
        assert window.num_samples >= min(FFT, num_samples)
        assert not window.pad_samples
        frame += window.keep_frames
    assert frame == (num_samples if num_samples >= FFT else FFT) // HOP + 1


@pytest.mark.parametrize(("midi", "pitch_class"), [(60, 0), (69, 9), (71, 11), (85, 1)])
def test_a_note_is_its_pitch_class(melody, midi, pitch_class):
    """Resampled from another rate, and mixed from two channels."""
    t = torch.arange(44100) / 44100
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * 2 ** ((midi - 69) / 12) * t)
    frames = melody.encode_audio(torch.stack([tone, 0.5 * tone])[None], 44100)[0]
    assert (frames.argmax(dim=1) == pitch_class).all()


def test_what_it_tells_of_itself(melody):
    info = melody.info
    assert (info.kind, info.dim, info.frame_rate, info.encoder) == ("melody", 12, 7.8125, None)
    assert (info.sample_rate, info.channels) == (32000, 1)
    assert load_feature_from_info(info).info == info


def test_audio_of_other_shapes_is_refused(melody):
    for shape in ((1000,), (1, 1000), (1, 1, 0)):
        with pytest.raises(ValueError, match=r"audio \[B, C, N\] expected"):
            melody.encode_audio(torch.zeros(shape), SAMPLE_RATE)
