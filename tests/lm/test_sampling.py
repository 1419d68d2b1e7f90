"""Drawing tokens: exact probabilities, and noise that belongs to a token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.lm.sampling import Sampling, clip_noise, guide, sample_tokens
from tokkata.tests.made_graphs import NothingOfTheHost

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5])


def frequencies(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Shares of the tokens over 20,000 equally spaced values of the noise: exact to 1 / 20,000."""
    noise = (torch.arange(20_000) + 0.5) / 20_000
    tokens = sample_tokens(LOGITS.expand(20_000, -1), temperature, top_k, top_p, noise)
    return torch.bincount(tokens, minlength=5) / 20_000


def renormalised(kept: list[int], temperature: float = 1.0) -> Tensor:
    masked = torch.full((5,), -torch.inf)
    masked[kept] = LOGITS[kept]
    return (masked / temperature).softmax(0)


def test_samples_have_the_probabilities_asked_for() -> None:
    exact = {"atol": 1e-4, "rtol": 0.0}
    torch.testing.assert_close(frequencies(), LOGITS.softmax(0), **exact)
    torch.testing.assert_close(frequencies(temperature=0.5), (LOGITS / 0.5).softmax(0), **exact)
    torch.testing.assert_close(frequencies(top_k=3), renormalised([0, 2, 4]), **exact)
    torch.testing.assert_close(frequencies(top_k=99), LOGITS.softmax(0), **exact)
    # Probabilities are .46 .06 .17 .02 .28: the first two reach .74, the first three .91.
    torch.testing.assert_close(frequencies(top_p=0.73), renormalised([0, 4]), **exact)
    torch.testing.assert_close(frequencies(top_p=0.75), renormalised([0, 2, 4]), **exact)
    torch.testing.assert_close(frequencies(top_p=1.0), LOGITS.softmax(0), **exact)
    # Of the three that top_k leaves, .51 .19 .31, two reach .82.
    torch.testing.assert_close(frequencies(top_k=3, top_p=0.8), renormalised([0, 4]), **exact)
    torch.testing.assert_close(frequencies(2.0, top_k=2), renormalised([0, 4], 2.0), **exact)


def test_noise_is_uniform_and_independent_between_clips_and_tokens() -> None:
    noise = torch.stack([clip_noise(0, clip, 10, 40) for clip in range(50)])
    assert noise.min() > 0
    assert noise.max() <= 1
    share = torch.histc(noise, bins=10, min=0, max=1) / noise.numel()
    assert (share - 0.1).abs().max() < 0.012  # five standard deviations
    assert noise.unique().numel() > 0.99 * noise.numel()
    assert torch.equal(noise[7], clip_noise(0, 7, 10, 40))
    assert not torch.equal(clip_noise(1, 0, 1, 4), clip_noise(0, 1, 1, 4))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0), Sampling(0.5, 3, 0.8, cfg_scale=2.0)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_drawing_stays_on_the_device(sampling: Sampling, device: str) -> None:
    logits, noise = torch.randn(4, 3, 5, device=device), torch.rand(4, 3, device=device)
    with NothingOfTheHost(device):
        tokens = sampling(logits, noise[:2] if sampling.is_guided else noise)
    assert tokens.shape == (2 if sampling.is_guided else 4, 3)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([-200.0, 0.0, -200.0, 0.0, -200.0]).expand(3, -1)
    tokens = sample_tokens(logits, 1.0, None, None, torch.tensor([1e-30, 0.5, 1.0]))
    assert set(tokens.tolist()) <= {1, 3}


@given(
    seed=st.integers(0, 2**40),
    clip=st.integers(0, 1000),
    num_frames=st.integers(0, 9),
    more=st.integers(0, 9),
)
def test_noise_of_a_frame_does_not_depend_on_the_length(
    seed: int, clip: int, num_frames: int, more: int
) -> None:
    noise = clip_noise(seed, clip, 3, num_frames + more)
    assert noise.shape == (3, num_frames + more)
    assert torch.equal(noise[:, :num_frames], clip_noise(seed, clip, 3, num_frames))


def test_guidance_is_the_formula() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    torch.testing.assert_close(guide(logits, 3.0), torch.tensor([[2.0, 0.0]]))
    assert torch.equal(guide(logits, 0.0), logits[1:])


def test_guided_sampling_takes_both_halves() -> None:
    logits = torch.tensor([[[1.0, 2.0]], [[0.5, 3.0]]])  # [2 B, K, V]
    noise = torch.full((1, 1), 0.5)
    assert Sampling(temperature=0, cfg_scale=3.0)(logits, noise).tolist() == [[0]]
    assert Sampling(temperature=0)(logits, noise.expand(2, 1)).tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, "temperature -0.5 must be 0"),
        ({"temperature": math.inf}, "temperature inf must be 0"),
        ({"temperature": math.nan}, "temperature nan must be 0"),
        ({"top_k": 0}, "top_k 0 must be at least 1"),
        ({"top_p": 0.0}, "top_p 0 must be above 0"),
        ({"top_p": math.nan}, "top_p nan must be above 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sampling", [Sampling(0), Sampling(), Sampling(top_k=1), Sampling(top_k=2), Sampling(top_p=0.5)]
)
def test_nan_is_drawn_as_a_token_that_there_is_not(sampling: Sampling) -> None:
    logits = torch.tensor([[0.0, math.nan, 2.0], [0.0, 1.0, 2.0]])
    tokens = sampling(logits, torch.full((2,), 1.0))
    assert tokens[0] == 3
    assert tokens[1] < 3
