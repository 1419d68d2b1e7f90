"""The families of adversarial models. A family is: a section of the schema, a file, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..core.conditions import Conditions
from ..core.schema_gan import GanSection
from .networks.family import Discriminator, Generator, Shape
from .networks.musika import MusikaDiscriminator, MusikaGenerator
from .networks.progressive import ProgressiveDiscriminator, ProgressiveGenerator
from .networks.specgan import SpecGanDiscriminator, SpecGanGenerator
from .networks.vqcpc_gan import VqcpcGanDiscriminator, VqcpcGanGenerator
from .networks.wavegan import WaveGanDiscriminator, WaveGanGenerator


@dataclass(frozen=True)
class Family:
    """Both networks of one kind, made from its section, an image's shape and what clips are told."""

    generator: Callable[..., Generator]
    discriminator: Callable[..., Discriminator]


_PROGRESSIVE = Family(ProgressiveGenerator, ProgressiveDiscriminator)
FAMILIES = {
    "wavegan": Family(WaveGanGenerator, WaveGanDiscriminator),
    "specgan": Family(SpecGanGenerator, SpecGanDiscriminator),
    "gansynth": _PROGRESSIVE,
    "drumgan": _PROGRESSIVE,
    "darkgan": _PROGRESSIVE,
    "vqcpc_gan": Family(VqcpcGanGenerator, VqcpcGanDiscriminator),
    "musika": Family(MusikaGenerator, MusikaDiscriminator),
}
"""By their kinds."""


def make_generator(section: GanSection, shape: Shape, conditions: Conditions) -> Generator:
    """With random weights; raises `UserError` where a clip's shape does not suit the section."""
    return FAMILIES[section.kind].generator(section, shape, conditions)


def make_discriminator(section: GanSection, shape: Shape, conditions: Conditions) -> Discriminator:
    """With random weights; raises `UserError` where a clip's shape does not suit the section."""
    return FAMILIES[section.kind].discriminator(section, shape, conditions)
