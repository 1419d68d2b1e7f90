"""Rainbowgrams: pictures of notes in which brightness is loudness and colour is frequency.

After Engel et al. (NSynth, arXiv:1704.01279, sec. 4.2): a constant-Q transform whose log magnitudes are
brightness and whose instantaneous frequencies, what phases advance by from frame to frame, are colour. A
steady partial has one colour from beginning to end, one that sways changes it, and noise has all at once.

Shapes: N samples, F rows, the lowest first, T frames.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

LOWEST_HZ = 65.406
"""The lowest row, C2; the highest is below 0.45 times the sample rate, or 8 octaves above."""
ROWS_PER_OCTAVE = 40
HOP_S = 0.008
"""Seconds between two frames, about: each octave halves the hop, so it is a multiple of a power of 2."""
RANGE_DB = 70.0
"""Black is this far below the loudest of the picture."""


@dataclass(frozen=True)
class ConstantQ:
    """What a rainbowgram shows."""

    magnitudes: np.ndarray  # [F, T]
    advances: np.ndarray  # [F, T] between -1 and 1: what phases advance by from frame to frame, over π
    centres_hz: np.ndarray  # [F]
    duration_s: float


def constant_q(audio: np.ndarray, sample_rate: int) -> ConstantQ:
    """The transform of `audio` `[N]` at `sample_rate` Hz."""
    import librosa

    octaves = min(8.0, math.log2(0.45 * sample_rate / LOWEST_HZ))
    num_rows = math.floor(octaves * ROWS_PER_OCTAVE)
    multiple = 2 ** math.ceil(octaves)
    hop = max(1, round(HOP_S * sample_rate / multiple)) * multiple
    transform = librosa.cqt(
        # The lowest row's filter is most of a second long.
        np.pad(np.asarray(audio, np.float32), (0, sample_rate)),
        sr=sample_rate,
        hop_length=hop,
        fmin=LOWEST_HZ,
        n_bins=num_rows,
        bins_per_octave=ROWS_PER_OCTAVE,
        filter_scale=0.8,
    )[:, : -(-len(audio) // hop)]
    before = np.pad(transform[:, :-1], ((0, 0), (1, 0)), constant_values=1.0)
    return ConstantQ(
        magnitudes=np.abs(transform),
        advances=np.angle(transform * before.conj()) / np.pi,
        centres_hz=librosa.cqt_frequencies(num_rows, fmin=LOWEST_HZ, bins_per_octave=ROWS_PER_OCTAVE),
        duration_s=len(audio) / sample_rate,
    )


def narrowed(heard: ConstantQ, max_frames: int) -> ConstantQ:
    """The same in at most `max_frames` frames: of as many neighbours as it takes, each row keeps the
    loudest, with its colour."""
    num_frames = heard.magnitudes.shape[1]
    together = -(-num_frames // max_frames)

    def grouped(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, ((0, 0), (0, -num_frames % together)))
        return padded.reshape(len(values), -1, together)

    magnitudes, advances = grouped(heard.magnitudes), grouped(heard.advances)
    loudest = magnitudes.argmax(2)[..., None]
    return replace(
        heard,
        magnitudes=np.take_along_axis(magnitudes, loudest, 2)[..., 0],
        advances=np.take_along_axis(advances, loudest, 2)[..., 0],
    )


def colours(heard: ConstantQ, loudest: float) -> np.ndarray:
    """A picture `[F, T, 3]` of numbers from 0 to 1, black `RANGE_DB` below the magnitude `loudest`."""
    import matplotlib

    decibels = 20 * np.log10(np.maximum(heard.magnitudes, 1e-12) / max(loudest, 1e-6))
    brightness = np.clip(1 + decibels / RANGE_DB, 0, 1)
    hues: np.ndarray = matplotlib.colormaps["hsv"]((heard.advances + 1) / 2)[..., :3]
    picture: np.ndarray = hues * brightness[..., None]
    return picture


def rainbowgram(audio: np.ndarray, sample_rate: int, max_columns: int | None = None) -> bytes:
    """The picture of `audio` `[N]` at `sample_rate` Hz as a PNG, a pixel a row and frame, low rows at the
    bottom; black for silence. Of more than `max_columns` frames, neighbours share a column."""
    import matplotlib.image

    heard = constant_q(audio, sample_rate)
    if max_columns is not None:
        heard = narrowed(heard, max_columns)
    buffer = io.BytesIO()
    matplotlib.image.imsave(
        buffer,
        colours(heard, float(heard.magnitudes.max())),
        origin="lower",
        format="png",
        metadata={"Software": ""},
    )
    return buffer.getvalue()


def rainbowgrams(clips: Mapping[str, np.ndarray], sample_rate: int) -> bytes:
    """The pictures of clips `[N]`, by their titles, side by side with axes as one PNG.

    Brightness is comparable: it is relative to the loudest of all.
    """
    import matplotlib.figure
    import matplotlib.ticker

    heard = {title: constant_q(clip, sample_rate) for title, clip in clips.items()}
    loudest = max(float(one.magnitudes.max()) for one in heard.values())
    figure = matplotlib.figure.Figure(figsize=(0.6 + 1.9 * len(heard), 2.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(heard), sharey=True))
    for panel, (title, one) in zip(panels, heard.items(), strict=True):
        octaves = len(one.centres_hz) / ROWS_PER_OCTAVE
        panel.imshow(
            colours(one, loudest),
            origin="lower",
            aspect="auto",
            extent=(0.0, one.duration_s, 0.0, octaves),
            interpolation="nearest",
        )
        panel.set_title(title, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.yaxis.set_major_locator(matplotlib.ticker.MultipleLocator(1.0))
        panel.yaxis.set_major_formatter(
            matplotlib.ticker.FuncFormatter(lambda octave, _: f"{LOWEST_HZ * 2**octave:.0f}")
        )
    figure.supxlabel("seconds", fontsize=8)
    panels[0].set_ylabel("Hz", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": ""})
    return buffer.getvalue()
