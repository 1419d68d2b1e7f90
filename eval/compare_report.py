"""One HTML file with a comparison's scores, charts and sounds, that opens from disk without a network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from ..core.audio import AudioError
from ..core.files import write_text
from .compare import Compared, Material, Measured, Row, detail_numbers
from .compare_charts import Fit, Shown, fits, histogram, principal_components, scatter
from .compare_copies import read_start
from .compare_sets import FLOOR, NOISE, FrameSet
from .copies.pairs import CopySection
from .embed_folder import EmbeddedFolder
from .measured import SHOWN, Score
from .players import flac
from .report import Player, data_uri, number, percent
from .spectrogram import spectrogram_png

TEMPLATE = "compare.html.jinja"
PLAYER_RATE = 32000
PLAYER_S = 10


@dataclass(frozen=True)
class Ranked:
    """A clip to listen to, with its place."""

    place: int
    distance: str
    player: Player


@dataclass(frozen=True)
class Listening:
    """A system's clips from best to worst."""

    system: str
    num_clips: int
    ranked: bool
    """Whether the order means anything; without the score per-song it is that of the names."""
    clips: list[Ranked]


@dataclass(frozen=True)
class Chart:
    """A picture and what colours in it mean."""

    title: str
    note: str
    svg: Markup
    legend: list[Shown]


@dataclass(frozen=True)
class Section:
    """One embedding's, classifier's or codec's part of the page."""

    scores: Measured
    columns: list[Score]
    """A score of each kind, for the head of the table."""
    charts: list[Chart]


def shown_sets(material: Material) -> dict[str, Shown]:
    """How each set is drawn: systems in shades of the ramp, baselines muted."""
    systems = [item.name for item in material.sets if item.role == "generated"]
    last = max(1, len(systems) - 1)
    shown = {name: Shown(name, "series-codebook", shade=place / last) for place, name in enumerate(systems)}
    shown["reference"] = Shown("reference", "series-train")
    for name in (FLOOR, *(item.name for item in material.sets if item.role == "baseline")):
        shown[name] = Shown(name, "series-floor" if name == FLOOR else "series-baseline")
    return shown


def charts(scores: Measured, material: Material) -> list[Chart]:
    """The pictures of one embedding for which there is data."""
    shown = shown_sets(material)
    found = [_scatter(material, shown)]
    lines = [
        Fit(
            shown[row.name],
            detail_numbers(score, "sizes"),
            detail_numbers(score, "distances"),
            score.value,
            slope,
        )
        for row in scores.rows
        if row.role == "generated" or row.name == FLOOR
        for score in row.scores
        if score.name == "fad-inf"
        and score.value is not None
        and isinstance(slope := score.detail.get("slope"), float)
    ]
    if lines:
        told = "; ".join(f"{line.shown.name} {number(line.value)}" for line in lines)
        found.append(
            Chart(
                "FAD∞: distances of subsets, and the line through them",
                "Where a line meets the left edge, at infinitely many clips, is FAD∞.",
                fits(lines, f"Lines that end at {told}"),
                [line.shown for line in lines],
            )
        )
    distances = [
        (shown[name], values)
        for name, values in material.clip_distances.items()
        if name != NOISE and any(value > 0.0 for value in values)
    ]
    if distances:
        medians = "; ".join(
            f"{item.name} {number(float(np.nanmedian(values)))}" for item, values in distances
        )
        found.append(
            Chart(
                "Distance of each clip alone",
                "Further right is less like the reference.",
                histogram(distances, f"Medians: {medians}"),
                [item for item, _ in distances],
            )
        )
    return found


def _scatter(material: Material, shown: dict[str, Shown]) -> Chart:
    sets = [*([material.reference] if material.reference else []), *material.sets]
    reference = _clip_means(material.reference) if material.reference else None
    means = [_clip_means(item) for item in sets]
    points = principal_components(means, reference, material.stats.covariance())
    drawn = [(shown[item.name], part) for item, part in zip(sets, points, strict=True)]
    return Chart(
        "Clips in the embedding",
        "Each dot is the mean of a clip's frames, along the two directions in which the reference varies most"
        " (principal components). What differs in other directions is not seen here.",
        scatter(drawn, "Dots of " + ", ".join(item.name for item in sets)),
        [item for item, _ in drawn],
    )


def _clip_means(item: FrameSet) -> np.ndarray:
    return np.stack([frames.mean(axis=0, dtype=np.float64) for frames in item.frames])


def ranked_places(distances: Sequence[float], num_players: int) -> list[int]:
    """Indices of clips from best to worst: all, or evenly spaced ranks with the best and the worst.

    Clips without a distance are left out.
    """
    values = np.asarray(distances, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    chosen = np.unique(np.linspace(0, len(order) - 1, min(num_players, len(order))).round().astype(int))
    return [int(order[place]) for place in chosen] if len(order) else []


def listening(
    folder: EmbeddedFolder, item: FrameSet, distances: Sequence[float], num_players: int
) -> Listening:
    """Players of a system's clips."""
    ranked = bool(distances)
    values = list(distances) if ranked else [float(index) for index in range(len(item.names))]
    places = {index: place for place, index in enumerate(ranked_places(values, len(values)), start=1)}
    paths = {clip.name: clip.path for clip in folder.clips}
    clips = []
    for index in ranked_places(values, num_players):
        try:
            samples = read_start(paths[item.names[index]], PLAYER_RATE, PLAYER_S)
        except AudioError:
            continue  # changed or gone since it was scored: there is nothing to play
        player = Player(
            title=item.name,
            name=item.names[index],
            differs={},
            duration_s=samples.shape[1] / PLAYER_RATE,
            flac=flac(samples, PLAYER_RATE),
            png=spectrogram_png(samples, PLAYER_RATE),
        )
        clips.append(Ranked(places[index], number(values[index]) if ranked else "", player))
    return Listening(item.name, len(item.names), ranked, clips)


def summary(compared: Compared) -> str:
    """One sentence on how the systems do, by the first score that all of them have."""
    scores = compared.result.embeddings[0]
    systems = [row for row in scores.rows if row.role == "generated"]
    for score in systems[0].scores:
        rows = [(row.value(score.name), row) for row in systems]
        known = [(value, row.name) for value, row in rows if value is not None]
        if len(known) < len(rows):
            continue
        known.sort(reverse=score.better == "higher")
        told = ", ".join(f"{name} {number(value)}" for value, name in known)
        floor = next((row.value(score.name) for row in scores.rows if row.name == FLOOR), None)
        real = f"; real recordings among themselves {number(floor)}" if floor is not None else ""
        return f"{SHOWN[score.name]} in {scores.info.name}: {told}{real} ({score.better} is better)."
    return f"{len(systems)} sets of clips compared with {scores.reference.name}."


def _columns(rows: Sequence[Row]) -> list[Score]:
    return rows[0].scores if rows else []


def render(
    compared: Compared, copies: dict[str, CopySection], title: str, command: str, num_players: int
) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent)
    environment.globals["data_uri"] = data_uri
    pairs = list(itertools.zip_longest(compared.result.embeddings, compared.materials))
    first = compared.materials[0]
    return environment.get_template(TEMPLATE).render(
        title=title,
        command=command,
        summary=summary(compared),
        result=compared.result,
        names=SHOWN,
        player_s=PLAYER_S,
        sections=[
            Section(scores, _columns(scores.rows), charts(scores, item) if item else [])
            for scores, item in pairs
        ],
        listening=[
            listening(compared.folders[item.name], item, first.clip_distances.get(item.name, []), num_players)
            for item in first.sets
            if item.role == "generated" and num_players
        ],
        copies_of=copies,
    )


def write_comparison(
    path: Path,
    compared: Compared,
    copies: dict[str, CopySection],
    *,
    title: str,
    command: str,
    num_players: int,
) -> None:
    """Write the page to `path` atomically."""
    write_text(path, render(compared, copies, title, command, num_players))
