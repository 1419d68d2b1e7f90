"""The bias of a Fréchet distance by the number of frames, and what FAD-infinity leaves of it.

    python tests/benchmarks/bias_table.py [--repeats 10]

Frames of 128 dimensions are drawn from the very Gaussian that they are compared with, so that the true
distance is 0. Its covariance has the eigenvalues λ_i = c · i^−a. Prints means and standard deviations over
repeats, and the bias to first order in 1/N, (5/4 Σ_i λ_i + ½ Σ_ij λ_i λ_j / (λ_i + λ_j)) / N.
"""

import argparse

import numpy as np

from tokkata.eval.frechet import GaussianStats, frechet_distance_infinity

WIDTH = 128
SIZES = (64, 500, 5000)
SPECTRA = ((1.0, 0.0), (0.0705, 0.0), (5.5, 1.15))
"""Pairs of c and a; the last two were chosen for a bias of about 0.06 with 5000 frames."""


def first_order(eigenvalues: np.ndarray) -> float:
    pairs = np.multiply.outer(eigenvalues, eigenvalues) / np.add.outer(eigenvalues, eigenvalues)
    return float(1.25 * eigenvalues.sum() + 0.5 * pairs.sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    print("| eigenvalues | tr Σ | N | first order | FAD | FAD∞ |\n|---|---|---|---|---|---|")
    for scale, power in SPECTRA:
        eigenvalues = scale * np.arange(1, WIDTH + 1) ** -power
        reference = GaussianStats(10**9, np.zeros(WIDTH), np.diag(eigenvalues) * (10**9 - 1))
        for num in SIZES:
            rng = np.random.default_rng(num)
            lines = [
                frechet_distance_infinity(
                    reference,
                    np.split(rng.normal(size=(num, WIDTH)) * np.sqrt(eigenvalues), num // 2),
                    seed=repeat,
                )
                for repeat in range(repeats)
            ]
            fad = [line.distances[-1] for line in lines]
            infinity = [line.value for line in lines]
            cells = [
                f"{scale:g} · i^−{power:g}",
                f"{eigenvalues.sum():.2f}",
                f"{num}",
                f"{first_order(eigenvalues) / num:.3g}",
                f"{np.mean(fad):.3g} ± {np.std(fad):.1g}",
                f"{np.mean(infinity):+.3f} ± {np.std(infinity):.1g}",
            ]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
