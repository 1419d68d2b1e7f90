"""What a Fréchet distance comes to on inputs that are hard for it, here and with the formulas of other tools.

    python tests/benchmarks/hard_inputs.py

Prints a table in Markdown. The arithmetic of the other tools is written out here, from the embeddings on:
"sqrtm" is scipy's square root of the product of the covariances (frechet-audio-distance, audioldm_eval,
stable-audio-metrics), "eig + inv" is V √D V⁻¹, of covariances that are pooled file by file (fadtk 1.1.0), and
"Σ√λ" sums the roots of the product's eigenvalues, of covariances from uncentred sums (torchmetrics 1.9.0).
The truth is a closed form.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from tokkata.eval.frechet import GaussianStats, frechet_distance

Moments = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Two sets of files, each of frames [n, d]."""

    name: str
    truth: float | str
    x: list[np.ndarray]
    y: list[np.ndarray]


def at_once(files: list[np.ndarray]) -> Moments:
    frames = np.concatenate(files)
    return frames.mean(axis=0), np.cov(frames, rowvar=False)


def file_by_file(files: list[np.ndarray]) -> Moments:
    """Chan's update with the covariance of each file, which one frame does not have; float32 is cast."""
    files = [frames.astype(np.float16) if frames.dtype == np.float32 else frames for frames in files]
    num, mean, scatter = 0, np.zeros(files[0].shape[1]), np.zeros((files[0].shape[1],) * 2)
    for frames in files:
        delta, total = frames.mean(axis=0) - mean, num + len(frames)
        mean = mean + delta * (len(frames) / total)
        scatter = scatter + np.cov(frames, rowvar=False) * (len(frames) - 1)
        scatter = scatter + np.outer(delta, delta) * (num * len(frames) / total)
        num = total
    return mean, scatter / (num - 1)


def uncentred(files: list[np.ndarray]) -> Moments:
    frames = np.concatenate(files).astype(np.float64)
    if len(frames) < 2:
        raise RuntimeError("More than one sample is required")
    mean = frames.mean(axis=0)
    return mean, (frames.T @ frames - len(frames) * np.outer(mean, mean)) / (len(frames) - 1)


def distance(first: Moments, second: Moments, trace_of_root: Callable[[np.ndarray], complex]) -> complex:
    delta = first[0] - second[0]
    root = trace_of_root(first[1] @ second[1])
    return complex(delta @ delta + np.trace(first[1]) + np.trace(second[1]) - 2.0 * root)


def sqrtm(case: Case) -> complex:
    return distance(at_once(case.x), at_once(case.y), lambda product: np.trace(scipy.linalg.sqrtm(product)))


def eig_inv(case: Case) -> complex:
    def trace(product: np.ndarray) -> complex:
        values, vectors = scipy.linalg.eig(product)
        return np.trace((vectors * np.sqrt(values)) @ scipy.linalg.inv(vectors))

    return distance(file_by_file(case.x), file_by_file(case.y), trace)


def sum_of_roots(case: Case) -> complex:
    def trace(product: np.ndarray) -> complex:
        return torch.linalg.eigvals(torch.from_numpy(product)).sqrt().real.sum().item()

    return distance(uncentred(case.x), uncentred(case.y), trace)


def ours(case: Case) -> complex:
    return frechet_distance(
        *(GaussianStats.from_embeddings(np.concatenate(files)) for files in (case.x, case.y))
    )


def cases() -> list[Case]:
    rng = np.random.default_rng(0)
    few, many, far = rng.normal(size=(100, 512)), rng.normal(size=(1000, 32)), rng.normal(size=(1000, 32))
    basis = np.linalg.qr(rng.normal(size=(128, 128)))[0]
    steep = (rng.normal(size=(2000, 128)) * np.logspace(0, -9, 128)) @ basis
    steep -= steep.mean(axis=0)
    half = rng.integers(-300, 300, size=(400, 16))
    shifted = half.copy()
    shifted[:, 0] += 8
    off = np.hstack([rng.normal(size=(400, 12)), np.zeros((400, 4))])
    halves = [z.astype(np.float16) for z in (half, shifted)]
    one_frame = [many[:1], many[1:]]
    close = [(1000.0 + 0.1 * many + shift).astype(np.float32) for shift in (0.0, 0.05)]
    return [
        Case("100 frames, d = 512, shifted by 1", 512.0, [few], [few + 1.0]),
        Case("a set against itself, d = 512, 100 frames", 0.0, [few], [few]),
        Case("condition 1e18, doubled", float(np.trace(np.cov(steep.T))), [steep], [2.0 * steep]),
        Case("4 of 16 dimensions never vary, shifted by 1", 16.0, [off], [off + 1.0]),
        Case("mean 1e6, deviation 1, shifted by 1", 32.0, [far + 1e6], [far + 1e6 + 1.0]),
        Case("one file of one frame, shifted by 1", 32.0, one_frame, [many + 1.0]),
        Case("float16 up to 300, one dimension shifted by 8", 64.0, halves[:1], halves[1:]),
        Case("float32 of mean 1000, deviation 0.1, shifted by 0.05", 0.08, close[:1], close[1:]),
        Case("one frame in all", "refused", [many[:1]], [many]),
    ]


def attempt(function: Callable[[Case], complex], case: Case) -> str:
    try:
        value = function(case)
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    if not np.isfinite(value):
        return str(value.real)
    return f"{value.real:.9g}" + (f" {value.imag:+.1e}i" if abs(value.imag) > 0.0 else "")


def main() -> None:
    warnings.simplefilter("ignore")  # divisions by zero are in the table
    print("| input | truth | Tokkata | sqrtm | eig + inv | Σ√λ |\n|---|---|---|---|---|---|")
    for case in cases():
        found = [attempt(function, case) for function in (ours, sqrtm, eig_inv, sum_of_roots)]
        truth = case.truth if isinstance(case.truth, str) else f"{case.truth:.9g}"
        print(f"| {case.name} | {truth} | {' | '.join(found)} |")


if __name__ == "__main__":
    main()
