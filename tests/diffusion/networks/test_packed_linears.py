"""Packed layers compute the same, and are gone afterwards."""

import pytest
import torch
from torch import nn

from tokkata.diffusion.networks import packed_linears as module
from tokkata.diffusion.networks.packed_linears import packed_linears
from tokkata.tests.diffusion.tiny_networks import inputs, some_of, tiny

needs_mkl = pytest.mark.skipif(not module._has_mkl(), reason="this torch has no MKL")


@needs_mkl
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_layers_compute_the_same_for_any_number_of_vectors(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Linear(40, 24, bias=bias)
    used = []
    real = torch.ops.mkl._mkl_linear
    monkeypatch.setattr(torch.ops.mkl, "_mkl_linear", lambda *given: used.append(given[-1]) or real(*given))
    for shape in ((1, 40), (2, 9, 40), (2, 9, 40), (50, 40), (3, 5, 7, 40)):
        x = torch.randn(shape)
        expected = layer(x)
        with packed_linears(layer):
            torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                layer(2 * x), 2 * expected - (layer.bias if bias else 0), atol=1e-4, rtol=1e-4
            )
    assert set(used) == {18, 50, 105}
    with packed_linears(layer):  # the numbers change while they are packed, as with windows and guidance
        for rows in (20, 30, 20):
            x = torch.randn(rows, 40)
            torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


@needs_mkl
def test_layers_are_as_before_afterwards_and_with_gradients() -> None:
    network = tiny()
    x, time = inputs(20)
    told = some_of(network.config.conditions)
    expected = network(x, time, told)
    with packed_linears(network):
        with torch.no_grad():
            torch.testing.assert_close(network(x, time, told), expected, atol=1e-4, rtol=1e-4)
        network(x, time, told).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert not [one for one in network.modules() if "forward" in vars(one)]
    assert torch.equal(network(x, time, told), expected)


def test_nothing_happens_without_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_mkl", lambda: False)
    layer = nn.Linear(4, 4)
    with packed_linears(layer):
        assert "forward" not in vars(layer)
