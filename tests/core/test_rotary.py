import math

import torch

from tokkata.core.rotary import rotary_tables, rotate


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    far = [rotate(y, *rotary_tables(torch.tensor([s]), 8)) for y, s in ((q, 1007), (k, 1003))]
    near = [rotate(y, *rotary_tables(torch.tensor([s]), 8)) for y, s in ((q, 4), (k, 0))]
    torch.testing.assert_close((far[0] * far[1]).sum(), (near[0] * near[1]).sum(), atol=1e-4, rtol=1e-4)
    other = rotate(q, *rotary_tables(torch.tensor([5]), 8))
    assert not torch.allclose((other * near[1]).sum(), (near[0] * near[1]).sum(), atol=1e-3)
    # Position 1, slowest and fastest pair: angles 1 and 10000^(-3/4).
    cos, _ = rotary_tables(torch.tensor([1]), 8)
    torch.testing.assert_close(cos[0, [0, 3]], torch.tensor([math.cos(1), math.cos(1e-3)]))
