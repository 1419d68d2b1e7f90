"""Audio files in and out: checked, mixed, resampled.

Shapes: C channels, N samples. Audio is float32 `[C, N]` in -1…1. Clips of any length are read in constant
memory by `audio_stream.py`; here they are held whole.
"""

from __future__ import annotations

import contextlib
import wave
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from .audio_file import AudioError, AudioSource, Samples
from .audio_stream import AS_IT_IS, MIN_DURATION_S, SILENCE_PEAK, open_audio, to_channels
from .files import PARTIAL_PREFIX, atomic_file
from .schema import Audio

__all__ = [
    "AUDIO_SUFFIXES",
    "MIN_DURATION_S",
    "SILENCE_PEAK",
    "AudioError",
    "AudioSource",
    "Samples",
    "load_audio",
    "resample",
    "to_channels",
    "write_wav",
]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def load_audio(
    source: AudioSource, sample_rate: int, channels: int, settings: Audio = AS_IT_IS
) -> np.ndarray:
    """Read a wav, flac, ogg or mp3 file, the bytes of one, or samples, as float32 `[channels, N]`.

    `audio_stream.open_audio` says what is done to them, and when `AudioError` is raised.
    """
    return open_audio(source, sample_rate, channels, settings).read()


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample `[C, N]` from `from_rate` to `to_rate` Hz with soxr's HQ; equal rates return the input.

    The result has `round(N * to_rate / from_rate)` samples, and may overshoot ±1 a little.
    """
    if from_rate == to_rate:
        return samples
    resampled: np.ndarray = soxr.resample(samples.T, from_rate, to_rate, quality="HQ")
    return np.ascontiguousarray(resampled.T)


def write_wav(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """Write `[C, N]` as a 16-bit wav file, atomically; the same samples always give the same bytes.

    Samples beyond ±1 are clipped. Raises `ValueError` for other shapes and for NaN or infinite samples.
    """
    write_wav_blocks(path, [samples], sample_rate, len(samples) if samples.ndim == 2 else 1)


def write_wav_blocks(path: Path, blocks: Iterable[np.ndarray], sample_rate: int, channels: int) -> None:
    """As `write_wav`, of samples that come in blocks `[C, n]`."""
    with (
        atomic_file(path) as partial,
        soundfile.SoundFile(partial, "w", sample_rate, channels, format="WAV", subtype="PCM_16") as file,
    ):
        for samples in blocks:
            file.write(_pcm(path, samples).T)


@contextlib.contextmanager
def growing_wav(
    path: Path, sample_rate: int, channels: int, num_samples: int
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends `[C, n]` to a wav file, which holds each block as soon as it is written.

    Until `num_samples` are there, the file has the temporary name that `growing_path` gives, with a header
    that promises them all, so players can begin; then it is that of `write_wav`, byte for byte. Raises
    `ValueError` if another number comes.
    """
    with atomic_file(path) as partial, partial.open("wb") as raw, wave.open(raw, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.setnframes(num_samples)

        def append(samples: np.ndarray) -> None:
            file.writeframesraw(_pcm(path, samples).T.tobytes())
            raw.flush()

        yield append
        if file.tell() != num_samples:
            raise ValueError(f"{path}: {num_samples} samples were announced, {file.tell()} have come")


def growing_path(path: Path) -> Path:
    """Where `growing_wav` writes until the file is whole."""
    return path.with_name(PARTIAL_PREFIX + path.name)


def _pcm(path: Path, samples: np.ndarray) -> np.ndarray:
    """`[C, n]` in 16 bits."""
    if samples.ndim != 2 or not np.isfinite(samples).all():
        raise ValueError(f"{path}: finite samples [C, N] expected, not shape {list(samples.shape)}")
    # Scaled here, because libsndfile writes with 32767 but reads with 32768: what is read would differ.
    return np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
