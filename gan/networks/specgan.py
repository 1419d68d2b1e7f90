"""SpecGAN (arXiv:1802.04208, sec. 4 and app. D): spectrograms from noise, by strided convolutions.

Shapes: B batch, C channels, F frequencies, T frames.
"""

from __future__ import annotations

from ...core.conditions import Conditions
from ...core.schema_gan import SpecGanModel
from .family import Shape
from .strided import StridedDiscriminator, StridedGenerator, StridedLayers


class SpecGanGenerator(StridedGenerator):
    """Noise to a spectrogram `[B, C, F, T]`."""

    def __init__(self, section: SpecGanModel, shape: Shape, conditions: Conditions) -> None:
        super().__init__(_layers(section), section.noise_dim, shape, conditions)


class SpecGanDiscriminator(StridedDiscriminator):
    """A spectrogram to a verdict."""

    def __init__(self, section: SpecGanModel, shape: Shape, conditions: Conditions) -> None:
        super().__init__(_layers(section), shape, conditions, section.conditioned_by)


def _layers(section: SpecGanModel) -> StridedLayers:
    return StridedLayers(
        channels=section.channels, num_layers=section.num_layers, kernel=5, stride=2, num_sides=2
    )
