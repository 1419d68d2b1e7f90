"""A store of made latents, and a recipe that trains on it.

Shapes: D latent width, T frames.
"""

import dataclasses

import numpy as np
import pytest

from tokkata.core.recipe import check_recipe
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.store import TokenRow, TokenStore, TokenWriter

HOP = 320


@pytest.fixture(scope="session")
def latent_info(tiny_codec):
    """What `codec.json` of such a store says; the codec is the tiny one, its latents are made up."""
    info = load_codec(str(tiny_codec), num_codebooks=4).info
    return dataclasses.replace(info, latents="latents")


@pytest.fixture
def diffusion_recipe(tmp_path, tiny_codec):
    """`diffusion_recipe(train={…}, model={…}, generate={…})`: a small recipe, checked."""

    def make(**changes):
        values = {
            "name": changes.pop("name", "run"),
            "runs_dir": str(tmp_path),
            "data": {"kind": "synth"},
            "codec": {"kind": "dac", "id": str(tiny_codec), "num_codebooks": 4},
            "tokenize": {"store": "latents"},
            "model": {"kind": "dit", "dim": 16, "num_layers": 1, "num_heads": 2},
            "train": {"steps": 3, "batch_size": 8, "crop_s": 0.16, "warmup_steps": 1, "lr": 5e-3},
            "generate": {"num_clips": 5, "duration_s": 0.16, "steps": 2},
        }
        return check_recipe(
            {
                name: {**value, **changes.get(name, {})} if isinstance(value, dict) else value
                for name, value in values.items()
            }
        )

    return make


@pytest.fixture
def write_latents(latent_info):
    """`write_latents(recipe, train=8, valid=4)`: clips of 6 to 14 frames of random latents with labels.

    Latents of dimension d have mean d and deviation 1 + d / 10. `pitch` of clip i of a split is 60 + i % 4,
    `player` its number.
    """

    def write(recipe, has_scale=False, **num_clips):
        rng = np.random.default_rng(0)
        dims = np.arange(latent_info.latent_dim)[:, None]

        def latents(i):
            drawn = rng.normal(size=(latent_info.latent_dim, 6 + (7 * i) % 9))
            return (dims + (1 + dims / 10) * drawn).astype(np.float32)

        rows = []
        for split, number in num_clips.items():
            for i in range(number):
                found = latents(i)
                rows.append(
                    TokenRow(
                        id=f"{split}-{i:02d}",
                        split=split,
                        codes=None,
                        num_samples=HOP * found.shape[1],
                        source=f"{split} {i}",
                        sha256="",
                        labels={"pitch": 60 + i % 4, "player": f"player {i}"},
                        caption=None,
                        latents=found,
                        latents_scale=np.full_like(found, 0.5) if has_scale else None,
                    )
                )
        writer = TokenWriter(
            recipe.folder / "tokens", latent_info, {"pitch": int, "player": str}, 1, has_scale=has_scale
        )
        writer.write(0, rows, [])
        writer.finish()
        return TokenStore(recipe.folder / "tokens")

    return write
