"""The search for copies where there are folders and no tokens: by sound, in the reference as training set.

Shapes: C channels, N samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core.audio import AudioError
from ..core.audio_stream import open_audio
from ..core.schema import Audio
from .compare_sets import in_random_order
from .copies.find import CopyScores, Queries, Training, find_copies
from .copies.pairs import CopySection, copy_section
from .embed_folder import EmbeddedClip, EmbeddedFolder

SAMPLE_RATE = 16000
"""Hz; what is searched lies below 4 kHz, the rest is for those who listen to what was found."""
MAX_QUERIES = 200
MAX_HELD_OUT = 200
QUERY_S = 30
TRAINING_S = 600
NUM_PAIRS = 6


def read_start(path: Path, sample_rate: int, seconds: float) -> np.ndarray:
    """The first `seconds` of a file, or all, in mono, [1, N]; raises `AudioError`, though not for silence."""
    return open_audio(path, sample_rate, 1, Audio(max_duration_s=seconds), silence_ok=True).read()


def search_copies(
    systems: Mapping[str, EmbeddedFolder], reference: EmbeddedFolder, seed: int
) -> dict[str, tuple[CopyScores, CopySection]]:
    """What of each system is nearer to a clip of the reference than its own clips are to each other.

    At most `MAX_QUERIES` random clips a system, `QUERY_S` of each, are looked for in `TRAINING_S` of every
    clip of the reference; files with the same bytes count once. The bar is set by clips of the reference
    themselves, each compared with the others: leave out takes and versions of one recording.
    """
    training_clips = list({clip.sha256: clip for clip in reference.clips}.values())
    training = Training(
        names=[clip.name for clip in training_clips],
        sample_rate=SAMPLE_RATE,
        audio=lambda index: read_start(training_clips[index].path, SAMPLE_RATE, TRAINING_S),
        heard=range(len(training_clips)),
    )
    place = {clip.sha256: index for index, clip in enumerate(training_clips)}
    chosen = in_random_order(training_clips, seed)[:MAX_HELD_OUT]
    held_out = _queries(chosen, own=place)
    found = {}
    for name, folder in systems.items():
        generated = _queries(in_random_order(folder.clips, seed)[:MAX_QUERIES])
        with tempfile.TemporaryDirectory() as work:
            scores = find_copies(generated, held_out, training, Path(work))
        found[name] = (scores, copy_section(scores, generated, training, NUM_PAIRS))
    return found


def _queries(clips: Sequence[EmbeddedClip], own: Mapping[str, int] | None = None) -> Queries:
    names, audio, positions = [], [], []
    for clip in clips:
        try:
            samples = read_start(clip.path, SAMPLE_RATE, QUERY_S)
        except AudioError:
            continue  # changed since it was embedded; `num_generated` tells how many were searched
        names.append(clip.name)
        audio.append(samples)
        positions.append(own[clip.sha256] if own is not None else None)
    return Queries(names, audio, own=positions)
