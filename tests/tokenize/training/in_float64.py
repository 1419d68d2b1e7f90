"""Training of a codec in float64: where two ways agree but for rounding, they agree to many digits.

    python in_float64.py RECIPE [KEY=VALUE …]

Not for users: audio, windows and mel bands are made float64 from outside, and casts to float32 are left out.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from audiotools import AudioSignal

from tokkata.core.recipe import load_recipe
from tokkata.core.schema import Recipe, VaeModel
from tokkata.tokenize.training import posterior, train_vae
from tokkata.tokenize.training.audio_store import AudioStore
from tokkata.tokenize.training.train_codec import train_codec


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Within it, training computes in float64."""
    crop, crop_channels, filters = AudioStore.crop, AudioStore.crop_channels, AudioSignal.get_mel_filters

    def noise(*args):
        return posterior.noise_of_rows(*args).double()

    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(AudioStore, "crop", lambda *args: crop(*args).astype(np.float64)),
            patch.object(AudioStore, "crop_channels", lambda *args: crop_channels(*args).astype(np.float64)),
            patch.object(
                AudioSignal,
                "get_mel_filters",
                staticmethod(lambda *args, **kwargs: filters(*args, **kwargs).astype(np.float64)),
            ),
            patch.object(train_vae, "noise_of_rows", noise),
            patch.object(torch.Tensor, "float", lambda tensor: tensor.double()),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def train(recipe: Recipe) -> None:
    """Train any codec of `recipe` so."""
    with in_float64():
        if isinstance(recipe.model, VaeModel):
            train_vae.train_vae(recipe)
        else:
            train_codec(recipe)


if __name__ == "__main__":
    train(load_recipe(Path(sys.argv[1]), sys.argv[2:]))
