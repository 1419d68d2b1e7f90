"""Inputs on which other tools fail, and what the published formulas say where they do not."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.eval.bootstrap import draw_counts
from tokkata.eval.frechet import (
    GaussianStats,
    frechet_distance,
    frechet_distance_infinity,
    frechet_distance_per_clip,
)
from tokkata.eval.frechet_groups import GroupedMoments, fitting_groups


def gaussian(mean: np.ndarray, covariance: np.ndarray, num: int = 10**9) -> GaussianStats:
    return GaussianStats(num, mean, covariance * (num - 1))


def decaying(seed: int, num: int, width: int, power: float = 0.5) -> np.ndarray:
    """Frames whose variances fall with the dimension, as those of embeddings do, in a random basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return (rng.normal(size=(num, width)) * np.arange(1, width + 1) ** -power) @ basis + rng.normal(
        size=width
    )


def by_matrix_root(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as it is published, with scipy's square root of a matrix."""
    first, second = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(first @ second)
    delta = x.mean(axis=0) - y.mean(axis=0)
    return float(delta @ delta + np.trace(first) + np.trace(second) - 2.0 * np.trace(root).real)


def by_eigenvectors(x: np.ndarray, y: np.ndarray) -> float:
    """The same with V √D V⁻¹ as the root, which is fadtk's way."""
    first, second = np.cov(x.T), np.cov(y.T)
    values, vectors = np.linalg.eig(first @ second)
    root = (vectors * np.sqrt(values.astype(complex))) @ np.linalg.inv(vectors)
    delta = x.mean(axis=0) - y.mean(axis=0)
    return float(delta @ delta + np.trace(first) + np.trace(second) - 2.0 * np.trace(root).real)


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(GaussianStats.from_embeddings(x), GaussianStats.from_embeddings(y))


@pytest.mark.parametrize(("num", "width", "power"), [(300, 8, 0.0), (600, 128, 0.5), (900, 256, 1.0)])
def test_agrees_with_the_published_formulas(num: int, width: int, power: float):
    x, y = decaying(0, num, width, power), decaying(1, num + 50, width, power)
    ours = distance(x, y)
    assert ours == pytest.approx(by_matrix_root(x, y), rel=1e-8)
    assert ours == pytest.approx(by_eigenvectors(x, y), rel=1e-8)


def test_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    x, y = decaying(2, 600, 64), decaying(3, 500, 64)
    features = torch.nn.Identity()
    features.num_features = 64
    theirs = fid.FrechetInceptionDistance(feature=features)
    theirs.update(torch.from_numpy(x), real=True)
    theirs.update(torch.from_numpy(y), real=False)
    assert distance(x, y) == pytest.approx(float(theirs.compute()), rel=1e-8)


def test_means_apart_in_2048_dimensions():
    """‖Δμ‖² = 2048; the sets differ in nothing else, and each has but 100 frames."""
    x = np.random.default_rng(4).normal(size=(100, 2048))
    assert distance(x, x + 1.0) == pytest.approx(2048.0, rel=1e-9)


def test_few_frames_in_many_dimensions_make_no_large_matrix():
    stats = GaussianStats.from_embeddings(decaying(5, 100, 512))
    frechet_distance(stats, stats)
    assert stats.rows is not None
    assert stats.rows.shape == (99, 512)
    assert "m2" not in vars(stats)


@given(st.integers(0, 500), st.integers(2, 12), st.integers(2, 40), st.integers(2, 10))
@settings(max_examples=60, deadline=None)
def test_rank_of_the_sets_makes_no_difference(seed: int, num: int, other_num: int, width: int):
    """Sets of any rank on either side agree with the nuclear norm of their centred frames."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(num, width)), 2.0 * rng.normal(size=(other_num, width)) + 1.0
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    trace = np.linalg.norm(centred_x @ centred_y.T, "nuc") / np.sqrt((num - 1) * (other_num - 1))
    spread = np.sum(centred_x**2) / (num - 1) + np.sum(centred_y**2) / (other_num - 1)
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + spread - 2.0 * trace
    assert distance(x, y) == pytest.approx(expected, rel=1e-9, abs=1e-10 * spread)


def test_near_singular_covariances_have_their_closed_form():
    width = 48
    basis = np.linalg.qr(np.random.default_rng(6).normal(size=(width, width)))[0]
    first, second = np.logspace(0, -15, width), np.logspace(0.3, -15, width)
    a = gaussian(np.zeros(width), (basis * first) @ basis.T)
    b = gaussian(np.zeros(width), (basis * second) @ basis.T)
    expected = np.sum((np.sqrt(first) - np.sqrt(second)) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-8 * (a.variance() + b.variance()))


def test_dimensions_that_never_vary():
    """As of units that are always off: rows of zeros in the covariance, or of rounding errors."""
    x, y = decaying(7, 200, 16), decaying(8, 200, 16)
    off = np.zeros((200, 4))
    still = np.full((200, 3), 0.1)
    padded = distance(np.hstack([x, off, still]), np.hstack([y, off, still]))
    assert padded == pytest.approx(distance(x, y), rel=1e-9)


def test_half_precision_is_widened_first():
    """Sums of squares of 300 overflow float16; these embeddings are exact in it."""
    rng = np.random.default_rng(9)
    x, y = (rng.integers(-300, 300, size=(400, 12)) for _ in range(2))
    assert distance(x.astype(np.float16), y.astype(np.float16)) == distance(x, y)


def test_clips_of_one_frame():
    clips = list(decaying(10, 300, 4)[:, None])
    reference = GaussianStats.from_embeddings(decaying(11, 300, 4))
    merged = GaussianStats.from_embeddings(clips[0])
    for clip in clips[1:]:
        merged = merged.update(clip)
    assert frechet_distance(merged, reference) == pytest.approx(
        distance(np.concatenate(clips), decaying(11, 300, 4)), rel=1e-9
    )
    assert frechet_distance_per_clip(clips[:2], reference) == [None, None]


def test_each_clip_alone():
    clips = [decaying(seed, num, 24) for seed, num in ((12, 5), (13, 24), (14, 25), (15, 90))]
    reference = decaying(16, 400, 24)
    found = frechet_distance_per_clip(clips, GaussianStats.from_embeddings(reference))
    assert found == pytest.approx([distance(clip, reference) for clip in clips], rel=1e-12)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_pieces_with_fewer_frames_than_dimensions_merge_to_the_whole(data: st.DataObject):
    x = decaying(data.draw(st.integers(0, 1000)), data.draw(st.integers(2, 40)), 12)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=8)))
    merged = GaussianStats.from_embeddings(x[:0])
    for piece in np.split(x, cuts):
        merged = merged.update(piece)
    assert merged.num == len(x)
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance(), np.cov(x.T), atol=1e-12)
    assert merged.variance() == pytest.approx(np.trace(np.cov(x.T)), rel=1e-12)


def test_scatter_is_given_once():
    with pytest.raises(ValueError, match="either by m2 or by rows"):
        GaussianStats(3, np.zeros(2))


@pytest.mark.parametrize(
    ("num_clips", "num_frames", "width", "num_reference"),
    [(12, 30, 6, 200), (12, 2, 40, 200), (12, 2, 40, 20), (12, 30, 40, 20)],
)
def test_weighted_groups_are_the_sets_that_they_stand_for(
    num_clips: int, num_frames: int, width: int, num_reference: int
):
    """With more and fewer frames than dimensions on either side."""
    clips = list(decaying(17, num_clips * num_frames, width).reshape(num_clips, num_frames, width))
    reference = GaussianStats.from_embeddings(decaying(18, num_reference, width))
    counts = draw_counts(num_clips, seed=0, num_resamples=6)
    found = GroupedMoments(reference, clips, np.arange(num_clips)).distances(counts)
    expected = [
        frechet_distance(
            GaussianStats.from_embeddings(
                np.concatenate([clips[i] for i in np.repeat(range(num_clips), row)])
            ),
            reference,
        )
        for row in counts.astype(int)
    ]
    assert found == pytest.approx(expected, rel=1e-7)


def test_groups_that_leave_one_frame_are_refused():
    reference = GaussianStats.from_embeddings(decaying(19, 20, 3))
    moments = GroupedMoments(reference, [np.ones((1, 3)), np.zeros((2, 3))], np.array([0, 1]))
    with pytest.raises(ValueError, match="at least 2 embedding frames, there are 1"):
        moments.distances(np.array([[1.0, 0.0]]))
    with pytest.raises(ValueError, match="width 4 cannot be compared with embeddings of width 3"):
        GroupedMoments(reference, [np.ones((2, 4))], np.array([0]))


def test_groups_fit_into_memory():
    assert fitting_groups(100, 512) == 100
    assert fitting_groups(100, 2048) == 20
    assert fitting_groups(5, 4096) == 5


@pytest.mark.parametrize("scale", [1.0, 0.07])
def test_bias_is_extrapolated_away_in_128_dimensions(scale: float):
    """True distance 0, 5000 frames: the bias is 0.85 of the scale, and what is left of it below 0.05."""
    width = 128
    reference = gaussian(np.zeros(width), scale * np.eye(width))
    clips = list(np.sqrt(scale) * np.random.default_rng(20).normal(size=(500, 10, width)))
    line = frechet_distance_infinity(reference, clips, seed=0)
    assert line.distances[-1] == pytest.approx(0.853 * scale, rel=0.03)
    assert abs(line.value) < 0.05 * scale
    assert line.r2 > 0.99


@pytest.mark.parametrize("power", [0.5, 1.5, 2.0, 3.0, 4.0])
def test_fast_and_exact_way_agree(power: float, monkeypatch: pytest.MonkeyPatch):
    """Condition numbers from 100 to 1e16 or so."""
    x, y = decaying(21, 400, 64, power), decaying(22, 400, 64, power)
    fast = distance(x, y)
    monkeypatch.setattr("tokkata.eval.frechet.MAX_ROOT_ERROR", -1.0)
    assert fast == pytest.approx(distance(x, y), rel=1e-11)
