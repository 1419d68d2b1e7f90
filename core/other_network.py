"""A loss that goes through another network than the one that learns from it, as in adversarial training.

The network that learns is called as it was prepared, so that processes exchange its gradients; the other one
is called bare, with its weights frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def bare(module: nn.Module) -> nn.Module:
    """Without the wrapper that would exchange gradients."""
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient for the weights of `module`, though there is one through it."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
