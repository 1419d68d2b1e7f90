import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.eval.frechet import MIN_CLIPS, GaussianStats, frechet_distance, frechet_distance_infinity


def gaussian(mean: np.ndarray, covariance: np.ndarray, num: int = 10**9) -> GaussianStats:
    """Statistics of a set that has exactly this mean and covariance."""
    return GaussianStats(num, mean, covariance * (num - 1))


def random_set(seed: int, num: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def test_equal_covariances_leave_the_squared_distance_of_the_means():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(16, 16))
    mean, other = rng.normal(size=(2, 16))
    distance = frechet_distance(gaussian(mean, factor @ factor.T), gaussian(other, factor @ factor.T))
    assert distance == pytest.approx(np.sum((mean - other) ** 2), rel=1e-12)


def test_width_of_inception():
    width = 512
    a, b = gaussian(np.zeros(width), np.eye(width)), gaussian(np.ones(width), np.eye(width))
    assert frechet_distance(a, b) == pytest.approx(width, rel=1e-12)


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    first, second = rng.uniform(0.01, 9.0, size=(2, 24))
    a = gaussian(np.zeros(24), (basis * first) @ basis.T)
    b = gaussian(np.zeros(24), (basis * second) @ basis.T)
    expected = np.sum((np.sqrt(first) - np.sqrt(second)) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-11)


def test_agrees_with_the_matrix_square_root():
    a, b = (GaussianStats.from_embeddings(random_set(seed, 200, 12)) for seed in (2, 3))
    root = scipy.linalg.sqrtm(a.covariance() @ b.covariance())
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance() + b.covariance() - 2.0 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_frames_than_dimensions():
    x, y = random_set(4, 20, 256), random_set(5, 30, 256)
    # Centred data X has the covariance XᵀX / (n − 1), so the trace is the nuclear norm of X Yᵀ.
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    overlap = np.linalg.norm(centred_x @ centred_y.T, "nuc") / np.sqrt(19 * 29)
    spread = np.sum(centred_x**2) / 19 + np.sum(centred_y**2) / 29
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + spread - 2 * overlap
    distance = frechet_distance(GaussianStats.from_embeddings(x), GaussianStats.from_embeddings(y))
    assert distance == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("num", "width"), [(500, 32), (10, 64), (2, 3)])
def test_a_set_has_no_distance_to_itself(num: int, width: int):
    x = 1e3 * random_set(6, num, width)
    stats = GaussianStats.from_embeddings(x)
    assert 0.0 <= frechet_distance(stats, GaussianStats.from_embeddings(x[::-1])) <= 1e-11 * stats.variance()


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(2, 40), st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_symmetric_and_never_negative(seed: int, num: int, other_num: int, width: int):
    a = GaussianStats.from_embeddings(random_set(seed, num, width))
    b = GaussianStats.from_embeddings(random_set(seed + 1, other_num, width))
    scale = float(np.trace(a.covariance()) + np.trace(b.covariance()))
    assert frechet_distance(a, b) >= 0.0
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-11 * scale)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_pieces_in_any_order_merge_to_the_whole(data: st.DataObject):
    x = random_set(data.draw(st.integers(0, 1000)), 60, 5) + 100.0
    cuts = sorted(data.draw(st.lists(st.integers(0, 60), max_size=6)))
    pieces = data.draw(st.permutations(np.split(x, cuts)))
    whole = GaussianStats.from_embeddings(x)
    merged = GaussianStats.from_embeddings(pieces[0])
    for piece in pieces[1:]:
        merged = merged.update(piece)
    assert merged.num == whole.num
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-12, atol=1e-12 * np.abs(whole.m2).max())
    np.testing.assert_allclose(whole.covariance(), np.cov(x.T), rtol=1e-11)


def test_update_leaves_the_old_statistics_alone():
    before = GaussianStats.from_embeddings(random_set(7, 10, 3))
    mean, m2 = before.mean.copy(), before.m2.copy()
    before.update(random_set(8, 10, 3))
    assert before.num == 10
    np.testing.assert_array_equal(before.mean, mean)
    np.testing.assert_array_equal(before.m2, m2)


def test_malformed_embeddings_are_refused():
    one = GaussianStats.from_embeddings(np.ones((1, 4)))
    with pytest.raises(ValueError, match="at least 2 embedding frames, there are 1"):
        one.covariance()
    with pytest.raises(ValueError, match="at least 2 embedding frames"):
        frechet_distance(one, one)
    with pytest.raises(ValueError, match="2 of the 8 embedding values are not finite"):
        GaussianStats.from_embeddings([[1, np.nan, 3, 4], [5, 6, np.inf, 8]])
    with pytest.raises(ValueError, match=r"shape \[frames, width\], these have \[4\]"):
        GaussianStats.from_embeddings(np.ones(4))
    with pytest.raises(ValueError, match="width 4 cannot be compared with embeddings of width 5"):
        one.merge(GaussianStats.from_embeddings(np.ones((2, 5))))


def test_one_frame_adds_to_a_set_like_any_other():
    x = random_set(9, 11, 3)
    merged = GaussianStats.from_embeddings(x[:1]).update(x[1:])
    np.testing.assert_allclose(merged.covariance(), np.cov(x.T))


def test_bias_of_small_sets_and_its_extrapolation():
    # To first order in 1/N the mean contributes d / N to the distance and the covariance d (d + 1) / 4N.
    width = 16
    reference = gaussian(np.zeros(width), np.eye(width))
    bias = width + width * (width + 1) / 4
    rng = np.random.default_rng(10)
    for num, tolerance in ((100, 0.35), (1000, 0.2), (20000, 0.2)):
        distance = frechet_distance(GaussianStats.from_embeddings(rng.normal(size=(num, width))), reference)
        assert distance * num == pytest.approx(bias, rel=tolerance)
    draws = [list(rng.normal(size=(400, 2, width))) for _ in range(6)]
    lines = [frechet_distance_infinity(reference, clips, seed=0) for clips in draws]
    for line, clips in zip(lines, draws, strict=True):
        finite = frechet_distance(GaussianStats.from_embeddings(np.concatenate(clips)), reference)
        assert (min(line.sizes), line.sizes[-1]) == (199, 400)
        assert all(size in (199, 200, 201) for size in line.sizes[:6])
        assert line.distances[-1] == pytest.approx(finite, rel=1e-9)
        assert line.r2 > 0.5  # the rest is which clips are in which half
    assert np.mean([line.distances[-1] for line in lines]) > 0.09
    assert abs(np.mean([line.value for line in lines])) < 0.02
    assert np.mean([line.slope for line in lines]) == pytest.approx(bias / 2, rel=0.2)  # two frames in a clip


def test_extrapolation_keeps_a_true_distance():
    width = 8
    reference = gaussian(np.full(width, 0.5), np.eye(width))
    clips = list(np.random.default_rng(11).normal(size=(600, 2, width)))
    assert frechet_distance_infinity(reference, clips, seed=0).value == pytest.approx(width / 4, abs=0.15)


def test_extrapolation_depends_on_its_seed_alone():
    reference = gaussian(np.zeros(4), np.eye(4))
    clips = list(np.random.default_rng(12).normal(size=(40, 5, 4)))
    first, again, other = (frechet_distance_infinity(reference, clips, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_too_few_clips_to_extrapolate():
    clips = [np.ones((3, 4))] * (MIN_CLIPS - 1)
    with pytest.raises(ValueError, match=f"at least {MIN_CLIPS} clips, there are {MIN_CLIPS - 1}"):
        frechet_distance_infinity(gaussian(np.zeros(4), np.eye(4)), clips, seed=0)
