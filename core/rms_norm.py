"""RMSNorm that stays one operation under autocast."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


# RMSNorm: arXiv:1910.07467, eq. 4.
class RMSNorm(nn.RMSNorm):
    """Normalisation whose gains take the input's type: under autocast, torch fuses it only if they agree."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to the same."""
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
