"""Token stores of single samples, and recipes of models over them.

Shapes: B batch, T samples.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tokkata.core.recipe import check_recipe
from tokkata.core.schema import Recipe
from tokkata.tokenize.codec import CodecInfo
from tokkata.tokenize.store import TokenRow, TokenStore, TokenWriter

V = 19
RATE = 1000

INFO = CodecInfo(
    id=f"mulaw:{RATE}",
    revision=None,
    sample_rate=RATE,
    channels=1,
    hop_length=1,
    frame_rate=float(RATE),
    num_codebooks=1,
    codebook_size=V,
    latent_dim=1,
    versions={},
)


def sample_recipe(folder: Path, model: dict[str, Any], **train: Any) -> Recipe:
    """A small recipe with the run `run` in `folder`."""
    name = train.pop("name", "run")
    defaults = {"steps": 6, "batch_size": 4, "crop_s": 0.024, "warmup_steps": 1, "lr": 5e-3, "save_every": 2}
    return check_recipe(
        {
            "name": name,
            "runs_dir": str(folder),
            "data": {"kind": "synth"},
            "codec": {"kind": "mulaw", "sample_rate_hz": RATE},
            "model": model,
            "train": defaults | train,
        }
    )


def wave(pitch: int, length: int) -> np.ndarray:
    """A sine of 10 to 13 samples a period, in classes [1, T]."""
    phase = 2 * np.pi * np.arange(length) / (pitch - 50)
    return np.rint((V - 1) * (0.5 + 0.45 * np.sin(phase))).astype(np.int64)[None]


def write_samples(recipe: Recipe, **num_clips: int) -> TokenStore:
    """`write_samples(recipe, train=8, valid=4)`: sines of 60 to 100 samples; clip i has pitch 60 + i % 4."""
    rows = [
        TokenRow(
            id=f"{split}-{i:02d}",
            split=split,
            codes=wave(60 + i % 4, 60 + (13 * i) % 41),
            num_samples=60 + (13 * i) % 41,
            source=f"{split} {i}",
            sha256="",
            labels={"pitch": 60 + i % 4},
            caption=None,
        )
        for split, number in num_clips.items()
        for i in range(number)
    ]
    writer = TokenWriter(recipe.folder / "tokens", INFO, {"pitch": int}, 1)
    writer.write(0, rows, [])
    writer.finish()
    return TokenStore(recipe.folder / "tokens")
