"""A small picture of a sound: its log-mel spectrogram as a PNG.

Shapes: C channels, N samples.
"""

from __future__ import annotations

import io
import math

import numpy as np

from ..core.audio import to_channels

NUM_MELS = 80
"""Height of the picture in pixels."""
NUM_COLUMNS = 240
"""Largest width of the picture in pixels; browsers scale it smoothly."""
WINDOW_S = 0.05
"""The window is the next power of two of samples: 64 ms at 16 kHz."""
LOWEST_DB, HIGHEST_DB = -80.0, 0.0
"""What is black and what is brightest, relative to a full-scale sine: the same for all clips, so that
pictures can be compared."""


def log_mel(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Log-mel power [NUM_MELS, columns] of `samples` [C, N] in dB re a full-scale sine, lowest band first."""
    import librosa

    window = 2 ** math.ceil(math.log2(WINDOW_S * sample_rate))
    mono = to_channels(samples, 1)[0].astype(np.float32)
    mono = np.pad(mono, (0, max(0, window - len(mono))))
    power = librosa.feature.melspectrogram(
        y=mono,
        sr=sample_rate,
        n_fft=window,
        hop_length=max(1, math.ceil(len(mono) / NUM_COLUMNS)),
        n_mels=NUM_MELS,
        norm=None,
        pad_mode="constant",
    )[:, :NUM_COLUMNS]
    # A full-scale sine on a bin has the power (window / 4)² under a Hann window.
    decibels: np.ndarray = 10.0 * np.log10(np.maximum(power, 1e-12) / (window / 4) ** 2)
    return decibels


def spectrogram_png(samples: np.ndarray, sample_rate: int) -> bytes:
    """The log-mel spectrogram of `samples` [C, N] at `sample_rate` Hz as a PNG, low bands at the bottom."""
    import matplotlib.image

    buffer = io.BytesIO()
    matplotlib.image.imsave(
        buffer,
        log_mel(samples, sample_rate),
        vmin=LOWEST_DB,
        vmax=HIGHEST_DB,
        cmap="magma",
        origin="lower",
        format="png",
        metadata={"Software": ""},
    )
    return buffer.getvalue()
