"""Clips from an adversarial model to wav files.

    folder/
      00000.wav …  samples.jsonl     one line a clip

Shapes: B batch, C channels, D latent width of the codec, T its frames, N samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.audio import growing_path, growing_wav, write_wav_blocks
from ..core.conditions import GivenConditions, select
from ..core.errors import UserError
from ..core.files import write_jsonl
from ..core.progress import progress_bar
from ..tokenize.chunking import decode_growing, decode_pieces, window_frames
from ..tokenize.codec import Codec
from ..tokenize.latent_coding import Decode, latent_coding
from .gan_model import GanModel
from .generate import check_length, generate
from .networks.musika import DrawnNoise, MusikaGenerator, generate_stream

_WINDOW_S = 20.0  # longer clips are decoded in such windows: a long clip's activations fill no memory
_WINDOWS_AT_ONCE = 4  # of a clip that grows, beyond which its first audio would come later

Heard = Callable[[Path, float], None]
"""Is told where a clip grows, and after how many seconds its first audio was there."""


@dataclass(frozen=True)
class Clips:
    """The clips to make."""

    notes: Sequence[dict[str, Any]]
    """What `samples.jsonl` says of each; how many there are."""
    duration_s: float
    given: GivenConditions
    """What the model is told of each."""
    noise: Tensor | None = None
    """`[B, …]`; None: that of the seed."""

    def __len__(self) -> int:
        return len(self.notes)


def write_clips(
    folder: Path,
    model: GanModel,
    codec: Codec,
    clips: Clips,
    *,
    seed: int = 0,
    batch_size: int = 8,
    title: str = "generate",
    heard: Heard | None = None,
) -> float:
    """Make all clips into `folder`; every file appears whole, `samples.jsonl` last. Returns the seconds that
    it took.

    A Musika's clips are made one after another, each in windows that are decoded and written as they come,
    so memory does not grow with their length.

    Args:
        title: of the bar.
        heard: called when there is sound in the first clip of a model whose clips grow.

    Raises `UserError` for a codec with other latents, and for what `generate` refuses.
    """
    check_codec(model, codec)
    work = _Work(model, codec, clips, seed, heard)
    check_length(model, work.num_frames)
    folder.mkdir(parents=True, exist_ok=True)
    growing = grows(model) and clips.noise is None
    step = 1 if growing else batch_size
    write = work.write_growing if growing else work.write
    with progress_bar() as bar:
        task = bar.add_task(title, total=len(clips))
        for first in range(0, len(clips), step):
            rows = range(first, min(first + step, len(clips)))
            write(rows, [folder / file_name(row) for row in rows])
            bar.advance(task, len(rows))
    lines = [
        {
            "file": file_name(row),
            **note,
            "seed": seed,
            "row": row,
            "num_frames": work.num_frames,
            "duration_s": clips.duration_s,
        }
        for row, note in enumerate(clips.notes)
    ]
    write_jsonl(folder / "samples.jsonl", lines)
    return work.elapsed_s


def grows(model: GanModel) -> bool:
    """Whether the model can make a clip piece by piece, without an end."""
    return isinstance(model.generator, MusikaGenerator)


def file_name(row: int) -> str:
    """What the wav file of a clip is called."""
    return f"{row:05d}.wav"


def check_codec(model: GanModel, codec: Codec) -> None:
    """Raise `UserError` if the codec does not turn what the model makes into audio."""
    model.config.codec_info.check_matches(codec.info, "the model's latents are of another codec")


class _Work:
    def __init__(self, model: GanModel, codec: Codec, clips: Clips, seed: int, heard: Heard | None) -> None:
        self._model, self._codec, self._clips = model, codec, clips
        self._seed, self._heard = seed, heard
        self._start = time.monotonic()
        self._num_samples = round(clips.duration_s * codec.sample_rate)
        self.num_frames = codec.num_frames(self._num_samples)
        self._decode: Decode = latent_coding(codec, model.config.codec_info.latents).decode
        self._window_frames = window_frames(codec.chunking, codec.frame_rate, _WINDOW_S)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def write(self, rows: range, paths: Sequence[Path]) -> None:
        """A batch at once."""
        codec, noise = self._codec, self._clips.noise
        latents = generate(
            self._model,
            self.num_frames,
            batch_size=len(rows),
            conditions=self._given(rows),
            seed=self._seed,
            first_clip=rows.start,
            noise=None if noise is None else noise[rows.start : rows.stop],
        )
        for path, one in zip(paths, latents, strict=True):
            pieces = decode_pieces(codec, self._decode, _checked(one), self._num_samples, self._window_frames)
            write_wav_blocks(path, pieces, codec.sample_rate, codec.channels)

    def write_growing(self, rows: range, paths: Sequence[Path]) -> None:
        """One clip of a Musika, window after window."""
        codec, generator = self._codec, self._model.generator
        assert isinstance(generator, MusikaGenerator)
        window = -(-self._model.config.num_frames // generator.lowest_frames) * generator.lowest_frames
        given = {name: one.to(self._model.device) for name, one in self._given(rows).items()}
        images = generate_stream(
            generator,
            [DrawnNoise(generator, self._seed, rows.start)],
            given,
            chunk_frames=_WINDOWS_AT_ONCE * window,
            num_frames=self.num_frames,
            window_frames=window,
        )
        latents = (_checked(self._model.decode(image)[0]) for image in images)
        pieces = decode_growing(
            codec, self._decode, _Reader(latents).read, self._num_samples, self._window_frames
        )
        with growing_wav(paths[0], codec.sample_rate, codec.channels, self._num_samples) as append:
            for samples in pieces:
                append(samples)
                if self._heard is not None:
                    self._heard(growing_path(paths[0]), self.elapsed_s)
                    self._heard = None

    def _given(self, rows: range) -> GivenConditions:
        return select(self._clips.given, slice(rows.start, rows.stop))


class _Reader:
    """Chunks of latents `[D, t]` as one clip, of which no more is held than is still asked for."""

    def __init__(self, chunks: Iterator[Tensor]) -> None:
        self._chunks = chunks
        self._held: Tensor | None = None
        self._first = 0  # frame of the clip that is the first held

    def read(self, start: int, stop: int) -> Tensor:
        """Frames `[D, stop - start]` of the clip; neither number may be lower than before."""
        held = next(self._chunks) if self._held is None else self._held
        while self._first + held.shape[1] < stop:
            held = torch.cat([held, next(self._chunks)], dim=1)
        self._held, self._first = held[:, start - self._first :], start
        return self._held[:, : stop - start]


def _checked(latents: Tensor) -> Tensor:
    if not bool(torch.isfinite(latents).all()):
        raise UserError("the model makes values that are not finite: lower train.lr, or train it longer")
    return latents
