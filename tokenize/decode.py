"""Rows of a token store back to audio files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from ..core.audio import write_wav_blocks
from ..core.device import best_device
from ..core.errors import UserError
from ..core.progress import track
from ..core.sections import Split
from .chunking import decode_long, decode_pieces, window_frames
from .codec import Codec, load_codec_from_info
from .latent_coding import latent_coding
from .store import TokenSplit, TokenStore


def decode_rows(
    folder: Path, to: Path, *, ids: Sequence[str], split: Split | None, num_clips: int, window_s: float
) -> list[Path]:
    """Decode rows of the store in `folder`: `ids`, or the first `num_clips` (of one split); returns the wavs.

    A file is named by its clip's id, with slashes as folders, and `.wav`. Long clips are decoded in windows,
    in constant memory. Raises `UserError` for an id that the store does not have, and where no row is left.
    """
    store = TokenStore(folder)
    found = _chosen(store, ids, split)
    if not ids:
        found = found[:num_clips]
    if not found:
        raise UserError(f"{folder} has no clip in the split '{split}'" if split else f"{folder} has no clip")
    codec = load_codec_from_info(store.info, best_device())
    frames = window_frames(codec.chunking, codec.frame_rate, window_s)
    written = []
    for rows, clip, name in track(found, "decode"):
        path = to / (name if name.endswith(".wav") else f"{name}.wav")
        blocks = _decode(codec, store.info.latents, rows, clip, frames)
        write_wav_blocks(path, blocks, codec.sample_rate, codec.channels)
        written.append(path)
    return written


def _decode(
    codec: Codec, latents: str | None, rows: TokenSplit, clip: int, window_frames: int
) -> Iterator[np.ndarray]:
    """The audio `[C, n]` of a row, piece after piece."""
    num_samples = int(rows.num_samples[clip])
    if latents is None:
        gains = rows.gains(clip)
        return decode_long(
            codec,
            torch.from_numpy(rows.codes(clip)),
            num_samples,
            window_frames,
            None if gains is None else torch.from_numpy(gains),
        )
    stored = torch.from_numpy(rows.latents(clip))
    return decode_pieces(codec, latent_coding(codec, latents).decode, stored, num_samples, window_frames)


def _chosen(store: TokenStore, ids: Sequence[str], split: Split | None) -> list[tuple[TokenSplit, int, str]]:
    """Split, position and file name (without suffix) of each row, in the store's order."""
    wanted = set(ids)
    found = []
    for name in [split] if split else get_args(Split):
        rows = store.split(name)
        found += [
            (rows, clip, id)
            for clip, id in enumerate(map(str, rows.column("id")))
            if not wanted or id in wanted
        ]
    missing = sorted(wanted - {id for _, _, id in found})
    if missing:
        raise UserError(f"the store {store.folder} has no clip with the id '{missing[0]}'")
    return found
