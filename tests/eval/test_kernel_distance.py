import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from tokkata.eval import kernel_distance as module
from tokkata.eval import pairwise
from tokkata.eval.bootstrap import draw_counts
from tokkata.eval.kernel_distance import kernel_distance, kernel_sums, median_distance


def published(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """The unbiased estimate as a formula over all pairs, with kadtk's factor."""

    def mean_off_diagonal(z: np.ndarray) -> float:
        kernel = np.exp(-cdist(z, z, "sqeuclidean") / (2.0 * bandwidth**2))
        return float((kernel.sum() - np.trace(kernel)) / (len(z) * (len(z) - 1)))

    across = np.exp(-cdist(x, y, "sqeuclidean") / (2.0 * bandwidth**2)).mean()
    return 100.0 * (mean_off_diagonal(x) + mean_off_diagonal(y) - 2.0 * across)


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(2, 30), st.integers(1, 8), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_is_the_published_formula_in_blocks_of_any_size(seed, num, num_reference, width, block):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(num, width)), 1.5 * rng.normal(size=(num_reference, width)) + 100.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise, "BLOCK", block)
        assert kernel_distance(x, y, 2.0) == pytest.approx(published(x, y, 2.0), rel=1e-9, abs=1e-9)


def test_bandwidth_is_the_median_of_the_references_distances(monkeypatch: pytest.MonkeyPatch):
    reference = np.random.default_rng(0).normal(size=(300, 5))
    exact = median_distance(reference, seed=0)
    assert exact == pytest.approx(np.median(pdist(reference)), rel=1e-12)
    monkeypatch.setattr(module, "MAX_BANDWIDTH_FRAMES", 150)
    assert median_distance(reference, seed=0) == pytest.approx(exact, rel=0.03)
    assert median_distance(reference, seed=0) == median_distance(reference, seed=0)


def test_is_unbiased_where_the_sets_come_from_one_distribution():
    rng = np.random.default_rng(1)
    values = [kernel_distance(rng.normal(size=(12, 6)), rng.normal(size=(40, 6)), 3.0) for _ in range(400)]
    assert abs(np.mean(values)) < 4.0 * np.std(values) / 20.0
    assert min(values) < 0.0


def test_resamples_are_the_sets_that_they_stand_for_without_pairs_of_a_frame_with_itself():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(20, 3))
    groups = np.repeat(np.arange(4), 3)
    counts = draw_counts(4, seed=0, num_resamples=5)
    found = kernel_sums(x, y, groups, 1.7).distances(counts)
    for value, row in zip(found, counts.astype(int), strict=True):
        chosen = np.repeat(np.arange(12), row[groups])
        kernel = np.exp(-cdist(x[chosen], x[chosen], "sqeuclidean") / (2.0 * 1.7**2))
        different = chosen[:, None] != chosen[None]
        of_reference = np.exp(-cdist(y, y, "sqeuclidean") / (2.0 * 1.7**2))
        across = np.exp(-cdist(x[chosen], y, "sqeuclidean") / (2.0 * 1.7**2)).mean()
        between = (of_reference.sum() - 20) / (20 * 19)
        assert value == pytest.approx(100.0 * (kernel[different].mean() + between - 2.0 * across), rel=1e-9)


def test_too_small_or_too_equal_sets():
    with pytest.raises(ValueError, match="the generated set has 1"):
        kernel_distance(np.ones((1, 2)), np.ones((3, 2)), 1.0)
    with pytest.raises(ValueError, match="at least 2 reference frames, there are 1"):
        median_distance(np.ones((1, 2)), seed=0)
    with pytest.raises(ValueError, match="most frames of the reference are equal"):
        median_distance(np.ones((5, 2)), seed=0)
    with pytest.raises(ValueError, match="width 3 cannot be compared with embeddings of width 2"):
        kernel_distance(np.ones((4, 3)), np.ones((5, 2)), 1.0)
