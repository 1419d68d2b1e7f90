"""What is called diverging, and what is not."""

from pathlib import Path

import numpy as np
import pytest

from tokkata.core.divergence import Divergence
from tokkata.core.errors import UserError


def follow(values):
    """The steps at which a run with these values of its metric was suspect, and its end."""
    watch, suspect = Divergence("mel"), []
    for step, value in enumerate(values):
        try:
            watch.see({"mel": value}, step, Path("checkpoints"))
        except UserError as error:
            return suspect, step, str(error)
        if watch.suspect:
            suspect.append(step)
    return suspect, None, None


def test_a_metric_that_stays_far_above_its_best():
    suspect, step, message = follow([1.0] * 200 + [3.0] * 400)
    assert suspect[0] in range(201, 206)
    assert step == suspect[0] + 199
    assert message == (
        f"training diverges: 'mel' is 3 on average and was 1 (now step {step}): lower train.lr; the newest"
        " checkpoint from before is kept in checkpoints"
    )


def test_the_best_may_be_the_very_beginning():
    """A codec that starts as a transform is at its best before a step has spoilt it."""
    suspect, step, _ = follow([1.0] * 10 + [4.0] * 400)
    assert (suspect[0] < 20, step is not None) == (True, True)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_noise_a_slow_fall_and_a_hump_are_sound(scale):
    noise = np.random.default_rng(0)
    curve = scale * (1 + 2 * np.exp(-np.arange(3000) / 500)) * noise.lognormal(0, 0.3, 3000)
    curve[1000:1050] *= 4
    suspect, step, _ = follow(curve.tolist())
    assert step is None
    assert set(suspect) <= set(range(1000, 1200))


def test_a_ceiling_stands_in_place_of_the_best():
    """A metric that rises ninefold is sound below it, and one that was never below it is not."""

    def see(watch, value, step):
        watch.see({"scores": value}, step, Path("checkpoints"))

    watch = Divergence("scores", ceiling=10.0)
    for step, value in enumerate([1.0] * 100 + [9.0] * 400):
        see(watch, value, step)
        assert not watch.suspect
    watch = Divergence("scores", ceiling=10.0)
    for step in range(199):
        see(watch, 12.0, step)
        assert watch.suspect
    with pytest.raises(UserError, match="'scores' is 12 on average"):
        see(watch, 12.0, 199)


def listen(levels, capsys):
    """What becomes of a run whose metric stays, and whose output has these levels."""
    watch, suspect = Divergence("mel", "level"), []
    for step, level in enumerate(levels):
        try:
            watch.see({"mel": 1.0, "level": level}, step, Path("checkpoints"))
        except UserError as error:
            return suspect, str(error)
        if watch.suspect:
            suspect.append(step)
    return suspect, capsys.readouterr().err


def test_a_run_that_falls_silent(capsys):
    suspect, message = listen([0.8] * 100 + [0.01] * 400, capsys)
    assert suspect[0] in range(115, 130)
    assert message == (
        f"training has fallen silent: 'level' is 0.01 on average and was 0.8 (now step {suspect[0] + 199}):"
        " lower train.lr; the newest checkpoint from before is kept in checkpoints"
    )


def test_a_run_that_is_never_heard_is_told_of_once(capsys):
    suspect, message = listen([0.02] * 2500, capsys)
    assert suspect == []
    assert message == (
        "train: after 1000 steps what comes out is still next to silence ('level' is 0.02, and should be"
        " about 1): lower train.lr if this does not change soon\n"
    )


def test_a_run_that_finds_its_voice_late_is_sound(capsys):
    levels = np.concatenate([np.full(800, 0.02), np.linspace(0.02, 0.9, 800)])
    levels = levels * np.random.default_rng(0).lognormal(0, 0.7, len(levels))
    suspect, message = listen(levels.tolist(), capsys)
    assert message == ""
    assert len(suspect) < 20
