"""Copies made on purpose, to measure what a search finds: its recall, and its false alarms on real audio.

Shapes: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ...core.audio import resample, to_channels
from ...tokenize.codec import Codec

NOISE_DB = 20.0
SHIFT_SAMPLES = 137
"""Odd, and no multiple of any codec's hop."""
GAIN_DB = -9.0

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Samples `[C, N]` to samples `[C, n]`."""


def with_noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise added, 20 dB below the signal (root mean squares)."""
    rms = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    noise = rng.standard_normal(samples.shape) * rms * 10.0 ** (-NOISE_DB / 20.0)
    noisy: np.ndarray = (samples + noise).astype(np.float32)
    return noisy


def shifted(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first 137 samples left out."""
    return samples[:, SHIFT_SAMPLES:]


def at_other_gain(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """9 dB quieter; the pitch stays."""
    quieter: np.ndarray = (samples * 10.0 ** (GAIN_DB / 20.0)).astype(np.float32)
    return quieter


def unchanged(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The copy itself."""
    return samples


def re_encoded(codec: Codec, sample_rate: int) -> Change:
    """The change that sending samples at `sample_rate` through `codec` is."""

    def change(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        audio = resample(to_channels(samples, codec.channels), sample_rate, codec.sample_rate)
        through = codec.reconstruct(torch.from_numpy(audio)[None].to(codec.device))[0].cpu().numpy()
        return resample(through, codec.sample_rate, sample_rate)

    return change


def changes(codec: Codec, sample_rate: int) -> dict[str, Change]:
    """The five kinds of copies, by name."""
    return {
        "exact": unchanged,
        "noise at 20 dB": with_noise,
        "shifted by 137 samples": shifted,
        "re-encoded": re_encoded(codec, sample_rate),
        "9 dB quieter": at_other_gain,
    }


def plant(clips: Sequence[np.ndarray], change: Change, seed: int) -> list[np.ndarray]:
    """Each of `clips` [C, N] changed, with a random generator of its own."""
    return [change(clip, np.random.default_rng([seed, index])) for index, clip in enumerate(clips)]


def recall(found: Sequence[bool]) -> float:
    """Share of the planted copies that were found; raises `ValueError` for none."""
    if not found:
        raise ValueError("recall needs at least one planted copy")
    return float(np.mean(found))


def recall_table(found: Mapping[str, Mapping[str, Sequence[bool]]]) -> str:
    """Markdown table of recalls; `found[kind][statistic]` says which copies were found."""
    statistics = list(next(iter(found.values())))
    lines = ["| copy | " + " | ".join(statistics) + " |", "|---" * (len(statistics) + 1) + "|"]
    for kind, by_statistic in found.items():
        cells = " | ".join(f"{100.0 * recall(by_statistic[name]):.0f} %" for name in statistics)
        lines.append(f"| {kind} | {cells} |")
    return "\n".join(lines)
