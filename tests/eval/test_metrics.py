import json
from dataclasses import asdict

import numpy as np
import pytest

from tokkata.eval import metrics as module
from tokkata.eval.frechet import GaussianStats, frechet_distance
from tokkata.eval.measured import BETTER, GROUPS
from tokkata.eval.metrics import METRICS, measure

EVERY = tuple(METRICS)
WIDTH = 4


def clips(seed: int, num_clips: int = 30, shift: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3 + n % 4, WIDTH)).astype(np.float32) + shift for n in range(num_clips)]


@pytest.mark.parametrize("name", EVERY)
def test_order_quality_and_say_how_sure_they_are(name: str):
    reference = clips(0, 60)
    near, far = (METRICS[name](clips(1, shift=shift), reference, 0) for shift in (0.2, 2.0))
    assert near.name == name
    assert (near.value < far.value) == (near.better == "lower")
    for score in (near, far):
        assert score.interval is not None
        assert score.interval.low <= score.value <= score.interval.high
        assert json.loads(json.dumps(asdict(score), allow_nan=False))["name"] == name


@pytest.mark.parametrize("name", EVERY)
def test_depend_on_their_seed_alone(name: str):
    generated, reference = clips(2), clips(3)
    assert METRICS[name](generated, reference, 5) == METRICS[name](generated, reference, 5)


def test_several_at_once_are_what_they_are_alone():
    generated, reference = clips(4), clips(5)
    together = measure(["fad", "fad-inf", "per-song", "kad", "prdc"], generated, reference, 1)
    assert [score.name for score in together] == list(EVERY)
    assert together == [METRICS[name](generated, reference, 1) for name in EVERY]
    assert GROUPS["prdc"] == EVERY[4:]
    assert set(BETTER.values()) == {"lower", "higher"}


def test_statistics_are_enough_for_the_frechet_distances():
    generated, reference = clips(6), clips(7)
    stats = GaussianStats.from_embeddings(np.concatenate(reference))
    for name in ("fad", "fad-inf", "per-song"):
        assert METRICS[name](generated, stats, 0) == METRICS[name](generated, reference, 0)
    for name in ("kad", "precision", "coverage"):
        score = METRICS[name](generated, stats, 0)
        assert score.value is None
        assert "give the folder of the reference" in score.note


def test_distance_of_each_song():
    generated = [*clips(8, 5), np.ones((1, WIDTH), np.float32)]
    reference = GaussianStats.from_embeddings(np.concatenate(clips(9)))
    score = METRICS["per-song"](generated, reference, 0)
    expected = [frechet_distance(GaussianStats.from_embeddings(clip), reference) for clip in generated[:5]]
    assert score.detail["distances"] == [*expected, None]
    assert score.value == pytest.approx(np.median(expected))
    assert score.note == "1 of 6 clips have a single frame and no distance"


@pytest.mark.parametrize("name", EVERY)
def test_a_set_of_one_frame_has_no_score_and_a_reason(name: str):
    score = METRICS[name]([np.ones((1, WIDTH), np.float32)], clips(10), 0)
    assert (score.value, score.interval) == (None, None)
    assert score.better == BETTER[name]
    assert "need" in score.note or "no clip has" in score.note


def test_a_set_of_one_clip_has_scores_without_intervals():
    for score in measure(["fad", "per-song", "kad", "prdc"], [np.concatenate(clips(11))], clips(12), 0):
        assert score.value is not None
        assert score.interval is None


def test_small_sets_are_warned_of():
    score = METRICS["fad"](clips(13, 1), clips(14), 0)
    assert score.note == "fewer frames (generated 3) than twice the width 4: the value is mostly bias"
    assert METRICS["fad"](clips(13), clips(14), 0).note == ""


@pytest.mark.parametrize("name", EVERY)
def test_malformed_embeddings_are_named(name: str):
    broken = clips(15)
    broken[7] = broken[7].copy()
    broken[7][0, 0] = np.nan
    note = METRICS[name](broken, clips(16), 0).note
    assert "not finite" in note
    assert METRICS[name]([*clips(15, 9), np.ones((2, 3))], clips(16), 0).note.startswith(
        "clip 9 of the generated set has embeddings of the shape [2, 3]"
    )


def test_pairs_of_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch):
    generated, reference = clips(17, 60), clips(18, 60, shift=1.0)
    whole = METRICS["kad"](generated, reference, 0)
    monkeypatch.setattr(module, "MAX_PAIR_FRAMES", 150)
    sampled = METRICS["kad"](generated, reference, 0)
    assert sampled.detail["generated frames"] == 150
    assert sampled.value == pytest.approx(whole.value, rel=0.25)


def test_frechet_interval_contains_the_mean_distance_of_sets_of_this_size():
    reference = GaussianStats(10**6, np.full(WIDTH, 0.3), np.eye(WIDTH) * 1e6)
    scores = [METRICS["fad"](clips(seed, 40), reference, seed) for seed in range(100, 160)]
    mean = np.mean([score.value for score in scores])
    hits = sum(score.interval.low <= mean <= score.interval.high for score in scores)
    assert hits >= 51  # of 60; 95 % would be 57
