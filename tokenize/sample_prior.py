"""`tokkata codec sample`: audio from a VAE's prior, z from N(0, I) decoded.

Shapes: C channels, N samples, D latent width, T frames.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..core.audio import write_wav
from ..core.device import best_device
from ..core.errors import UserError
from ..core.loop import step_seed
from .codec import load_codec
from .training.mel_vae import KIND, MelVae
from .training.posterior import PosteriorSummary

Draw = Callable[[torch.Generator], np.ndarray]
"""One clip `[C, N]`, by the noise of a generator."""


def sample_prior(
    id: str, to: Path, *, num_clips: int, duration_s: float | None, seed: int, temperature: float
) -> list[Path]:
    """Decode `num_clips` draws of latents from N(0, temperature² I); returns the wav files.

    `id` is what `load_codec` takes, or the folder of a mel-frame VAE, whose clips are one note long. A clip
    is a function of the seed and its number. Raises `UserError` for a codec with codebooks: it has no prior.
    """
    folder = Path(id)
    draw, sample_rate = (
        _of_mel_vae(folder, duration_s, temperature)
        if _kind(folder) == KIND
        else _of_codec(id, duration_s, temperature)
    )
    summary = PosteriorSummary.read(folder)
    if summary is not None and (told := summary.far_from_prior()) is not None:
        print(f"{id}: {told}", file=sys.stderr)
    written = []
    for number in range(num_clips):
        generator = torch.Generator().manual_seed(step_seed(seed, number))
        path = to / f"{number:05d}.wav"
        write_wav(path, np.clip(draw(generator), -1.0, 1.0), sample_rate)
        written.append(path)
    return written


def _kind(folder: Path) -> str | None:
    """The kind that a folder's `config.json` tells; None where it tells none."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    kind: str | None = config.get("model_type") if isinstance(config, dict) else None
    return kind


@torch.no_grad()
def _of_codec(id: str, duration_s: float | None, temperature: float) -> tuple[Draw, int]:
    codec = load_codec(id, device=best_device())
    if codec.num_codebooks:
        raise UserError(
            f"codec {id} has codebooks, and no prior to draw latents from: name a VAE, or train a language"
            " model on its codes"
        )
    num_samples = round((2.0 if duration_s is None else duration_s) * codec.sample_rate)
    num_frames = max(1, codec.num_frames(num_samples))

    def draw(generator: torch.Generator) -> np.ndarray:
        latents = temperature * torch.randn(1, codec.latent_dim, num_frames, generator=generator)
        audio: np.ndarray = codec.decode_latents(latents.to(codec.device), num_samples)[0].cpu().numpy()
        return audio

    return draw, codec.sample_rate


def _of_mel_vae(folder: Path, duration_s: float | None, temperature: float) -> tuple[Draw, int]:
    vae = MelVae.load(folder)
    config = vae.config
    if duration_s is not None:
        note_s = config.note_samples / config.sample_rate_hz
        raise UserError(f"{folder} makes notes of {note_s:g} s: leave --duration out")

    @torch.no_grad()
    def draw(generator: torch.Generator) -> np.ndarray:
        latents = temperature * torch.randn(1, config.latent_dim, generator=generator)
        with torch.random.fork_rng(devices=[]):  # of the first phases
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            audio: np.ndarray = vae.audio(vae.decoder(latents)).numpy()
        return audio

    return draw, config.sample_rate_hz
