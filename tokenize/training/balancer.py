"""The loss balancer of EnCodec: arXiv:2210.13438, sec. 3.4, eq. 5.

A term's weight says which share of the gradient at the decoder's output is the term's, whatever its scale:

    g̃ᵢ = R · λᵢ / Σ λⱼ · gᵢ / ⟨‖gᵢ‖⟩

where ⟨‖gᵢ‖⟩ is a moving average of the norm. The norm is taken clip by clip and averaged over the global
batch, so neither micro-batches nor processes change it; the average of the steps before is used, which every
process has alike and a checkpoint holds. In a term's first step each clip has its own norm.

Shapes: B batch, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from ...core.job import Batch
from ...core.schema_trained_codecs import Balancer

NORMS = "gradient_norms"
"""Under this name a loss hands on the norms of its micro-batch: `Loss.made[NORMS]`."""

_TINY = 1e-12


@dataclass
class Balanced:
    """Terms as one."""

    mean: Tensor  # scalar; its value is the weighted sum, its gradient the balanced one
    norms: Tensor  # [2, terms]: sums over the clips of the norms, and how many clips had one


class LossBalancer:
    """Balances terms that depend on decoded audio. Its memory is two buffers of `module`."""

    def __init__(self, config: Balancer, names: Sequence[str], module: nn.Module) -> None:
        self._config = config
        self._names = list(names)
        self._module = module
        module.register_buffer("balancer_norms", torch.zeros(len(self._names)))
        module.register_buffer("balancer_weights", torch.zeros(len(self._names)))

    def __call__(
        self, terms: Mapping[str, Tensor], weights: Mapping[str, float], decoded: Tensor
    ) -> Balanced:
        """`terms` are means over the rows of `decoded` `[B, 1, N]`; a name that is left out has not begun."""
        num_rows = len(decoded)
        whole = sum(weights[name] for name in terms)
        gradient = torch.zeros_like(decoded)
        norms = torch.zeros(2, len(self._names), device=decoded.device)
        for name, term in terms.items():
            i = self._names.index(name)
            # Of the sum over rows, so that a row's gradient does not depend on how many others there are.
            (g,) = torch.autograd.grad(term * num_rows, decoded, retain_graph=True)
            of_rows = g.flatten(1).norm(dim=1)  # [B]
            norms[0, i], norms[1, i] = of_rows.sum(), num_rows
            average = torch.where(self._seen(i) > 0, self._average(i), of_rows)[:, None, None]
            gradient += self._config.norm * weights[name] / whole / average.clamp(min=_TINY) * g
        balanced = (decoded * gradient.detach()).sum() / num_rows
        value = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return Balanced(balanced + (value - balanced).detach(), norms)

    @torch.no_grad()
    def after_step(self, batches: list[Batch]) -> None:
        """Take the norms of the step's micro-batches into the averages."""
        norms = torch.stack([batch[NORMS] for batch in batches]).sum(0)
        sums, counts = reduce(norms, reduction="sum")
        decay = self._config.decay
        for buffer, seen in (
            (self._module.balancer_norms, sums / counts.clamp(min=1)),
            (self._module.balancer_weights, torch.ones_like(sums)),
        ):
            assert isinstance(buffer, Tensor)
            buffer.copy_(torch.where(counts > 0, decay * buffer + (1 - decay) * seen, buffer))

    def _seen(self, i: int) -> Tensor:
        weights = self._module.balancer_weights
        assert isinstance(weights, Tensor)
        return weights[i]

    def _average(self, i: int) -> Tensor:
        """Without the bias of a beginning at 0."""
        norms = self._module.balancer_norms
        assert isinstance(norms, Tensor)
        return norms[i] / self._seen(i).clamp(min=_TINY)
