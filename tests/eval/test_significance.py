"""Differences between systems: found where there are any, and not where there are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokkata.eval.frechet import frechet_distance_per_clip
from tokkata.eval.gaussian_stats import GaussianStats
from tokkata.eval.metrics import measure
from tokkata.eval.significance import ClipFrames, are_paired, differences, holm

NAMES = ["fad", "fad-inf", "kad", "prdc", "per-song"]


def clips(seed: int, shift: float = 0.0, num: int = 30, prefix: str = "") -> ClipFrames:
    rng = np.random.default_rng(seed)
    frames = [rng.standard_normal(3) * 0.3 + rng.standard_normal((6, 3)) + shift for _ in range(num)]
    return ClipFrames([f"{prefix}{index}" for index in range(num)], frames)


def compared(systems: dict[str, ClipFrames], seed: int = 0) -> dict:
    reference = clips(99, num=40).frames
    stats = GaussianStats.from_embeddings(np.concatenate(reference))
    values = {}
    for name, item in systems.items():
        scores = measure(["fad", "fad-inf", "per-song"], item.frames, stats, 0)
        scores += measure(["kad", "prdc"], item.frames, reference, 0)
        values[name] = {score.name: score.value for score in scores}
    per_clip = {
        name: {"per-song": frechet_distance_per_clip(item.frames, stats)} for name, item in systems.items()
    }
    found = differences(systems, values, stats, np.concatenate(reference), per_clip, seed)
    return {(item.metric, item.first, item.second): item for item in found}


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_holm_is_the_step_down_of_bonferroni(p_values: list[float]):
    corrected = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for place, index in enumerate(order):
        steps = [(len(p_values) - i) * p_values[order[i]] for i in range(place + 1)]
        assert corrected[index] == pytest.approx(min(1.0, max(steps)))


def test_a_worse_system_is_told_in_every_score():
    found = compared({"good": clips(1), "bad": clips(2, shift=2.0, prefix="x")})
    for metric in ("fad", "fad-inf", "kad", "precision", "density", "coverage", "per-song"):
        item = found[metric, "good", "bad"]
        assert item.is_significant, item
        assert (item.difference < 0) == (metric in ("fad", "fad-inf", "kad", "per-song"))
        assert "paired" not in item.test


def test_equal_systems_are_not_told_apart():
    found = compared({"one": clips(1), "same": clips(1)})
    assert all(item.difference == 0.0 and item.p == 1.0 for item in found.values())
    assert all("paired by name" in item.test for item in found.values())


def test_false_alarms_are_about_as_frequent_as_promised():
    p_values = []
    for seed in range(20):
        found = compared({"a": clips(100 + seed, num=20), "b": clips(200 + seed, num=20, prefix="x")}, seed)
        p_values.append([found[metric, "a", "b"].p for metric in ("fad", "kad", "precision", "per-song")])
    # 5 % of 20 is one; six or more in one score have a chance of 1 in 3000.
    assert (np.array(p_values) < 0.05).sum(axis=0).max() <= 5


def test_pairs_take_out_what_prompts_are_worth():
    rng = np.random.default_rng(5)
    prompts = rng.standard_normal((40, 1, 3))
    a = [p + rng.standard_normal((6, 3)) * 0.05 + 0.05 for p in prompts]
    b = [p + rng.standard_normal((6, 3)) * 0.05 + 0.12 for p in prompts]
    names = [str(index) for index in range(40)]
    paired = compared({"a": ClipFrames(names, a), "b": ClipFrames(names, b)})
    alone = compared({"a": ClipFrames(names, a), "b": ClipFrames([f"x{name}" for name in names], b)})
    assert are_paired(ClipFrames(names, a), ClipFrames(names, b))
    assert paired["kad", "a", "b"].p < alone["kad", "a", "b"].p


def test_three_systems_are_three_pairs_and_corrected():
    found = compared({"a": clips(1), "b": clips(2, prefix="b"), "c": clips(3, 2.0, prefix="c")})
    assert [pair for metric, *pair in found if metric == "fad"] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert found["fad", "a", "c"].p_holm > found["fad", "a", "c"].p
    assert found["fad", "a", "c"].is_significant
    assert not found["fad", "a", "b"].is_significant
