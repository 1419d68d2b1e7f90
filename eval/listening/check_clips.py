"""Clips that test the listening instead of the systems: volume, headphones, attention.

Audio is float32 `[C, N]` in -1…1.
"""

from __future__ import annotations

import numpy as np

TONE_COUNTS = (1, 2, 3, 4, 5)
_TONES_S = 4.0
_LAST_TONE_S = 3.2


def _tone(frequency_hz: float, seconds: float, sample_rate: int) -> np.ndarray:
    """A sine with ramps of 30 ms, `[N]`."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    ramp = np.clip(np.minimum(time, seconds - time) / 0.03, 0.0, 1.0)
    tone: np.ndarray = 0.25 * np.sin(2.0 * np.pi * frequency_hz * time) * np.sin(0.5 * np.pi * ramp) ** 2
    return tone.astype(np.float32)


def counted_tones(count: int, sample_rate: int, channels: int) -> np.ndarray:
    """`count` short tones in four seconds: as long for every count, and the last always near the end."""
    audio = np.zeros((channels, round(_TONES_S * sample_rate)), np.float32)
    tone = _tone(660.0, 0.25, sample_rate)
    starts = np.linspace(_LAST_TONE_S, 0.2, max(count, 2))[:count]
    for start in starts:
        first = round(start * sample_rate)
        audio[:, first : first + len(tone)] = tone
    return audio


def soft_chord(sample_rate: int, channels: int) -> np.ndarray:
    """Five seconds of a chord, by which listeners set their volume."""
    tones = [_tone(frequency, 5.0, sample_rate) for frequency in (220.0, 277.2, 329.6, 440.0)]
    return np.repeat(np.mean(tones, axis=0)[None], channels, axis=0).astype(np.float32)


def quietest_of_three(quietest: int, opposed: int, sample_rate: int) -> np.ndarray:
    """Three tones of 200 Hz in stereo, of which number `quietest` (from 1 on) is 6 dB softer.

    Number `opposed` has its channels in opposite phase: from loudspeakers they cancel, and it seems the
    quietest, which tells headphones from loudspeakers (Woods et al. 2017, doi:10.3758/s13414-017-1361-2).
    """
    pause = np.zeros((2, round(0.5 * sample_rate)), np.float32)
    parts = []
    for number in (1, 2, 3):
        tone = np.repeat(_tone(200.0, 1.0, sample_rate)[None], 2, axis=0)
        if number == quietest:
            tone *= np.float32(10.0 ** (-6.0 / 20.0))
        if number == opposed:
            tone[1] *= -1.0
        parts += [tone, pause]
    return np.concatenate(parts[:-1], axis=1)
