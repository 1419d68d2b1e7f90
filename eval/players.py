"""What the report lets people listen to: clips with the same labels, side by side.

Shapes: C channels, N samples.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import soundfile

from ..core.audio import to_channels
from ..core.label import Label
from ..core.rainbowgram import rainbowgram
from .report import ListeningRow, Picture, Player
from .sets import ClipSet
from .spectrogram import NUM_COLUMNS, spectrogram_png


def flac(samples: np.ndarray, sample_rate: int) -> bytes:
    """`samples` [C, N] as a 16-bit FLAC file: lossless, half the size of a wav, played by all browsers."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples.T, -1.0, 1.0), sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def picture_of(samples: np.ndarray, sample_rate: int, picture: Picture) -> bytes:
    """`samples` [C, N] as a PNG of at most `NUM_COLUMNS` columns."""
    if picture == "rainbowgram":
        return rainbowgram(to_channels(samples, 1)[0], sample_rate, max_columns=NUM_COLUMNS)
    return spectrogram_png(samples, sample_rate)


def match(wanted: Sequence[Mapping[str, Label]], offered: Sequence[Mapping[str, Label]]) -> list[int]:
    """For each of the labels `wanted`, the index of the most similar of those `offered`.

    Most similar is the one that shares most labels; then the one with the nearest pitch; then one that was
    not taken yet; then the first.
    """
    taken: set[int] = set()
    matches = []
    for labels in wanted:

        def difference(index: int, labels: Mapping[str, Label] = labels) -> tuple[int, int, bool, int]:
            other = offered[index]
            shared = sum(key in other and other[key] == value for key, value in labels.items())
            pitch, other_pitch = labels.get("pitch"), other.get("pitch")
            apart = abs(pitch - other_pitch) if isinstance(pitch, int) and isinstance(other_pitch, int) else 0
            return (-shared, apart, index in taken, index)

        best = min(range(len(offered)), key=difference)
        taken.add(best)
        matches.append(best)
    return matches


def listening_rows(
    *,
    real: ClipSet,
    reconstructed: ClipSet,
    generated: ClipSet,
    untrained: ClipSet | None,
    sample_rate: int,
    num_rows: int,
    picture: Picture = "spectrogram",
) -> list[ListeningRow]:
    """Rows of players: each has a generated clip and, of the other sets, those made for the same labels.

    The real clip is the one that lent its labels, or the most similar one where that is not at hand.
    `reconstructed[i]` is `real[i]` through the codec; a file of `untrained` was asked for the same labels as
    that of the same name in `generated`.
    """
    num_rows = min(num_rows, len(generated))
    real_at = {name: index for index, name in reversed(list(enumerate(reconstructed.names)))}
    similar = match(generated.labels[:num_rows], reconstructed.labels)
    matches = [real_at.get(generated.sources[row] or "", similar[row]) for row in range(num_rows)]
    untrained_at = (
        {name: index for index, name in enumerate(untrained.names)} if untrained is not None else {}
    )
    rows = []
    for row in range(num_rows):
        labels = {key: str(value) for key, value in generated.labels[row].items()}
        players = []
        for title, clips, index in (
            ("Real", real, matches[row]),
            ("Reconstructed", reconstructed, matches[row]),
            ("Generated", generated, row),
            ("Untrained", untrained, untrained_at.get(generated.names[row])),
        ):
            if clips is None or index is None:
                continue
            own = {key: str(value) for key, value in clips.labels[index].items()}
            players.append(
                Player(
                    title=title,
                    name=clips.names[index],
                    # Only labels that were asked for and differ: no clip of that kind is left in the set.
                    differs={key: own[key] for key in labels if key in own and own[key] != labels[key]},
                    duration_s=clips.audio[index].shape[1] / sample_rate,
                    flac=flac(clips.audio[index], sample_rate),
                    png=picture_of(clips.audio[index], sample_rate, picture),
                )
            )
        rows.append(ListeningRow(labels=labels, players=players))
    return rows
