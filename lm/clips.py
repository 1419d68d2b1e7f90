"""Clips from a generator to wav files, at once or while they are being generated.

    folder/
      00000.wav …  samples.jsonl     one line a clip
      codes.safetensors              their codes, [K, T] int32 under each file's name

Shapes: B batch, C channels, K codebooks, T frames, N samples.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.audio import growing_path, growing_wav, write_wav_blocks
from ..core.conditions import GivenConditions, select
from ..core.files import atomic_file, write_jsonl
from ..core.progress import progress_bar
from ..core.stages import SAMPLE_CODES
from ..tokenize.codec import Codec
from .generate import Generator
from .sampling import Sampling
from .stream import check_codec, stream_audio

_WINDOW_S = 20.0  # longer clips are decoded in such windows: a long clip's activations fill no memory


@dataclass(frozen=True)
class Clips:
    """The clips to generate."""

    notes: Sequence[dict[str, Any]]
    """What `samples.jsonl` says of each; how many there are."""
    duration_s: float
    given: GivenConditions
    """What the model is told of each."""
    prompt: Tensor | None = None
    """What each begins with, [B, K, T0]."""

    def __len__(self) -> int:
        return len(self.notes)


@dataclass(frozen=True)
class Written:
    """How it went."""

    audio_s: float
    """Length of all clips together."""
    elapsed_s: float
    """Time that generating, decoding and writing took."""
    first_audio_s: float | None = None
    """Time until the first samples were in their file, where clips were streamed."""


def write_clips(
    folder: Path,
    generator: Generator,
    codec: Codec,
    clips: Clips,
    sampling: Sampling,
    *,
    seed: int = 0,
    batch_size: int = 8,
    overlap_s: float | None = None,
    title: str = "generate",
    stream: Callable[[Path, float], None] | None = None,
) -> Written:
    """Generate all clips and write them to `folder`; every file appears whole, `samples.jsonl` last.

    Beside the wavs, their codes are kept ([K, T] int32 under each file's name), unless they are streamed.

    A clip is the same whatever the batch size, and whether or not it is streamed, to a step of 16 bits.

    Args:
        overlap_s: how much of a window the next one begins with, in clips longer than the model's window; see
            `generate`.
        title: of the bar.
        stream: write the clips of each batch as they grow, each under its `growing_path`, in constant memory;
            called with that path of the first clip, and the seconds that it took, when there is sound in it.
    """
    check_codec(generator.config, codec)
    folder.mkdir(parents=True, exist_ok=True)
    num_samples = round(clips.duration_s * codec.sample_rate)
    work = _Work(generator, codec, clips, sampling, seed, overlap_s, num_samples, _Progress(clips, title))
    lines: list[dict[str, Any]] = []
    codes: dict[str, Tensor] = {}
    with work.progress:
        for first in range(0, len(clips), batch_size):
            rows = range(first, min(first + batch_size, len(clips)))
            paths = [folder / f"{row:05d}.wav" for row in rows]
            if stream is None:
                codes |= zip((path.name for path in paths), work.write(rows, paths), strict=True)
            else:
                work.write_growing(rows, paths, stream)
            lines += [
                {
                    "file": path.name,
                    **clips.notes[row],
                    "seed": seed,
                    "row": row,
                    "num_frames": work.num_frames,
                    "duration_s": clips.duration_s,
                }
                for row, path in zip(rows, paths, strict=True)
            ]
    if codes:
        with atomic_file(folder / SAMPLE_CODES) as partial:
            save_file({name: one.cpu().int().contiguous() for name, one in codes.items()}, partial)
    write_jsonl(folder / "samples.jsonl", lines)
    return Written(work.progress.total_s, work.progress.elapsed_s, work.first_audio_s)


class _Progress(contextlib.AbstractContextManager["_Progress"]):
    """A bar over the seconds of all clips, that says how much faster than they last they come."""

    def __init__(self, clips: Clips, title: str) -> None:
        self.total_s = clips.duration_s * len(clips)
        self._title = title
        self._start = time.monotonic()
        self._done_s = 0.0
        self._bar = progress_bar()
        self._task = self._bar.add_task(title, total=self.total_s)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def advance(self, audio_s: float) -> None:
        self._done_s = min(self.total_s, self._done_s + audio_s)
        text = f"{self._title} {self._done_s / self.elapsed_s:.2g} × real time"
        self._bar.update(self._task, completed=self._done_s, description=text)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


@dataclass
class _Work:
    generator: Generator
    codec: Codec
    clips: Clips
    sampling: Sampling
    seed: int
    overlap_s: float | None
    num_samples: int
    progress: _Progress
    first_audio_s: float | None = None

    @property
    def num_frames(self) -> int:
        return self.codec.num_frames(self.num_samples)

    def write(self, rows: range, paths: Sequence[Path]) -> Iterable[Tensor]:
        """Generate a batch whole, then decode it clip by clip; the codes, [K, T] each."""
        codec, rate = self.codec, self.generator.config.frame_rate
        chunks = []
        for chunk in self.generator.stream(
            self.num_frames,
            chunk_frames=max(1, round(rate)),
            batch_size=len(rows),
            conditions=select(self.clips.given, slice(rows.start, rows.stop)),
            prompt=self._prompt(rows),
            sampling=self.sampling,
            seed=self.seed,
            first_clip=rows.start,
            overlap_frames=self._overlap_frames,
        ):
            chunks.append(chunk)
            self.progress.advance(len(rows) * chunk.shape[2] / rate)
        # One clip at a time: a batch of long clips does not fit a cache or a small GPU.
        found = torch.cat(chunks, dim=2)
        for path, codes in zip(paths, found, strict=True):
            write_wav_blocks(path, self._decoded(codes), codec.sample_rate, codec.channels)
        return found

    def _decoded(self, codes: Tensor) -> Iterator[np.ndarray]:
        """Codes [K, T] to audio [C, n]."""
        if self.num_samples <= _WINDOW_S * self.codec.sample_rate:
            yield self.codec.decode(codes[None], self.num_samples)[0].cpu().numpy()
            return
        parts = torch.split(codes[None], round(_WINDOW_S * self.codec.frame_rate), dim=2)
        for audio in self.codec.decode_stream(parts, codes.shape[1], self.num_samples):
            yield audio[0].cpu().numpy()

    def write_growing(self, rows: range, paths: Sequence[Path], heard: Callable[[Path, float], None]) -> None:
        """Decode and write a batch while it is being generated."""
        codec = self.codec
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(growing_wav(path, codec.sample_rate, codec.channels, self.num_samples))
                for path in paths
            ]
            for audio in stream_audio(
                self.generator,
                codec,
                self.num_frames,
                num_samples=self.num_samples,
                batch_size=len(rows),
                conditions=select(self.clips.given, slice(rows.start, rows.stop)),
                prompt=self._prompt(rows),
                sampling=self.sampling,
                seed=self.seed,
                first_clip=rows.start,
                overlap_frames=self._overlap_frames,
            ):
                for append, samples in zip(files, audio.cpu().numpy(), strict=True):
                    append(samples)
                if self.first_audio_s is None:
                    self.first_audio_s = self.progress.elapsed_s
                    heard(growing_path(paths[0]), self.first_audio_s)
                self.progress.advance(len(rows) * audio.shape[2] / codec.sample_rate)

    def _prompt(self, rows: range) -> Tensor | None:
        return None if self.clips.prompt is None else self.clips.prompt[rows.start : rows.stop]

    @property
    def _overlap_frames(self) -> int | None:
        return None if self.overlap_s is None else round(self.overlap_s * self.generator.config.frame_rate)
