"""One HTML file with a run's scores, sounds and curves, that opens from disk without a network.

Pure presentation: it is given a `ReportData` and computes no score.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
from markupsafe import Markup

from ..core.files import write_text
from .bootstrap import Interval
from .chart import Point, Series, line_chart
from .measured import SHOWN, Score

if TYPE_CHECKING:  # it imports this module
    from .copies.pairs import CopySection

TEMPLATE = "report.html.jinja"
NO_BREAK = "\N{NO-BREAK SPACE}"

Picture = Literal["spectrogram", "rainbowgram"]
"""How a clip is shown."""


@dataclass(frozen=True)
class TableRow:
    """One set of clips in the table of scores; None is shown as a dash."""

    name: str
    note: str
    num_clips: int
    num_frames: int
    fad: float | None
    fad_infinity: float | None
    pitch_accuracy: float | None
    chroma_accuracy: float | None
    num_pitched: int
    """Clips whose pitch was judged."""
    highlighted: bool = False
    """The set that the run is about."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Of the scores above, by the name of the score."""
    others: Sequence[Score] = ()
    """Further scores, of each set the same ones."""


@dataclass(frozen=True)
class Player:
    """A clip to look at and listen to."""

    title: str
    name: str
    differs: Mapping[str, str]
    """Labels of this clip that are not those asked for."""
    duration_s: float
    flac: bytes
    png: bytes


@dataclass(frozen=True)
class ListeningRow:
    """Clips that belong together."""

    labels: Mapping[str, str]
    players: Sequence[Player]


@dataclass(frozen=True)
class Rejected:
    """A file that was left out, and where."""

    file: str
    reason: str
    stage: str


@dataclass(frozen=True)
class Curves:
    """What the training log recorded."""

    train: Sequence[Point] = ()
    valid: Sequence[Point] = ()
    codebooks: Mapping[int, Sequence[Point]] | None = None
    """Validation loss of each codebook, counted from 0."""


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows."""

    name: str
    reference: str
    """What the sets were compared with, in words."""
    embedding: str
    """What they were compared in, in words."""
    rows: Sequence[TableRow]
    warnings: Sequence[str]
    curves: Curves
    listening: Sequence[ListeningRow]
    rejected: Sequence[Rejected]
    recipe: str
    """The resolved recipe as YAML."""
    environment: Mapping[str, str]
    picture: Picture = "spectrogram"
    """What the players of `listening` show."""
    copies: CopySection | None = None
    """What was found of the training set among the generated clips; None if it was not looked for."""


@dataclass(frozen=True)
class Tile:
    """A number that matters most."""

    value: str
    label: str
    context: str


@dataclass(frozen=True)
class LogScale:
    """Places on an axis of powers of ten, in percent of its length."""

    low: int  # power of ten at the left end
    high: int

    @classmethod
    def around(cls, values: Sequence[float]) -> LogScale:
        """The powers of ten that enclose the positive ones of `values`."""
        positive = [value for value in values if value > 0.0]
        if not positive:
            return cls(-1, 1)
        low = math.floor(math.log10(min(positive)))
        return cls(low, max(low + 1, math.ceil(math.log10(max(positive)))))

    def place(self, value: float) -> float:
        """Where `value` is; 0 and less, which have no logarithm, are at the left end."""
        if value <= 10.0**self.low:
            return 0.0
        return 100.0 * (math.log10(value) - self.low) / (self.high - self.low)

    def decades(self) -> list[tuple[float, str]]:
        """Places and names of the powers of ten."""
        return [(self.place(10.0**power), f"{10.0**power:g}") for power in range(self.low, self.high + 1)]


def read_curves(rows: Sequence[Mapping[str, Any]]) -> Curves:
    """The curves in the rows of logs/train.jsonl; a step that was repeated after a resume counts once."""

    def curve(key: str) -> list[Point]:
        by_step = {int(row["step"]): float(row[key]) for row in rows if row.get(key) is not None}
        return [Point(step, by_step[step]) for step in sorted(by_step) if math.isfinite(by_step[step])]

    prefix = "valid/codebook_"
    keys = {key for row in rows for key in row if key.startswith(prefix)}
    codebooks = {int(key.removeprefix(prefix)): curve(key) for key in keys}
    return Curves(curve("loss"), curve("valid/loss"), dict(sorted(codebooks.items())))


def number(value: float | None) -> str:
    """Three significant digits, without an exponent up to a million; a dash for None."""
    if value is None:
        return "–"
    if value != 0.0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", "−")
    decimals = 2 if abs(value) < 1e-9 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{decimals}f}".replace("-", "−").replace(",", NO_BREAK)


def percent(value: float | None) -> str:
    """A share in whole percent; a dash for None."""
    return "–" if value is None else f"{100.0 * value:.0f}{NO_BREAK}%"


def _row(data: ReportData, name: str) -> TableRow | None:
    return next((row for row in data.rows if row.name == name), None)


def summary(data: ReportData) -> str:
    """One sentence on how the run went."""
    floor, noise = _row(data, "real, other"), _row(data, "white noise")
    subject = next((row for row in data.rows if row.highlighted), None) or _row(data, "reconstructed")
    if subject is None or subject.fad is None:
        return f"Compared with {data.reference}."
    sentence = f"{subject.num_clips} {subject.name} clips lie {number(subject.fad)} from the reference"
    if floor is not None and floor.fad is not None:
        sentence += f", where other real recordings lie {number(floor.fad)}"
    if noise is not None and noise.fad is not None:
        sentence += f" and white noise {number(noise.fad)}"
    return f"{sentence} (Fréchet distance, lower is better)."


def tiles(data: ReportData) -> list[Tile]:
    """The few numbers at the top of the page."""
    found = []
    floor, codec = _row(data, "real, other"), _row(data, "reconstructed")
    generated = next((row for row in data.rows if row.highlighted), None)
    if generated is not None and generated.fad is not None:
        context = f"real recordings: {number(floor.fad)}" if floor is not None else "lower is better"
        found.append(Tile(number(generated.fad), "Fréchet distance, generated", context))
    if codec is not None and codec.fad is not None:
        found.append(
            Tile(number(codec.fad), "Fréchet distance, codec alone", "the real clips, reconstructed")
        )
    if generated is not None and generated.pitch_accuracy is not None:
        context = f"of {generated.num_pitched} generated notes"
        if floor is not None and floor.pitch_accuracy is not None:
            context += f"; real: {percent(floor.pitch_accuracy)}"
        found.append(Tile(percent(generated.pitch_accuracy), "Pitch as asked for", context))
    if data.curves.valid:
        last = data.curves.valid[-1]
        found.append(
            Tile(number(last.value), "Validation loss", f"after {last.step:,} steps".replace(",", NO_BREAK))
        )
    return found


def _described(name: str, points: Sequence[Point]) -> str:
    return f"{name} from {number(points[0].value)} to {number(points[-1].value)}"


def charts(curves: Curves) -> list[tuple[str, Markup]]:
    """Title and SVG of each chart for which there is data."""
    found = []
    losses = [
        Series("training", curves.train, "series-train"),
        Series("validation", curves.valid, "series-valid", markers=len(curves.valid) <= 30),
    ]
    losses = [series for series in losses if series.points]
    if losses:
        described = "; ".join(_described(series.label, series.points) for series in losses)
        found.append(("Loss", line_chart(losses, f"Loss over training steps: {described}")))
    codebooks = {index: points for index, points in (curves.codebooks or {}).items() if points}
    if len(codebooks) > 1:
        lines = [
            Series(f"{index + 1}", points, "series-codebook", shade=place / (len(codebooks) - 1))
            for place, (index, points) in enumerate(codebooks.items())
        ]
        described = "; ".join(_described(line.label, line.points) for line in lines)
        found.append(
            (
                "Validation loss of each codebook, 1 the coarsest",
                line_chart(lines, f"Loss of codebooks over training steps: {described}"),
            )
        )
    return found


def data_uri(media_type: str, content: bytes) -> Markup:
    """`content` as an address that needs no other file."""
    return Markup(f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}")


def render(data: ReportData) -> str:
    """The report as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent)
    environment.globals["data_uri"] = data_uri
    return environment.get_template(TEMPLATE).render(
        data=data,
        summary=summary(data),
        tiles=tiles(data),
        scale=LogScale.around([row.fad for row in data.rows if row.fad is not None]),
        has_pitch=any(row.pitch_accuracy is not None for row in data.rows),
        shown=SHOWN,
        charts=charts(data.curves),
    )


def write_report(path: Path, data: ReportData) -> None:
    """Write the report to `path` atomically."""
    write_text(path, render(data))
