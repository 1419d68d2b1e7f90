"""A generator with its representation: what training averages and saves, and what sound is made from.

Shapes: B batch, D latent width, T frames of the codec, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from huggingface_hub import ModelCard
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ..core.conditions import Conditions, GivenConditions
from ..core.errors import UserError
from ..core.saved_model import CONFIG_NAME, SavedModel
from ..core.schema_gan import GanModelSection, GanSection, LatentImage
from ..tokenize.codec import CodecInfo
from .build import make_generator
from .losses import HeadKind
from .networks.family import Shape
from .representation import Latents, Representation, make_representation

KIND = "gan"
"""What `config.json` calls such a model."""


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """All that an adversarial model is made from."""

    section: GanSection
    """What the recipe said of it."""
    codec: Mapping[str, Any]
    """The content of `codec.json`: the codec whose latents the representation is made of; for samples as they
    are, that has one latent a sample."""
    num_frames: int
    """Frames of the codec in a clip that it was trained on."""
    conditions: Conditions = field(default_factory=Conditions)
    heads: Mapping[str, HeadKind] = field(default_factory=dict)
    """Of each condition."""
    descriptor_scale: Mapping[str, Any] | None = None
    """What lies between 0 and 1 of each descriptor, where the model is told any."""
    examples: Sequence[Mapping[str, Any]] = ()
    """What some training clips are told (`examples.py`): what a new clip is not told is theirs."""

    @property
    def codec_info(self) -> CodecInfo:
        """The codec that turns what `decode` gives into audio."""
        return CodecInfo.from_json(self.codec, f"the codec in the model's {CONFIG_NAME}")

    @property
    def duration_s(self) -> float:
        """Length of the clips that it was trained on, in seconds."""
        return self.num_frames / self.codec_info.frame_rate

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": KIND,
            "section": self.section.model_dump(mode="json"),
            "codec": dict(self.codec),
            "num_frames": self.num_frames,
            "conditions": self.conditions.to_list(),
            "heads": dict(self.heads),
            "descriptor_scale": None if self.descriptor_scale is None else dict(self.descriptor_scale),
            "examples": [dict(one) for one in self.examples],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`; raises `UserError` for what is no adversarial model."""
        known = {
            "kind",
            "section",
            "codec",
            "num_frames",
            "conditions",
            "heads",
            "descriptor_scale",
            "examples",
        }
        if values.keys() != known or values["kind"] != KIND:
            raise UserError(
                f"this is not the {CONFIG_NAME} of an adversarial model: it says {sorted(values)}, not"
                f" {sorted(known)}"
            )
        try:
            section = TypeAdapter(GanModelSection).validate_python(values["section"])
        except ValidationError as error:
            raise UserError(
                f"the settings in the model's {CONFIG_NAME} cannot be read: {error.errors()[0]['msg']}"
            ) from error
        return cls(
            section=cast(GanSection, section),
            codec=values["codec"],
            num_frames=values["num_frames"],
            conditions=Conditions.from_list(values["conditions"]),
            heads=values["heads"],
            descriptor_scale=values["descriptor_scale"],
            examples=values["examples"],
        )


class GanModel(SavedModel):
    """A generator, and the representation that its images are read in; `forward` makes images."""

    config_class = GanConfig
    config: GanConfig

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.config = config
        info, kind = config.codec_info, config.section.representation
        self.representation: Representation = (
            Latents(info.latent_dim, config.num_frames)
            if isinstance(kind, LatentImage)
            else make_representation(kind, info.sample_rate, config.num_frames)
        )
        self.generator = make_generator(config.section, self.shape, config.conditions)
        # How far a growing network has grown: the level that it is sampled at. Set by training in every step.
        self.register_buffer("level", torch.tensor(float(self.generator.num_levels - 1)))
        self.level: Tensor

    @property
    def shape(self) -> Shape:
        """Of the images that it is trained on."""
        return self.representation.shape(self.config.num_frames)

    def fit(self, latents: Tensor) -> None:
        """Let the representation find its scale from real latents `[B, D, T]`."""
        self.representation.fit(latents if self.config.section.uses_codec else latents[:, 0])

    def forward(self, noise: Tensor, told: GivenConditions, level: float) -> Tensor:
        """An image of the size that belongs to `level`; see `family.Generator`."""
        image: Tensor = self.generator(noise, told, level)
        return image

    def encode(self, latents: Tensor) -> Tensor:
        """The codec's latents `[B, D, T]` as a whole image."""
        given = latents if self.config.section.uses_codec else latents[:, 0]
        image: Tensor = self.representation.encode(given)
        return image

    def decode(self, image: Tensor, num_frames: int | None = None) -> Tensor:
        """An image of any level as latents `[B, D, num_frames]` of the codec, as many as fit by default."""
        bins = self.shape.num_bins
        if bins is not None and image.shape[-2] < bins:  # it has not grown up
            factor = bins // image.shape[-2]
            image = image.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        found: Tensor = self.representation.decode(image)
        latents = found if self.config.section.uses_codec else found[:, None]
        return latents if num_frames is None else latents[..., :num_frames]

    @torch.no_grad()
    def make(self, noise: Tensor, told: GivenConditions, num_frames: int | None = None) -> Tensor:
        """Latents `[B, D, num_frames]` of the codec from noise `[B, …]`, at its level."""
        return self.decode(self(noise, told, float(self.level)), num_frames)

    def untrained(self) -> GanModel:
        """The same with random weights, from torch's global generator: what a score has to beat."""
        other = GanModel(self.config)
        other.representation.load_state_dict(self.representation.state_dict())
        other.level.copy_(self.level)
        return other.to(self.device).eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card of the bare facts, for a folder or repository that has none."""
        config = self.config
        return ModelCard(
            "---\nlibrary_name: tokkata\npipeline_tag: text-to-audio\ntags: [music-generation, gan]\n"
            f"---\n# A {config.section.kind}\n\n{sum(p.numel() for p in self.parameters()):,} parameters;"
            f" conditions: {', '.join(config.conditions.names) or 'none'}.\n"
        )
