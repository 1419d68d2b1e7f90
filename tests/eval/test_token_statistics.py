import numpy as np
import pytest
from scipy.stats import entropy

from tokkata.eval.token_statistics import token_statistics


def clips(seed: int, num_clips: int = 20, num_codebooks: int = 2, num_frames: int = 40, size: int = 8):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, size, (num_codebooks, num_frames + n % 3)).astype(np.uint16) for n in range(num_clips)
    ]


def by_name(generated, reference, size: int = 8, seed: int = 0):
    return {score.name: score for score in token_statistics(generated, reference, size, seed=seed)}


def shares(codes, codebook: int, size: int = 8) -> np.ndarray:
    return np.bincount(np.concatenate([c[codebook] for c in codes]), minlength=size) / sum(
        c.shape[1] for c in codes
    )


def test_entropy_and_unigrams_are_their_definitions():
    ours, theirs = [c // 2 for c in clips(0)], clips(1)
    scores = by_name(ours, theirs)
    for codebook in (0, 1):
        p, q = shares(ours, codebook), shares(theirs, codebook)
        assert scores["unigram-distance"].detail["codebooks"][codebook] == pytest.approx(
            np.abs(p - q).sum() / 2
        )
        assert scores["token-entropy-gap"].detail["generated (bits)"][codebook] == pytest.approx(
            entropy(p, base=2)
        )
    assert scores["token-entropy-gap"].value == pytest.approx(1.0, abs=0.02)
    assert scores["unigram-distance"].value == pytest.approx(0.5, abs=0.06)
    for score in scores.values():
        assert score.interval is not None
        assert score.interval.low <= score.value <= score.interval.high


def test_bigrams_see_an_order_that_unigrams_do_not():
    rng = np.random.default_rng(2)
    rising = [np.tile((np.arange(48) + rng.integers(8)) % 8, (1, 1)) for _ in range(10)]
    falling = [c[:, ::-1] for c in rising]
    scores = by_name(falling, rising)
    assert scores["unigram-distance"].value == pytest.approx(0.0, abs=1e-12)
    assert scores["bigram-distance"].value == pytest.approx(1.0)
    same = by_name(rising, rising)
    assert same["bigram-distance"].value == pytest.approx(0.0, abs=1e-12)


def test_bigrams_do_not_cross_clips():
    ours = [np.array([[0, 0]]), np.array([[1, 1]])]
    theirs = [np.array([[0, 0, 0]]), np.array([[1, 1, 1]])]
    assert by_name(ours, theirs)["bigram-distance"].value == pytest.approx(0.0)


def test_floor_is_what_chance_makes_of_halves():
    scores = by_name(clips(3, num_clips=4, num_frames=20), clips(4, num_clips=40))
    floor = np.mean(scores["bigram-distance"].detail["halves of the reference"])
    assert 0.05 < floor < scores["bigram-distance"].value


def test_depends_on_its_seed_alone():
    assert by_name(clips(5), clips(6)) == by_name(clips(5), clips(6))


def test_what_is_refused():
    good = clips(7)
    with pytest.raises(ValueError, match="at least 2 generated clips"):
        token_statistics(good[:1], good, 8, seed=0)
    with pytest.raises(ValueError, match="at least 2 reference clips"):
        token_statistics(good, [c[:, :1] for c in good], 8, seed=0)
    with pytest.raises(ValueError, match=r"clip 0 of the generated set has codes of the shape \[1, 40\]"):
        token_statistics([c[:1] for c in good], good, 8, seed=0)
    with pytest.raises(ValueError, match="and the codebooks have 4 entries"):
        token_statistics(good, good, 4, seed=0)
