"""Linear layers that keep their weights as the CPU's matrix product reads them, while a clip is sampled.

Before every product MKL copies a matrix into the order in which its kernel reads it. A sampler multiplies
with the same matrices at every step, and with a few hundred vectors that copy is a fair part of the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_ROWS = 16
"""With fewer vectors a product takes as long as reading the weights, in whatever order."""


@contextlib.contextmanager
def packed_linears(module: nn.Module) -> Iterator[None]:
    """Within it, linear layers of `module` on a CPU, in float32 and without gradients, are faster.

    Their weights must not change. It costs the memory of a second copy of them, and nothing happens where
    there is no MKL. Results are those of the layers up to rounding.
    """
    layers = [one for one in module.modules() if isinstance(one, nn.Linear)] if _has_mkl() else []
    for layer in layers:
        if layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
            vars(layer)["forward"] = _packed(layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _packed(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A layer's `forward` that packs its weights when it first meets a number of vectors."""
    weight, bias = layer.weight.detach(), layer.bias
    packed: dict[int, Tensor] = {}  # for one number of vectors: the order depends on it

    def forward(x: Tensor) -> Tensor:
        num_rows = x.numel() // x.shape[-1]
        is_plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != torch.float32
        if is_plain or num_rows < _FEW_ROWS:
            return F.linear(x, layer.weight, bias)
        if num_rows not in packed:
            packed.clear()
            packed[num_rows] = torch.ops.mkl._mkl_reorder_linear_weight(weight, num_rows)
        y: Tensor = torch.ops.mkl._mkl_linear(x, packed[num_rows], weight, bias, num_rows)
        return y

    return forward


def _has_mkl() -> bool:
    """Whether torch has the two operations, which are its compiler's own."""
    names = ("_mkl_reorder_linear_weight", "_mkl_linear")
    return bool(torch.backends.mkl.is_available()) and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkl, name) for name in names
    )
