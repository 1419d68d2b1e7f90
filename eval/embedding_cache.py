"""Embeddings that were computed once: in packs on disk, found again by the content of the audio file.

    <folder>/<embedding>-<hash of all that it depends on>/<hash of the clips>.safetensors

A pack holds some clips, each under the SHA-256 of its file's bytes. So a file that is renamed, moved or in
another folder too is not embedded again, and one that is changed is. A pack appears whole or not at all.

Shapes: T frames, D width.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from ..core.errors import UserError
from ..core.files import PARTIAL_PREFIX, atomic_file
from .embedding import EmbeddingInfo
from .folder_audio import READING


def default_cache() -> Path:
    """~/.cache/tokkata/embeddings."""
    return Path.home() / ".cache" / "tokkata" / "embeddings"


@dataclass(frozen=True)
class ClipFacts:
    """What is kept of a clip beside its frames."""

    duration_s: float
    rms: float
    """Root mean square of its samples as the embedding gets them; 0 for digital silence."""
    num_frames: int


def embedding_key(info: EmbeddingInfo) -> str:
    """A hash of all that the frames of a file depend on besides its bytes."""
    parts = [info.name, info.version, info.sample_rate, info.width, info.preprocessing, READING]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class EmbeddingCache:
    """The packs of one embedding.

    What it knows is what was there when it was opened, and what this object has added since. Other processes
    add packs at the same time; `refresh` looks for them.
    """

    def __init__(self, folder: Path, info: EmbeddingInfo) -> None:
        name = re.sub(r"[^\w.-]+", "-", info.name)
        self._folder = folder / f"{name}-{embedding_key(info)[:16]}"
        self._width = info.width
        self._pack_of: dict[str, Path] = {}
        self._facts: dict[str, ClipFacts] = {}
        self._read: set[Path] = set()
        self._open: tuple[Path, Any] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Look for new packs; raises `UserError` for one that is damaged."""
        packs = self._folder.glob("*.safetensors") if self._folder.is_dir() else iter(())
        for path in sorted(packs):
            if path in self._read or path.name.startswith(PARTIAL_PREFIX):
                continue
            try:
                with safetensors.safe_open(path, "numpy") as pack:
                    rows = json.loads(pack.metadata()["clips"])
            except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"the cached embeddings in {path} are damaged: delete that file, and it is computed again"
                ) from error
            self._add(path, {sha256: ClipFacts(**facts) for sha256, facts in rows.items()})

    def _add(self, path: Path, facts: Mapping[str, ClipFacts]) -> None:
        self._read.add(path)
        for sha256, item in facts.items():
            # The first pack wins, by name, so that all processes read the same one.
            self._pack_of.setdefault(sha256, path)
            self._facts.setdefault(sha256, item)

    def known(self) -> frozenset[str]:
        """The hashes of all clips that are here."""
        return frozenset(self._facts)

    def facts(self, sha256: str) -> ClipFacts:
        """What is known of a clip."""
        return self._facts[sha256]

    def frames(self, sha256: str) -> np.ndarray:
        """The frames [T, D] float32 of a clip."""
        path = self._pack_of[sha256]
        if self._open is None or self._open[0] != path:
            self._open = (path, safetensors.safe_open(path, "numpy"))
        frames: np.ndarray = self._open[1].get_tensor(sha256)
        return frames

    def add(self, frames: Mapping[str, np.ndarray], facts: Mapping[str, ClipFacts]) -> None:
        """Write a pack with the `frames` [T, D] of some clips; nothing for none."""
        if not frames:
            return
        digest = hashlib.sha256("".join(sorted(frames)).encode()).hexdigest()
        path = self._folder / f"{digest[:32]}.safetensors"
        rows = {sha256: asdict(facts[sha256]) for sha256 in frames}
        with atomic_file(path) as partial:
            save_file(
                {sha256: np.ascontiguousarray(item, np.float32) for sha256, item in frames.items()},
                partial,
                {"clips": json.dumps(rows)},
            )
        self._add(path, facts)
