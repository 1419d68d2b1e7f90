"""Whether a Fréchet distance puts degradations in the order that nobody could argue with, for each embedding.

    python tests/benchmarks/order_of_quality.py [--embedding logmel pocket] [--clips 200] [--strong-db 30]

Real audio is the corpus that Tokkata synthesises: notes, phrases and chords of 4 s. Half of the clips are
degraded and scored, once against the other half, and once against themselves as they were before. From good
to bad: clean; white noise 50 dB below the music; 30 dB below; low-passed at 1 kHz (Butterworth, 48 dB an
octave); cut into pieces of 20 ms that are put together in random order; white noise as loud as the music.
Embeddings of published networks (`--embedding vggish clap-music`) need their weights.
"""

import argparse
import itertools
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.signal import butter, sosfilt

from tokkata.core.schema_corpora import SynthCorpus
from tokkata.eval.embedding import Embedding, embed_clips, load_embedding
from tokkata.eval.frechet import GaussianStats, frechet_distance
from tokkata.tokenize.corpus import read_clip
from tokkata.tokenize.load_corpus import load_corpus

RATE = 32000
DURATION_S = 4.0
PIECE_S = 0.02
CUTOFF_HZ = 1000.0

Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # [1, N] → [1, N]


def made_clips(num_clips: int, seed: int) -> list[np.ndarray]:
    """Synthesised clips, each [1, N] at `RATE`."""
    corpus = load_corpus(
        SynthCorpus(kind="synth", num_clips=num_clips, duration_s=DURATION_S, sample_rate_hz=RATE, seed=seed)
    )
    return [read_clip(corpus, clip, RATE, 1).samples for clip in corpus.clips()]


def with_noise(snr_db: float) -> Degradation:
    """White noise, `snr_db` below the clip's root mean square."""

    def degrade(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return samples + 10 ** (-snr_db / 20) * white_noise(samples, rng)

    return degrade


def low_pass(samples: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Fundamentals and few overtones."""
    sections = butter(8, CUTOFF_HZ, fs=RATE, output="sos")
    return sosfilt(sections, samples).astype(np.float32)


def shuffled(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pieces of 20 ms in random order."""
    length = round(PIECE_S * RATE)
    pieces = samples[:, : samples.shape[1] // length * length].reshape(-1, length)
    return rng.permutation(pieces).reshape(1, -1)


def white_noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise with the clip's root mean square."""
    noise = rng.standard_normal(samples.shape).astype(np.float32)
    return np.sqrt(np.mean(samples**2)) * noise


def degradations(strong_db: float) -> dict[str, Degradation]:
    """From good to bad."""
    return {
        "clean": lambda samples, _: samples,
        "mild noise": with_noise(50.0),
        "strong noise": with_noise(strong_db),
        "low-pass": low_pass,
        "shuffled": shuffled,
        "white noise": white_noise,
    }


def stats_of(embedding: Embedding, clips: list[np.ndarray]) -> GaussianStats:
    """Statistics of all frames of `clips`."""
    return GaussianStats.from_embeddings(np.concatenate(embed_clips(embedding, clips, RATE)))


def measure(
    embedding: Embedding, clips: list[np.ndarray], strong_db: float, seed: int
) -> dict[str, dict[str, float]]:
    """The distance of each degradation of the second half of `clips`: `[reference][degradation]`."""
    half = len(clips) // 2
    scored = {
        name: stats_of(
            embedding,
            [degrade(clip, np.random.default_rng([seed, i])) for i, clip in enumerate(clips[half:])],
        )
        for name, degrade in degradations(strong_db).items()
    }
    references = {"other clips": stats_of(embedding, clips[:half]), "the same clips": scored["clean"]}
    return {
        name: {degradation: frechet_distance(stats, reference) for degradation, stats in scored.items()}
        for name, reference in references.items()
    }


def wrong_pairs(found: dict[str, float]) -> str:
    """Neighbours in the list that the distance has the other way round."""
    names = list(found)
    wrong = [f"{b} < {a}" for a, b in itertools.pairwise(names) if found[b] <= found[a]]
    return ", ".join(wrong) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--embedding", nargs="+", default=["logmel", "pocket"])
    parser.add_argument("--clips", type=int, default=200, help="clips in both halves together")
    parser.add_argument("--strong-db", type=float, default=30.0, help="how far the strong noise lies below")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    clips = made_clips(arguments.clips, arguments.seed)
    table = Table("embedding", "reference", *degradations(arguments.strong_db), "wrong pairs")
    for name in arguments.embedding:
        measured = measure(load_embedding(name), clips, arguments.strong_db, arguments.seed)
        for reference, found in measured.items():
            figures = (f"{value:.4g}" for value in found.values())
            table.add_row(name, reference, *figures, wrong_pairs(found))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
