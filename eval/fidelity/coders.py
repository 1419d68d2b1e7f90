"""Ways to code a clip and get it back: codecs with codes, autoencoders with latents, and Opus.

Shapes: C channels, N samples of a clip, n samples of a block, K codebooks, V codebook size, D latent width.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...core.audio import write_wav_blocks
from ...core.audio_stream import AudioStream, open_audio
from ...core.errors import UserError
from ...tokenize.chunking import decode_latents_long, decode_long, encode_latents_long, encode_long
from ...tokenize.codec import Codec
from ...tokenize.fidelity import codebook_counts
from ...tokenize.latent_stats import LatentStats

Item = TypeVar("Item")

WINDOW_S = 20.0
"""Longer clips go through a codec in windows of this length, as `tokenize.window_s` has it."""

SILENT = 1e-4
"""A frame with no sample above this (-80 dB of full scale) is silent."""

OPUS_KBPS = (6, 8, 12, 16, 24, 32, 64)
"""Bitrates of Opus that codecs are set beside."""


class Clock:
    """Adds up seconds: `with clock: …`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self.seconds -= time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter()

    def during(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, counting the time that each takes to come."""
        iterator = iter(items)
        while True:
            with self:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def without(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items` within `with clock`, not counting the time that each takes to come."""
        reading = Clock()
        for item in reading.during(items):
            self.seconds -= reading.seconds
            reading.seconds = 0.0
            yield item
        self.seconds -= reading.seconds


@dataclass(frozen=True)
class Coded:
    """A coded clip, which `decoded` gives back once."""

    decoded: Iterator[np.ndarray]  # blocks [C, n]
    encoding: Clock
    decoding: Clock
    """Runs while `decoded` is read."""
    num_bits: float | None = None
    """Of the stream, where it is a file."""
    counts: Tensor | None = None  # [K, V] int64
    """How often each entry of each codebook occurs."""
    sounding: Tensor | None = None  # [K, V] int64
    """The same over the frames that are not silent."""
    latents: LatentStats | None = None


class Coder(ABC):
    """One way, at one sample rate and number of channels."""

    name: str
    sample_rate: int
    channels: int

    @abstractmethod
    def code(self, clip: AudioStream, scratch: Path) -> Coded:
        """Encode `clip`, which has this rate and these channels; `scratch` is an empty folder to work in.

        It must last until `decoded` has been read. Raises `AudioError` where the clip can no longer be read.
        """


@dataclass
class CodecCoder(Coder):
    """A codec with codes."""

    name: str
    codec: Codec
    sample_rate: int = field(init=False)
    channels: int = field(init=False)

    def __post_init__(self) -> None:
        self.sample_rate, self.channels = self.codec.sample_rate, self.codec.channels
        chunking = self.codec.chunking
        around = chunking.warm_up + 2 * max(chunking.encoder_context, chunking.decoder_context)
        self._window_frames = max(round(WINDOW_S * self.codec.frame_rate), 2 * around, 1)

    def code(self, clip: AudioStream, scratch: Path) -> Coded:
        """Codes, and the gains of those codecs that have them."""
        codec, encoding, decoding = self.codec, Clock(), Clock()
        with encoding:
            peaks = np.zeros(codec.num_frames(clip.num_samples), dtype=np.float32)
            blocks = encoding.without(_noting_peaks(clip, peaks))
            encoded = encode_long(codec, blocks, clip.num_samples, self._window_frames)
        pieces = decode_long(codec, encoded.codes, clip.num_samples, self._window_frames, encoded.gains)
        sounds = torch.from_numpy(peaks > SILENT)
        return Coded(
            decoding.during(pieces),
            encoding,
            decoding,
            counts=codebook_counts(encoded.codes[None], codec.codebook_size),
            sounding=codebook_counts(encoded.codes[None, :, sounds], codec.codebook_size),
        )


def _noting_peaks(clip: AudioStream, peaks: np.ndarray) -> Iterator[np.ndarray]:
    """The clip's blocks; `peaks` `[T]`, zeros at first, become those of frames that all last equally long."""
    start = 0
    for block in clip.blocks():
        samples = np.arange(start, start + block.shape[1])
        np.maximum.at(peaks, samples * len(peaks) // clip.num_samples, np.abs(block).max(axis=0))
        start += block.shape[1]
        yield block


class LatentCoder(CodecCoder):
    """A codec without codes: a variational autoencoder, by its posterior's mean."""

    def code(self, clip: AudioStream, scratch: Path) -> Coded:
        """Latents."""
        codec, encoding, decoding = self.codec, Clock(), Clock()
        with encoding:
            blocks = encoding.without(clip.blocks())
            latents = encode_latents_long(codec, blocks, clip.num_samples, self._window_frames)
        pieces = decode_latents_long(codec, latents, clip.num_samples, self._window_frames)
        return Coded(
            decoding.during(pieces), encoding, decoding, latents=LatentStats.of(latents.float().numpy())
        )


@dataclass
class OpusCoder(Coder):
    """Opus through its command-line tools; its times are those of the programs, with their start."""

    name: str
    kbps: int
    sample_rate: int
    channels: int

    def code(self, clip: AudioStream, scratch: Path) -> Coded:
        """A file; its bits are those of the file, with its container."""
        original, coded, decoded = (scratch / name for name in ("a.wav", "b.opus", "c.wav"))
        encoding, decoding = Clock(), Clock()
        write_wav_blocks(original, clip.blocks(), clip.sample_rate, clip.channels)
        # Padding is room for tags, not a cost of coding.
        settings = ("--bitrate", str(self.kbps), "--padding", "0")
        with encoding:
            _run("opusenc", "--quiet", *settings, str(original), str(coded))

        def blocks() -> Iterator[np.ndarray]:
            with decoding:
                _run("opusdec", "--quiet", "--rate", str(self.sample_rate), str(coded), str(decoded))
            yield from open_audio(decoded, self.sample_rate, self.channels, silence_ok=True).blocks()

        return Coded(blocks(), encoding, decoding, num_bits=coded.stat().st_size * 8.0)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise UserError(f"{command[0]} failed: {told[-1] if told else 'it did not say why'}") from error


def coder_of(name: str, codec: Codec) -> CodecCoder:
    """The coder of a codec, with codes or without."""
    return CodecCoder(name, codec) if codec.num_codebooks else LatentCoder(name, codec)


def opus_rates(bitrate_kbps: float) -> list[int]:
    """The lowest of `OPUS_KBPS` that is not below a codec's bitrate, and that not below twice it.

    The highest stands in where there is none.
    """
    return sorted(
        {
            next((kbps for kbps in OPUS_KBPS if kbps >= wanted), OPUS_KBPS[-1])
            for wanted in (bitrate_kbps, 2 * bitrate_kbps)
        }
    )


def why_no_opus() -> str | None:
    """What is missing for Opus; None if nothing is."""
    missing = [name for name in ("opusenc", "opusdec") if shutil.which(name) is None]
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return f"no rows for Opus: {' and '.join(missing)} {verb} not installed (Debian: opus-tools)"


def with_opus(coders: Sequence[CodecCoder]) -> list[Coder]:
    """`coders`, and after the last one of each sample rate and number of channels, Opus beside them."""
    kinds = list(dict.fromkeys((coder.sample_rate, coder.channels) for coder in coders))
    found: list[Coder] = []
    for rate, channels in kinds:
        group = [coder for coder in coders if (coder.sample_rate, coder.channels) == (rate, channels)]
        bitrates = [coder.codec.info.bitrate_kbps for coder in group if coder.codec.num_codebooks]
        where = f", {rate / 1000:g} kHz {'mono' if channels == 1 else 'stereo'}" if len(kinds) > 1 else ""
        found += group
        found += [
            OpusCoder(f"Opus {kbps} kbit/s{where}", kbps, rate, channels)
            for kbps in sorted({kbps for bitrate in bitrates for kbps in opus_rates(bitrate)})
        ]
    return found
