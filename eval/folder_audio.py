"""Anyone's folder of audio: its files, and their samples in pieces that fit into memory.

Nothing is written into the folder.

Shapes: N samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.audio import AUDIO_SUFFIXES, Samples
from ..core.audio_file import AudioReader, open_source
from ..core.audio_stream import AudioStream, open_audio
from ..core.errors import UserError
from ..core.files import read_jsonl

PIECE_S = 30
"""Seconds; longer files are embedded in pieces of this length, so that memory does not grow with theirs."""

READING = f"all channels averaged, peak of at most 1, resampled with soxr HQ, in pieces of {PIECE_S} s"
"""What is done to every file before an embedding's own preprocessing; part of every cache key."""

SAMPLES = "samples.jsonl"
"""What the stage `generate` writes beside its clips: a line a clip."""

MAX_HELD_FRAMES = 1 << 21
"""Files of at most so many frames (44 s at 48 kHz) are decoded once and held; longer ones, twice."""


@dataclass(frozen=True)
class AudioFile:
    """A file of a folder."""

    name: str
    """Its path in the folder, with / between the parts."""
    path: Path


@dataclass(frozen=True)
class Head:
    """What is known of a file before its samples are decoded."""

    sha256: str
    """Of the file's bytes."""


def find_audio(folder: Path) -> list[AudioFile]:
    """The wav, flac, ogg and mp3 files in `folder` and the folders in it, sorted by name.

    Names that start with a dot are left out, and links to folders are not followed. Of a run's `samples/` it
    is the files that samples.jsonl lists: the baseline in the folder `untrained` is another set. Raises
    `UserError` if there is no such folder, or no audio file in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a folder of audio files")
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(AUDIO_SUFFIXES):
                path = Path(parent, name)
                found.append(AudioFile(path.relative_to(folder).as_posix(), path))
    if (folder / SAMPLES).is_file():
        listed = {row.get("file") for row in read_jsonl(folder / SAMPLES)}
        found = [file for file in found if file.name in listed]
    if not found:
        raise UserError(f"{folder} has no audio files ({', '.join(AUDIO_SUFFIXES)})")
    return sorted(found, key=lambda file: file.name)


def read_pieces(file: AudioFile, sample_rate: int, known: frozenset[str]) -> Iterator[Head | np.ndarray]:
    """First the file's `Head`; then, unless its hash is `known`, its mono samples [N] in pieces of `PIECE_S`.

    Only the last piece is shorter. Silent files are read like any others. Raises `AudioError` as `open_audio`
    does.
    """
    reader = open_source(file.path)
    yield Head(reader.sha256)
    if reader.sha256 in known:
        return
    stream = _open(file.path, reader, sample_rate)
    yield from _pieces(stream, PIECE_S * sample_rate)


def _open(path: Path, reader: AudioReader, sample_rate: int) -> AudioStream:
    """Decoding takes long, and a stream decodes its source twice: short files go through memory."""
    held: list[np.ndarray] = []
    num_frames = 0
    for block in reader.read():
        held.append(block)
        num_frames += block.shape[1]
        if num_frames > MAX_HELD_FRAMES:
            return open_audio(path, sample_rate, 1, silence_ok=True)
    samples = np.concatenate(held, axis=1) if held else np.zeros((reader.channels, 0), np.float32)
    source = Samples(samples, reader.sample_rate, reader.sha256)
    return open_audio(source, sample_rate, 1, silence_ok=True)


def _pieces(stream: AudioStream, length: int) -> Iterator[np.ndarray]:
    piece = np.empty(min(length, stream.num_samples), np.float32)
    filled, left = 0, stream.num_samples
    for block in stream.blocks():
        samples = block[0]
        while len(samples):
            taken = min(len(samples), len(piece) - filled)
            piece[filled : filled + taken] = samples[:taken]
            samples, filled = samples[taken:], filled + taken
            if filled == len(piece):
                yield piece
                left -= filled
                piece, filled = np.empty(min(length, left), np.float32), 0
