"""Loudness measured in blocks is pyloudnorm's of the whole."""

import numpy as np
import pyloudnorm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.loudness import LoudnessMeter


def measure(samples, sample_rate, cuts=()):
    meter = LoudnessMeter(sample_rate, len(samples))
    for block in np.split(samples, sorted(cuts), axis=1):
        meter.add(block)
    return meter.integrated_lufs()


def uneven_noise(channels, num_samples, rng):
    """Noise whose level jumps between full scale and -90 dB, so that both gates have work to do."""
    levels_db = np.repeat(rng.uniform(-90.0, 0.0, num_samples // 1000 + 1), 1000)[:num_samples]
    return rng.uniform(-1.0, 1.0, (channels, num_samples)) * 10.0 ** (levels_db / 20.0)


@settings(deadline=None, max_examples=60)
@given(
    sample_rate=st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000]),
    channels=st.integers(1, 5),
    duration_s=st.floats(0.41, 4.0),
    num_cuts=st.integers(0, 6),
    seed=st.integers(0, 10_000),
)
def test_blocks_of_any_length_measure_what_pyloudnorm_does(sample_rate, channels, duration_s, num_cuts, seed):
    rng = np.random.default_rng(seed)
    samples = uneven_noise(channels, round(duration_s * sample_rate), rng)
    cuts = rng.integers(0, samples.shape[1] + 1, num_cuts)
    expected = pyloudnorm.Meter(sample_rate).integrated_loudness(samples.T)
    assert measure(samples, sample_rate, cuts) == pytest.approx(expected, abs=1e-6)


def test_a_calibrated_tone():
    """BS.1770-4: a full-scale sine of 997 Hz in one channel is -3.01 LUFS; meters may be 0.1 LU off."""
    tone = np.sin(2 * np.pi * 997.0 * np.arange(48000 * 2) / 48000)[None]
    assert measure(tone, 48000) == pytest.approx(-3.01, abs=0.1)
    assert measure(np.repeat(tone, 2, axis=0), 48000) == pytest.approx(0.0, abs=0.1)


def test_what_has_no_loudness():
    assert measure(np.zeros((2, 8000)), 16000) == -np.inf
    with pytest.raises(ValueError, match=r"from 0\.4 s on, not for 6399 samples"):
        measure(np.ones((1, 6399)), 16000)
    with pytest.raises(ValueError, match="1 to 5 channels, not 6"):
        LoudnessMeter(16000, 6)
