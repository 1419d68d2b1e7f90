"""One HTML file with codecs' scores and players, that opens from disk without a network.

Shapes: C channels, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from ...core.files import write_text
from ..players import flac
from ..report import data_uri, number, percent
from ..spectrogram import spectrogram_png
from .clip_meter import ClipScores
from .measure import EXCERPT_S, CoderScores, Excerpt, Measured
from .table import what

TEMPLATE = "fidelity/page.html.jinja"


@dataclass(frozen=True)
class Player:
    """A clip in one state, to look at and listen to."""

    title: str
    note: str
    is_original: bool
    duration_s: float
    flac: bytes
    png: bytes


@dataclass(frozen=True)
class Listening:
    """A clip, as it is and coded."""

    clip: str
    players: Sequence[Player]


@dataclass(frozen=True)
class Bar:
    """One codebook, or one dimension of the latents."""

    label: str
    share: float
    """Of the bar's full length, 0 to 1."""
    value: str
    note: str


@dataclass(frozen=True)
class Contents:
    """What a codec's codes or latents hold."""

    name: str
    note: str
    bars: Sequence[Bar]


def listening(measured: Measured) -> list[Listening]:
    """Players of each excerpt, the clips from best to worst by the first codec's mel distance."""
    rows = measured.fidelity.rows
    ranked = sorted(measured.excerpts, key=lambda one: rows[0].clips[one.clip].mel_distance)
    return [Listening(one.clip, [_original(one), *_coded(one, rows)]) for one in ranked]


def _original(excerpt: Excerpt) -> Player:
    note = f"{excerpt.original_rate / 1000:g} kHz"
    return _player("Original", note, excerpt.original, excerpt.original_rate, is_original=True)


def _coded(excerpt: Excerpt, rows: Sequence[CoderScores]) -> list[Player]:
    return [
        _player(row.name, _told(row.clips[excerpt.clip]), excerpt.decoded[row.name], row.sample_rate)
        for row in rows
    ]


def _player(
    title: str, note: str, samples: np.ndarray, sample_rate: int, *, is_original: bool = False
) -> Player:
    return Player(
        title=title,
        note=note,
        is_original=is_original,
        duration_s=samples.shape[1] / sample_rate,
        flac=flac(samples, sample_rate),
        png=spectrogram_png(samples, sample_rate),
    )


def _told(scores: ClipScores) -> str:
    return f"mel {number(scores.mel_distance)}, SI-SDR {decibels(scores.si_sdr_db)}"


def decibels(value: float) -> str:
    """One decimal, with the unit."""
    return f"{value:.1f}".replace("-", "−") + "\N{NO-BREAK SPACE}dB"


def contents(rows: Sequence[CoderScores]) -> list[Contents]:
    """Of each codec, how its codebooks are used, or how its latents are scaled."""
    found = []
    for row in rows:
        if row.codebooks is not None and row.unused is not None:
            found.append(_codebooks(row))
        if row.latents is not None:
            largest = max(row.latents.std) or 1.0
            bars = [
                Bar(str(place), std / largest, number(std), f"mean {number(mean)}")
                for place, (mean, std) in enumerate(
                    zip(row.latents.mean, row.latents.std, strict=True), start=1
                )
            ]
            note = (
                f"Standard deviation of each of {len(bars)} latents over all frames;"
                f" {row.latents.numbers_per_s:g} numbers a second."
            )
            found.append(Contents(row.name, note, bars))
    return found


def _codebooks(row: CoderScores) -> Contents:
    assert row.codebooks is not None
    assert row.unused is not None
    sizes = [used + unused for used, unused in zip(row.codebooks.used, row.unused, strict=True)]
    bars = [
        Bar(
            str(place),
            entropy / math.log2(size),
            f"{entropy:.2f} of {math.log2(size):g} bits",
            f"{unused} of {size} never used",
        )
        for place, (entropy, unused, size) in enumerate(
            zip(row.codebooks.entropy_bits, row.unused, sizes, strict=True), start=1
        )
    ]
    note = (
        f"Entropy of each codebook, 1 the coarsest: together {percent(row.codebooks.efficiency)} of the bits"
        " that the codes could carry."
    )
    return Contents(row.name, note, bars)


def summary(rows: Sequence[CoderScores]) -> str:
    """One sentence on the codecs and what stands beside them."""
    told = [f"{row.name}{_at(row)} {number(row.mel_distance)}" for row in rows]
    return f"Mel distance to the originals, lower is better: {', '.join(told)}."


def _at(row: CoderScores) -> str:
    return "" if row.codec is None or row.bitrate_kbps is None else f" ({row.bitrate_kbps:.3g} kbit/s)"


def render(measured: Measured, title: str, command: str) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, decibels=decibels)
    environment.globals["data_uri"] = data_uri
    fidelity = measured.fidelity
    return environment.get_template(TEMPLATE).render(
        title=title,
        command=command,
        summary=summary(fidelity.rows),
        what=what(fidelity),
        fidelity=fidelity,
        clips=list(fidelity.rows[0].clips),
        contents=contents(fidelity.rows),
        listening=listening(measured),
        excerpt_s=EXCERPT_S,
    )


def write_page(path: Path, measured: Measured, *, title: str, command: str) -> None:
    """Write the page to `path` atomically."""
    write_text(path, render(measured, title, command))
