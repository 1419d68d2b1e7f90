"""What is called diverging, and what is not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tokkata.core.divergence import Divergence
from tokkata.core.errors import UserError


def follow(values):
    """The steps at which a run with these values of its metric was suspect, and its end."""
    watch, suspect = Divergence("mel"), []
    for step, value in enumerate(values):
        try:
            watch.see({"mel": torch.tensor(4.0 * value)}, torch.tensor(4.0), step, Path("checkpoints"))
        except UserError as error:
            return suspect, step, str(error)
        if watch.suspect:
            suspect.append(step)
    return suspect, None, None


def test_a_metric_that_stays_far_above_its_best():
    suspect, step, message = follow([1.0] * 200 + [3.0] * 400)
    assert suspect[0] in range(205, 220)
    assert step == suspect[0] + 199
    assert message == (
        f"training diverges: 'mel' is 2.97 on average and was 1 (now step {step}): lower train.lr; the newest"
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
