"""How long a Fréchet distance and FAD-infinity take, beside scipy's matrix square root and fadtk's way.

    python tests/benchmarks/bench_scores.py [--widths 512 768 2048] [--rounds 3] [--draws 25]

All get the same made embeddings, whose variances fall like those of a real embedding, and take turns, so that
whatever else the machine does hits them alike, with a pause in between: for some tenths of a second the
threads of a library wait for more work on the cores that the next one needs. Printed are the best time of
each, the median over rounds of its ratio to ours, and the machine's load. FAD-infinity is compared with what
fadtk does, 25 distances of 25 draws of frames, 500 to all of them. With fewer `--draws`, so many of those,
evenly spaced in size, are computed and counted for all.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import scipy.linalg
import torch

from tokkata.eval.frechet import GaussianStats, frechet_distance, frechet_distance_infinity

FRAMES_PER_CLIP = 10
PAUSE_S = 0.3
NUM_DRAWS = 25


def made_frames(num, width, seed):
    """Frames `[n, d]` with variances from 1 down to 1/d in a random basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return (rng.normal(size=(num, width)) / np.sqrt(np.arange(1, width + 1))) @ basis


def moments(frames):
    return frames.mean(axis=0), np.cov(frames, rowvar=False)


def from_root(first, second, trace_of_root):
    delta = first[0] - second[0]
    return float(delta @ delta + np.trace(first[1]) + np.trace(second[1]) - 2.0 * trace_of_root)


def by_matrix_root(first, second):
    """The published formula with scipy's square root."""
    return from_root(first, second, np.trace(scipy.linalg.sqrtm(first[1] @ second[1])).real)


def by_eigenvectors(first, second):
    """The same with V √D V⁻¹ as the root, the step of fadtk that its score comes from."""
    values, vectors = scipy.linalg.eig(first[1] @ second[1])
    root = (vectors * np.sqrt(values)) @ scipy.linalg.inv(vectors)
    return from_root(first, second, np.trace(root).real)


def ours(first, second):
    """From statistics alone, like the others; nothing is kept from one call to the next."""
    return frechet_distance(*(GaussianStats(stats.num, stats.mean, stats.m2) for stats in (first, second)))


def by_recomputing(reference, frames, num_draws, seed):
    """FAD-infinity by distances of draws of frames, of 500 to all, each from its own covariance."""
    rng = np.random.default_rng(seed)
    sizes = np.linspace(500, len(frames), NUM_DRAWS).astype(int)
    sizes = sizes[np.linspace(0, NUM_DRAWS - 1, num_draws).round().astype(int)]
    return [by_matrix_root(reference, moments(frames[rng.choice(len(frames), size)])) for size in sizes]


def race(contestants: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, list[float]], dict]:
    """Seconds of each contestant in each round, each in turn first, and its last result."""
    seconds = {name: [] for name in contestants}
    results = {}
    order = list(contestants)
    for number in range(rounds):
        first = number % len(order)
        for name in order[first:] + order[:first]:
            time.sleep(PAUSE_S)
            begin = time.perf_counter()
            results[name] = contestants[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds, results


def show(what: str, width: int, seconds: dict[str, list[float]], counted_for: float = 1.0) -> None:
    """Print a line a contestant; `counted_for` is how many times the others' work was left out."""
    load = os.getloadavg()[0]
    for name, spent in seconds.items():
        factor = 1.0 if name == "ours" else counted_for
        ratio = median(factor * a / b for a, b in zip(spent, seconds["ours"], strict=True))
        print(
            f"{what:>12} {width:>5} {name:<22} {factor * min(spent):>9.3f} s {ratio:>7.1f} ×  load {load:.1f}"
        )


def bench_distance(width: int, rounds: int) -> None:
    num = 4 * width
    x, y = (made_frames(num, width, seed) for seed in (0, 1))
    first, second = moments(x), moments(y)
    statistics = [GaussianStats.from_embeddings(frames) for frames in (x, y)]
    seconds, values = race(
        {
            "ours": lambda: ours(*statistics),
            "scipy sqrtm": lambda: by_matrix_root(first, second),
            "fadtk's eig + inv": lambda: by_eigenvectors(first, second),
        },
        rounds,
    )
    show("distance", width, seconds)
    for name, value in values.items():
        assert abs(value / values["ours"] - 1.0) < 1e-8, f"{name} gives {value}, and ours {values['ours']}"


def bench_infinity(width: int, rounds: int, num_draws: int) -> None:
    num_clips = max(500, width)
    x, y = (made_frames(num_clips * FRAMES_PER_CLIP, width, seed) for seed in (0, 1))
    first, statistics = moments(x), GaussianStats.from_embeddings(x)
    clips = list(y.reshape(num_clips, FRAMES_PER_CLIP, width))
    seconds, _ = race(
        {
            "ours": lambda: frechet_distance_infinity(
                GaussianStats(len(x), statistics.mean, statistics.m2), clips, seed=0
            ),
            f"{NUM_DRAWS} × scipy sqrtm": lambda: by_recomputing(first, y, num_draws, seed=0),
        },
        rounds,
    )
    show("FAD-infinity", width, seconds, NUM_DRAWS / num_draws)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 768, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--draws", type=int, default=NUM_DRAWS, help=f"how many of the {NUM_DRAWS} distances are computed"
    )
    parser.add_argument("--quick", action="store_true", help="one width, one round, five draws")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    for width in [512] if quick else arguments.widths:
        bench_distance(width, 1 if quick else arguments.rounds)
        bench_infinity(width, 1 if quick else arguments.rounds, 5 if quick else arguments.draws)


if __name__ == "__main__":
    main()
