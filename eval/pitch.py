"""Does a clip have the pitch that it was asked to have?

Shapes: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.audio import resample, to_channels
from ..core.label import Label
from .bootstrap import share_interval
from .measured import BETTER, Score, no_score

PITCH_SCORES = ("pitch-accuracy", "chroma-accuracy")
MAX_CLIPS = 48
"""Clips judged in each set; tracking takes about 30 ms for a second of audio."""

TRACKER_RATE = 16000  # Hz; 128 ms windows hold four periods of 31 Hz (B0)
FRAME_LENGTH = 2048
HOP_LENGTH = 512
LOWEST, HIGHEST = 23, 119  # MIDI: what fits into the window, and below the Nyquist frequency
RESOLUTION = 0.25  # semitones: half the tolerance, and five times faster than the tracker's default
MARGIN = 12  # semitones searched below and above the labels, so that an octave error is seen as one
TOLERANCE = 0.5  # semitones


def has_pitch(labels: Mapping[str, Label]) -> bool:
    """Whether a clip with these labels has one trackable pitch; `form`, if there, must be `note`."""
    pitch = labels.get("pitch")
    return isinstance(pitch, int) and LOWEST <= pitch <= HIGHEST and labels.get("form", "note") == "note"


def median_pitch(audio: np.ndarray, sample_rate: int, lowest: float, highest: float) -> float | None:
    """Median MIDI pitch of the voiced frames of `audio` [C, N], searched from `lowest` to `highest`.

    None if no frame is voiced. Tracked with pYIN (Mauch and Dixon, ICASSP 2014) as implemented in librosa.
    """
    # Numba compiles the tracker the first time it runs on a machine (about half a minute) and keeps it.
    import librosa

    mono = resample(to_channels(audio, 1), sample_rate, TRACKER_RATE)[0]
    f0_hz, voiced, _ = librosa.pyin(
        mono,
        fmin=float(librosa.midi_to_hz(lowest)),
        fmax=float(librosa.midi_to_hz(highest)),
        sr=TRACKER_RATE,
        frame_length=FRAME_LENGTH,
        hop_length=HOP_LENGTH,
        resolution=RESOLUTION,
    )
    if not voiced.any():
        return None
    return float(librosa.hz_to_midi(np.median(f0_hz[voiced])))


def pitch_accuracy(
    clips: Sequence[np.ndarray], labels: Sequence[Mapping[str, Label]], sample_rate: int
) -> list[Score]:
    """Compare the pitch of `clips` ([C, N] at `sample_rate` Hz) with their label `pitch` (MIDI). Two scores:

    - `pitch-accuracy`: share of the clips whose median pitch lies within half a semitone of the label;
    - `chroma-accuracy`: the same with octave errors forgiven.

    The first `MAX_CLIPS` clips that `has_pitch` allows are judged; a clip without a voiced frame is wrong.
    Intervals are Wilson's, since all right or all wrong is no certainty.
    """
    judged = [
        (clip, pitch)
        for clip, label in zip(clips, labels, strict=True)
        if has_pitch(label) and isinstance(pitch := label["pitch"], int)
    ]
    judged = judged[:MAX_CLIPS]
    if not judged:
        return [no_score(name, "no clip has a pitch in its labels") for name in PITCH_SCORES]
    lowest = max(LOWEST, min(pitch for _, pitch in judged) - MARGIN)
    highest = min(HIGHEST, max(pitch for _, pitch in judged) + MARGIN)
    exact = chroma = 0
    for clip, pitch in judged:
        found = median_pitch(clip, sample_rate, lowest, highest)
        if found is None:
            continue
        error = found - pitch
        exact += abs(error) <= TOLERANCE
        chroma += abs(error - 12 * round(error / 12)) <= TOLERANCE
    return [
        Score(
            name=name,
            value=num_right / len(judged),
            interval=share_interval(num_right, len(judged)),
            better=BETTER[name],
            detail={"clips": float(len(judged))},
        )
        for name, num_right in zip(PITCH_SCORES, (exact, chroma), strict=True)
    ]
