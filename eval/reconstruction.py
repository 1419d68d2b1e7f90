"""Stage `eval` of a codec's run: how well it reconstructs held-out audio, beside Opus.

    python -m tokkata.eval.reconstruction RECIPE

Writes eval/scores.json and prints the table. Opus needs `opusenc` and `opusdec` (Debian: opus-tools); where
they are absent its rows are left out, and the table says so.

Shapes: B batch, C channels, N samples, K codebooks, T frames.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..core.audio import load_audio, write_wav
from ..core.device import best_device
from ..core.errors import UserError
from ..core.files import write_json
from ..core.progress import track
from ..core.run import stage_main
from ..core.schema import Recipe
from ..tokenize.codec import Codec, load_codec
from ..tokenize.fidelity import CodebookUse, MelDistance, codebook_efficiency, si_sdr
from ..tokenize.training.audio_store import AudioStore

OPUS_KBPS = (6, 12)


@dataclass(frozen=True)
class Reconstruction:
    """One codec on one set of clips; distances are means over clips."""

    name: str
    bitrate_kbps: float
    """Of the codec's stream; for Opus as measured, with its container."""
    mel_distance: float
    """Multi-scale log10-mel distance, `tokenize.fidelity.MelDistance`; lower is better."""
    si_sdr_db: float
    """Median over clips; higher is better."""
    seconds_per_s: float
    """Seconds of audio coded and decoded a second."""


@dataclass(frozen=True)
class CodecScores:
    """What `scores.json` holds."""

    split: str
    num_clips: int
    duration_s: float
    rows: list[Reconstruction]
    codebooks: CodebookUse
    missing: str | None
    """Why there are no rows for Opus."""


def evaluate_codec(recipe: Recipe) -> None:
    """Write `eval/scores.json` for the codec in `model/`, on the recipe's reference split."""
    split = recipe.eval.reference
    store = AudioStore(recipe.folder / "audio")
    found = store.split(split)
    if not found:
        raise UserError(f"eval.reference: the corpus has no clips in its split '{split}'")
    chosen = np.random.default_rng(recipe.eval.seed).permutation(len(found))[: recipe.eval.max_clips]
    clips = [store.crop(found[i], 0, found[i].num_samples) for i in sorted(chosen)]
    codec = load_codec(str(recipe.folder / "model"), device=best_device())
    scores = measure_codec(codec, recipe.name, clips, split)
    write_json(recipe.folder / "eval" / "scores.json", asdict(scores))
    print(table(scores), file=sys.stderr)


def measure_codec(codec: Codec, name: str, clips: Sequence[np.ndarray], split: str) -> CodecScores:
    """Measure `codec` on clips `[N]` at its sample rate, and Opus where it is installed."""
    codes: list[torch.Tensor] = []

    def neural(samples: np.ndarray) -> tuple[np.ndarray, float]:
        encoded = codec.encode(torch.from_numpy(samples)[None, None].to(codec.device))
        codes.append(encoded.cpu())
        bits = encoded.numel() * math.log2(codec.codebook_size)
        return codec.decode(encoded, num_samples=len(samples))[0, 0].cpu().numpy(), bits

    rows = [_measure(name, neural, clips, codec.sample_rate)]
    missing = None
    if shutil.which("opusenc") and shutil.which("opusdec"):
        for kbps in OPUS_KBPS:
            rows.append(
                _measure(f"Opus {kbps} kbit/s", _Opus(kbps, codec.sample_rate), clips, codec.sample_rate)
            )
    else:
        missing = "opusenc and opusdec are not installed (Debian: opus-tools)"
    return CodecScores(
        split=split,
        num_clips=len(clips),
        duration_s=sum(map(len, clips)) / codec.sample_rate,
        rows=rows,
        codebooks=codebook_efficiency(torch.cat(codes, dim=-1), codec.codebook_size),
        missing=missing,
    )


def _measure(
    name: str,
    round_trip: Callable[[np.ndarray], tuple[np.ndarray, float]],
    clips: Sequence[np.ndarray],
    sample_rate: int,
) -> Reconstruction:
    """Means over clips; `round_trip` takes samples `[N]` to decoded samples `[N]` and a number of bits."""
    distance = MelDistance(sample_rate)
    mels, ratios, bits, seconds = [], [], 0.0, 0.0
    for samples in track(clips, name):
        begin = time.perf_counter()
        decoded, spent = round_trip(samples)
        seconds += time.perf_counter() - begin
        bits += spent
        estimate, reference = torch.from_numpy(decoded)[None], torch.from_numpy(samples)[None]
        mels.append(float(distance(estimate[None], reference[None])))
        ratios.append(float(si_sdr(estimate, reference)))
    duration_s = sum(map(len, clips)) / sample_rate
    return Reconstruction(
        name=name,
        bitrate_kbps=bits / duration_s / 1000,
        mel_distance=float(np.mean(mels)),
        si_sdr_db=float(np.median(ratios)),
        seconds_per_s=duration_s / seconds,
    )


class _Opus:
    """Opus through its command-line tools."""

    def __init__(self, kbps: int, sample_rate: int) -> None:
        self._kbps = kbps
        self._sample_rate = sample_rate

    def __call__(self, samples: np.ndarray) -> tuple[np.ndarray, float]:
        with tempfile.TemporaryDirectory() as folder:
            original, coded, decoded = (Path(folder) / name for name in ("a.wav", "b.opus", "c.wav"))
            write_wav(original, samples[None], self._sample_rate)
            # Padding is room for tags, not a cost of coding.
            bitrate = ("--bitrate", str(self._kbps), "--padding", "0")
            _run("opusenc", "--quiet", *bitrate, str(original), str(coded))
            _run("opusdec", "--quiet", "--rate", str(self._sample_rate), str(coded), str(decoded))
            audio = load_audio(decoded, self._sample_rate, 1)[0]
            bits = coded.stat().st_size * 8
        fitted = np.zeros_like(samples)
        fitted[: len(audio)] = audio[: len(samples)]
        return fitted, bits


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def table(scores: CodecScores) -> str:
    """The scores as a Markdown table."""
    lines = [
        f"{scores.num_clips} clips of the split '{scores.split}', {scores.duration_s:.0f} s",
        "",
        "| codec | kbit/s | mel distance ↓ | SI-SDR dB ↑ | × real time |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.bitrate_kbps:.2f} | {row.mel_distance:.2f} | {row.si_sdr_db:.1f}"
        f" | {row.seconds_per_s:.0f} |"
        for row in scores.rows
    ]
    used = ", ".join(map(str, scores.codebooks.used))
    lines += ["", f"codebook efficiency {scores.codebooks.efficiency:.1%}; entries used: {used}"]
    if scores.missing:
        lines.append(scores.missing)
    return "\n".join(lines)


if __name__ == "__main__":
    stage_main("eval", evaluate_codec)
