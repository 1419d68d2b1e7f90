"""EnCodec's loss balancer: shares of the gradient, whatever the scale of a term and the size of a batch.

Shapes: B batch, N samples.
"""

import pytest
import torch
from torch import nn

from tokkata.core.schema_trained_codecs import Balancer
from tokkata.tokenize.training.balancer import NORMS, LossBalancer

B, N = 3, 16


def terms_of(decoded, scale=1.0):
    return {
        "near": decoded.square().sum((1, 2)).mean(),
        "far": scale * (decoded - 2).abs().sum((1, 2)).mean(),
    }


WEIGHTS = {"near": 1.0, "far": 3.0}


def balanced_gradient(balancer, decoded, terms):
    result = balancer(terms, WEIGHTS, decoded)
    (gradient,) = torch.autograd.grad(result.mean, decoded)
    return gradient, result


@pytest.fixture
def decoded():
    return torch.randn(B, 1, N, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_equation_5(decoded):
    balancer = LossBalancer(Balancer(norm=2.0), ["near", "far"], nn.Linear(1, 1))
    first = balanced_gradient(balancer, decoded, terms_of(decoded))[1]
    balancer.after_step([{NORMS: first.norms}])
    gradient, result = balanced_gradient(balancer, decoded, terms_of(decoded))
    expected = torch.zeros_like(decoded)
    for name, share in (("near", 0.25), ("far", 0.75)):
        (g,) = torch.autograd.grad(B * terms_of(decoded)[name], decoded)
        expected += 2.0 * share * g / g.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(gradient * B, expected)
    value = sum(WEIGHTS[name] * term for name, term in terms_of(decoded).items())
    torch.testing.assert_close(result.mean, value)


def test_a_terms_scale_changes_nothing(decoded):
    gradients = [
        balanced_gradient(
            LossBalancer(Balancer(), ["near", "far"], nn.Linear(1, 1)), decoded, terms_of(decoded, scale)
        )[0]
        for scale in (1.0, 1e3)
    ]
    torch.testing.assert_close(*gradients)


def test_the_average_is_that_of_the_steps_before(decoded):
    module = nn.Linear(1, 1)
    balancer = LossBalancer(Balancer(decay=0.5), ["near", "far"], module)
    norms = []
    for step in range(3):
        scaled = (decoded.detach() * (step + 1)).requires_grad_()
        _, result = balanced_gradient(balancer, scaled, terms_of(scaled))
        norms.append(float(result.norms[0, 0] / B))
        # Two micro-batches of which one has had no such term.
        nothing = torch.zeros_like(result.norms)
        balancer.after_step([{NORMS: result.norms}, {NORMS: nothing}])
    expected = 0.0
    for norm in norms:
        expected = 0.5 * expected + 0.5 * norm
    assert float(module.balancer_norms[0]) == pytest.approx(expected)
    assert float(module.balancer_weights[0]) == pytest.approx(1 - 0.5**3)
    assert "balancer_norms" in module.state_dict()


def test_a_term_that_has_not_begun_leaves_the_others_all(decoded):
    balancer = LossBalancer(Balancer(), ["near", "far"], nn.Linear(1, 1))
    terms = terms_of(decoded)
    gradient, result = balanced_gradient(balancer, decoded, {"near": terms["near"]})
    assert (B * gradient).flatten(1).norm(dim=1).mean() == pytest.approx(1.0)
    balancer.after_step([{NORMS: result.norms}])
    assert result.norms[:, 1].tolist() == [0.0, 0.0]


def test_a_gradient_of_nothing_is_nothing():
    decoded = torch.zeros(B, 1, N, requires_grad=True)
    balancer = LossBalancer(Balancer(), ["near"], nn.Linear(1, 1))
    gradient, _ = balanced_gradient(balancer, decoded, {"near": decoded.square().sum()})
    assert torch.count_nonzero(gradient) == 0
