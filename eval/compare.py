"""Folders of audio compared with a reference: `tokkata eval --generated DIR --reference DIR`.

Every system, and every baseline, in every embedding and score. With several processes (torchrun) each embeds
its share of the files, and the first one scores.

Shapes: T frames, D width.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..core.audio import SILENCE_PEAK
from ..core.errors import UserError
from ..core.run import is_main_process
from ..tokenize.codec import load_codec
from .bootstrap import Interval
from .classifier import load_classifier
from .clip_notes import ClipNote, clip_notes
from .code_frames import CodeFrames
from .compare_sets import FLOOR, FrameSet, frame_set, noise_set, reconstructed_set
from .embed_folder import EmbeddedFolder, Unusable, embed_folder
from .embedding import EmbeddingInfo, TextEmbedding, load_embedding
from .find_reference import find_reference
from .frechet import frechet_distance
from .gaussian_stats import GaussianStats
from .measured import GROUPS, Score, no_score, single
from .metrics import METRICS
from .reference_stats import ReferenceStats, check_comparable, load_stats, reference_stats, split_halves
from .significance import ClipFrames, Difference, differences
from .yardsticks import OF_LABELS, OF_TEXT, OF_TOKENS, InEmbedding, InLabels, InTokens, Yardstick

COPIES = "copies"
DEFAULT_METRICS = ("fad", "fad-inf", "kad", "prdc", "per-song")
PACKAGES = ("tokkata", "torch", "transformers", "numpy", "scipy", "soxr", "soundfile")


@dataclass(frozen=True)
class Request:
    """What is to be compared."""

    generated: Mapping[str, Path]
    """The folder of each system."""
    reference: str
    """A folder, a file of statistics, or one on the Hub."""
    embeddings: Sequence[str]
    metrics: Sequence[str]
    cache: Path
    codec: str | None = None
    """Whose reconstructions of the reference are a baseline, and whose tokens have statistics."""
    classifier: str | None = None
    """An audio classifier in `transformers`: a hub id, or a folder."""
    label: str | None = None
    """The label of clips that says which of the classifier's labels they should be given."""
    seed: int = 0
    num_threads: int | None = None


@dataclass(frozen=True)
class Row:
    """One set's scores in one embedding."""

    name: str
    role: str
    note: str
    num_clips: int
    num_frames: int
    hours: float
    scores: list[Score]

    def value(self, metric: str) -> float | None:
        """The value of a score; None where it has none."""
        return next((score.value for score in self.scores if score.name == metric), None)


@dataclass(frozen=True)
class ReferenceFacts:
    """What everything was compared with."""

    name: str
    num_clips: int
    num_frames: int
    hours: float
    content: str
    reading: str
    resampler: str


@dataclass(frozen=True)
class Measured:
    """Everything by one yardstick: an embedding, a classifier or a codec."""

    info: EmbeddingInfo
    reference: ReferenceFacts
    rows: list[Row]
    differences: list[Difference]


@dataclass(frozen=True)
class Result:
    """What `scores.json` holds, besides the copies."""

    embeddings: list[Measured]
    """Then, if asked for, the classifier and the codec."""
    unusable: list[Unusable]
    warnings: list[str]
    seed: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Material:
    """What the report draws of one embedding, and the scores do not keep."""

    sets: list[FrameSet]
    reference: FrameSet | None
    """None where the reference is statistics alone."""
    stats: GaussianStats
    clip_distances: dict[str, list[float]]
    """By set: the Fréchet distance of each clip, NaN where it has none; empty if it was not asked for."""


@dataclass(frozen=True)
class Compared:
    """The scores, and what the report draws."""

    result: Result
    materials: list[Material]
    """One an embedding; there is nothing to draw of labels and tokens."""
    folders: dict[str, EmbeddedFolder]
    """The systems' folders, in the first embedding."""
    reference_folder: EmbeddedFolder | None


@dataclass
class _Job:
    """One yardstick's folders."""

    yardstick: Yardstick
    systems: dict[str, EmbeddedFolder]
    reference: EmbeddedFolder | None
    stats: ReferenceStats
    warnings: list[str] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)


def check_metrics(names: Sequence[str]) -> None:
    """Raise `UserError` for a score that does not exist."""
    known = [*METRICS, *OF_TEXT, *single(OF_LABELS), *single(OF_TOKENS), *GROUPS, COPIES]
    for name in names:
        if name not in known:
            raise UserError(f"there is no score '{name}': there are {', '.join(known)}")


def check_request(request: Request) -> None:
    """Raise `UserError` for a score that does not exist, or that something is missing for."""
    check_metrics(request.metrics)
    for name in request.metrics:
        if _is_one_of(name, OF_LABELS) and request.classifier is None:
            raise UserError(f"the score {name} needs --classifier, an audio classifier's hub id or folder")
        if _is_one_of(name, OF_TOKENS) and request.codec is None:
            raise UserError(f"the score {name} needs --codec, whose tokens are compared")
    if "label-accuracy" in request.metrics and request.label is None:
        raise UserError("the score label-accuracy needs --label, the name of the label in metadata.csv")


def _is_one_of(name: str, names: Sequence[str]) -> bool:
    return name in names or any(name in GROUPS.get(group, ()) for group in names)


def _yardsticks(request: Request) -> list[Yardstick]:
    """The embeddings, then the classifier and the codec, each with the scores that it is for."""
    rest = [
        name for name in request.metrics if name != COPIES and not _is_one_of(name, OF_LABELS + OF_TOKENS)
    ]
    found: list[Yardstick] = [
        InEmbedding(embedding, rest, request.seed) for embedding in map(load_embedding, request.embeddings)
    ]
    if set(rest) & set(OF_TEXT) and not any(isinstance(one.embedding, TextEmbedding) for one in found):
        raise UserError(f"the score {OF_TEXT[0]} needs an embedding of sentences too: --embedding clap")
    of_labels = [name for name in request.metrics if _is_one_of(name, OF_LABELS)]
    if request.classifier is not None and of_labels:
        classifier = load_classifier(request.classifier)
        found.append(InLabels(classifier, of_labels, request.seed, request.label))
    if request.codec is not None and any(_is_one_of(name, OF_TOKENS) for name in request.metrics):
        found.append(InTokens(CodeFrames(load_codec(request.codec)), request.seed))
    return found


def compare(request: Request) -> Compared | None:
    """Embed and score; None in all processes but the first.

    Raises `UserError` for an unknown name, a folder without audio, or statistics that do not fit.
    """
    check_request(request)
    where = find_reference(request.reference)
    loaded = None if where.is_dir() else load_stats(where)
    yardsticks = _yardsticks(request)
    for yardstick in yardsticks:
        if loaded is not None:  # refused before hours of embedding, not after
            if not yardstick.is_gaussian:
                raise UserError(
                    "scores of labels and tokens compare with the audio of the reference:"
                    f" give --reference its folder, not {where}"
                )
            _stats_of(loaded, yardstick.embedding.info, where)
    notes = {name: clip_notes(folder) for name, folder in request.generated.items()}
    notes["reference"] = clip_notes(where) if where.is_dir() else {}
    jobs = [_embed(request, yardstick, where, loaded) for yardstick in yardsticks]
    if not is_main_process():
        return None
    scored = [_score(job, request, where, notes) for job in jobs]
    result = Result(
        embeddings=[measured for measured, _ in scored],
        unusable=list(dict.fromkeys(item for job in jobs for item in job.unusable)),
        warnings=list(dict.fromkeys(warning for job in jobs for warning in job.warnings)),
        seed=request.seed,
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    )
    materials = [material for _, material in scored if material is not None]
    return Compared(result, materials, jobs[0].systems, jobs[0].reference)


def _stats_of(loaded: Mapping[str, ReferenceStats], info: EmbeddingInfo, where: Path) -> ReferenceStats:
    if info.name not in loaded:
        raise UserError(
            f"{where} holds statistics in {', '.join(loaded)}, and distances from them to {info.name} mean"
            f" nothing: choose --embedding {next(iter(loaded))}, or build statistics in {info.name}"
        )
    check_comparable(loaded[info.name], info, str(where))
    return loaded[info.name]


def _embed(
    request: Request, yardstick: Yardstick, where: Path, loaded: Mapping[str, ReferenceStats] | None
) -> _Job:
    embedding = yardstick.embedding

    def one(folder: Path, set_name: str) -> EmbeddedFolder:
        return embed_folder(
            embedding, folder, request.cache, set_name=set_name, num_threads=request.num_threads
        )

    systems = {name: one(folder, name) for name, folder in request.generated.items()}
    for name, folder in systems.items():
        if not folder.clips:
            raise UserError(
                f"none of the {len(folder.unusable)} audio files of '{name}' in {folder.folder} can be used:"
                f" the first is {folder.unusable[0].reason}"
            )
    if loaded is not None:
        stats, reference = _stats_of(loaded, embedding.info, where), None
    else:
        reference = one(where, "reference")
        stats = reference_stats(reference)
    job = _Job(yardstick, systems, reference, stats)
    for name, folder in [*systems.items(), *([("reference", reference)] if reference else [])]:
        job.unusable += folder.unusable
        job.warnings += _warnings(name, folder, yardstick.is_gaussian)
    if not yardstick.is_gaussian:
        return job
    if stats.num_frames < 2:
        raise UserError(
            f"the reference {where} has {stats.num_frames} frames in {embedding.info.name}, and a covariance"
            " needs 2: give longer or more clips"
        )
    if stats.num_frames < 2 * embedding.info.width:
        job.warnings.append(_too_few("reference", stats.num_frames, embedding.info))
    return job


def _warnings(name: str, folder: EmbeddedFolder, is_gaussian: bool) -> list[str]:
    found = []
    if folder.unusable:
        total = len(folder.unusable) + len(folder.clips)
        found.append(
            f"{len(folder.unusable)} of the {total} files of '{name}' could not be used in"
            f" {folder.info.name}: its scores stand on {len(folder.clips)}."
        )
    silent = sum(clip.facts.rms < SILENCE_PEAK for clip in folder.clips)
    if silent:
        found.append(
            f"{silent} of the {len(folder.clips)} clips of '{name}' are silent, and count as they are."
        )
    if is_gaussian and name != "reference" and folder.num_frames < 2 * folder.info.width:
        found.append(_too_few(name, folder.num_frames, folder.info))
    return found


def _too_few(name: str, num_frames: int, info: EmbeddingInfo) -> str:
    return (
        f"'{name}' has {num_frames} frames in {info.name}, fewer than twice the width {info.width}:"
        " its Fréchet distances are mostly bias."
    )


def _score(
    job: _Job, request: Request, where: Path, notes: Mapping[str, Mapping[str, ClipNote]]
) -> tuple[Measured, Material | None]:
    seed = request.seed
    stats = job.stats.whole
    reference = None
    if job.reference is not None:
        told = notes["reference"]
        reference = frame_set(job.reference, job.reference.clips, "reference", "baseline", "", seed, told)
    systems = [
        frame_set(folder, folder.clips, name, "generated", f"{folder.folder}.", seed, notes[name])
        for name, folder in job.systems.items()
    ]
    baselines = _baselines(job, request, systems)
    sets = [*systems, *baselines]
    rows = [_row(item, job.yardstick.measure(item, reference, stats)) for item in sets]
    rows.insert(len(systems), _floor(job, notes["reference"], seed))
    compared = differences(
        {item.name: ClipFrames(item.names, item.frames) for item in systems},
        {row.name: {score.name: score.value for score in row.scores} for row in rows[: len(systems)]},
        stats,
        np.concatenate(reference.frames) if reference else None,
        {row.name: {score.name: clip_values(score) for score in row.scores} for row in rows},
        seed,
    )
    facts = ReferenceFacts(
        name=str(where),
        num_clips=job.stats.num_clips,
        num_frames=job.stats.num_frames,
        hours=job.stats.hours,
        content=job.stats.content,
        reading=job.stats.reading,
        resampler=job.stats.resampler,
    )
    measured = Measured(job.yardstick.embedding.info, facts, rows, compared)
    if not job.yardstick.is_gaussian:
        return measured, None
    clip_distances = {
        row.name: next((clip_values(score) for score in row.scores if score.name == "per-song"), [])
        for row in rows
    }
    return measured, Material(sets, reference, stats, clip_distances)


def _row(item: FrameSet, scores: list[Score]) -> Row:
    return Row(item.name, item.role, item.note, len(item.frames), item.num_frames, item.hours, scores)


def _baselines(job: _Job, request: Request, systems: Sequence[FrameSet]) -> list[FrameSet]:
    """Reconstructions and noise, about as many clips as the systems have, as long as theirs."""
    num_clips = round(float(np.median([len(item.frames) for item in systems])))
    found = []
    if request.codec is not None and job.reference is not None:
        codec = load_codec(request.codec)
        made, unusable = reconstructed_set(
            job.yardstick.embedding, codec, job.reference, num_clips, request.seed
        )
        job.unusable += unusable
        found += [made] if made else []
    elif request.codec is not None:
        job.warnings.append("Nothing was reconstructed: the reference is statistics, and has no audio.")
    durations = [clip.facts.duration_s for folder in job.systems.values() for clip in folder.clips]
    noise = noise_set(
        job.yardstick.embedding, num_clips, float(np.median(durations)), job.stats.rms, request.seed
    )
    return found + ([noise] if noise else [])


def _floor(job: _Job, notes: Mapping[str, ClipNote], seed: int) -> Row:
    """Real against real: one half of the reference against the other."""
    names = job.yardstick.names
    first, second = job.stats.halves
    note = "One half of the reference against the other: how far apart real recordings are."
    if job.reference is not None:
        halves = split_halves(job.reference.clips)
        if not halves[1]:
            lacking = [no_score(name, "the reference has one clip") for name in names]
            return Row(FLOOR, "baseline", note, 0, 0, 0.0, lacking)
        theirs = frame_set(job.reference, halves[0], "reference", "baseline", "", seed, notes)
        item = frame_set(job.reference, halves[1], FLOOR, "baseline", note, seed, notes)
        return _row(item, job.yardstick.measure(item, theirs, first))
    scores = [no_score(name, "the reference is statistics alone, without frames") for name in names]
    if min(first.num, second.num) >= 2:
        value = frechet_distance(second, first)
        fad = Score("fad", value, None, "lower", note="no interval: the reference is statistics alone")
        scores = [fad if score.name == "fad" else score for score in scores]
    return Row(FLOOR, "baseline", note, job.stats.num_clips // 2, second.num, job.stats.hours / 2.0, scores)


def clip_values(score: Score) -> list[float]:
    """The value of each clip by itself, of scores that have one; NaN where a clip has none."""
    return detail_numbers(score, "distances" if score.name == "per-song" else "values")


def detail_numbers(score: Score, name: str) -> list[float]:
    """The list `name` in a score's detail, NaN where it has no number; empty if there is no such list."""
    values = score.detail.get(name, [])
    if isinstance(values, float | int | str):
        return []
    return [float("nan") if value is None else float(value) for value in values]


def as_json(value: object) -> object:
    """`value` with what JSON has no word for, NaN, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def shown_interval(interval: Interval | None) -> tuple[float | None, float | None]:
    """The ends of an interval that may not be there."""
    return (None, None) if interval is None else (interval.low, interval.high)
