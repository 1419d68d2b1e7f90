"""Whether a token store is whole: every file's checksum, and every row against `codec.json`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

import numpy as np

from ..core.progress import track
from ..core.sections import Split
from .store import TokenStore, read_manifest


def faults_of_store(folder: Path) -> list[str]:
    """What is wrong with the store in `folder`, a sentence each; empty if nothing is.

    Raises `UserError` if there is no finished store.
    """
    store = TokenStore(folder)
    faults = []
    for name, expected in track(sorted(read_manifest(folder).items()), "checksums"):
        file = folder / name
        if not file.is_file():
            faults.append(f"{name} is missing")
            continue
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != expected:
            faults.append(f"{name} is damaged: its sha256 is {found}, and was {expected} when it was written")
    # Rows of damaged files may be anything; what can be said of them has been said.
    return faults or _faults_of_rows(store)


def _faults_of_rows(store: TokenStore) -> list[str]:
    faults = []
    info = store.info
    ids = store.dataset["id"][:]
    if len(set(ids)) != len(ids):
        faults.append(f"{len(ids) - len(set(ids))} rows have the id of another row")
    for name in get_args(Split):
        split = store.split(name)
        clip_ids = split.column("id")
        for clip in track(range(len(split)), f"rows of {name}"):
            if info.latents:
                values = split.latents(clip)  # [D, T]
                fault = None if np.isfinite(values).all() else "holds NaN or infinite latents"
            else:
                values = split.codes(clip)  # [K, T]
                fault = (
                    f"holds codes up to {values.max()}, but the codebooks have {info.codebook_size} entries"
                    if values.size and values.max() >= info.codebook_size
                    else None
                )
            if values.shape[1] != split.num_frames[clip]:
                fault = f"has {values.shape[1]} frames, but says {split.num_frames[clip]}"
            for feature in store.features:
                if not np.isfinite(split.feature(feature, clip)).all():
                    fault = f"holds NaN or infinite values in its feature '{feature}'"
            if fault:
                faults.append(f"row {clip_ids[clip]} {fault}")
    return faults
