"""How often the intervals of FAD and of FAD-infinity contain what they are about.

    python tests/benchmarks/coverage_scores.py [--repeats 200]

Sets of clips are drawn from a Gaussian of 16 dimensions, three frames a clip, and compared with one whose
mean is `apart` away in each. The interval of FAD should contain the mean FAD of sets of this size, that of
FAD-infinity the true distance, in 95 % of the sets.
"""

import argparse

import numpy as np

from tokkata.eval.frechet import GaussianStats
from tokkata.eval.metrics import measure

WIDTH = 16
CASES = ((0.0, 100), (0.3, 100), (0.3, 20))
"""Pairs of the distance in each dimension and the number of clips."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    print("| true distance | clips | mean FAD | covered | mean FAD∞ | covered |\n|---|---|---|---|---|---|")
    for apart, num_clips in CASES:
        rng = np.random.default_rng(0)
        reference = GaussianStats(10**9, np.full(WIDTH, apart), np.eye(WIDTH) * (10**9 - 1))
        scores = [
            measure(["fad", "fad-inf"], list(rng.normal(size=(num_clips, 3, WIDTH))), reference, repeat)
            for repeat in range(repeats)
        ]
        fads, infinities = zip(*scores, strict=True)
        mean = float(np.mean([fad.value for fad in fads]))
        truth = WIDTH * apart**2
        cells = [f"{truth:.2f}", f"{num_clips}"]
        for some, target in ((fads, mean), (infinities, truth)):
            covered = np.mean([score.interval.low <= target <= score.interval.high for score in some])
            cells += [f"{np.mean([score.value for score in some]):.3f}", f"{covered:.1%}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
