"""The report of a listening test: one HTML file, and its tables as CSV and JSON lines.

Pure presentation: it is given an `Analysis` and computes no statistic.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ...core.errors import UserError
from ...core.files import write_jsonl, write_text
from ..bootstrap import Interval
from ..report import Tile, percent
from .analysis import Analysis, Opinion, Pair, Results, analyse, bins
from .comparison import Comparison
from .correlation import gather_scores
from .definition import load_definition
from .exclusions import screen
from .grid import COUNTED
from .preference import Strength
from .ratings import Rating, read_ratings

TEMPLATE = "listening_report.html.jinja"
METHODS = {
    "acr": "Absolute category rating from 1 (bad) to 5 (excellent), ITU-T P.800",
    "mushra": "MUSHRA from 0 (bad) to 100 (excellent), ITU-R BS.1534",
    "ab": "A/B preference",
}


@dataclass(frozen=True)
class Axis:
    """Places on a linear axis, in percent of its length."""

    low: float
    high: float

    @classmethod
    def around(cls, strengths: Sequence[Strength]) -> Axis:
        """An axis that holds all `strengths`, their intervals and 0."""
        ends = [0.0, *(one.value for one in strengths)]
        ends += [end for one in strengths if one.interval for end in (one.interval.low, one.interval.high)]
        margin = 0.05 * (max(ends) - min(ends)) or 0.5
        return cls(min(ends) - margin, max(ends) + margin)

    def place(self, value: float) -> float:
        """Where `value` is; what lies outside is at the nearer end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100.0 * min(max(share, 0.0), 1.0), 2)

    def width(self, interval: Interval) -> float:
        """How long `interval` is."""
        return round(self.place(interval.high) - self.place(interval.low), 2)


@dataclass(frozen=True)
class OpinionRow:
    """A system's opinions, and what they were before the exclusions; None if nothing is left of either."""

    kept: Opinion
    everyone: Opinion | None


def points(value: float | None, scale: tuple[float, float]) -> str:
    """A value in points of the scale, to a hundredth of the five-point scale's; a dash for None."""
    if value is None:
        return "–"
    decimals = 1 if scale[1] - scale[0] > 10 else 2
    return f"{value:.{decimals}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """Three decimals; what is smaller than they can show is said to be; a dash for None."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def span(interval: Interval | None, scale: tuple[float, float]) -> str:
    """Both ends of an interval; a dash for None."""
    if interval is None:
        return "–"
    return f"{points(interval.low, scale)} to {points(interval.high, scale)}"


def histogram(counts: Sequence[int], labels: Sequence[str], description: str) -> Markup:
    """An SVG of bars of `counts` over `labels`; a screen reader says `description`."""
    width, height, foot, head = 240.0, 96.0, 16.0, 14.0
    step, top = width / len(counts), max(*counts, 1)
    parts = [
        f'<svg class="bars" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}"'
        ' xmlns="http://www.w3.org/2000/svg">'
    ]
    for index, (count, label) in enumerate(zip(counts, labels, strict=True)):
        tall = round((height - foot - head) * count / top, 1)
        x, y = round(index * step + 0.12 * step, 1), round(height - foot - tall, 1)
        middle = round((index + 0.5) * step, 1)
        parts.append(f'<rect x="{x}" y="{y}" width="{round(0.76 * step, 1)}" height="{tall}" rx="2"/>')
        if count:
            parts.append(f'<text class="count" x="{middle}" y="{y - 3}">{count}</text>')
        parts.append(f'<text x="{middle}" y="{height - 3}">{escape(label)}</text>')
    parts.append(f'<line x1="0" x2="{width:g}" y1="{height - foot}" y2="{height - foot}"/></svg>')
    return Markup("".join(parts))  # every text above is escaped or a number


def _distribution(opinion: Opinion, analysis: Analysis) -> Markup:
    labels = [f"{low:g}" for low, _ in bins(analysis.method)]
    described = ", ".join(f"{label}: {count}" for label, count in zip(labels, opinion.histogram, strict=True))
    return histogram(
        opinion.histogram, labels, f"Ratings of {opinion.system}, {opinion.attribute}: {described}"
    )


def _people(count: int) -> str:
    return "1 listener" if count == 1 else f"{count} listeners"


def _noun(analysis: Analysis) -> str:
    return "answer" if analysis.method == "ab" else "rating"


def summary(analysis: Analysis) -> str:
    """What the test showed, in two sentences."""
    kept = analysis.kept
    text = f"{_people(kept.num_listeners)} gave {kept.num_ratings} {_noun(analysis)}s that count."
    compared = [one for one in kept.comparisons if one.p_holm is not None]
    if not compared:
        return f"{text} No difference between systems could be tested."
    shown = [one for one in compared if one.better]
    if len(compared) == 1:
        one = compared[0]
        if one.better is None:
            return f"{text} No difference between {one.system} and {one.against} is shown."
        other = one.against if one.better == one.system else one.system
        return f"{text} {one.better} is rated higher than {other}, with other listeners and items too."
    held = {0: "None", len(compared): "All"}.get(len(shown), str(len(shown)))
    return (
        f"{text} {held} of the {len(compared)} differences between systems"
        f" {'is' if len(shown) < 2 else 'are'} shown to hold for other listeners and items."
    )


def tiles(analysis: Analysis) -> list[Tile]:
    """The few numbers at the top of the page."""
    kept, everyone = analysis.kept, analysis.everyone
    out = len(analysis.excluded)
    found = [
        Tile(str(kept.num_listeners), "Listeners", f"of {everyone.num_listeners}; {out} excluded"),
        Tile(
            str(kept.num_ratings), f"{_noun(analysis).capitalize()}s that count", f"of {everyone.num_ratings}"
        ),
    ]
    alphas = [one for one in kept.agreements if one.alpha is not None]
    if alphas and alphas[0].alpha is not None:
        context = f"Krippendorff's alpha, {alphas[0].attribute}; 1 is perfect, 0 is chance"
        found.append(Tile(points(alphas[0].alpha, (0, 1)), "Agreement", context))
    if kept.repeats:
        context = f"of {kept.repeats.num_pairs} answers given twice"
        found.append(Tile(percent(kept.repeats.alike), "Repeated alike", context))
    return found


def opinion_rows(analysis: Analysis) -> dict[str, list[OpinionRow]]:
    """The rows of the table of opinions, by attribute."""
    before = {(one.attribute, one.system): one for one in analysis.everyone.opinions}
    found: dict[str, list[OpinionRow]] = {}
    for one in analysis.kept.opinions:
        row = OpinionRow(one, before.get((one.attribute, one.system)))
        found.setdefault(one.attribute, []).append(row)
    return found


def naive_sentence(analysis: Analysis) -> str:
    """How much too narrow the naive intervals are in this test; empty where there are none."""
    ratios = [
        (one.interval.high - one.interval.low) / (one.naive.high - one.naive.low)
        for one in analysis.kept.opinions
        if one.interval and one.naive and one.naive.high > one.naive.low
    ]
    if not ratios:
        return ""
    typical = sorted(ratios)[len(ratios) // 2]
    factor = f" Here the other interval is typically {typical:.1f} times as wide." if typical > 1 else ""
    return (
        "The naive interval, mean ± 1.96 s/√n, is too narrow: it counts every rating as independent, but the"
        " ratings of one listener are alike, and so are those of one item. It says nothing about other"
        f" listeners or other items.{factor}"
    )


def _notes(results: Results) -> list[str]:
    """Why something is missing, each reason once."""
    notes = [one.note for one in results.opinions]
    notes += [one.note for one in results.comparisons]
    notes += [one.note for one in results.preferences.values()]
    return list(dict.fromkeys(note for note in notes if note))


def render(analysis: Analysis) -> str:
    """The report as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scale = analysis.scale
    environment.filters.update(
        percent=percent,
        p=p_value,
        points=lambda value: points(value, scale),
        span=lambda interval: span(interval, scale),
        unit=lambda value: points(value, (0, 1)),
        unit_span=lambda interval: span(interval, (0, 1)),
    )
    return environment.get_template(TEMPLATE).render(
        analysis=analysis,
        kept=analysis.kept,
        method=METHODS[analysis.method],
        summary=summary(analysis),
        tiles=tiles(analysis),
        rows=opinion_rows(analysis),
        naive_sentence=naive_sentence(analysis),
        notes=_notes(analysis.kept),
        axis=Axis(*scale),
        ticks=[1, 2, 3, 4, 5] if analysis.method == "acr" else [0, 20, 40, 60, 80, 100],
        around=Axis.around,
        distribution=lambda opinion: _distribution(opinion, analysis),
    )


def tables(analysis: Analysis) -> dict[str, list[dict[str, Any]]]:
    """Every table of the report as rows of plain values, by the name of its file."""
    found: dict[str, list[dict[str, Any]]] = {}
    for answers, results in (("counted", analysis.kept), ("all", analysis.everyone)):
        kind = {"answers": answers}
        for name, rows in _result_tables(results).items():
            found.setdefault(name, []).extend({**kind, **row} for row in rows)
    found["correlations"] = [
        {**_flat(asdict(one)), "systems": " ".join(one.systems)} for one in analysis.correlations
    ]
    found["excluded"] = [
        {"listener": one.listener, "reasons": "; ".join(one.reasons)} for one in analysis.excluded
    ]
    return {name: rows for name, rows in found.items() if rows}


def _result_tables(results: Results) -> dict[str, list[dict[str, Any]]]:
    opinions = []
    for one in results.opinions:
        row = _flat(asdict(one))
        row["histogram"] = " ".join(str(count) for count in one.histogram)
        opinions.append(row)
    return {
        "opinions": opinions,
        "comparisons": [_comparison_row(one) for one in results.comparisons],
        "pairs": [_pair_row(one) for one in results.pairs],
        "strengths": [
            {"attribute": attribute, **_flat(asdict(one)), "tie": fitted.tie}
            for attribute, fitted in results.preferences.items()
            for one in fitted.strengths
        ],
        "agreement": [asdict(one) for one in results.agreements],
        "repeats": [asdict(results.repeats)] if results.repeats else [],
    }


def _comparison_row(one: Comparison) -> dict[str, Any]:
    return {**_flat(asdict(one)), "better": one.better}


def _pair_row(one: Pair) -> dict[str, Any]:
    return asdict(one)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with both ends of each interval in columns of their own."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("interval", "naive"):
            for end in ("low", "high"):
                found[f"{key}_{end}"] = None if value is None else value[end]
        else:
            found[key] = value
    return found


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_report(folder: Path, analysis: Analysis, ratings: Sequence[Rating], counting: set[Rating]) -> None:
    """Write report.html, a CSV for each table, results.jsonl with all of them, and ratings.jsonl to `folder`.

    `counting` are those of the `ratings` that the statistics are made of.
    """
    found = tables(analysis)
    for name, rows in found.items():
        write_text(folder / f"{name}.csv", _csv(rows))
    write_jsonl(
        folder / "results.jsonl", [{"table": name, **row} for name, rows in found.items() for row in rows]
    )
    write_jsonl(folder / "ratings.jsonl", [{**asdict(one), "counts": one in counting} for one in ratings])
    write_text(folder / "report.html", render(analysis))


def report(test: Path, out: Path | None = None, scores: Sequence[str] = ()) -> Path:
    """Analyse the listening test `test` (TEST.yaml) and write its report; returns where report.html is.

    `scores` are paths, or SYSTEM=PATH, of computed scores to correlate with. Raises `UserError` if there is
    nothing to analyse, or if the scores cannot be read.
    """
    definition = load_definition(test)
    if scores and definition.method == "ab":
        raise UserError("--scores needs mean opinion scores: an A/B test has none, so leave it out")
    ratings = read_ratings(test)
    systems = [system.name for system in definition.systems]
    analysis = analyse(definition, ratings, gather_scores(scores, systems))
    kept = screen(ratings, definition).kept
    folder = out or test.with_name(f"{test.stem}-report")
    counting = {one for one in kept if one.role in COUNTED and one.repeat == 0}
    write_report(folder, analysis, ratings, counting)
    return folder / "report.html"
