"""Noise on what a sample-level model sees in training."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokkata.core.errors import UserError
from tokkata.lm.generate import generate
from tokkata.lm.step_models.input_noise import InputNoise, assume_noise, with_noise
from tokkata.tests.lm.tiny_steps import TOLD, V, rnn, samplernn, wavenet


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


def test_levels_that_are_told_lie_between_none_and_the_most_half_of_them_below_a_quarter():
    torch.manual_seed(0)
    levels = InputNoise(8.0, True, 4).draw(10_000, torch.device("cpu"))
    assert 0 <= levels.min() < levels.max() < 8
    assert (levels < 2).float().mean() == pytest.approx(0.5, abs=0.02)


def test_levels_that_are_not_told_are_all_the_same():
    assert InputNoise(8.0, False, 4).draw(3, torch.device("cpu")).tolist() == [8.0] * 3


@pytest.mark.parametrize("make", [wavenet, samplernn])
def test_a_model_learns_how_much_noise_there_is_from_being_told(make):
    lm = make(**TOLD).train()
    codes = torch.randint(0, V, (2, 1, 64))
    lm(codes).mean.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in lm.noise.parameters())


def test_a_recording_keeps_its_level_from_chunk_to_chunk():
    lm = samplernn(**TOLD).train()
    codes = torch.randint(0, V, (3, 1, 48))
    first = lm(codes[:, :, :24]).state
    begins = torch.tensor([False, True, False])
    then = lm(codes[:, :, 24:], state=first, begins=begins).state
    assert torch.equal(then["noise"][[0, 2]], first["noise"][[0, 2]])
    assert then["noise"][1] != first["noise"][1]
    assert len(set(first["noise"].tolist())) == 3


def test_held_out_recordings_are_clean_whatever_the_state_says():
    lm = samplernn(**TOLD)
    codes = torch.randint(0, V, (2, 1, 48))
    with torch.no_grad():
        state = lm(codes[:, :, :24]).state
        assert state["noise"].tolist() == [0.0, 0.0]
        whole = lm(codes)
        noise = lm.noise.teller
        for parameter in noise.parameters():
            parameter.mul_(2)
        assert lm(codes).mean != whole.mean  # a clean recording is told to be one


@pytest.mark.parametrize("make", [wavenet, samplernn])
def test_what_is_assumed_in_generation_can_be_said(make):
    lm = make(**TOLD)
    assert lm.noise.assumed == 4.0
    clips = []
    for level in (4.0, 0.0, 4.0):
        assume_noise(lm, level)
        clips.append(generate(lm, 200, batch_size=2, seed=1))
    assert torch.equal(clips[0], clips[2])
    assert not torch.equal(clips[0], clips[1])


@pytest.mark.parametrize(
    ("make", "level", "sentence"),
    [
        (lambda: wavenet(**TOLD), 8.5, "assumed_noise 8.5 must be between 0 and 8"),
        (lambda: samplernn(**TOLD), -1.0, "assumed_noise -1 must be between 0 and 8"),
        (lambda: wavenet(input_noise=8.0), 4.0, "trained with tell_noise: leave it out"),
        (rnn, 4.0, "trained with tell_noise: leave it out"),
    ],
)
def test_levels_that_a_model_has_not_met_are_refused(make, level, sentence):
    with pytest.raises(UserError, match=sentence):
        assume_noise(make(), level)


def test_telling_of_no_noise_is_refused():
    with pytest.raises(UserError, match="give input_noise, such as 8"):
        wavenet(tell_noise=True)


def test_a_model_that_is_told_is_saved_and_loaded(tmp_path):
    lm = wavenet(**TOLD)
    lm.save_pretrained(tmp_path)
    other = type(lm).from_pretrained(tmp_path)
    assert torch.equal(generate(other, 100, seed=2), generate(lm, 100, seed=2))
