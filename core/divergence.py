"""Noticing that a run diverges, or falls silent, while its loss is still finite."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState

from .errors import UserError

_DECAY = 0.98
_DECAY_NOW = 0.9
_FACTOR = 1.5
_SILENT = 0.1  # of the loudest: 20 dB below
_PATIENCE = 200
_FEWEST = 10  # steps whose mean is worth comparing with
_TIME_TO_SOUND = 1000


class Divergence:
    """Follows a metric that falls in sound training, such as the reconstruction term of a codec.

    What it is now, averaged over about 10 steps, is compared with the best of its average over about 50:
    while it is above 1.5 times that, the run is suspect and writes no checkpoints, so that the good ones
    stay; after 200 such steps in a row it ends. An adversarial term would not do: it rises whenever the
    discriminator gains. A resumed run is judged anew.

    A metric that need not fall but has to stay below a `ceiling` is compared with that instead of its best.

    Who gives up on a sound says nothing, whose error is bounded and may be no more than 1.5 times the best:
    that shows in `level`, a metric of how loud the output is relative to what it should be. A run is suspect
    too while that is below a tenth of its loudest. One that has not been above a tenth of what it should be
    in 1000 steps is told of, and goes on.
    """

    def __init__(self, metric: str, level: str | None = None, ceiling: float | None = None) -> None:
        self._metric = metric
        self._level = level
        self._ceiling = ceiling
        self._averages: dict[tuple[str, float], float] = {}
        self._num_seen = 0
        self._best = float("inf")
        self._loudest = 0.0
        self._num_suspect = 0

    @property
    def suspect(self) -> bool:
        """Whether the metric is far above its best at present, or the level far below."""
        return self._num_suspect > 0

    @property
    def metrics(self) -> list[str]:
        """The names of what is followed."""
        return [self._metric] if self._level is None else [self._metric, self._level]

    def see(self, found: Mapping[str, float], step: int, checkpoints: Path) -> None:
        """Take in one step's `metrics`; raises `UserError` if the run has diverged."""
        self._num_seen += 1
        now, average = self._follow(self._metric, found)
        level, average_level = (None, 0.0) if self._level is None else self._follow(self._level, found)
        if self._num_seen >= _FEWEST:
            self._best = min(self._best, average)
            self._loudest = max(self._loudest, average_level)
        is_silent = level is not None and level < _SILENT * self._loudest
        is_suspect = now > (_FACTOR * self._best if self._ceiling is None else self._ceiling) or is_silent
        self._num_suspect = self._num_suspect + 1 if is_suspect else 0
        if self._num_suspect >= _PATIENCE:
            if is_silent:
                what, was = f"training has fallen silent: '{self._level}' is {level:.3g}", self._loudest
            else:
                what, was = f"training diverges: '{self._metric}' is {now:.3g}", self._best
            raise UserError(
                f"{what} on average and was {was:.3g} (now step {step}): lower train.lr;"
                f" the newest checkpoint from before is kept in {checkpoints}"
            )
        if level is not None and self._num_seen == _TIME_TO_SOUND and self._loudest < _SILENT:
            self._tell_of_silence(level)

    def _follow(self, metric: str, found: Mapping[str, float]) -> tuple[float, float]:
        """The averages over about 10 and about 50 steps."""
        averages = []
        for decay in (_DECAY_NOW, _DECAY):
            # A plain mean at first: the moving average has no history to begin with.
            share = max(1 - decay, 1 / self._num_seen)
            before = self._averages.get((metric, decay), 0.0)
            self._averages[metric, decay] = before + share * (found[metric] - before)
            averages.append(self._averages[metric, decay])
        return averages[0], averages[1]

    def _tell_of_silence(self, level: float) -> None:
        if PartialState().is_main_process:
            print(
                f"train: after {_TIME_TO_SOUND} steps what comes out is still next to silence"
                f" ('{self._level}' is {level:.3g}, and should be about 1):"
                " lower train.lr if this does not change soon",
                file=sys.stderr,
            )
