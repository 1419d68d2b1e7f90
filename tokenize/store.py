"""The token store: a Hugging Face dataset on disk, one row a clip, that is memory-mapped when read.

    tokens/
      data-00000-of-00004.arrow …   rows, in the order of the clips' ids
      codec.json                    which codec made them, and how
      features.json                 which encoders made the clips' features, if they have any
      origin.json                   where the audio comes from, and on what terms
      rejects.jsonl                 clips that could not be used, each with its reason
      shards.json                   sha256 of each of those files
      dataset_info.json state.json  so that `datasets.load_from_disk` reads the folder as it stands

Codes are stored frame-major, `[T · K]` uint16, so that a crop in time is one contiguous slice; latents alike,
`[T · D]` float32, and features, `[L · E]`. Codes are raw: no pattern, no special token. A row also says where
its audio came from and what was done to it.

Shapes: K codebooks, T frames, D latent width, S segments with a gain each, L length and E width of a feature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import datasets
import numpy as np

from ..core.errors import UserError
from ..core.files import read_jsonl
from ..core.label import Label
from ..core.sections import Split
from .codec import CodecInfo
from .features.feature import FeatureInfo, read_features
from .store_writer import (
    CODEC,
    FACTS,
    FINISHED,
    MANIFEST,
    REJECTS,
    Reject,
    TokenRow,
    TokenWriter,
    feature_column,
)

__all__ = ["Reject", "TokenRow", "TokenSplit", "TokenStore", "TokenWriter", "read_manifest", "read_rejects"]

_NO_LABELS = {
    "id", "split", "codes", "latents", "latents_scale", "gains", "num_frames", "num_samples", "source",
    "sha256", "caption", *FACTS,
}  # fmt: skip


def read_rejects(folder: Path) -> list[Reject]:
    """The clips that the store in `folder` could not use."""
    return [Reject(**row) for row in read_jsonl(folder / REJECTS)]


def read_manifest(folder: Path) -> dict[str, str]:
    """The sha256 that each file of the store in `folder` had when it was written, by name."""
    manifest: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


class TokenStore:
    """A finished store, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Raises `UserError` if `folder` holds no finished store."""
        if not (folder / FINISHED).exists():
            raise UserError(f"{folder} holds no finished token store: run the stage tokenize first")
        self.folder = folder
        self.info = CodecInfo.read(folder / CODEC)
        self.features: Mapping[str, FeatureInfo] = read_features(folder)
        self.dataset = datasets.load_from_disk(str(folder))

    def require(self, what: Literal["codes", "latents"], reader: str) -> None:
        """Raise `UserError` unless the store holds `what`, which `reader` (for people) needs."""
        holds = "latents" if self.info.latents else "codes"
        if holds != what:
            raise UserError(
                f"{reader} needs {what}, but {self.folder} holds {holds}: set tokenize.store to '{what}'"
            )

    def split(self, name: Split) -> TokenSplit:
        """The clips of one split; it may be empty."""
        wanted = np.asarray(self.dataset["split"][:]) == name
        return TokenSplit(self, name, np.flatnonzero(wanted))


class _FlatColumn:
    """The values of one list column: views into the mapped files; nothing is copied before a crop."""

    def __init__(self, store: TokenStore, name: str) -> None:
        chunks = store.dataset.data.column(name).chunks
        self._values = [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks]
        offsets = [np.asarray(chunk.offsets).astype(np.int64) for chunk in chunks]
        self._begin = np.concatenate([*(found[:-1] for found in offsets), np.empty(0, np.int64)])
        self._stop = np.concatenate([*(found[1:] for found in offsets), np.empty(0, np.int64)])
        self._chunk = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])

    def row(self, row: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Values `start` to `stop` of a row, as a view."""
        begin, end = self._begin[row], self._stop[row]
        values: np.ndarray = self._values[self._chunk[row]][
            begin + start : end if stop is None else min(end, begin + stop)
        ]
        return values


class TokenSplit:
    """The clips of one split, by position."""

    def __init__(self, store: TokenStore, name: Split, rows: np.ndarray) -> None:
        self.name = name
        self._store = store
        self._rows = rows
        self.num_frames = np.asarray(store.dataset["num_frames"][:], dtype=np.int64)[rows]  # one a clip
        self.num_samples = np.asarray(store.dataset["num_samples"][:], dtype=np.int64)[rows]
        self._columns = {
            column: _FlatColumn(store, column)
            for column in ("codes", "latents", "latents_scale", "gains", *map(feature_column, store.features))
            if column in store.dataset.column_names
        }

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> list[Label]:
        """The values of one column, tags as tuples; raises `UserError` if there is none of that name."""
        if name not in self._store.dataset.column_names:
            taken = _NO_LABELS | {feature_column(feature) for feature in self._store.features}
            labels = [column for column in self._store.dataset.column_names if column not in taken]
            raise UserError(f"the tokens have no label '{name}': they have {', '.join(labels) or 'none'}")
        values = self._store.dataset[name][:]
        return [tuple(v) if isinstance(v := values[row], list) else v for row in self._rows]

    def codes(self, clip: int, start: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Codes `[K, T]`, int64, of `num_frames` frames (fewer at the clip's end) from frame `start`.

        Raises `UserError` if the store holds latents.
        """
        self._store.require("codes", "what reads codes")
        return self._crop("codes", self._store.info.num_codebooks, clip, start, num_frames).astype(np.int64)

    def latents(self, clip: int, start: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Latents `[D, T]`, float32, of `num_frames` frames (fewer at the clip's end) from frame `start`.

        For a VAE these are the posterior's mean. Raises `UserError` if the store holds codes.
        """
        self._store.require("latents", "what reads latents")
        return self._crop("latents", self._store.info.latent_dim, clip, start, num_frames).copy()

    def latents_scale(self, clip: int, start: int = 0, num_frames: int | None = None) -> np.ndarray | None:
        """The posterior's scale, `[D, T]` like `latents`; None if the codec is no VAE."""
        if "latents_scale" not in self._columns:
            return None
        return self._crop("latents_scale", self._store.info.latent_dim, clip, start, num_frames).copy()

    def gains(self, clip: int) -> np.ndarray | None:
        """The gains `[S]` of all the clip's segments, float32; None if the codec has no gains."""
        return self._columns["gains"].row(self._rows[clip]).copy() if "gains" in self._columns else None

    def feature(self, name: str, clip: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """The feature `name` of a clip, `[L, E]` in the format that it is stored in, or a part of it.

        It is a view of the mapped file, which cannot be written to. `start` and `length` count the feature's
        own frames or tokens; there are fewer at the clip's end. L = 0 says that the clip has no such feature,
        a text without a caption. Raises `UserError` if the store has no feature of that name.
        """
        if name not in self._store.features:
            there = ", ".join(self._store.features)
            raise UserError(
                f"{self._store.folder} has no feature '{name}': it has {there or 'none'};"
                " add it to tokenize.features"
            )
        stop = None if length is None else start + length
        return self._slice(feature_column(name), self._store.features[name].dim, clip, start, stop)

    def _crop(self, column: str, width: int, clip: int, start: int, num_frames: int | None) -> np.ndarray:
        stop = None if num_frames is None else start + num_frames
        return self._slice(column, width, clip, start, stop).T

    def _slice(self, column: str, width: int, clip: int, start: int, stop: int | None) -> np.ndarray:
        """Rows `start` to `stop` of what a clip has in a column, `[T, width]`."""
        flat = self._columns[column].row(
            self._rows[clip], start * width, None if stop is None else stop * width
        )
        return flat.reshape(-1, width)
