"""Flagged clips beside the training clips that they resemble, for the report.

Shapes: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..players import flac
from ..report import ListeningRow, Player, number
from ..spectrogram import spectrogram_png
from .find import CopyScores, Queries, Training


@dataclass(frozen=True)
class CopySection:
    """What `section.html.jinja` shows."""

    scores: CopyScores
    pairs: Sequence[ListeningRow]
    """At most as many as asked for; `scores.flagged` lists all."""


def _player(title: str, name: str, samples: np.ndarray, sample_rate: int) -> Player:
    return Player(
        title=title,
        name=name,
        differs={},
        duration_s=samples.shape[1] / sample_rate,
        flac=flac(samples, sample_rate),
        png=spectrogram_png(samples, sample_rate),
    )


def beside(samples: np.ndarray, start: int, num_samples: int) -> np.ndarray:
    """`num_samples` of a training clip `[C, N]` from sample `start`, or as near to it as the clip allows."""
    start = max(0, min(start, samples.shape[1] - num_samples))
    return samples[:, start : start + num_samples]


def flagged_pairs(
    scores: CopyScores, generated: Queries, training: Training, num_pairs: int
) -> list[ListeningRow]:
    """Rows with a flagged clip and the training clip it is nearest to, so that both play the alike part.

    The most remarkable first, each generated clip once. Raises `AudioError` if a training clip that could be
    read before no longer can.
    """
    rows: list[ListeningRow] = []
    shown: set[int] = set()
    for item in scores.flagged:
        if len(rows) == num_pairs:
            break
        if item.index in shown:
            continue
        shown.add(item.index)
        samples = generated.audio[item.index]
        start = round((item.clip_s - item.query_s) * training.sample_rate)
        original = beside(training.audio(item.training_index), start, samples.shape[1])
        labels = {
            item.statistic: f"{number(item.value)}, above {number(item.threshold)}",
            "alike from": f"{item.query_s:.1f} s for {item.duration_s:.1f} s",
        }
        rows.append(
            ListeningRow(
                labels=labels,
                players=[
                    _player("Generated", item.name, samples, training.sample_rate),
                    _player("Training", item.training_clip, original, training.sample_rate),
                ],
            )
        )
    return rows


def copy_section(scores: CopyScores, generated: Queries, training: Training, num_pairs: int) -> CopySection:
    """The report's section on copies."""
    return CopySection(scores, flagged_pairs(scores, generated, training, num_pairs))
