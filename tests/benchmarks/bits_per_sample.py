"""Runs of sample-level models beside counting: bits a sample on held-out clips, pitch, and FAD, in one table.

    python tests/benchmarks/bits_per_sample.py runs/nsynth-wavenet runs/nsynth-samplernn [runs/quickstart …]

Of each run whose tokens are single samples: what the codes of the split `test` cost, in bits a sample, under

    order 0     the frequencies of the classes in the split `train`
    order 1, 2  the frequencies after the class, or the two classes, before, in `train`; where these were
                seldom or never met, backed off to the shorter context (Witten and Bell's weights)
    model       the trained model, told what the recipe tells it, each clip from its beginning to its end

Bits of different codecs cannot be compared: a μ-law sample is another thing than a linear one. Then, of
every run, what its stage `eval` found (`eval/scores.json`): FAD and the share of clips with the pitch of
their label by pYIN, and how long training took by its log. Other runs, such as a Transformer's, may be in the
table too.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tokkata.core.files import read_jsonl
from tokkata.lm.batches import TokenBatches
from tokkata.lm.language_model import LanguageModel
from tokkata.lm.load import load_lm
from tokkata.tokenize.store import TokenSplit, TokenStore

MAX_CLIPS = 64
BATCH = 4
CONSOLE = Console(width=140)


def histories(split: TokenSplit, order: int, size: int, clips: range) -> tuple[np.ndarray, np.ndarray]:
    """The contexts and classes of all samples; before the beginning of a clip stands the class of silence."""
    contexts, classes = [], []
    for clip in clips:
        codes = split.codes(clip)[0]
        padded = np.concatenate([np.full(order, size // 2), codes])
        context = np.zeros(len(codes), dtype=np.int64)
        for j in range(order):
            context = context * size + padded[j : j + len(codes)]
        contexts.append(context)
        classes.append(codes)
    return np.concatenate(contexts), np.concatenate(classes)


# Witten-Bell smoothing (Bell, Cleary and Witten 1990; method C): a context met n times, with d different
# classes after it, keeps n / (n + d) for what it has seen, and leaves the rest to the shorter context.
def markov_bits(train: TokenSplit, test: TokenSplit, size: int, num_test: int) -> list[float]:
    """Bits a sample of the test clips under Markov models of order 0, 1 and 2 that are counted in `train`."""
    shorter: np.ndarray | None = None
    found = []
    for order in range(3):
        context, following = histories(train, order, size, range(len(train)))
        counts = np.bincount(context * size + following, minlength=size ** (order + 1)).reshape(-1, size)
        asked, wanted = histories(test, order, size, range(num_test))
        if shorter is None:
            probability = (counts[asked, wanted] + 1) / (counts.sum() + size)
        else:
            total = counts.sum(1)[asked]
            different = np.count_nonzero(counts, axis=1)[asked]
            unseen = np.maximum(total + different, 1)
            probability = (counts[asked, wanted] + different * shorter) / unseen
            probability = np.where(total == 0, shorter, probability)
        shorter = probability
        found.append(float(-np.log2(probability).mean()))
    return found


def model_bits(lm: LanguageModel, store: TokenStore, test: TokenSplit, num_test: int) -> float:
    """Bits a sample of the test clips under the model."""
    longest = int(test.num_frames[:num_test].max())
    batches = TokenBatches(store, test, lm.config.conditions, longest)
    total = count = 0.0
    known = batches.known(range(num_test))
    if len(known) < num_test:
        CONSOLE.print(f"{num_test - len(known)} clips have labels that the model has never met: left out")
    with torch.inference_mode():
        for first in range(0, len(known), BATCH):
            crops = [(clip, 0) for clip in known[first : first + BATCH]]
            batch = batches.collate(crops, {})
            loss = lm(batch["codes"], batches.given(crops), batch["mask"])
            total += float(loss.mean * loss.num_tokens)
            count += float(loss.num_tokens)
    return total / count / math.log(2)


def scored(run: Path) -> dict[str, str]:
    """FAD and pitch of the run's generated clips, and of real ones, where the stage `eval` has run."""
    file = run / "eval" / "scores.json"
    if not file.is_file():
        return {}
    rows = {row["name"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    found = {}
    for name in ("generated", "untrained", "real, other"):
        values = {score["name"]: score["value"] for score in rows.get(name, {}).get("scores", [])}
        for key in ("fad", "pitch-accuracy"):
            if values.get(key) is not None:
                share = key == "pitch-accuracy"
                found[f"{name} {key}"] = f"{100 * values[key]:.0f} %" if share else f"{values[key]:,.0f}"
    return found


def training_time(run: Path) -> str:
    """Minutes of training by the log, validation included."""
    rows = read_jsonl(run / "logs" / "train.jsonl")
    return f"{rows[-1]['time_s'] / 60:.1f} min" if rows else "?"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    options = parser.parse_args()
    table = Table(title=f"Bits a sample of at most {MAX_CLIPS} held-out clips, and the scores of the runs")
    for heading in ("run", "codec", "parameters", "training", "order 0", "order 1", "order 2", "model",
                    "FAD", "untrained", "real", "in tune"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("run", "codec") else "right")
    for run in options.runs:
        store = TokenStore(run / "tokens")
        lm = load_lm(run / "model")
        bits = ["", "", "", ""]
        if store.info.hop_length == 1:
            train, test = store.split("train"), store.split("test")
            num_test = min(len(test), MAX_CLIPS)
            markov = markov_bits(train, test, store.info.codebook_size, num_test)
            bits = [f"{value:.3f}" for value in (*markov, model_bits(lm, store, test, num_test))]
        scores = scored(run)
        table.add_row(
            run.name,
            store.info.id,
            f"{sum(p.numel() for p in lm.parameters()):,}",
            training_time(run),
            *bits,
            scores.get("generated fad", ""),
            scores.get("untrained fad", ""),
            scores.get("real, other fad", ""),
            scores.get("generated pitch-accuracy", ""),
        )
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
