"""A walk from one clip to another through the noise between them: as sound and as a picture.

    folder/
      00000.wav …  samples.jsonl     the clips of the walk, both ends included
      all.wav                        one after another
      interpolation.png              their rainbowgrams in a row

Shapes: S steps of the walk, N samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor

from ..core.audio import write_wav_blocks
from ..core.conditions import GivenConditions, select
from ..core.files import atomic_file
from ..core.rainbowgram import rainbowgrams
from ..tokenize.codec import Codec
from .clips import Clips, file_name, write_clips
from .gan_model import GanModel
from .generate import check_length, clip_noise

ALL_NAME, PICTURE_NAME = "all.wav", "interpolation.png"


def between(start: Tensor, end: Tensor, share: float, kind: Literal["normal", "uniform"]) -> Tensor:
    """The noise at `share` of the way from `start` to `end`, both `[…, width]`.

    Normal vectors have nearly one length, so the way between two turns from one to the other and keeps it
    (spherical interpolation; arXiv:1609.04468, sec. 2.1). Evenly distributed numbers go straight.
    """
    if share in (0, 1):  # bit for bit
        return start if share == 0 else end
    if kind == "uniform":
        return torch.lerp(start, end, share)
    one, other = start.double(), end.double()
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=-1).clamp(-1, 1)[..., None]
    angle = cosine.acos()
    # The same direction twice: nothing turns.
    straight = torch.lerp(one, other, share)
    turned = (((1 - share) * angle).sin() * one + (share * angle).sin() * other) / angle.sin()
    return torch.where(angle.sin() > 1e-6, turned, straight).to(start)


def walk(start: Tensor, end: Tensor, steps: int, kind: Literal["normal", "uniform"]) -> Tensor:
    """Noise `[S, …]` of clips evenly on the way from `start` to `end`, both included."""
    return torch.stack([between(start, end, step / (steps - 1), kind) for step in range(steps)])


def write_walk(
    folder: Path,
    model: GanModel,
    codec: Codec,
    note: dict[str, Any],
    given: GivenConditions,
    duration_s: float,
    from_seed: int,
    to_seed: int,
    steps: int,
) -> None:
    """Write the files that stand above into `folder`.

    The ends are the first clips of both seeds, told the same: `given`, of one clip, which `note` says in
    words. Raises `UserError` for what `generate` refuses.
    """
    num_frames = codec.num_frames(round(duration_s * codec.sample_rate))
    check_length(model, num_frames)
    ends = [clip_noise(model, num_frames, seed, range(1))[0] for seed in (from_seed, to_seed)]
    noise = walk(ends[0], ends[1], steps, model.generator.noise_kind)
    notes = [
        note | {"from_seed": from_seed, "to_seed": to_seed, "share": step / (steps - 1)}
        for step in range(steps)
    ]
    told = select(given, torch.zeros(steps, dtype=torch.int64))
    clips = Clips(notes, duration_s, told, noise)
    write_clips(folder, model, codec, clips, seed=from_seed, title="interpolate")
    heard = [_read(folder / file_name(step)) for step in range(steps)]
    write_wav_blocks(folder / ALL_NAME, heard, codec.sample_rate, codec.channels)
    titles = [
        f"seed {from_seed}",
        *(f"{100 * note['share']:.0f} %" for note in notes[1:-1]),
        f"seed {to_seed} ",
    ]
    titled = {title: samples.mean(0) for title, samples in zip(titles, heard, strict=True)}
    with atomic_file(folder / PICTURE_NAME) as partial:
        partial.write_bytes(rainbowgrams(titled, codec.sample_rate))


def _read(path: Path) -> np.ndarray:
    """The samples `[C, N]` of a file."""
    samples: np.ndarray = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    return samples
