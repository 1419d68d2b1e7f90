"""Pictures of a comparison as SVG that takes its colours from the page.

Shapes: N clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from .chart import ticks

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 48
MAX_DOTS = 400
"""Of larger sets, evenly spaced clips are drawn."""
NUM_BINS = 24


@dataclass(frozen=True)
class Shown:
    """A set in a chart: its name and how it is drawn."""

    name: str
    css_class: str
    shade: float = 0.0
    """0…1: place in a sequence of sets of one kind; the page makes a colour of it."""

    @property
    def style(self) -> Markup:
        """The attributes that give an element its colour."""
        return Markup('class="{}" style="--shade: {:.3f}"').format(self.css_class, self.shade)


class _Frame:
    """The area of a chart, its axes and grid."""

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str, description: str
    ) -> None:
        self._x_range, self._y_range = _padded(xs), _padded(ys)
        self.parts = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}"'
            ' xmlns="http://www.w3.org/2000/svg">'
        ]
        for value in ticks(*self._y_range):
            y = self.y(value)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            self.text(LEFT - 8, y + 4, f"{value:g}", "end")
        for value in ticks(*self._x_range):
            self.text(self.x(value), HEIGHT - BOTTOM + 18, f"{value:g}", "middle")
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, "middle")
        self.text(LEFT, TOP - 2, y_name, "start")

    def x(self, value: float) -> float:
        """From a value to a place on the page."""
        low, high = self._x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """From a value to a place on the page."""
        low, high = self._y_range
        return round(TOP + 6 + (high - value) / (high - low) * (HEIGHT - TOP - 6 - BOTTOM), 1)

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        """A line of text in the axes' colour."""
        self.parts.append(f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>')

    def path(self, shown: Shown, points: Sequence[tuple[float, float]]) -> None:
        """A line through `points`."""
        places = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        self.parts.append(f'<g {shown.style}><polyline class="curve" points="{places}"/></g>')

    def dots(self, shown: Shown, points: Sequence[tuple[float, float]], radius: float) -> None:
        """A dot at each of `points`."""
        self.parts.append(f"<g {shown.style}>")
        self.parts += [
            f'<circle class="mark" cx="{self.x(x)}" cy="{self.y(y)}" r="{radius}"/>' for x, y in points
        ]
        self.parts.append("</g>")

    def svg(self) -> Markup:
        """The whole; every text in it was escaped, the rest are numbers."""
        return Markup("".join([*self.parts, "</svg>"]))


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def scatter(sets: Sequence[tuple[Shown, np.ndarray]], description: str) -> Markup:
    """Points [N, 2] of each set, the first set lowest; raises `ValueError` if there is none at all."""
    drawn = [(shown, points[_evenly(len(points), MAX_DOTS)]) for shown, points in sets]
    everything = np.concatenate([points for _, points in drawn])
    frame = _Frame(
        everything[:, 0].tolist(), everything[:, 1].tolist(), "first component", "second", description
    )
    for shown, points in drawn:
        frame.dots(shown, [(float(x), float(y)) for x, y in points], 2.6)
    return frame.svg()


def _evenly(num: int, most: int) -> np.ndarray:
    chosen: np.ndarray = np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(int))
    return chosen


@dataclass(frozen=True)
class Fit:
    """What FAD-infinity was read from."""

    shown: Shown
    sizes: Sequence[float]
    distances: Sequence[float]
    value: float
    slope: float


def fits(lines: Sequence[Fit], description: str) -> Markup:
    """Distances over 1/N, and the lines that meet 1/N = 0 at FAD-infinity."""
    inverse = [[1.0 / size for size in line.sizes] for line in lines]
    xs = [0.0, *(x for part in inverse for x in part)]
    ys = [*(line.value for line in lines), *(y for line in lines for y in line.distances)]
    frame = _Frame(xs, ys, "1 / number of clips", "FAD", description)
    for line, part in zip(lines, inverse, strict=True):
        last = max(part)
        frame.path(line.shown, [(0.0, line.value), (last, line.value + line.slope * last)])
        frame.dots(line.shown, list(zip(part, line.distances, strict=True)), 3.0)
        frame.dots(line.shown, [(0.0, line.value)], 4.5)
    return frame.svg()


def histogram(sets: Sequence[tuple[Shown, Sequence[float]]], description: str) -> Markup:
    """How many clips of each set have which distance, on a logarithmic axis; NaN and 0 are left out."""
    logs = [
        (shown, [math.log10(value) for value in values if value > 0.0 and math.isfinite(value)])
        for shown, values in sets
    ]
    everything = [value for _, values in logs for value in values]
    edges = np.linspace(min(everything), max(everything) + 1e-9, NUM_BINS + 1)
    counts = [(shown, np.histogram(values, edges)[0] / max(1, len(values))) for shown, values in logs]
    highest = max(float(share.max()) for _, share in counts)
    frame = _Frame(
        edges.tolist(), [0.0, 100.0 * highest], "log10 of a clip's distance", "% of the clips", description
    )
    for shown, share in counts:
        steps = [(float(edges[0]), 0.0)]
        for left, right, value in zip(edges[:-1], edges[1:], share, strict=True):
            steps += [(float(left), 100.0 * float(value)), (float(right), 100.0 * float(value))]
        frame.path(shown, [*steps, (float(edges[-1]), 0.0)])
    return frame.svg()


def principal_components(
    clip_means: Sequence[np.ndarray], axes_of: np.ndarray | None, covariance: np.ndarray | None
) -> list[np.ndarray]:
    """Means [N, D] of the clips of each set along the two directions in which the reference varies most.

    Those of the clip means `axes_of` [M, D] or, where there are none, of the `covariance` [D, D].
    """
    if axes_of is not None and len(axes_of) > 2:
        axes = np.linalg.svd(axes_of - axes_of.mean(axis=0), full_matrices=False)[2][:2]
    elif covariance is not None:
        axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :2].T
    else:
        raise ValueError("principal components need more than two reference clips, or a covariance")
    # A direction has no sign of its own: the largest entry is positive.
    axes = axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]
    return [means @ axes.T for means in clip_means]
