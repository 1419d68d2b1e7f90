"""Audio files in and out: checked, mixed, resampled.

Shapes: C channels, N samples. Audio is float32 `[C, N]` in -1…1. Clips of any length are read in constant
memory by `audio_stream.py`; here they are held whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import soxr

from .audio_file import AudioError, AudioSource, Samples
from .audio_stream import AS_IT_IS, MIN_DURATION_S, SILENCE_PEAK, open_audio, to_channels
from .files import atomic_file
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
            if samples.ndim != 2 or not np.isfinite(samples).all():
                raise ValueError(f"{path}: finite samples [C, N] expected, not shape {list(samples.shape)}")
            # Scaled here, because libsndfile writes with 32767 but reads with 32768: what is read would
            # differ.
            pcm = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
            file.write(pcm.T)
