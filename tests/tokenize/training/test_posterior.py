"""Divergence and statistics of a posterior, beside PyTorch's distributions and direct computation."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tokkata.core.errors import UserError
from tokkata.tokenize.training.posterior import (
    POSTERIOR_NAME,
    PosteriorStats,
    PosteriorSummary,
    kl_from_prior,
)


def posteriors(num_clips=5, dim=3, num_frames=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(num_clips, dim, num_frames, generator=generator)
    scale = 0.05 + torch.rand(num_clips, dim, num_frames, generator=generator)
    return mean, scale


def test_divergence_and_its_gradient_are_those_of_the_formula():
    mean, scale = (t.double().requires_grad_() for t in posteriors())
    found = kl_from_prior(mean, scale)
    torch.testing.assert_close(found, kl_divergence(Normal(mean, scale), Normal(0, 1)), check_dtype=False)
    found.sum().backward()
    # d/dμ = μ and d/dσ = σ - 1/σ.
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(scale.grad, (scale - 1 / scale).detach())
    assert kl_from_prior(torch.zeros(1), torch.ones(1)) == 0


def test_statistics_are_those_of_all_frames():
    mean, scale = posteriors()
    stats = PosteriorStats()
    stats.add(mean[:2], scale[:2])
    stats.add(mean[2:], scale[2:])
    found = stats.summary()
    frames, scales = (t.transpose(1, 2).flatten(0, 1).double().numpy() for t in (mean, scale))
    assert found.num_frames == len(frames)
    np.testing.assert_allclose(found.mean, frames.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.variance_of_means, frames.var(0), rtol=1e-6)
    np.testing.assert_allclose(found.scale, scales.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.kl_nats, kl_from_prior(mean, scale).mean((0, 2)), rtol=1e-4)
    # The aggregate posterior, by drawing from it.
    generator = np.random.default_rng(0)
    drawn = frames + scales * generator.normal(size=(2000, *frames.shape))
    np.testing.assert_allclose(found.std, drawn.std((0, 1)), rtol=0.01)


def test_a_collapsed_dimension_is_not_active():
    mean, scale = posteriors()
    mean[:, 1] *= 0.05  # variance 0.0025
    stats = PosteriorStats()
    stats.add(mean, scale)
    assert stats.summary().num_active == 2
    assert stats.summary().metrics()["active_units"] == 2


def test_how_far_it_is_from_the_prior_is_told():
    def of(mean, scale):
        stats = PosteriorStats()
        stats.add(mean, scale)
        return stats.summary().far_from_prior()

    mean = torch.randn(4, 2, 500, generator=torch.Generator().manual_seed(0))
    assert of(mean, torch.full_like(mean, 0.1)) is None
    told = of(torch.stack([3 * mean[:, 0], mean[:, 1] + 2], dim=1), torch.full_like(mean, 0.1))
    assert told.startswith("latents of real audio have means from")
    assert "to 1.96 and standard deviations from 1.00 to 2.97, not 0 and 1" in told
    assert of(0.01 * mean, torch.full_like(mean, 0.1)) is not None


def test_it_is_read_as_it_was_written(tmp_path):
    stats = PosteriorStats()
    stats.add(*posteriors())
    summary = stats.summary()
    assert PosteriorSummary.read(tmp_path) is None
    summary.write(tmp_path)
    assert PosteriorSummary.read(tmp_path) == summary
    (tmp_path / POSTERIOR_NAME).write_text('{"num_frames": 3}')
    with pytest.raises(UserError, match="does not describe a posterior"):
        PosteriorSummary.read(tmp_path)
