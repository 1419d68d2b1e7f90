"""Noticing that a generator has collapsed: that most of what it makes is silent, a click, or one sound.

The losses of an adversarial game do not tell. What is judged here are clips from always the same noise, in
each validation, beside real ones.

Shapes: B clips, N samples, F bands, T segments of time.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from ..core.checkpoint import list_checkpoints
from ..core.errors import UserError
from ..core.schema_gan import CollapseWatch
from .mel_scale import spreading

_MOST = 0.5  # of the clips, or of a clip's energy
_CLICK_S = 0.01
_RARE = 0.95  # so many of the real clips are less like a click than what counts as one
_WINDOW_S = 0.05  # the next power of two of samples
# Coarse, so that clips of one sound are alike though there is other noise in each.
_NUM_BANDS = 32
_SEGMENT_S = 0.125
_FLOOR = 1e-6  # of the real clips' mean power in a band: 60 dB below, what is quieter makes no difference

_PATIENCE = 2  # validations in a row
_TIME_TO_SOUND = 10  # validations


@dataclass(frozen=True)
class CollapseStatistics:
    """What made clips have in common, beside real ones."""

    silent: float
    """Share of the made clips that are silent."""
    real_silent: float
    """Share of the real ones."""
    clicks: float
    """Share of the made clips of which 10 ms hold most of the energy, more than of nearly all real ones."""
    diversity: float | None
    """How much made clips differ from each other, as a share of what real ones do; None where real clips do
    not, or there are fewer than two."""

    def scores(self) -> dict[str, float]:
        """For the log."""
        found = {"silent": self.silent, "clicks": self.clicks}
        return found if self.diversity is None else found | {"diversity": self.diversity}

    def what_is_wrong(self, watch: CollapseWatch) -> str | None:
        """What most clips are, as the end of a sentence; None if they are sound."""
        if self.silent - self.real_silent > _MOST:
            return f"{self.silent:.0%} of the clips that it makes are silent"
        if self.clicks > _MOST:
            return f"{self.clicks:.0%} of the clips that it makes are clicks"
        if self.diversity is not None and self.diversity < watch.least_diversity:
            return f"the clips that it makes differ by {self.diversity:.1%} of what real ones do"
        return None


def collapse_statistics(
    generated: Tensor, real: Tensor, sample_rate: int, watch: CollapseWatch
) -> CollapseStatistics:
    """Of made and real clips, `[B, N]` each, a few dozen.

    A clip is silent `watch.silence_db` below the root mean square of all real samples. How much clips differ
    is the root mean square, over mel bands and segments of time, of the difference of their levels in
    decibels, averaged over all pairs.
    """
    generated, real = generated.float(), real.float()
    threshold = float(real.square().mean().sqrt()) * 10 ** (watch.silence_db / 20)
    silent, real_silent = _levels(generated) <= threshold, _levels(real) <= threshold
    concentration = _concentration(generated, sample_rate)
    bar = max(_MOST, float(_concentration(real, sample_rate).quantile(_RARE)))
    return CollapseStatistics(
        silent=float(silent.float().mean()),
        real_silent=float(real_silent.float().mean()),
        clicks=float(((concentration > bar) & ~silent).float().mean()),
        diversity=_diversity(generated, real, sample_rate),
    )


class Collapse:
    """Follows the statistics of a run's validations.

    A run has collapsed when two validations in a row find something wrong after one that did not: a line on
    stderr says what, or, with `stop`, a `UserError`. A run that has not been sound in its first ten
    validations is told of too, and goes on: it may yet come. Once it has been sound again, a run is judged
    as before. A resumed run is judged anew.
    """

    def __init__(self, watch: CollapseWatch, checkpoints: Path) -> None:
        self._watch = watch
        self._checkpoints = checkpoints
        self._num_seen = 0
        self._has_been_sound = False
        self._num_wrong = 0
        self._last_sound: Path | None = None

    def see(self, found: CollapseStatistics) -> None:
        """Take in one validation; raises `UserError` if the run has collapsed and should end then."""
        self._num_seen += 1
        wrong = found.what_is_wrong(self._watch)
        if wrong is None:
            self._has_been_sound, self._num_wrong = True, 0
            return
        self._num_wrong += 1
        if self._has_been_sound and self._num_wrong == 1:
            self._last_sound = next(reversed(list_checkpoints(self._checkpoints)), None)
        if self._has_been_sound and self._num_wrong == _PATIENCE:
            self._tell_of_collapse(wrong)
        if not self._has_been_sound and self._num_seen == _TIME_TO_SOUND:
            _say(f"after {self._num_seen} validations the generator is not yet of use: {wrong}")

    def _tell_of_collapse(self, wrong: str) -> None:
        what = f"the generator has collapsed: {wrong}, in {_PATIENCE} validations in a row"
        last = self._last_sound
        if last is not None and last.exists():
            which = (
                f"{last.name} in {self._checkpoints} is from before; to go on from there, delete those that"
                " are newer, lower train.lr or model.discriminator_lr, and run the same command again"
            )
        else:
            which = (
                f"no checkpoint in {self._checkpoints} is from before: lower train.lr or"
                " model.discriminator_lr, and raise train.keep_checkpoints to have one next time"
            )
        if self._watch.stop:
            raise UserError(f"{what} ({which})")
        _say(f"{what} ({which})")


def _say(what: str) -> None:
    if PartialState().is_main_process:
        print(f"train: {what}", file=sys.stderr)


def _levels(clips: Tensor) -> Tensor:
    """Root mean squares `[B]`."""
    return clips.square().mean(1).sqrt()


def _concentration(clips: Tensor, sample_rate: int) -> Tensor:
    """The share `[B]` of a clip's energy that its loudest 10 ms hold; 0 for digital silence."""
    length = min(clips.shape[1], max(1, round(_CLICK_S * sample_rate)))
    energy = torch.nn.functional.pad(clips.double().square().cumsum(1), (1, 0))
    loudest = (energy[:, length:] - energy[:, :-length]).amax(1)
    return (loudest / energy[:, -1].clamp(min=torch.finfo(energy.dtype).tiny)).float()


def _diversity(generated: Tensor, real: Tensor, sample_rate: int) -> float | None:
    if min(len(generated), len(real)) < 2:
        return None
    of_real, of_generated = _mel_power(real, sample_rate), _mel_power(generated, sample_rate)
    floor = max(_FLOOR * float(of_real.mean()), torch.finfo(of_real.dtype).tiny)
    between_real = _mean_distance(of_real, floor)
    return _mean_distance(of_generated, floor) / between_real if between_real > 0 else None


def _mel_power(clips: Tensor, sample_rate: int) -> Tensor:
    """`[B, F, T]`."""
    window = 2 ** math.ceil(math.log2(_WINDOW_S * sample_rate))
    hann = torch.hann_window(window, device=clips.device)
    spectra = torch.stft(clips, window, window // 2, window=hann, pad_mode="constant", return_complex=True)
    bands = spreading(window // 2 + 1, sample_rate / window).to(clips.device) @ spectra.abs().square()
    num_segments = max(1, round(clips.shape[1] / sample_rate / _SEGMENT_S))
    return torch.nn.functional.adaptive_avg_pool2d(bands, (_NUM_BANDS, num_segments))


def _mean_distance(power: Tensor, floor: float) -> float:
    """Of all pairs of clips `[B, F, T]`, in decibels."""
    levels = 10 * torch.log10(power + floor).flatten(1)
    return float(torch.nn.functional.pdist(levels).mean()) / math.sqrt(levels.shape[1])
