"""WaveGAN (arXiv:1802.04208, sec. 3 and app. D): samples from noise, by strided convolutions.

Shapes: B batch, C channels, N samples, W channels of a layer, T places of its output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.conditions import Conditions, GivenConditions
from ...core.errors import UserError
from ...core.schema_gan import WaveGanModel
from .family import Shape
from .strided import StridedDiscriminator, StridedGenerator, StridedLayers


class WaveGanGenerator(StridedGenerator):
    """Noise to samples `[B, C, N]`."""

    def __init__(self, section: WaveGanModel, shape: Shape, conditions: Conditions) -> None:
        super().__init__(_layers(section), section.noise_dim, shape, conditions)
        self.post_filter = PostFilter(section.post_filter, shape.channels) if section.post_filter else None

    def forward(self, noise: Tensor, told: GivenConditions, level: float) -> Tensor:
        """Samples `[B, C, N]`."""
        samples = super().forward(noise, told, level)
        return samples if self.post_filter is None else self.post_filter(samples)


class WaveGanDiscriminator(StridedDiscriminator):
    """Samples to a verdict, with phase shuffle between the layers."""

    def __init__(self, section: WaveGanModel, shape: Shape, conditions: Conditions) -> None:
        layers = _layers(section)
        super().__init__(layers, shape, conditions, section.conditioned_by)
        self._shuffle = section.phase_shuffle
        self.num_draws = section.num_layers - 1 if section.phase_shuffle else 0
        shortest = shape.num_frames // layers.factor * layers.stride
        if self.num_draws and section.phase_shuffle >= shortest:
            raise UserError(
                f"model.phase_shuffle {section.phase_shuffle} is as long as what it shifts: of clips of"
                f" {shape.num_frames} samples the last layer but one has {shortest} values; lower it"
            )

    def between(self, x: Tensor, draws: Tensor, layer: int) -> Tensor:
        """The output `[B, W, T]` of a layer, shuffled."""
        return phase_shuffle(x, draws[:, layer], self._shuffle) if self._shuffle else x


class PostFilter(nn.Module):
    """A filter of the whole output that is learned (arXiv:1802.04208, appendix); at first it does nothing."""

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, channels, length))
        before, after = (length - 1) // 2, length // 2
        self._padding = (before, after)
        with torch.no_grad():
            self.weight[:, :, before] = torch.eye(channels)

    def forward(self, samples: Tensor) -> Tensor:
        """`[B, C, N]` to the same."""
        return F.conv1d(F.pad(samples, self._padding), self.weight)


def phase_shuffle(x: Tensor, draws: Tensor, at_most: int) -> Tensor:
    """`[B, W, T]` with each clip shifted by a whole number from `-at_most` to `at_most`, all alike likely.

    What is missing at an end is the reflection of what is there (arXiv:1802.04208, sec. 3.3). `draws` `[B]`
    are evenly between 0 and 1; `at_most` is below T.
    """
    last = x.shape[-1] - 1
    shifts = (draws * (2 * at_most + 1)).long().clamp(max=2 * at_most) - at_most
    places = (torch.arange(last + 1, device=x.device) - shifts[:, None]).abs()
    places = last - (last - places).abs()
    return x.gather(2, places[:, None].expand(x.shape))


def _layers(section: WaveGanModel) -> StridedLayers:
    return StridedLayers(
        channels=section.channels,
        num_layers=section.num_layers,
        kernel=section.kernel,
        stride=section.stride,
        num_sides=1,
    )
