"""The layers of growing networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.gan.networks.blocks import (
    EqualConv2d,
    EqualLinear,
    enlarge,
    fade,
    leaky,
    minibatch_deviation,
    pixel_norm,
    shrink,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equalised_layers_keep_the_size_of_numbers_and_have_weights_of_one_scale() -> None:
    torch.manual_seed(0)
    conv, linear = EqualConv2d(32, 48, (3, 3)), EqualLinear(500, 64)
    for weight in (conv.weight, linear.weight):
        assert weight.std().item() == pytest.approx(1, abs=0.02)
    # A gain of √2 before a leaky ReLU: the mean square stays 1 but for the leak.
    x = leaky(conv(random(4, 32, 24, 24))[..., 1:-1, 1:-1])
    assert x.square().mean().item() == pytest.approx(1 + 0.2**2, rel=0.15)
    assert leaky(linear(random(64, 500))).square().mean().item() == pytest.approx(1.04, rel=0.15)


def test_an_equalised_convolution_without_padding_in_time_loses_frames() -> None:
    conv = EqualConv2d(2, 3, (3, 4), pad_time=False)
    x = random(1, 2, 6, 10)
    assert conv(x).shape == (1, 3, 6, 7)
    torch.testing.assert_close(conv(x[..., 2:8]), conv(x)[..., 2:5])


def test_an_extended_edge_is_like_what_lies_before_it() -> None:
    """What comes of an image that is the same everywhere is so too; with zeros beyond the edges it is not."""
    torch.manual_seed(0)
    conv = EqualConv2d(2, 3, extend=True)
    flat = random(1, 2, 1, 1).expand(1, 2, 6, 5)
    y = conv(flat)
    assert y.shape == (1, 3, 6, 5)
    torch.testing.assert_close(y, y[:, :, 2:3, 2:3].expand_as(y))
    conv.extend = False
    assert (conv(flat)[:, :, 0] - y[:, :, 0]).abs().max() > 0.1
    torch.testing.assert_close(conv(flat)[:, :, 1:-1, 1:-1], y[:, :, 1:-1, 1:-1])


@given(seed=st.integers(0, 2**31), size=st.floats(1e-2, 1e3))
@settings(deadline=None, max_examples=20)
def test_pixel_norm_is_of_each_place_alone(seed: int, size: float) -> None:
    x = size * random(2, 5, 3, 4, seed=seed)
    normed = pixel_norm(x)
    assert (normed.square().mean(1) - 1).abs().max() < 1e-2
    torch.testing.assert_close(pixel_norm(x[..., 1:2, 2:3]), normed[..., 1:2, 2:3])
    torch.testing.assert_close(normed * x.square().mean(1, keepdim=True).sqrt(), x, rtol=1e-2, atol=1e-2)


def test_the_deviation_of_a_group_is_one_number_on_a_channel() -> None:
    x = random(8, 3, 2, 5)
    added = minibatch_deviation(x)
    assert added.shape == (8, 4, 2, 5)
    torch.testing.assert_close(added[:, :3], x)
    for group in (slice(0, 4), slice(4, 8)):
        expected = x[group].std(0, correction=0).mean()
        torch.testing.assert_close(added[group, 3], expected.expand(4, 2, 5), rtol=1e-4, atol=1e-5)


@given(groups=st.integers(1, 3), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_deviations_are_those_of_each_process(groups: int, seed: int) -> None:
    x = random(4 * groups, 2, 3, 3, seed=seed)
    whole = minibatch_deviation(x)
    for first in range(0, 4 * groups, 4):  # as if a process had these rows
        rows = slice(first, first + 4)
        torch.testing.assert_close(minibatch_deviation(x[rows]), whole[rows])


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 1), (6, 2), (12, 4)])
def test_groups_are_as_many_clips_as_divide_the_batch(batch: int, group: int) -> None:
    x = random(batch, 2, 3)
    channel = minibatch_deviation(x)[:, 2, 0]
    expected = [x[i : i + group].std(0, correction=0).mean() for i in range(0, batch, group)]
    torch.testing.assert_close(channel, torch.stack(expected).repeat_interleave(group), rtol=1e-4, atol=1e-5)


def test_equal_clips_have_finite_gradients_of_any_order() -> None:
    x = torch.ones(4, 2, 3, 3, requires_grad=True)
    (first,) = torch.autograd.grad(minibatch_deviation(x)[:, 2].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


@given(f=st.integers(1, 3), t=st.integers(1, 3), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_shrinking_undoes_enlarging(f: int, t: int, seed: int) -> None:
    x = random(2, 3, 4, 5, seed=seed)
    large = enlarge(x, (f, t))
    assert large.shape == (2, 3, 4 * f, 5 * t)
    torch.testing.assert_close(large[..., ::f, ::t], x)
    torch.testing.assert_close(shrink(large, (f, t)), x)


@pytest.mark.parametrize("factor", [(2, 2), (2, 1), (4, 4)])
def test_resolutions_change_as_pytorch_changes_them_and_so_do_gradients(factor: tuple[int, int]) -> None:
    x = random(2, 3, 8, 4)
    torch.testing.assert_close(shrink(x, factor), F.avg_pool2d(x, factor))
    torch.testing.assert_close(
        enlarge(x, factor), F.interpolate(x, scale_factor=tuple(map(float, factor)), mode="nearest")
    )
    x = x[:1, :1].double().requires_grad_()
    for change in (shrink, enlarge):
        assert torch.autograd.gradcheck(lambda x, f=change: f(x, factor), x)
        assert torch.autograd.gradgradcheck(lambda x, f=change: f(x, factor) ** 2, x)


@given(level=st.floats(0, 5))
def test_a_fade_is_a_weighted_mean_and_needs_no_lower_one_at_whole_levels(level: float) -> None:
    def low() -> torch.Tensor:
        assert level % 1 > 0
        return torch.tensor(1.0)

    mixed = fade(level, low, torch.tensor(3.0))
    share = level - math.floor(level) or 1.0
    assert mixed.item() == pytest.approx(1 + 2 * share)
