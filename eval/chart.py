"""Line charts as SVG that takes its colours from the page, so that they work in light and in dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 78, 12, 30
MAX_POINTS = 300
"""Longer curves are averaged in groups of neighbours; more would not be seen at this width."""
LABEL_SPACING = 13


@dataclass(frozen=True)
class Point:
    """One value of a curve."""

    step: int
    value: float


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    points: Sequence[Point]
    css_class: str
    shade: float = 0.0
    """0…1: place in a sequence of lines of one kind; the page makes a colour of it."""
    markers: bool = False


def ticks(low: float, high: float, max_ticks: int = 5) -> list[float]:
    """About `max_ticks` round numbers from `low` to `high`, at steps of 1, 2 or 5 times a power of 10."""
    if not high > low:
        return [low]
    raw = (high - low) / max_ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[Point]) -> list[Point]:
    """`points`, averaged in groups of neighbours so that no more than `MAX_POINTS` are left."""
    group = math.ceil(len(points) / MAX_POINTS)
    if group <= 1:
        return list(points)
    groups = [points[start : start + group] for start in range(0, len(points), group)]
    return [Point(part[-1].step, sum(point.value for point in part) / len(part)) for part in groups]


def _spread(positions: Sequence[float]) -> list[float]:
    """Move `positions` apart to `LABEL_SPACING`, in their order, upwards from the lowest one on the page."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    spread = list(positions)
    for above, below in itertools.pairwise(order):
        spread[below] = max(spread[below], spread[above] + LABEL_SPACING)
    bottom = float(HEIGHT - BOTTOM)
    for index in reversed(order):
        spread[index] = min(spread[index], bottom)
        bottom = spread[index] - LABEL_SPACING
    return spread


def line_chart(series: Sequence[Series], description: str) -> Markup:
    """An SVG of `series` over training steps; `description` is what a screen reader says.

    Raises `ValueError` if no series has a point.
    """
    lines = [(one, thin(one.points)) for one in series if one.points]
    if not lines:
        raise ValueError("a chart needs at least one point")
    steps = [point.step for _, points in lines for point in points]
    values = [point.value for _, points in lines for point in points]
    first, last = min(steps), max(steps)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        share = (step - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}"'
        ' xmlns="http://www.w3.org/2000/svg">'
    ]
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>'
        )
    for step in ticks(first, last):
        label = f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
        parts.append(
            f'<text class="tick" x="{x(step)}" y="{HEIGHT - 10}" text-anchor="middle">{label}</text>'
        )
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT + 14}" y="{HEIGHT - 10}">steps</text>')
    label_ys = _spread([y(points[-1].value) for _, points in lines])
    for (one, points), label_y in zip(lines, label_ys, strict=True):
        parts.append(f'<g class="{escape(one.css_class)}" style="--shade: {one.shade:.3f}">')
        path = " ".join(f"{x(point.step)},{y(point.value)}" for point in points)
        parts.append(f'<polyline class="curve" points="{path}"/>')
        if one.markers or len(points) == 1:
            parts += [f'<circle class="mark" cx="{x(p.step)}" cy="{y(p.value)}" r="3"/>' for p in points]
        parts.append(
            f'<text class="label" x="{x(points[-1].step) + 8}" y="{label_y + 4}">{escape(one.label)}</text>'
        )
        parts.append("</g>")
    parts.append("</svg>")
    return Markup("".join(parts))  # every text above is escaped or a number
