"""Previews of an adversarial model in training: clips as the stage `generate` makes them, but fewer."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..core.schema import Recipe
from ..core.schema_generate import GanGenerate
from ..tokenize.codec import Codec
from ..tokenize.store import TokenStore
from .clips import write_clips
from .gan_model import GanModel
from .sample import choose_clips


class Preview:
    """A job's `preview`: `train.previews` clips, always from the same noise and conditions of real clips.

    A growing network's are of the resolution that it has come to.
    """

    def __init__(self, recipe: Recipe, store: TokenStore, model: GanModel, codec: Codec) -> None:
        """`codec` is the store's. Raises `UserError` where no clip can lend its conditions."""
        assert isinstance(recipe.generate, GanGenerate)
        self._config = recipe.generate.model_copy(update={"num_clips": recipe.train.previews})
        self._clips = choose_clips(store, model, self._config, recipe.folder)
        self._codec = codec

    def __call__(self, model: nn.Module, folder: Path) -> None:
        """Write the clips of a `GanModel` as it is now."""
        assert isinstance(model, GanModel)
        write_clips(
            folder,
            model,
            self._codec.to(model.device),
            self._clips,
            seed=self._config.seed,
            batch_size=self._config.batch_size,
            title="previews",
        )
