"""What every language model over codec tokens has: a configuration, a loss, and a place on the Hub.

Shapes: B batch, K codebooks, T frames, V codebook size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from huggingface_hub import ModelCard
from torch import Tensor
from torch.utils._pytree import register_dataclass

from ..core.conditions import GivenConditions
from ..core.errors import UserError
from ..core.model_config import ModelConfig
from ..core.saved_model import SavedModel
from .decoders.decoder import Prepared, Weights
from .patterns import Pattern


@dataclass(frozen=True, kw_only=True)
class LMConfig(ModelConfig):
    """What decides the meaning of a model's tokens; each family adds what decides its shape."""

    num_codebooks: int
    """K."""
    codebook_size: int
    """V."""
    frame_rate: float
    """Frames a second."""
    window_frames: int | None = None
    """Frames that the model was trained on at most; longer clips are generated in windows of this length.
    None: as long as one likes."""
    codec: Mapping[str, Any] = field(default_factory=dict)
    """The content of `codec.json`: which codec turns the tokens into audio."""

    def __post_init__(self) -> None:
        for name in ("num_codebooks", "codebook_size", "frame_rate"):
            if name in self.codec and self.codec[name] != getattr(self, name):
                raise UserError(
                    f"{name} is {getattr(self, name)} for the model but {self.codec[name]} for its codec"
                )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().to_dict() | {"codec": dict(self.codec)}

    @property
    def special(self) -> int:
        """The token that stands where a codebook has none, and begins a clip: V."""
        return self.codebook_size


@dataclass
class LMLoss:
    """Cross-entropy of the tokens of a batch, in nats."""

    mean: Tensor  # scalar: over all tokens that count
    num_tokens: Tensor  # scalar int64: how many those are
    per_codebook: Tensor  # [K]: mean of each codebook; detached


# Wrappers such as FSDP look for tensors in what a module returns; they look into registered classes only.
register_dataclass(LMLoss, field_names=["mean", "num_tokens", "per_codebook"])


class LanguageModel(SavedModel):
    """A language model over codes [B, K, T]; `forward` is its training loss.

    A family is a subclass with a configuration class of its own.
    """

    config_class: ClassVar[type[LMConfig]]
    config: LMConfig
    pattern: Pattern
    """In which order the model meets the tokens of a frame."""

    @abstractmethod
    def forward(
        self, codes: Tensor, conditions: GivenConditions | None = None, frame_mask: Tensor | None = None
    ) -> LMLoss:
        """The loss of codes [B, K, T] under `conditions` (None: all hidden).

        Frames that are False in `frame_mask` [B, T] (the padding of a short clip) are neither seen nor
        counted, so a padded clip has exactly the loss of the clip alone.
        """

    @abstractmethod
    def prepare(self, weights: Weights = "fp32") -> Prepared:
        """This model for generation, reading its weights in that format.

        Raises `UserError` for a format that it does not have here.
        """

    def clip_flops(self, num_frames: int, num_states: Mapping[str, int]) -> float | None:
        """Floating-point operations of a training step for one clip, which has `num_states` vectors of each
        sequence among the conditions; None where nobody has counted them.
        """
        return None

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card of the bare facts, for a folder or repository that has none."""
        config = self.config
        return ModelCard(
            "---\nlibrary_name: tokkata\npipeline_tag: text-to-audio\ntags: [music-generation]\n---\n"
            f"# A {config.kind} over {config.num_codebooks} codebooks of {config.codebook_size}\n\n"
            f"{sum(p.numel() for p in self.parameters()):,} parameters, {config.frame_rate:g} frames a"
            f" second; conditions: {', '.join(config.conditions.names) or 'none'}.\n"
        )
