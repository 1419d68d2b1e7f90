"""Writing a token store, shard by shard, by any number of processes.

A shard that is there is finished, so there is no other state to keep for a resume. Beside each lies a small
`shard-00000.json` with what the end needs to know of it; `finish` gathers those, and removes them.

Shapes: K codebooks, T frames, D latent width, S segments with a gain each, L length and E width of a feature.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..core.audio_stream import AudioFacts
from ..core.files import PARTIAL_PREFIX, atomic_file, read_jsonl, write_json, write_jsonl
from ..core.label import Label
from ..core.sections import Split
from .codec import CodecInfo
from .corpus import LabelTypes
from .features.feature import FEATURES, FeatureInfo, write_features
from .latent_stats import LatentStats

REJECTS = "rejects.jsonl"
MANIFEST = "shards.json"
CODEC = "codec.json"
FINISHED = "state.json"
"""Written last: a folder without it is no store."""

FACTS: dict[str, str] = {
    "original_sample_rate": "int64",
    "original_channels": "int64",
    "original_duration_s": "float64",
    "trim_start_s": "float64",
    "gain_db": "float64",
    "loudness_lufs": "float64",
}
"""What was done to the audio: fields of `AudioFacts` that are columns of the store."""

# A shard is written in batches of rows of about this size, so that many long clips need no more memory.
_BATCH_BYTES = 32 << 20

MAX_VALUES = 2**31 - 1
"""Arrow counts the values of a list column in 32 bits: a clip with more codes or latents does not fit."""


@dataclass(frozen=True)
class TokenRow:
    """One clip in the store: codes or latents."""

    id: str
    split: Split
    codes: np.ndarray | None  # [K, T]
    num_samples: int
    source: str
    sha256: str
    labels: Mapping[str, Label]
    caption: str | None
    latents: np.ndarray | None = None  # [D, T] float32
    latents_scale: np.ndarray | None = None  # [D, T] float32
    """Scale of a VAE's posterior, of which `latents` is the mean."""
    gains: np.ndarray | None = None  # [S] float32
    facts: AudioFacts | None = None
    """What was done to the audio; None if the row was not made from audio."""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)  # [L, E] each
    """By name, in the number format of its `FeatureInfo`."""

    @property
    def num_frames(self) -> int:
        """T."""
        found = self.codes if self.codes is not None else self.latents
        assert found is not None
        return int(found.shape[1])

    def values(self) -> dict[str, np.ndarray]:
        """The array columns, each flat and frame-major."""
        arrays = {}
        if self.codes is not None:
            arrays["codes"] = _frame_major(self.codes, np.uint16)
        if self.latents is not None:
            arrays["latents"] = _frame_major(self.latents, np.float32)
        if self.latents_scale is not None:
            arrays["latents_scale"] = _frame_major(self.latents_scale, np.float32)
        if self.gains is not None:
            arrays["gains"] = np.asarray(self.gains, dtype=np.float32)
        return arrays | {feature_column(name): found.reshape(-1) for name, found in self.features.items()}


@dataclass(frozen=True)
class Reject:
    """A clip that could not be used."""

    id: str
    source: str
    reason: str


def feature_column(name: str) -> str:
    """The column of the store that holds the feature `name`, flat: `[L · E]`."""
    return f"feature_{name}"


def _frame_major(values: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """`[K, T]` to `[T · K]`."""
    return np.ascontiguousarray(values.T, dtype=dtype).reshape(-1)


class TokenWriter:
    """Writes a store shard by shard; each shard is written by one process, the end by the first."""

    def __init__(
        self,
        folder: Path,
        info: CodecInfo,
        label_types: LabelTypes,
        num_shards: int,
        *,
        has_gains: bool = False,
        has_scale: bool = False,
        features: Sequence[FeatureInfo] = (),
    ) -> None:
        """`info.latents` is set if latents are stored; `has_gains` and `has_scale`: if rows have those;
        `features`: those that every row has.

        Raises `ValueError` if a label has the name of a column.
        """
        self._folder = folder
        self._info = info
        self._num_shards = num_shards
        self._feature_infos = features
        self._arrays = _array_columns(info, features, has_gains=has_gains, has_scale=has_scale)
        self._columns = _columns(self._arrays, label_types)
        folder.mkdir(parents=True, exist_ok=True)

    def _shard(self, number: int) -> Path:
        return self._folder / f"data-{number:05d}-of-{self._num_shards:05d}.arrow"

    def _side(self, number: int) -> Path:
        return self._folder / f"shard-{number:05d}.json"

    def has(self, number: int) -> bool:
        """Whether shard `number` has been written."""
        return self._shard(number).exists()

    def missing(self) -> list[int]:
        """The shards that have not been written, by any process."""
        there = {path.name for path in self._folder.iterdir()}
        return [number for number in range(self._num_shards) if self._shard(number).name not in there]

    @property
    def is_finished(self) -> bool:
        """Whether the folder is a dataset already."""
        return (self._folder / FINISHED).exists()

    def write(self, number: int, rows: Iterable[TokenRow], rejects: Sequence[Reject]) -> None:
        """Write shard `number`.

        `rejects` is read after the last of `rows`, so it may be filled while they are made. Killed at any
        time, this leaves either a whole shard or none.
        """
        stats: LatentStats | None = None
        with atomic_file(self._shard(number)) as partial:
            schema = self._columns.arrow_schema
            with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
                for batch in _batches(rows):
                    stream.write_batch(self._record_batch(batch, schema))
                    for row in batch:
                        if row.latents is not None:
                            found = LatentStats.none(row.latents.shape[0])
                            if row.split == "train":
                                found = LatentStats.of(row.latents)
                            stats = found if stats is None else stats.merge(found)
            side = {
                "sha256": sha256_of(partial),
                "rejects": [vars(reject) for reject in rejects],
                "latents": stats.to_json() if stats else None,
            }
            write_json(self._side(number), side)

    def _record_batch(self, rows: Sequence[TokenRow], schema: pa.Schema) -> pa.RecordBatch:
        arrays = [row.values() for row in rows]
        columns: dict[str, Any] = {
            "id": [row.id for row in rows],
            "split": [row.split for row in rows],
            "num_frames": [row.num_frames for row in rows],
            "num_samples": [row.num_samples for row in rows],
            "source": [row.source for row in rows],
            "sha256": [row.sha256 for row in rows],
            "caption": [row.caption for row in rows],
        }
        columns |= {name: [getattr(row.facts, name, None) for row in rows] for name in FACTS}
        for name in self._arrays:
            columns[name] = _list_array([found[name] for found in arrays], schema.field(name).type)
        made = [
            columns[field.name]
            if field.name in self._arrays
            else pa.array(columns.get(field.name) or [row.labels[field.name] for row in rows], field.type)
            for field in schema
        ]
        return pa.RecordBatch.from_arrays(made, schema=schema)

    def write_rejects(self) -> list[Reject]:
        """Write `rejects.jsonl` once every shard is there; returns the rejects."""
        rejects = [row for side in self._read_sides() for row in side["rejects"]]
        write_jsonl(self._folder / REJECTS, rejects)
        return [Reject(**row) for row in rejects]

    def _read_sides(self) -> list[dict[str, Any]]:
        sides = (self._side(number) for number in range(self._num_shards))
        return [json.loads(side.read_text(encoding="utf-8")) for side in sides]

    def finish(self) -> list[Reject]:
        """Make the folder a dataset once every shard is there; returns all rejects.

        Does nothing if it has been done; killed in the middle, the next call does it again.
        """
        if not self.is_finished:
            self.write_rejects()
            sides = self._read_sides()
            self._final_info(sides).write(self._folder / CODEC)
            shards = {self._shard(number).name: side["sha256"] for number, side in enumerate(sides)}
            names = [CODEC, REJECTS]
            if self._feature_infos:
                write_features(self._folder, self._feature_infos)
                names.append(FEATURES)
            others = {name: sha256_of(self._folder / name) for name in names}
            write_json(self._folder / MANIFEST, shards | others)
            datasets.DatasetInfo(features=self._columns).write_to_directory(str(self._folder))
            self._write_state(list(shards))
        for number in range(self._num_shards):
            self._side(number).unlink(missing_ok=True)
        for leftover in self._folder.glob(PARTIAL_PREFIX + "*"):  # nobody writes here any more
            leftover.unlink()
        return [Reject(**row) for row in read_jsonl(self._folder / REJECTS)]

    def _write_state(self, shards: list[str]) -> None:
        write_json(
            self._folder / FINISHED,
            {
                "_data_files": [{"filename": name} for name in shards],
                "_fingerprint": hashlib.sha256("".join(shards).encode()).hexdigest()[:16],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            },
        )

    def _final_info(self, sides: list[dict[str, Any]]) -> CodecInfo:
        """The codec's description with the statistics of the training split, merged in the shards' order."""
        info = self._info
        found = [LatentStats.from_json(side["latents"]) for side in sides if side["latents"]]
        if found:
            stats = found[0]
            for more in found[1:]:
                stats = stats.merge(more)
            info = dataclasses.replace(info, latent_dim=len(stats.mean))
            if stats.num_frames:
                info = dataclasses.replace(
                    info, latent_mean=stats.mean.tolist(), latent_std=stats.std.tolist()
                )
        if "gains" in self._arrays and len(gains := self._train_gains()):
            info = dataclasses.replace(info, median_gain=float(np.median(gains)))
        return info

    def _train_gains(self) -> np.ndarray:
        """All gains of the training split."""
        gains = [np.empty(0, dtype=np.float32)]
        for number in range(self._num_shards):
            with pa.memory_map(str(self._shard(number))) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    in_train = pc.equal(batch.column("split"), "train")
                    gains.append(batch.column("gains").filter(in_train).flatten().to_numpy())
        return np.concatenate(gains)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _batches(rows: Iterable[TokenRow]) -> Iterator[list[TokenRow]]:
    """Rows in groups of up to `_BATCH_BYTES`; a longer row is alone."""
    batch: list[TokenRow] = []
    size = 0
    for row in rows:
        arrays = sum(array.nbytes for array in row.values().values())
        if batch and size + arrays > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += arrays
    if batch:
        yield batch


def _list_array(rows: list[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    values = pa.array(np.concatenate(rows), kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=kind)


def _array_columns(
    info: CodecInfo, features: Sequence[FeatureInfo], *, has_gains: bool, has_scale: bool
) -> dict[str, str]:
    """The array columns of a store, each with the type of its values."""
    columns = {"latents": "float32"} if info.latents else {"codes": "uint16"}
    if has_scale:
        columns["latents_scale"] = "float32"
    if has_gains:
        columns["gains"] = "float32"
    return columns | {feature_column(feature.name): feature.store for feature in features}


def _columns(arrays: Mapping[str, str], label_types: LabelTypes) -> datasets.Features:
    value = datasets.Value
    columns = {"id": value("string"), "split": value("string")}
    columns |= {name: datasets.List(value(kind)) for name, kind in arrays.items()}
    columns |= {"num_frames": value("int64"), "num_samples": value("int64")}
    columns |= {"source": value("string"), "sha256": value("string"), "caption": value("string")}
    columns |= {name: value(kind) for name, kind in FACTS.items()}
    clashes = sorted(columns.keys() & label_types.keys())
    if clashes:
        raise ValueError(f"labels cannot be named like columns of the store: {clashes}")
    kinds = {
        int: value("int64"),
        float: value("float64"),
        str: value("string"),
        tuple: datasets.List(value("string")),
    }
    return datasets.Features(columns | {name: kinds[t] for name, t in label_types.items()})
