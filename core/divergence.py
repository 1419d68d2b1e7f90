"""Noticing that a run diverges while its loss is still finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .errors import UserError

_DECAY = 0.98
_FACTOR = 1.5
_PATIENCE = 200
_FEWEST = 10  # steps whose mean is worth comparing with


class Divergence:
    """Follows a metric that falls in sound training, such as the reconstruction term of a codec.

    What is judged is its moving average over about 50 steps: while that is above 1.5 times its best, the run
    is suspect and writes no checkpoints, so that the good ones stay; after 200 such steps in a row it ends.
    An adversarial term would not do: it rises whenever the discriminator gains. A resumed run is judged
    anew.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._average = 0.0
        self._num_seen = 0
        self._best = float("inf")
        self._num_suspect = 0

    @property
    def suspect(self) -> bool:
        """Whether the metric is far above its best at present."""
        return self._num_suspect > 0

    def see(self, sums: Mapping[str, Tensor], weight: Tensor, step: int, checkpoints: Path) -> None:
        """Take in one step's metrics, summed with `weight`; raises `UserError` if the run has diverged."""
        self._num_seen += 1
        # A plain mean at first: the moving average has no history to begin with.
        share = max(1 - _DECAY, 1 / self._num_seen)
        self._average += share * (float(sums[self._metric] / weight) - self._average)
        if self._num_seen >= _FEWEST:
            self._best = min(self._best, self._average)
        self._num_suspect = self._num_suspect + 1 if self._average > _FACTOR * self._best else 0
        if self._num_suspect >= _PATIENCE:
            raise UserError(
                f"training diverges: '{self._metric}' is {self._average:.3g} on average and was"
                f" {self._best:.3g} (now step {step}): lower train.lr;"
                f" the newest checkpoint from before is kept in {checkpoints}"
            )
