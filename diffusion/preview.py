"""Previews of a diffusion model in training: clips as the stage `generate` makes them, but fewer."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..core.schema import Recipe
from ..core.schema_generate import DiffusionGenerate
from ..tokenize.codec import Codec, load_codec_from_info
from ..tokenize.fast_codec import fast
from ..tokenize.store import TokenStore
from .diffusion_model import DiffusionModel
from .sample import choose_clips, write_samples


class Preview:
    """A job's `preview`: `train.previews` clips, always with the same noise and conditions."""

    def __init__(
        self, recipe: Recipe, store: TokenStore, model: DiffusionModel, codec: Codec | None = None
    ) -> None:
        """`codec`: the store's, where it is at hand; else it is loaded for the first clips.

        Raises `UserError` where no clip can lend its conditions.
        """
        assert isinstance(recipe.generate, DiffusionGenerate)
        self._config = recipe.generate.model_copy(update={"num_clips": recipe.train.previews})
        self._clips = choose_clips(store, model, self._config)
        self._info, self._codec = store.info, codec

    def __call__(self, model: nn.Module, folder: Path) -> None:
        """Write the clips of a `DiffusionModel` as it is now."""
        assert isinstance(model, DiffusionModel)
        if self._codec is None:
            self._codec = fast(load_codec_from_info(self._info, model.device))
        write_samples(folder, model, self._codec, self._clips, self._config, "previews")
