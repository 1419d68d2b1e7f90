import numpy as np
import pytest
from scipy.stats import entropy

from tokkata.eval.class_scores import inception_score, kl_paired, kl_unpaired, label_accuracy, text_score


def labels(seed: int, num_clips: int = 30, num_labels: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(num_labels), size=num_clips)


def test_direction_of_the_divergence_is_the_one_in_its_name():
    g, r = labels(0), labels(1)
    forward = kl_paired(g, r, "generated-reference", seed=0)
    backward = kl_paired(g, r, "reference-generated", seed=0)
    assert (forward.name, backward.name) == ("kl-generated-reference", "kl-reference-generated")
    assert forward.value == pytest.approx(
        np.mean([entropy(p, q) for p, q in zip(g, r, strict=True)]), rel=1e-3
    )
    assert backward.value == pytest.approx(
        np.mean([entropy(q, p) for p, q in zip(g, r, strict=True)]), rel=1e-3
    )
    assert forward.interval is not None
    assert forward.interval.low < forward.value < forward.interval.high


def test_unpaired_divergence_compares_the_mean_labels():
    g, r = labels(2), labels(3, num_clips=50)
    score = kl_unpaired(g, r, "generated-reference", seed=0)
    assert score.name == "kl-unpaired-generated-reference"
    assert score.value == pytest.approx(entropy(g.mean(axis=0), r.mean(axis=0)), rel=1e-3)
    other = kl_unpaired(g, r, "reference-generated", seed=0)
    assert other.value == pytest.approx(entropy(r.mean(axis=0), g.mean(axis=0)), rel=1e-3)
    shuffled = kl_unpaired(g, g[::-1], "generated-reference", seed=0)
    assert shuffled.value == pytest.approx(0.0, abs=1e-12)
    assert kl_paired(g, g[::-1], "generated-reference", seed=0).value > 0.1


def test_certain_and_contrary_labels_stay_finite():
    certain = np.eye(4)[[0, 1, 2, 3]]
    score = kl_paired(certain, certain[::-1], "generated-reference", seed=0)
    assert score.value == pytest.approx(np.log(1e6), rel=1e-3)


def test_inception_score_from_one_to_the_number_of_labels():
    alike, unsure = np.tile(labels(4, num_clips=1), (12, 1)), np.full((12, 4), 0.25)
    assert inception_score(alike, seed=0).value == pytest.approx(1.0, abs=1e-9)
    assert inception_score(unsure, seed=0).value == pytest.approx(1.0, abs=1e-9)
    varied = inception_score(np.eye(4)[np.arange(12) % 4], seed=0)
    assert varied.value == pytest.approx(4.0, rel=1e-4)
    assert varied.interval is not None
    assert varied.interval.high <= 4.0
    p = labels(5)
    assert inception_score(p, seed=0).value == pytest.approx(
        np.exp(np.mean([entropy(row, p.mean(axis=0)) for row in p])), rel=1e-3
    )


def test_text_score_is_the_mean_cosine():
    rng = np.random.default_rng(6)
    audio, text = rng.normal(size=(2, 20, 8))
    expected = np.mean(
        [a @ t / np.linalg.norm(a) / np.linalg.norm(t) for a, t in zip(audio, text, strict=True)]
    )
    assert text_score(audio, text, seed=0).value == pytest.approx(expected)
    assert text_score(audio, 3.0 * audio, seed=0).value == pytest.approx(1.0)
    assert text_score(audio, -audio, seed=0).value == pytest.approx(-1.0)


def test_accuracy_of_labels():
    score = label_accuracy(["organ", "bass", "keys"], ["organ", "keys", "keys"])
    assert score.value == pytest.approx(2 / 3)
    assert score.interval is not None
    assert 0.1 < score.interval.low < 2 / 3 < score.interval.high < 1.0


def test_a_single_clip_has_a_value_and_no_interval():
    one = labels(7, num_clips=1)
    for score in (
        kl_paired(one, labels(8, num_clips=1), "generated-reference", seed=0),
        kl_unpaired(one, labels(8), "generated-reference", seed=0),
        inception_score(one, seed=0),
    ):
        assert score.value is not None
        assert score.interval is None


def test_what_is_refused():
    good = labels(9)
    with pytest.raises(ValueError, match="generated set are no probabilities"):
        kl_paired(2.0 * good, good, "generated-reference", seed=0)
    with pytest.raises(ValueError, match="reference set are no probabilities"):
        kl_unpaired(good, good * np.nan, "generated-reference", seed=0)
    with pytest.raises(ValueError, match="as many on both sides"):
        kl_paired(good, good[:5], "generated-reference", seed=0)
    with pytest.raises(ValueError, match="6 and 3 labels"):
        kl_unpaired(good, labels(9, num_labels=3), "generated-reference", seed=0)
    with pytest.raises(ValueError, match=r"shape \[clips, labels\], not \[0, 6\]"):
        inception_score(good[:0], seed=0)
    with pytest.raises(ValueError, match="caption 1 has an embedding that is zero"):
        text_score(np.ones((2, 3)), np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), seed=0)
    with pytest.raises(ValueError, match="embeddings of one shape"):
        text_score(np.ones((2, 3)), np.ones((2, 4)), seed=0)
    with pytest.raises(ValueError, match="here for 1 and 2"):
        label_accuracy(["a"], ["a", "b"])
