"""Statistics of a reference set: computed once, kept in one safetensors file, shared as a file or on the Hub.

A file holds one or more embeddings. Of each it has the Gaussian statistics of two halves of the clips: merged
they are the whole, and their distance is how far real audio is from real audio.

Shapes: d width, r rows of a factor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import soxr
from safetensors.numpy import save_file

from ..core.errors import UserError
from ..core.files import atomic_file
from .embed_folder import SHARD_FILES, EmbeddedClip, EmbeddedFolder
from .embedding import EmbeddingInfo
from .folder_audio import READING
from .gaussian_stats import GaussianStats

FORMAT = "tokkata-statistics-1"
"""The name of a file's only metadata entry."""
_SEPARATOR = "|"


@dataclass(frozen=True)
class ReferenceStats:
    """What is known of a reference set in one embedding."""

    info: EmbeddingInfo
    halves: tuple[GaussianStats, GaussianStats]
    """Of the clips in turn, ordered by hash, so that the halves are alike. The second may be empty."""
    num_clips: int
    hours: float
    rms: float
    """Mean root mean square of the clips: how loud the noise that is compared with them should be."""
    content: str
    """A hash of the hashes of all files, whatever their names and order."""
    reading: str
    """What was done to every file before the embedding."""
    resampler: str
    tokkata: str
    """Version that computed them."""

    @property
    def whole(self) -> GaussianStats:
        """The statistics of all clips."""
        return self.halves[0].merge(self.halves[1])

    @property
    def num_frames(self) -> int:
        """Frames of all clips."""
        return self.halves[0].num + self.halves[1].num


def split_halves(clips: Sequence[EmbeddedClip]) -> tuple[list[EmbeddedClip], list[EmbeddedClip]]:
    """Every other clip by its hash, in the order given; copies of one file are in one half."""
    rank = {sha256: place for place, sha256 in enumerate(sorted({clip.sha256 for clip in clips}))}
    halves: tuple[list[EmbeddedClip], list[EmbeddedClip]] = ([], [])
    for clip in clips:
        halves[rank[clip.sha256] % 2].append(clip)
    return halves


def gaussian_stats(folder: EmbeddedFolder, clips: Sequence[EmbeddedClip]) -> GaussianStats:
    """Statistics of some clips of `folder`, merged in their order, `SHARD_FILES` at a time."""
    stats = GaussianStats.from_embeddings(np.zeros((0, folder.info.width)))
    for first in range(0, len(clips), SHARD_FILES):
        frames = [folder.frames(clip) for clip in clips[first : first + SHARD_FILES]]
        stats = stats.update(np.concatenate(frames))
    return stats


def reference_stats(folder: EmbeddedFolder) -> ReferenceStats:
    """The statistics of all clips of `folder`; raises `UserError` if there is none."""
    if not folder.clips:
        raise UserError(f"none of the {len(folder.unusable)} audio files in {folder.folder} can be used")
    first, second = split_halves(folder.clips)
    hashes = "".join(sorted(clip.sha256 for clip in folder.clips))
    return ReferenceStats(
        info=folder.info,
        halves=(gaussian_stats(folder, first), gaussian_stats(folder, second)),
        num_clips=len(folder.clips),
        hours=folder.hours,
        rms=float(np.mean([clip.facts.rms for clip in folder.clips])),
        content=hashlib.sha256(hashes.encode()).hexdigest(),
        reading=READING,
        resampler=f"soxr {soxr.__version__} HQ",
        tokkata=version("tokkata"),
    )


def check_comparable(stats: ReferenceStats, info: EmbeddingInfo, where: str) -> None:
    """Raise `UserError` if distances from `stats`, read from `where`, to frames of `info` mean nothing."""
    for what, theirs, ours in (
        ("version", stats.info.version, info.version),
        ("sample rate", stats.info.sample_rate, info.sample_rate),
        ("preprocessing", stats.info.preprocessing, info.preprocessing),
        ("way to read audio", stats.reading, READING),
    ):
        if theirs != ours:
            raise UserError(
                f"{where} was computed with another {what} of {info.name} than this Tokkata's"
                f" ('{theirs}', here '{ours}'): build it again with 'tokkata stats build'"
            )


# --- files


def save_stats(path: Path, stats: Sequence[ReferenceStats]) -> None:
    """Write statistics in several embeddings to `path`, atomically; equal ones give equal bytes."""
    tensors: dict[str, np.ndarray] = {}
    described = []
    for item in stats:
        facts = {key: value for key, value in _fields(item).items() if key != "halves"}
        described.append({**facts, "num_frames": [half.num for half in item.halves]})
        for number, half in enumerate(item.halves):
            name = _SEPARATOR.join((item.info.name, str(number)))
            tensors[f"{name}{_SEPARATOR}mean"] = half.mean
            if half.rows is not None:
                tensors[f"{name}{_SEPARATOR}rows"] = np.ascontiguousarray(half.rows)
            else:
                tensors[f"{name}{_SEPARATOR}m2"] = np.ascontiguousarray(half.m2)
    with atomic_file(path) as partial:
        # One entry: safetensors writes several in an order that differs from one process to the next.
        save_file(tensors, partial, {FORMAT: json.dumps(described)})


def _fields(item: ReferenceStats) -> dict[str, Any]:
    fields = {key: getattr(item, key) for key in ReferenceStats.__dataclass_fields__}
    return {**fields, "info": asdict(item.info)}


def load_stats(path: Path) -> dict[str, ReferenceStats]:
    """The statistics in the file `path`, by embedding; raises `UserError` if it is no such file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            facts = file.metadata() or {}
            if FORMAT not in facts:
                raise UserError(
                    f"{path} is no file of reference statistics: 'tokkata stats build' writes them"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no file of reference statistics, or damaged: 'tokkata stats build' writes them"
        ) from error
    described: list[dict[str, Any]] = json.loads(facts[FORMAT])
    return {item["info"]["name"]: _from_fields(item, tensors) for item in described}


def _from_fields(fields: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> ReferenceStats:
    info = EmbeddingInfo(**fields.pop("info"))
    halves = []
    for number, num_frames in enumerate(fields.pop("num_frames")):
        name = _SEPARATOR.join((info.name, str(number)))
        halves.append(
            GaussianStats(
                num_frames,
                tensors[f"{name}{_SEPARATOR}mean"],
                tensors.get(f"{name}{_SEPARATOR}m2"),
                rows=tensors.get(f"{name}{_SEPARATOR}rows"),
            )
        )
    return ReferenceStats(info=info, halves=(halves[0], halves[1]), **fields)


def described(stats: Mapping[str, ReferenceStats]) -> str:
    """What a file of statistics holds, for people."""
    lines = []
    for item in stats.values():
        lines += [
            f"{item.info.name} {item.info.version}",
            f"  clips            {item.num_clips}",
            f"  hours            {item.hours:.3f}",
            f"  frames           {item.num_frames}, {item.info.width} wide",
            f"  audio            {item.info.sample_rate} Hz: {item.reading}",
            f"  preprocessing    {item.info.preprocessing}",
            f"  source           {item.info.source}",
            f"  resampler        {item.resampler}",
            f"  tokkata          {item.tokkata}",
            f"  content          {item.content}",
        ]
        if item.num_frames < 2 * item.info.width:
            lines.append(
                f"  warning          fewer frames than twice the width {item.info.width}:"
                " distances to it are mostly bias"
            )
    return "\n".join(lines)
