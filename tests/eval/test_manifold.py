import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from tokkata.eval import pairwise
from tokkata.eval.bootstrap import draw_counts
from tokkata.eval.manifold import manifold_scores, neighbour_radii, overlap


def definitions(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """The four scores of generated `x` and reference `y` as the papers define them, over all pairs."""
    radii = np.sort(cdist(y, y), axis=1)[:, k]
    own = np.sort(cdist(x, x), axis=1)[:, k]
    across = cdist(y, x)
    inside = across <= radii[:, None]
    return (
        inside.any(axis=0).mean(),
        (across <= own[None]).any(axis=1).mean(),
        inside.sum(axis=0).mean() / k,
        inside.any(axis=1).mean(),
    )


@given(st.integers(0, 1000), st.integers(7, 30), st.integers(7, 30), st.integers(1, 5), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_are_the_published_definitions_in_blocks_of_any_size(seed, num, num_reference, k, block):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(num, 3)), rng.normal(size=(num_reference, 3)) + 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise, "BLOCK", block)
        found = manifold_scores(x, y, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
        definitions(x, y, k), abs=1e-12
    )


def test_copies_of_the_reference_are_all_inside():
    y = np.random.default_rng(0).normal(size=(40, 8)) + 1e3
    found = manifold_scores(y, y)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    assert found.density > 1.0


def test_copies_are_inside_balls_of_radius_zero():
    y = np.repeat(np.random.default_rng(1).normal(size=(5, 8)), 6, axis=0)
    assert manifold_scores(y, y).precision == 1.0


def test_a_set_far_away_and_a_set_of_one_kind():
    rng = np.random.default_rng(2)
    reference = np.concatenate([rng.normal(size=(50, 4)), rng.normal(size=(50, 4)) + 40.0])
    far = manifold_scores(rng.normal(size=(30, 4)) + 500.0, reference)
    assert (far.precision, far.recall, far.density, far.coverage) == (0.0, 0.0, 0.0, 0.0)
    half = manifold_scores(rng.normal(size=(200, 4)), reference)
    assert half.precision > 0.8
    assert 0.3 < half.recall <= 0.5
    assert 0.3 < half.coverage <= 0.5


def test_resamples_keep_the_balls_of_the_whole_set():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(24, 2)), rng.normal(size=(30, 2))
    groups = np.repeat(np.arange(6), 4)
    counts = draw_counts(6, seed=0, num_resamples=5)
    own, radii = (np.sqrt(neighbour_radii(z)) for z in (x, y))
    across = cdist(y, x)
    for found, row in zip(overlap(x, y, groups).scores(counts), counts.astype(int), strict=True):
        chosen = np.repeat(np.arange(24), row[groups])
        inside = across[:, chosen] <= radii[:, None]
        assert found.precision == pytest.approx(inside.any(axis=0).mean())
        assert found.density == pytest.approx(inside.sum(axis=0).mean() / 5)
        assert found.coverage == pytest.approx(inside.any(axis=1).mean())
        assert found.recall == pytest.approx((across[:, chosen] <= own[None, chosen]).any(axis=1).mean())


def test_too_few_frames():
    with pytest.raises(ValueError, match="more than 5 frames in each set, and one has 5"):
        manifold_scores(np.ones((5, 2)), np.random.default_rng(4).normal(size=(9, 2)))
