"""Clips from a diffusion model to wav files.

    folder/
      00000.wav …  samples.jsonl     one line a clip

Shapes: B batch, C channels, D latent width, T frames, N samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from ..core.audio import write_wav_blocks
from ..core.conditions import GivenConditions, select
from ..core.errors import UserError
from ..core.files import write_jsonl
from ..core.progress import progress_bar
from ..tokenize.chunking import decode_pieces, window_frames
from ..tokenize.codec import Codec
from ..tokenize.latent_coding import latent_coding
from .diffusion_model import DiffusionModel
from .generate import From, Settings, generate
from .sampler import choose_sampler

_WINDOW_S = 20.0  # longer clips are decoded in such windows: a long clip's activations fill no memory


@dataclass(frozen=True)
class Clips:
    """The clips to generate."""

    notes: Sequence[dict[str, Any]]
    """What `samples.jsonl` says of each; how many there are."""
    duration_s: float
    given: GivenConditions
    """What the model is told of each."""
    begin: From | None = None
    """What all of them vary, or keep a part of."""

    def __len__(self) -> int:
        return len(self.notes)


def write_clips(
    folder: Path,
    model: DiffusionModel,
    codec: Codec,
    clips: Clips,
    settings: Settings,
    *,
    seed: int = 0,
    batch_size: int = 8,
    overlap_s: float | None = None,
    title: str = "generate",
) -> float:
    """Generate all clips into `folder`; every file appears whole, `samples.jsonl` last. Returns the seconds
    that it took.

    Raises `UserError` for a codec with other latents, and for what `generate` refuses.
    """
    check_codec(model, codec)
    choose_sampler(settings.sampler, model.objective)
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    rate = model.config.frame_rate
    num_samples = round(clips.duration_s * codec.sample_rate)
    num_frames = codec.num_frames(num_samples)
    overlap = None if overlap_s is None else max(1, round(overlap_s * rate))
    lines: list[dict[str, Any]] = []
    with progress_bar() as bar:
        task = bar.add_task(title, total=len(clips) * settings.steps)
        for first in range(0, len(clips), batch_size):
            rows = range(first, min(first + batch_size, len(clips)))
            latents = generate(
                model,
                num_frames,
                batch_size=len(rows),
                conditions=select(clips.given, slice(rows.start, rows.stop)),
                settings=settings,
                seed=seed,
                first_clip=first,
                overlap_frames=overlap,
                begin=clips.begin,
                callback=partial(_advance, bar, task, len(rows)),
            )
            for row, one in zip(rows, latents, strict=True):
                path = folder / f"{row:05d}.wav"
                audio = _decoded(model, codec, one, num_samples)
                write_wav_blocks(path, audio, codec.sample_rate, codec.channels)
                lines.append(
                    {
                        "file": path.name,
                        **clips.notes[row],
                        "seed": seed,
                        "row": row,
                        "num_frames": num_frames,
                        "duration_s": clips.duration_s,
                    }
                )
    write_jsonl(folder / "samples.jsonl", lines)
    return time.monotonic() - start


def _advance(bar: Progress, task: TaskID, num_clips: int, step: int, x0: Tensor) -> None:
    bar.advance(task, num_clips)


def check_codec(model: DiffusionModel, codec: Codec) -> None:
    """Raise `UserError` if the codec does not turn the model's latents into audio."""
    model.config.codec_info.check_matches(codec.info, "the model's latents are of another codec")


def _decoded(model: DiffusionModel, codec: Codec, latents: Tensor, num_samples: int) -> Iterator[np.ndarray]:
    """Latents [D, T] to audio [C, n], piece after piece."""
    if not bool(torch.isfinite(latents).all()):
        raise UserError("the model predicts values that are not finite: lower train.lr, or train it longer")
    frames = window_frames(codec.chunking, codec.frame_rate, _WINDOW_S)
    decode = latent_coding(codec, model.config.codec_info.latents).decode
    return decode_pieces(codec, decode, latents, num_samples, frames)
