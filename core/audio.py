"""Audio files in and out: checked, mixed, resampled.

Shapes: C channels, N samples. Audio is float32 `[C, N]` in -1…1.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from .files import atomic_file

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")

MIN_DURATION_S = 0.05
"""Shorter files are refused: no codec frame and no embedding can be made of them."""

SILENCE_PEAK = 1e-4
"""Files whose largest sample is below this (-80 dBFS) are refused: they teach and measure nothing."""

_OPEN_FAULTS = {3: "malformed header", 4: "unsupported encoding"}  # libsndfile's SF_ERR_…

# A streaming writer does not know the length when it writes the header, and puts this there.
_UNKNOWN_SIZE = 0xFFFFFFFF


class AudioError(Exception):
    """A file or clip that cannot be used; the text is the reason, short and without the file's name."""


@dataclass(frozen=True)
class _WavSizes:
    promised_bytes: int
    present_bytes: int
    frame_bytes: int


def _wav_sizes(file: BinaryIO, file_bytes: int) -> _WavSizes | None:
    """What the header of a RIFF (or RF64) file promises; None if it is no such file or does not say.

    libsndfile quietly shortens a truncated file to what is there, so the header has to be read here.
    """
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        return None
    frame_bytes = 0
    large_bytes = 0  # RF64 keeps sizes beyond 4 GiB in its chunk ds64
    while len(header := file.read(8)) == 8:
        name, size = header[:4], struct.unpack("<I", header[4:])[0]
        start = file.tell()
        if name == b"data":
            promised = large_bytes if size == _UNKNOWN_SIZE else size
            if not promised or not frame_bytes:
                return None
            return _WavSizes(promised, file_bytes - start, frame_bytes)
        if name == b"fmt ":
            body = file.read(14)
            if len(body) < 14:
                return None
            frame_bytes = struct.unpack("<H", body[12:])[0]  # nBlockAlign
        elif name == b"ds64":
            body = file.read(16)
            if len(body) < 16:
                return None
            large_bytes = struct.unpack("<Q", body[8:])[0]
        file.seek(start + size + size % 2)  # chunks are padded to an even length
    return None


def _read(path: Path) -> tuple[np.ndarray, int]:
    """All samples of a file as float32 `[C, N]`, and its sample rate."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AudioError("not a regular file")
        with path.open("rb") as file:
            if not status.st_size:
                raise AudioError("empty file (0 bytes)")
            wav = _wav_sizes(file, status.st_size)
    except PermissionError as error:
        raise AudioError("permission denied") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {(error.strerror or 'input/output error').lower()}") from error
    if wav is not None and wav.present_bytes < wav.promised_bytes:
        raise AudioError(
            f"truncated: header says {wav.promised_bytes // wav.frame_bytes} frames,"
            f" {wav.present_bytes // wav.frame_bytes} are there"
        )
    try:
        sound = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        # libsndfile's own words mislead: for a text file it says that the file does not exist.
        reason = _OPEN_FAULTS.get(error.code, "no wav, flac, ogg or mp3 inside")
        raise AudioError(f"not audio: {reason}") from error
    with sound:
        promised, sample_rate = sound.frames, sound.samplerate
        try:
            samples = sound.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError("damaged: cannot be decoded to its end") from error
    # A FLAC file says its length in its header. An MP3's is an estimate and says nothing.
    if path.suffix.lower() != ".mp3" and len(samples) < promised:
        raise AudioError(f"truncated: header says {promised} frames, {len(samples)} are there")
    return samples.T, sample_rate


def load_audio(path: Path, sample_rate: int, channels: int) -> np.ndarray:
    """Read a wav, flac, ogg or mp3 file as float32 `[channels, N]` at `sample_rate` Hz.

    A file with samples beyond ±1 (floating-point, or a lossy codec's overshoot) is scaled down to a peak
    of 1 rather than clipped. Then come `to_channels` and `resample`, whose overshoot is clipped.

    Raises `AudioError` if the file is empty, unreadable, no audio, damaged, truncated, shorter than
    `MIN_DURATION_S`, silent (`SILENCE_PEAK`), or holds NaN or infinite samples. Only wav and flac say how
    long they should be: an ogg or mp3 file that was cut short is read as far as it goes.
    """
    samples, file_rate = _read(path)
    num_samples = samples.shape[1]
    if num_samples < MIN_DURATION_S * file_rate:
        raise AudioError(f"too short: {num_samples} sample{'s' if num_samples != 1 else ''}")
    if not np.isfinite(samples).all():
        raise AudioError("contains NaN or infinite samples")
    peak = float(np.abs(samples).max())
    if peak < SILENCE_PEAK:
        raise AudioError("silent")
    if peak > 1.0:
        samples = samples / np.float32(peak)
    samples = to_channels(samples, channels)
    if np.abs(samples).max() < SILENCE_PEAK:
        raise AudioError(f"silent when mixed to {channels} channel{'s' if channels != 1 else ''}")
    return np.ascontiguousarray(np.clip(resample(samples, file_rate, sample_rate), -1.0, 1.0))


def to_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    """Mix `[C, N]` to `[channels, N]`.

    The same number is returned as it is. Otherwise all channels are averaged, and the average is repeated:
    what each of five or eight channels means is not known here, and a mean never clips.
    """
    if channels < 1:
        raise ValueError(f"channels must be positive, not {channels}")
    if samples.shape[0] == channels:
        return samples
    return np.repeat(samples.mean(axis=0, keepdims=True, dtype=samples.dtype), channels, axis=0)


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
    if samples.ndim != 2 or not np.isfinite(samples).all():
        raise ValueError(f"{path}: finite samples [C, N] expected, not shape {list(samples.shape)}")
    # Scaled here, because libsndfile writes with 32767 but reads with 32768: what is read would differ.
    pcm = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    with atomic_file(path) as partial:
        soundfile.write(partial, pcm.T, sample_rate, format="WAV", subtype="PCM_16")
