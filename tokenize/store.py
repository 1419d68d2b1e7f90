"""The token store: a Hugging Face dataset on disk, one row a clip, that is memory-mapped when read.

    tokens/
      data-00000-of-00004.arrow …   rows, in the order of the corpus
      codec.json                    which codec made them
      rejects.jsonl                 clips that could not be used, each with its reason
      dataset_info.json state.json  so that `datasets.load_from_disk` reads the folder as it stands

Codes are stored frame-major, `[T · K]` uint16, so that a crop in time is one contiguous slice. They are raw:
no pattern, no special token.

Shapes: K codebooks, T frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter

from ..core.errors import UserError
from ..core.files import PARTIAL_PREFIX, atomic_file, read_jsonl, write_json, write_jsonl
from ..core.schema import Split
from .codec import CodecInfo
from .corpus import Label

_REJECTS = "rejects.jsonl"


@dataclass(frozen=True)
class TokenRow:
    """One clip in the store."""

    id: str
    split: Split
    codes: np.ndarray  # [K, T]
    num_samples: int
    source: str
    sha256: str
    labels: Mapping[str, Label]
    caption: str | None


@dataclass(frozen=True)
class Reject:
    """A clip that could not be used."""

    id: str
    source: str
    reason: str


class TokenWriter:
    """Writes a store shard by shard; a shard that is there is finished, so that is all a resume needs."""

    def __init__(
        self, folder: Path, info: CodecInfo, label_types: Mapping[str, type[int] | type[str]], num_shards: int
    ) -> None:
        self._folder = folder
        self._num_shards = num_shards
        self._features = _features(label_types)
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(PARTIAL_PREFIX + "*"):
            leftover.unlink()
        info.write(folder / "codec.json")

    def _shard(self, number: int) -> Path:
        return self._folder / f"data-{number:05d}-of-{self._num_shards:05d}.arrow"

    def _shard_rejects(self, number: int) -> Path:
        return self._folder / f"rejects-{number:05d}.jsonl"

    def has(self, number: int) -> bool:
        """Whether shard `number` has been written."""
        return self._shard(number).exists()

    def write(self, number: int, rows: Sequence[TokenRow], rejects: Sequence[Reject]) -> None:
        """Write shard `number`, and the rejects met on the way; either both or neither is taken as done."""
        write_jsonl(self._shard_rejects(number), [vars(reject) for reject in rejects])
        with atomic_file(self._shard(number)) as partial:
            writer = ArrowWriter(path=str(partial), features=self._features)
            for row in rows:
                writer.write(
                    {
                        "id": row.id,
                        "split": row.split,
                        "codes": np.ascontiguousarray(row.codes.T, dtype=np.uint16).reshape(-1),
                        "num_frames": row.codes.shape[1],
                        "num_samples": row.num_samples,
                        "source": row.source,
                        "sha256": row.sha256,
                        "caption": row.caption,
                        **row.labels,
                    }
                )
            writer.finalize()

    def finish(self) -> list[Reject]:
        """Make the folder a dataset once every shard is there; returns all rejects."""
        shards = [self._shard(i) for i in range(self._num_shards)]
        parts = [self._shard_rejects(i) for i in range(self._num_shards)]
        rejects = [row for part in parts if part.exists() for row in read_jsonl(part)]
        if not (self._folder / _REJECTS).exists():
            write_jsonl(self._folder / _REJECTS, rejects)
        for part in parts:
            part.unlink(missing_ok=True)
        datasets.DatasetInfo(features=self._features).write_to_directory(str(self._folder))
        digest = hashlib.sha256("".join(shard.name for shard in shards).encode())
        write_json(
            self._folder / "state.json",
            {
                "_data_files": [{"filename": shard.name} for shard in shards],
                "_fingerprint": digest.hexdigest()[:16],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            },
        )
        return read_rejects(self._folder)


def read_rejects(folder: Path) -> list[Reject]:
    """The clips that the store in `folder` could not use."""
    return [Reject(**row) for row in read_jsonl(folder / _REJECTS)]


def _features(label_types: Mapping[str, type[int] | type[str]]) -> datasets.Features:
    columns = {
        "id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "codes": datasets.List(datasets.Value("uint16")),
        "num_frames": datasets.Value("int64"),
        "num_samples": datasets.Value("int64"),
        "source": datasets.Value("string"),
        "sha256": datasets.Value("string"),
        "caption": datasets.Value("string"),
    }
    clashes = sorted(columns.keys() & label_types.keys())
    if clashes:
        raise ValueError(f"labels cannot be named like columns of the store: {clashes}")
    labels = {name: datasets.Value("int64" if t is int else "string") for name, t in label_types.items()}
    return datasets.Features(columns | labels)


class TokenStore:
    """A finished store, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Raises `UserError` if `folder` holds no finished store."""
        if not (folder / "state.json").exists():
            raise UserError(f"{folder} holds no finished token store: run the stage tokenize first")
        self.info = CodecInfo.read(folder / "codec.json")
        self.dataset = datasets.load_from_disk(str(folder))

    def split(self, name: Split) -> TokenSplit:
        """The clips of one split; it may be empty."""
        wanted = np.asarray(self.dataset["split"][:]) == name
        return TokenSplit(self, name, np.flatnonzero(wanted))


class TokenSplit:
    """The clips of one split, by position."""

    def __init__(self, store: TokenStore, name: Split, rows: np.ndarray) -> None:
        self.name = name
        self._store = store
        self._rows = rows
        self.num_frames = np.asarray(store.dataset["num_frames"][:], dtype=np.int64)[rows]  # one a clip
        # Views into the mapped files: a crop is read from there, and nothing is copied before it.
        chunks = store.dataset.data.column("codes").chunks
        self._codes = [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks]
        begins = [np.asarray(chunk.offsets)[:-1] for chunk in chunks]
        self._begin = np.concatenate([*begins, np.empty(0, np.int64)])[rows].astype(np.int64)
        chunk_of_row = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])
        self._chunk = chunk_of_row[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> list[Label]:
        """The values of one column; raises `UserError` if there is none of that name."""
        if name not in self._store.dataset.column_names:
            fixed = ("id", "split", "codes", "num_frames", "num_samples", "source", "sha256", "caption")
            labels = [c for c in self._store.dataset.column_names if c not in fixed]
            raise UserError(f"the tokens have no label '{name}': they have {', '.join(labels) or 'none'}")
        values = self._store.dataset[name][:]
        return [values[row] for row in self._rows]

    def codes(self, clip: int, start: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Codes `[K, T]`, int64, of `num_frames` frames (fewer at the clip's end) from frame `start`."""
        k = self._store.info.num_codebooks
        stop = int(self.num_frames[clip])
        if num_frames is not None:
            stop = min(stop, start + num_frames)
        begin = self._begin[clip]
        flat = self._codes[self._chunk[clip]][begin + start * k : begin + stop * k]
        codes: np.ndarray = flat.reshape(-1, k).T.astype(np.int64)
        return codes
