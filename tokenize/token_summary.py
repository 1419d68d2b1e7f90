"""What a token store holds: clips, hours, how evenly its codebooks are used.

Shapes: K codebooks, V codebook size, T frames, D latent width.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import matplotlib.figure
import numpy as np
import torch

from ..core.files import atomic_file
from ..core.progress import track
from ..core.sections import Split
from .codec import CodecInfo
from .features.feature import FeatureInfo
from .fidelity import CodebookUse, codebook_use
from .origin import Origin, read_origins
from .store import TokenStore, read_rejects


@dataclass(frozen=True)
class SplitSummary:
    """One split of a store."""

    num_clips: int
    duration_s: float
    shortest_s: float
    longest_s: float


@dataclass(frozen=True)
class TokenSummary:
    """A store in figures."""

    info: CodecInfo
    features: list[FeatureInfo]
    origins: list[Origin]
    splits: dict[str, SplitSummary]
    num_rejects: int
    reject_reasons: dict[str, int]
    """The most frequent reasons, each with its number."""
    num_frames: int
    bytes: int
    """Of the store's files."""
    use: CodebookUse | None
    """None for a store of latents."""
    counts: np.ndarray | None = dataclasses.field(repr=False, compare=False)  # [K, V] int64

    @property
    def kbps(self) -> float:
        """Bitrate of the codes as they are, K · log2 V bits a frame."""
        bits = math.log2(self.info.codebook_size) if self.info.codebook_size else 0.0
        return self.info.frame_rate * self.info.num_codebooks * bits / 1e3

    @property
    def entropy_kbps(self) -> float | None:
        """Bitrate that an ideal order-0 code would need; None for latents."""
        return None if self.use is None else self.info.frame_rate * sum(self.use.entropy_bits) / 1e3


def summarise(folder: Path) -> TokenSummary:
    """Go through the store in `folder` once; raises `UserError` if there is none."""
    store = TokenStore(folder)
    info = store.info
    names = np.asarray(store.dataset["split"][:])
    seconds = np.asarray(store.dataset["num_samples"][:], dtype=np.float64) / info.sample_rate
    splits = {}
    for name in get_args(Split):
        of_split = seconds[names == name]
        if len(of_split):
            splits[name] = SplitSummary(
                len(of_split), float(of_split.sum()), float(of_split.min()), float(of_split.max())
            )
    rejects = read_rejects(folder)
    counts = None if info.latents else _count_codes(store)
    return TokenSummary(
        info=info,
        features=list(store.features.values()),
        origins=read_origins(folder),
        splits=splits,
        num_rejects=len(rejects),
        reject_reasons=dict(Counter(reject.reason for reject in rejects).most_common(5)),
        num_frames=int(np.asarray(store.dataset["num_frames"][:], dtype=np.int64).sum()),
        bytes=sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        use=None if counts is None else codebook_use(torch.from_numpy(counts)),
        counts=counts,
    )


def _count_codes(store: TokenStore) -> np.ndarray:
    """How often each entry of each codebook occurs, `[K, V]`."""
    k, v = store.info.num_codebooks, store.info.codebook_size
    counts = np.zeros(k * v, dtype=np.int64)
    first_entry = np.arange(k, dtype=np.int64) * v
    for name in get_args(Split):
        split = store.split(name)
        for clip in track(range(len(split)), f"count {name}"):
            codes = split.codes(clip)  # [K, T]
            counts += np.bincount((codes + first_entry[:, None]).ravel(), minlength=k * v)
    return counts.reshape(k, v)


def draw_histogram(summary: TokenSummary, path: Path) -> None:
    """A picture of how often each entry occurs: one panel a codebook, entries from most to least frequent."""
    if summary.counts is None or summary.use is None:
        raise ValueError("a store of latents has no histogram of codes")
    k, v = summary.counts.shape
    columns = min(4, k)
    rows = -(-k // columns)
    figure = matplotlib.figure.Figure(figsize=(3.2 * columns, 2.2 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    share = -np.sort(-summary.counts, axis=1) / np.maximum(1, summary.counts.sum(axis=1, keepdims=True))
    for number, panel in enumerate(panels):
        if number >= k:
            panel.set_visible(False)
            continue
        panel.fill_between(np.arange(v), share[number], step="mid", linewidth=0)
        panel.axhline(1 / v, color="0.4", linewidth=0.8, linestyle=":")
        panel.set_yscale("log")
        panel.set_ylim(0.5 / max(1, summary.counts.sum(axis=1).max()), 1)
        bits = summary.use.entropy_bits[number]
        panel.set_title(f"codebook {number}: {bits:.2f} bits, {summary.use.used[number]} used", fontsize=8)
        panel.tick_params(labelsize=7)
    figure.supxlabel("entry, most frequent first (dotted: all equally often)", fontsize=8)
    figure.supylabel("share of frames", fontsize=8)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def as_text(summary: TokenSummary) -> str:
    """The figures for people, a line each."""
    info = summary.info
    what = f"latents of width {info.latent_dim}" if info.latents else "codes"
    lines = [f"from        {own.name}, licence: {own.licence or 'not told'}" for own in summary.origins]
    lines += [
        f"codec       {info.id}" + (f", revision {info.revision}" if info.revision else ""),
        f"audio       {info.sample_rate} Hz, {info.channels} channel{'s' if info.channels > 1 else ''}",
        f"stored      {what}, {info.frame_rate:.4g} frames/s, {summary.num_frames:,} frames in all,"
        f" {summary.bytes / 1e6:.1f} MB, made in {info.precision}",
    ]
    lines += [f"feature     {_feature_text(feature)}" for feature in summary.features]
    for name, split in summary.splits.items():
        lines.append(
            f"{name:<12}{split.num_clips:,} clips, {split.duration_s / 3600:.3f} h,"
            f" {split.shortest_s:.2f} to {split.longest_s:.2f} s each"
        )
    lines.append(f"rejected    {summary.num_rejects:,}")
    lines += [f"            {number:,} × {reason}" for reason, number in summary.reject_reasons.items()]
    if summary.use is not None:
        lines.append(
            f"bitrate     {summary.kbps:.3g} kbit/s; {summary.entropy_kbps:.3g} by the codes' entropy"
            f" (efficiency {summary.use.efficiency:.1%})"
        )
        lines.append(f"codebooks   {info.num_codebooks} of {info.codebook_size} entries")
        for number, (bits, used) in enumerate(zip(summary.use.entropy_bits, summary.use.used, strict=True)):
            lines.append(f"            {number:>2}: {bits:5.2f} bits, {used:,} entries used")
    return "\n".join(lines)


def _feature_text(info: FeatureInfo) -> str:
    rate = "" if info.frame_rate is None else f", {info.frame_rate:.4g} frames/s"
    encoder = "" if info.encoder is None else f", {info.encoder}"
    return f"{info.name}: {info.store}, width {info.dim}{rate}{encoder}"
