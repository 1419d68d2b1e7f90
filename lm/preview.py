"""Previews of a language model in training: clips as the stage `generate` makes them, but fewer."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..core.schema import Generate, Recipe
from ..tokenize.codec import Codec, load_codec_from_info
from ..tokenize.store import TokenStore
from .language_model import LanguageModel
from .lora import has_adapters, merged
from .sample import choose_requests, write_samples
from .transformer import TransformerLM


class Preview:
    """A job's `preview`: `train.previews` clips, always with the same noise, conditions and prompts."""

    def __init__(self, recipe: Recipe, store: TokenStore, lm: LanguageModel) -> None:
        """Raises `UserError` where no clip can lend its conditions."""
        assert isinstance(recipe.generate, Generate)
        self._config = recipe.generate.model_copy(update={"num_clips": recipe.train.previews})
        self._requests = choose_requests(store, lm, self._config)
        self._info = store.info
        self._codec: Codec | None = None

    def __call__(self, lm: nn.Module, folder: Path) -> None:
        """Write the clips of a `LanguageModel` as it is now."""
        assert isinstance(lm, LanguageModel)
        if self._codec is None:
            self._codec = load_codec_from_info(self._info, lm.device)
        if isinstance(lm, TransformerLM) and has_adapters(lm):
            lm = merged(lm).to(lm.device)
        write_samples(folder, lm, self._codec, self._requests, self._config, "previews")
