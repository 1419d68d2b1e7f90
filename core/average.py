"""The averaged weights (EMA) that are validated, generated from and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .sharding import forget_whole_parameters, local_tensors


class Average:
    """Exponential moving average of the trained parameters of a module.

    Beside the module there is one copy of its trained parameters, of the same type and device and, under
    FSDP, of the same shards; averaging needs no communication. Buffers and frozen parameters are the module's
    own.
    """

    def __init__(
        self, module: nn.Module, decay: float, every: int = 1, sigma_rel: float | None = None
    ) -> None:
        """`decay` 0: the average is the module itself. `sigma_rel`: a power function of the step instead of
        an exponential one, of this relative width, whatever the `decay`."""
        self._module = module
        self._decay = decay
        self._every = every
        self._gamma = None if sigma_rel is None else power_of(sigma_rel)
        is_on = decay > 0 or sigma_rel is not None
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad} if is_on else {}
        self._source = [p.detach() for p in trained.values()]
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in trained.items()}
        """The averages, by the names of the parameters; empty without averaging."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (from 1), if it is a multiple of `every`.

        In the n-th update the decay is at most (1 + n) / (10 + n), so that early averages are not ruled by
        the initial weights, or else that of the power function, (1 - 1 / n)^(gamma + 1) (arXiv:2312.02696,
        eq. 7): a function of the step, so there is no counter to lose.
        """
        if not self.tensors or step % self._every:
            return
        number = step // self._every
        if self._gamma is None:
            decay = min(self._decay, (1 + number) / (10 + number))
        else:
            decay = (1 - 1 / number) ** (self._gamma + 1)
        torch._foreach_lerp_(local_tensors(self.tensors.values()), local_tensors(self._source), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """The module with averaged weights, in evaluation mode; then it has its own again, bit for bit."""
        self._module.eval()
        self._exchange()
        try:
            with torch.no_grad():
                yield self._module
        finally:
            self._exchange()
            self._module.train()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weight in zip(
            local_tensors(self.tensors.values()), local_tensors(self._source), strict=True
        ):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        forget_whole_parameters(self._module)


# arXiv:2312.02696, appendix: sigma_rel² = (gamma + 1) / ((gamma + 2)² (gamma + 3)), as a cubic equation.
def power_of(sigma_rel: float) -> float:
    """The exponent gamma of a power function whose width is `sigma_rel` of the steps, below 0.288."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
