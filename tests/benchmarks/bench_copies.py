"""What the search for copies finds, and what it costs.

    python tests/benchmarks/bench_copies.py tokens [--hours 100]     index of made tokens: size, time, recall
    python tests/benchmarks/bench_copies.py recall [--audio FOLDER]  planted copies found, kind by kind

Nothing is downloaded. `recall` takes melodies and chords that are synthesised, or the wav and flac files of a
folder, cut to clips of 5 s; the first half of the files is the training set, the second is held out.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tokkata.core.audio import AUDIO_SUFFIXES, load_audio
from tokkata.core.schema_corpora import SynthCorpus
from tokkata.eval.copies import planted
from tokkata.eval.copies.find import Queries, Training, find_copies
from tokkata.eval.copies.token_index import (
    PARTIAL_SHARE,
    build_token_index,
    index_bytes,
    miss_probability,
)
from tokkata.tokenize.codec import Codec, load_codec
from tokkata.tokenize.corpus import read_clip
from tokkata.tokenize.load_corpus import load_corpus

SAMPLE_RATE = 16000
CLIP_S = 5
FRAME_RATE, CODEBOOK_SIZE, CLIP_FRAMES, WINDOW = 50, 1024, 1500, 250


def made_tokens(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Tokens [1, T]: some far more frequent than others, each held for 1.4 frames on average."""
    ranks = (rng.pareto(1.0, num_frames) * 20).astype(np.int64) % CODEBOOK_SIZE
    new = rng.random(num_frames) > 0.3
    new[0] = True
    return ranks[np.maximum.accumulate(np.where(new, np.arange(num_frames), 0))][None]


def mismatched(tokens: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """`tokens` [1, T] with exactly 1 - share of them changed, at independent places."""
    changed = rng.permutation(tokens.shape[1])[: round((1.0 - share) * tokens.shape[1])]
    copy = tokens.copy()
    copy[0, changed] = (copy[0, changed] + rng.integers(1, CODEBOOK_SIZE, len(changed))) % CODEBOOK_SIZE
    return copy


def bench_tokens(hours: float, num_queries: int) -> None:
    """Index `hours` of made tokens; look for exact and 80 % copies, and for tokens that are none."""
    num_clips = max(1, round(hours * 3600 * FRAME_RATE / CLIP_FRAMES))

    def clips() -> Iterator[np.ndarray]:
        for clip in range(num_clips):
            yield made_tokens(np.random.default_rng([0, clip]), CLIP_FRAMES)

    started = time.perf_counter()
    for _ in clips():
        pass
    making = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        index = build_token_index(Path(folder) / "index", clips())
        print(
            f"{hours:g} hours, {num_clips} clips: built in {time.perf_counter() - started - making:.1f} s,"
            f" n-grams {(Path(folder) / 'index' / 'ngrams.uint64').stat().st_size / 1e6:.0f} MB"
            f" (by arithmetic {index_bytes(num_clips * CLIP_FRAMES) / 1e6:.0f} MB),"
            f" tokens {(Path(folder) / 'index' / 'first_codebook.uint16').stat().st_size / 1e6:.0f} MB,"
            f" peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB"
        )
        rng = np.random.default_rng(1)
        for share in (1.0, PARTIAL_SHARE):
            found, started = 0, time.perf_counter()
            for _ in range(num_queries):
                clip = int(rng.integers(num_clips))
                start = int(rng.integers(CLIP_FRAMES - WINDOW + 1))
                original = made_tokens(np.random.default_rng([0, clip]), CLIP_FRAMES)[
                    :, start : start + WINDOW
                ]
                match = index.search(mismatched(original, share, rng), WINDOW)
                found += (match.clip, match.clip_frame) == (clip, start)
            each = (time.perf_counter() - started) / num_queries
            print(
                f"copies of 5 s with {share:.0%} of the tokens: {found} of {num_queries} found"
                f" (missed by arithmetic: {miss_probability(WINDOW, share):.1e}), {1e3 * each:.1f} ms each"
            )
        others = [index.search(made_tokens(rng, WINDOW), WINDOW) for _ in range(num_queries)]
        print(
            f"no copies: largest share {max(match.share for match in others):.2f},"
            f" longest common run {max(match.longest_run for match in others)} frames"
        )


def synthesised(num_clips: int, num_other: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and held-out clips [1, N]: melodies and chords, the splits by different instruments."""
    corpus = load_corpus(
        SynthCorpus(
            kind="synth",
            num_clips=4 * max(num_clips, num_other),
            duration_s=CLIP_S,
            forms=["phrase", "chord"],
        )
    )
    train = [clip for clip in corpus.clips() if clip.split == "train"][:num_clips]
    other = [clip for clip in corpus.clips() if clip.split != "train"][:num_other]
    read = [[read_clip(corpus, clip, SAMPLE_RATE, 1).samples for clip in clips] for clips in (train, other)]
    return read[0], read[1]


def cut_files(folder: Path, num_clips: int, num_other: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Clips of 5 s of the first and of the second half of the files below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in AUDIO_SUFFIXES)
    clips: list[list[np.ndarray]] = [[], []]
    for number, path in enumerate(files):
        samples = load_audio(path, SAMPLE_RATE, 1)
        length = CLIP_S * SAMPLE_RATE
        starts = range(0, max(1, samples.shape[1] - length + 1), length)
        clips[2 * number // len(files)] += [samples[:, start : start + length] for start in starts]
    return clips[0][:num_clips], clips[1][:num_other]


def encode(codec: Codec, clips: list[np.ndarray]) -> list[np.ndarray]:
    """Codes [K, T] of each clip."""
    return [codec.encode(torch.from_numpy(samples)[None])[0].numpy() for samples in clips]


def bench_recall(audio: Path | None, num_clips: int, num_other: int, num_planted: int) -> None:
    """The share of planted copies above the threshold, for each kind and statistic."""
    train, other = cut_files(audio, num_clips, num_other) if audio else synthesised(num_clips, num_other)
    codec = load_codec("pocket")
    codes, other_codes = encode(codec, train), encode(codec, other)
    training = Training(
        [str(index) for index in range(len(train))], SAMPLE_RATE, lambda i: train[i], range(len(train)),
        lambda i: codes[i], codec.frame_rate,
    )  # fmt: skip
    # Every other held-out clip sets the threshold, the rest tell how often it raises a false alarm.
    held_out = Queries([str(i) for i in range(0, len(other), 2)], other[::2], other_codes[::2])
    chosen = np.linspace(0, len(train) - 1, num_planted).astype(int)
    kinds = {"held out, no copy": other[1::2]} | {
        kind: planted.plant([train[i] for i in chosen], change, seed=0)
        for kind, change in planted.changes(codec, SAMPLE_RATE).items()
    }
    found: dict[str, dict[str, list[bool]]] = {}
    for kind, clips in kinds.items():
        queries = Queries([str(index) for index in range(len(clips))], clips, encode(codec, clips))
        with tempfile.TemporaryDirectory() as folder:
            scores = find_copies(queries, held_out, training, Path(folder))
        flagged = {
            name: {item.index for item in scores.flagged if item.statistic == name}
            for name in ("tokens", "sound")
        }
        flagged["either"] = flagged["tokens"] | flagged["sound"]
        found[kind] = {name: [i in hits for i in range(len(clips))] for name, hits in flagged.items()}
    thresholds = ", ".join(f"{item.name} {item.threshold:.2f}" for item in scores.statistics)
    print(f"{len(train)} training clips, {len(held_out.names)} held out, thresholds: {thresholds}\n")
    print(planted.recall_table(found))


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["tokens", "recall"])
    parser.add_argument("--hours", type=float, default=100.0)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--audio", type=Path)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--planted", type=int, default=20)
    settings = parser.parse_args()
    if settings.what == "tokens":
        bench_tokens(settings.hours, settings.queries)
    else:
        bench_recall(settings.audio, settings.clips, settings.held_out, settings.planted)


if __name__ == "__main__":
    main()
