"""How fast a folder of audio is scored, beside a loop over its files with the same model; and its memory.

    make bench                                              (1,000 clips of 10 s)
    python tests/benchmarks/bench_compare.py --quick        (80 clips)

Clips are made and nothing is downloaded. The loop is what most tools do: decode a file, resample it, embed
it, write its frames to a file of their own; then the Fréchet distance. A codec runs there in `transformers`;
our embedding runs the same weights through `tokenize/fast_codec.py`. Ours starts from an empty cache. The
third line is the same command again. Each contender does a group of files before any of them does the next,
in turn first, so that what else the machine does hits them alike; the sums of all groups and the median of
the groups' ratios are printed.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from rich.console import Console
from rich.table import Table

from tokkata.core.progress import hide_library_bars
from tokkata.eval.compare import Request, compare
from tokkata.eval.embed_folder import embed_folder
from tokkata.eval.embedding import Embedding, load_embedding
from tokkata.eval.embeddings.codec_latents import CodecLatents
from tokkata.eval.frechet import frechet_distance
from tokkata.eval.gaussian_stats import GaussianStats
from tokkata.eval.reference_stats import reference_stats
from tokkata.tokenize.codec import load_codec

CLIP_S = 10
SAMPLE_RATE = 44100
NUM_GROUPS = 4
CONSOLE = Console(width=110)


@dataclass
class Contender:
    """One way to score a folder."""

    name: str
    run: Callable[[Path], float]
    seconds: list[float] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)


def make_folder(folder: Path, num_clips: int, subtype: str, seed: int) -> Path:
    """Clips of chords in noise, each different."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    time_s = np.arange(CLIP_S * SAMPLE_RATE) / SAMPLE_RATE
    notes = [np.sin(2 * np.pi * 110 * 2 ** (k / 12) * time_s).astype(np.float32) for k in range(36)]
    noise = rng.standard_normal(len(time_s), dtype=np.float32)
    for index in range(num_clips):
        chord = sum(notes[k] for k in rng.choice(36, 4, replace=False)) * np.float32(rng.uniform(0.05, 0.2))
        samples = chord + np.roll(noise, int(rng.integers(len(noise)))) * np.float32(rng.uniform(0.0, 0.05))
        suffix = "flac" if subtype == "flac" else "wav"
        soundfile.write(folder / f"{index:04}.{suffix}", samples, SAMPLE_RATE, subtype="PCM_16")
    return folder


def file_by_file(embedding: Embedding, reference: GaussianStats, folder: Path) -> float:
    """The loop."""
    frames = []
    with tempfile.TemporaryDirectory() as cache:
        for path in sorted(folder.iterdir()):
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            mono = soxr.resample(samples.mean(axis=1), rate, embedding.info.sample_rate, quality="HQ")
            with torch.inference_mode():
                embedded = embedding.embed(torch.from_numpy(mono)[None, None])[0].cpu().numpy()
            np.save(Path(cache, f"{path.stem}.npy"), embedded)
            frames.append(embedded)
    return frechet_distance(GaussianStats.from_embeddings(np.concatenate(frames)), reference)


def by_tokkata(embedding: Embedding, reference: GaussianStats, cache: Path, folder: Path) -> float:
    """Threads, batches, packs, and statistics merged in order."""
    found = embed_folder(embedding, folder, cache, set_name=folder.name)
    return frechet_distance(reference_stats(found).whole, reference)


def race(contenders: list[Contender], groups: list[Path]) -> None:
    for number, group in enumerate(groups):
        first = number % len(contenders)
        # The cached one cannot come before the one that fills the cache.
        order = sorted(contenders[first:] + contenders[:first], key=lambda item: "again" in item.name)
        for contender in order:
            begin = time.perf_counter()
            contender.distances.append(contender.run(group))
            contender.seconds.append(time.perf_counter() - begin)


def bench_speed(name: str, groups: list[Path], work: Path, title: str) -> None:
    embedding = load_embedding(name)
    first = sorted(groups[0].iterdir())[0]
    samples = soundfile.read(first, dtype="float32")[0][: embedding.info.sample_rate]
    with torch.inference_mode():
        frames = [embedding.embed(torch.from_numpy(samples)[None, None])[0].cpu().numpy()]
    reference = GaussianStats.from_embeddings(np.concatenate(frames))
    cache = work / f"cache-{name}"
    shutil.rmtree(cache, ignore_errors=True)
    plain = CodecLatents(name, load_codec(name), "") if isinstance(embedding, CodecLatents) else embedding
    loop = Contender("file by file", lambda folder: file_by_file(plain, reference, folder))
    ours = Contender("tokkata", lambda folder: by_tokkata(embedding, reference, cache, folder))
    again = Contender("tokkata again", ours.run)
    race([loop, ours, again], groups)
    table = Table("", "seconds", "s of audio a s", "× file by file (median)", "FAD", title=f"{name}: {title}")
    audio_s = sum(len(list(group.iterdir())) for group in groups) * CLIP_S
    for contender in (loop, ours, again):
        each = [theirs / own for theirs, own in zip(loop.seconds, contender.seconds, strict=True)]
        whole = sum(loop.seconds) / sum(contender.seconds)
        table.add_row(
            contender.name,
            f"{sum(contender.seconds):.1f}",
            f"{audio_s / sum(contender.seconds):.0f}",
            f"{whole:.2f} ({statistics.median(each):.2f})",
            f"{contender.distances[0]:.4f}",
        )
    CONSOLE.print(table)


# --- memory


def bench_memory(folder: Path, work: Path) -> None:
    """Of all files in `folder`, and of a tenth of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    few = work / "few"
    few.mkdir()
    for index, path in enumerate(files[: len(files) // 10]):
        (few / f"{index}{path.suffix}").hardlink_to(path)
    columns = [f"{len(files) // 10} files", f"{len(files)} files"]
    table = Table("", *columns, title="logmel: peak memory of a process, clips of 10 s")
    for what in ("stats", "scores"):
        cells = []
        for audio in (few, folder):
            command = [sys.executable, __file__, "--peak", what, str(audio)]
            told = subprocess.run(command, capture_output=True, text=True, check=True)
            cells.append(f"{float(told.stdout.split()[-1]):.0f} MB")
        table.add_row({"stats": "statistics and FAD", "scores": "all scores and intervals"}[what], *cells)
    CONSOLE.print(table)


def print_peak(what: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as cache:
        if what == "stats":
            found = embed_folder(load_embedding("logmel"), folder, Path(cache), set_name="set")
            stats = reference_stats(found)
            frechet_distance(stats.halves[0], stats.halves[1])
        else:
            metrics = ["fad", "fad-inf", "kad", "prdc", "per-song"]
            compare(Request({"set": folder}, str(folder), ["logmel"], metrics, Path(cache)))
    # Not ru_maxrss, in which a process inherits the peak of the one that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii").split()
    print(int(status[status.index("VmHWM:") + 1]) * 1024 / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="80 clips instead of 1,000")
    parser.add_argument("--embedding", nargs="+", default=["logmel", "pocket"])
    parser.add_argument("--subtype", default="wav", choices=("wav", "flac"))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak", nargs=2, metavar=("WHAT", "DIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak[0], Path(arguments.peak[1]))
        return
    hide_library_bars()
    num_clips = 80 if arguments.quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        groups = [
            make_folder(
                work / "all" / f"group-{number}", num_clips // NUM_GROUPS, arguments.subtype, seed=number
            )
            for number in range(NUM_GROUPS)
        ]
        title = f"{num_clips} clips of {CLIP_S} s, {arguments.subtype}, {torch.get_num_threads()} threads"
        for name in arguments.embedding:
            bench_speed(name, groups, work, title)
        if not arguments.no_memory:
            bench_memory(work / "all", work)


if __name__ == "__main__":
    main()
