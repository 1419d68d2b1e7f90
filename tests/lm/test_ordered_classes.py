"""Noise on what a sample-level model sees in training."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokkata.lm.ordered_classes import with_noise
from tokkata.tests.lm.tiny_steps import V, samplernn, wavenet


@given(st.integers(0, 2**31), st.floats(0.0, 50.0))
def test_noisy_codes_are_codes_and_special_tokens_stay(seed, std):
    torch.manual_seed(seed)
    codes = torch.randint(0, 257, (3, 1, 40))  # 256 stands for no sample
    noisy = with_noise(codes, std, 256)
    assert torch.equal(noisy == 256, codes == 256)
    assert noisy.min() >= 0
    assert std or torch.equal(noisy, codes)


def test_noise_has_the_spread_that_is_asked_for():
    torch.manual_seed(0)
    moved = with_noise(torch.full((100_000,), 128), 4.0, 256) - 128
    assert moved.float().std() == pytest.approx((16 + 1 / 12) ** 0.5, rel=0.02)  # rounding adds its own
    assert moved.float().mean() == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("make", [wavenet, samplernn])
def test_a_model_sees_noise_in_training_alone(make):
    quiet = make()
    noisy = type(quiet)(dataclasses.replace(quiet.config, input_noise=8.0))
    noisy.load_state_dict(quiet.state_dict())
    codes = torch.randint(0, V, (2, 1, 64))
    assert torch.equal(noisy.eval()(codes).mean, quiet.eval()(codes).mean)
    noisy.train()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(noisy(codes).mean)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert losses[0] != quiet(codes).mean
