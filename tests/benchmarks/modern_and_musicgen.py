"""Does the modern default learn faster than MusicGen's architecture? Two models of one size, one budget.

    python tests/benchmarks/modern_and_musicgen.py                       synthesised notes
    python tests/benchmarks/modern_and_musicgen.py --nsynth DIR          and notes in NSynth's layout

Both are trained on the same tokens, in the same order, with the same schedule, at each of some learning
rates. Prints the validation losses, and draws the curves of each one's best rate to --plot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml

STYLES = {
    "modern": {},
    "MusicGen": {"norm": "layernorm", "activation": "gelu", "positions": "sinusoidal", "qk_norm": False},
}


def recipe(name: str, style: str, lr: float, args: argparse.Namespace) -> dict[str, object]:
    """What both have in common, and what sets them apart."""
    synth = {"kind": "synth", "num_clips": 1600, "duration_s": 2.0}
    nsynth = {"kind": "nsynth", "root": str(args.nsynth)}
    return {
        "name": name,
        "runs_dir": str(args.runs),
        "data": {"kind": "mixed", "corpora": [synth, nsynth]} if args.nsynth else synth,
        "codec": {"kind": "pocket"},
        "model": {
            "kind": "transformer",
            "dim": 256,
            "num_layers": 6,
            "num_heads": 4,
            "conditions": ["pitch", "instrument_family"],
            **STYLES[style],
        },
        "train": {
            "steps": args.steps,
            "batch_size": 16,
            "crop_s": 2.0,
            "lr": lr,
            "warmup_steps": 50,
            "validate_every": max(1, args.steps // 16),
            "save_every": args.steps,
            "keep_checkpoints": 1,
            "seed": 0,
        },
    }


def curve(run: Path) -> list[tuple[int, float]]:
    """(step, validation loss) of a run."""
    lines = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
    return [(line["step"], line["valid/loss"]) for line in lines if "valid/loss" in line]


def main() -> None:
    """Train all, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nsynth", type=Path, help="a corpus in NSynth's layout")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--runs", type=Path, default=Path("runs/modern-and-musicgen"))
    parser.add_argument("--plot", type=Path, default=Path("modern-and-musicgen.png"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    tokens = None
    curves: dict[tuple[str, float], list[tuple[int, float]]] = {}
    for style in STYLES:
        for lr in args.rates:
            name = f"{style.lower()}-{lr:g}"
            path = args.runs / f"{name}.yaml"
            path.write_text(yaml.safe_dump(recipe(name, style, lr, args), sort_keys=False))
            run = args.runs / name
            if tokens is not None and not run.exists():  # the same corpus: the first run's tokens serve all
                run.mkdir()
                (run / "tokens").symlink_to(tokens.resolve())
                (run / ".stages").mkdir()
                marker = (tokens.parent / ".stages" / "tokenize.json").read_text()
                (run / ".stages" / "tokenize.json").write_text(marker)
            command = [sys.executable, "-m", "tokkata.cli", "run", str(path), "--stages", "tokenize,train"]
            subprocess.run(command, check=True)
            tokens = tokens or run / "tokens"
            curves[style, lr] = curve(run)
    print(f"{'architecture':<12} {'lr':>8} {'parameters':>12} {'validation loss at the end':>28}")
    for (style, lr), points in curves.items():
        card = (args.runs / f"{style.lower()}-{lr:g}" / "model" / "README.md").read_text()
        size = next(line.split("|")[2].strip() for line in card.splitlines() if "| parameters |" in line)
        print(f"{style:<12} {lr:>8g} {size:>12} {points[-1][1]:>28.4f}")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for style in STYLES:
        best = min((key for key in curves if key[0] == style), key=lambda key: curves[key][-1][1])
        axes.plot(*zip(*curves[best], strict=True), marker="o", label=f"{style} (lr {best[1]:g})")
    axes.set(xlabel="step", ylabel="validation loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
