"""Batches of adversarial training: what is in them, whoever computes them.

Shapes: B batch, D latent width, T frames of the codec.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.gan.batches import DRAWS, MIX, NOISE, OTHER_NOISE, REAL, STEP
from tokkata.tests.gan.made_notes import store_of
from tokkata.tests.gan.tiny_gans import NUM_SAMPLES


@pytest.mark.parametrize("kind", ["wavegan", "drumgan", "darkgan", "vqcpc_gan", "musika"])
def test_a_batch_does_not_depend_on_who_computes_it(gan_run, job_of, kind):
    batch = job_of(gan_run(kind, train={"batch_size": 8})).batch
    assert batch(0, range(8)).keys() >= {REAL, NOISE, OTHER_NOISE, DRAWS, MIX, STEP}

    @settings(deadline=None, max_examples=8)
    @given(step=st.integers(0, 1000), cuts=st.sets(st.integers(1, 7)))
    def shared_out(step, cuts):
        whole = batch(step, range(8))
        ends = [0, *sorted(cuts), 8]
        parts = [batch(step, range(start, stop)) for start, stop in pairwise(ends)]
        assert all(int(part.pop(STEP)) == step for part in (whole, *parts))
        for name, tensor in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor), name

    shared_out()


def test_everything_random_is_new_in_each_step_and_row(gan_run, job_of):
    batch = job_of(gan_run("wavegan", train={"batch_size": 8})).batch
    found = [batch(step, range(8)) for step in (0, 1, 2)]
    rows = [row for one in found for name in (NOISE, OTHER_NOISE) for row in one[name]]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == 48
    for name in (DRAWS, MIX):
        numbers = torch.cat([one[name].flatten() for one in found])
        assert len(numbers.unique()) == len(numbers)
        assert 0 <= numbers.min() < 0.2
        assert 0.8 < numbers.max() < 1


def test_another_seed_is_another_batch(gan_run, job_of):
    one, other = (
        job_of(gan_run("wavegan", name=f"run-{seed}", train={"seed": seed})).batch(0, range(4))
        for seed in (0, 1)
    )
    assert all(not torch.equal(one[name], other[name]) for name in (NOISE, OTHER_NOISE, DRAWS, MIX))


def test_a_batch_holds_what_the_store_does(gan_run, job_of):
    recipe = gan_run("gansynth", train={"batch_size": 8})
    job = job_of(recipe)
    split = store_of(recipe).split("train")
    pitches = split.column("pitch")
    known = job.modules["model"].config.conditions["pitch"].values
    for step in range(3):
        batch = job.batch(step, range(8))
        for real, row in zip(batch[REAL], batch["values/pitch"][:, 0], strict=True):
            clips = [split.latents(i) for i, pitch in enumerate(pitches) if pitch == known[row - 1]]
            windows = [np.lib.stride_tricks.sliding_window_view(clip[0], NUM_SAMPLES) for clip in clips]
            assert any((window == real[0].numpy()).all(1).any() for window in windows)


def test_clips_that_are_too_short_end_in_silence(gan_run, job_of):
    recipe = gan_run("musika", train={"crop_s": 0.6})  # the notes last 0.5 s
    real = job_of(recipe).batch(0, range(4))[REAL]
    assert real.shape == (4, 1, 4800)
    assert not real[..., 4000:].any()
    assert real[..., 3900:4000].any()
