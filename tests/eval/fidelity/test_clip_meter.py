"""Figures of a clip, in pieces as in whole.

Shapes: C channels, N samples.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.eval.fidelity.clip_meter import ClipMeter, in_pieces
from tokkata.tokenize.fidelity import MelDistance, StftDistance, si_sdr

RATE = 16000


def noise(channels, num_samples, seed):
    samples = np.random.default_rng(seed).standard_normal((channels, num_samples))
    return (0.1 * samples + 0.05).astype(np.float32)


@given(cuts=st.lists(st.integers(1, 4999), max_size=4, unique=True), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_ratio_of_pieces_is_that_of_the_whole(cuts, seed):
    original = noise(1, 5000, seed)
    decoded = 0.5 * original + 0.02 * noise(1, 5000, seed + 100)
    meter = ClipMeter(RATE)
    for a, b in zip(np.split(decoded, sorted(cuts), 1), np.split(original, sorted(cuts), 1), strict=True):
        meter.add(a, b)
    whole = float(si_sdr(torch.from_numpy(decoded).double(), torch.from_numpy(original).double()))
    assert meter.scores().si_sdr_db == pytest.approx(whole, abs=1e-6)


def test_channels_make_one_ratio_and_each_loses_its_own_mean():
    original = noise(2, 4000, 0)
    error = noise(2, 4000, 1)
    error -= error.mean(axis=1, keepdims=True)
    centred = original - original.mean(axis=1, keepdims=True)
    error -= (error * centred).sum() / (centred**2).sum() * centred
    error *= 0.01 * np.linalg.norm(centred) / np.linalg.norm(error)
    meter = ClipMeter(RATE)
    meter.add((original + error + np.array([[0.3], [-0.2]])).astype(np.float32), original)
    assert meter.scores().si_sdr_db == pytest.approx(40.0, abs=1e-2)


def test_a_short_clip_is_one_piece_with_the_distances_of_the_whole():
    original, decoded = noise(2, 5000, 0), noise(2, 5000, 1)
    meter = ClipMeter(RATE)
    meter.add(decoded, original)
    estimate, reference = torch.from_numpy(decoded)[None], torch.from_numpy(original)[None]
    assert meter.scores().mel_distance == pytest.approx(float(MelDistance(RATE)(estimate, reference)))
    assert meter.scores().stft_distance == pytest.approx(float(StftDistance(RATE)(estimate, reference)))


def test_pieces_count_by_their_length():
    original, decoded = noise(1, 9000, 0), noise(1, 9000, 1)
    decoded[:, 6000:] = original[:, 6000:]
    meter, first = ClipMeter(RATE), ClipMeter(RATE)
    first.add(decoded[:, :6000], original[:, :6000])
    meter.add(decoded[:, :6000], original[:, :6000])
    meter.add(decoded[:, 6000:], original[:, 6000:])
    assert meter.scores().mel_distance == pytest.approx(2 / 3 * first.scores().mel_distance)
    assert meter.scores().stft_distance == pytest.approx(2 / 3 * first.scores().stft_distance)


@pytest.mark.parametrize("num_samples", [1, 31, 700])
def test_no_clip_is_too_short_or_perfect_for_finite_figures(num_samples):
    original = noise(1, num_samples, 0)
    meter = ClipMeter(RATE)
    meter.add(original, original)
    scores = meter.scores()
    assert (scores.mel_distance, scores.stft_distance) == (0.0, 0.0)
    assert np.isfinite(scores.si_sdr_db)
    silent = ClipMeter(RATE)
    silent.add(np.zeros_like(original), original)
    assert np.isfinite(silent.scores().si_sdr_db)


@given(
    sizes=st.lists(st.integers(0, 40), max_size=8),
    length=st.integers(1, 30),
    num_samples=st.integers(1, 120),
    channels=st.integers(1, 2),
)
def test_pieces_hold_every_sample_once(sizes, length, num_samples, channels):
    whole = np.arange(channels * sum(sizes), dtype=np.float32).reshape(channels, -1) + 1
    blocks = np.split(whole, np.cumsum(sizes)[:-1], axis=1) if sizes else []
    pieces = list(in_pieces(blocks, length, num_samples))
    assert all(piece.shape[1] == length for piece in pieces[:-1])
    joined = np.concatenate(pieces, axis=1)
    kept = min(num_samples, whole.shape[1])
    assert joined.shape[1] == num_samples
    np.testing.assert_array_equal(joined[:, :kept], whole[:, :kept] if kept else joined[:, :0])
    assert not joined[:, kept:].any()
