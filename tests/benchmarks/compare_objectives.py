"""The objectives of diffusion on an equal budget: FAD and pitch against the number of steps, and CPU seconds.

    python tests/benchmarks/compare_objectives.py --plot docs/objectives.png
    python tests/benchmarks/compare_objectives.py --distilled runs/quickstart-diffusion-fast

Each objective is trained by `recipes/quickstart-diffusion.yaml`, changed in nothing else (`tokkata run`: what
was killed goes on), and then sampled with 1, 2, 4 … steps of its usual sampler, with the recipe's guidance; a
distilled model, whose guidance is part of it, without. All have the same clips to make, with the labels of
held-out ones. Scores are against the held-out clips, beside other real clips and white noise. CPU seconds are
those of all threads while latents are sampled; decoding is the same for all and not counted. What has been
scored is kept beside the runs and not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tokkata.core.files import read_jsonl, write_json, write_text
from tokkata.core.schema import Recipe
from tokkata.diffusion.generate import Settings, generate
from tokkata.diffusion.load import load_diffusion
from tokkata.diffusion.sample import choose_clips
from tokkata.diffusion.sampler import choose_sampler
from tokkata.eval.measured import SHOWN, Score
from tokkata.tests.benchmarks.held_out_notes import HeldOut, as_clips, recipe_of
from tokkata.tokenize.store import TokenStore

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart-diffusion.yaml"
TITLES = {"ddpm": "DDPM (noise)", "v": "v", "flow": "rectified flow", "distilled": "distilled flow"}
COLOURS = {"ddpm": "tab:red", "v": "tab:green", "flow": "tab:blue", "distilled": "tab:purple"}
MAX_DISTILLED_STEPS = 16
"""More are of no use to a model that was made for few."""


def train(objective: str, args: argparse.Namespace) -> Path:
    """The run of an objective."""
    settings = [
        f"name={objective}",
        f"runs_dir={args.runs}",
        f"model.objective={{kind: {objective}}}",
        f"train.steps={args.train_steps}",
        "generate.sampler=null",
        *args.set,
    ]
    command = [sys.executable, "-m", "tokkata.cli", "run", str(RECIPE), *settings]
    subprocess.run([*command, "--stages", "tokenize,train"], check=True)
    return Path(args.runs) / objective


def measure(run: Path, steps: int, held_out: HeldOut, args: argparse.Namespace) -> dict[str, Any]:
    """Scores and CPU seconds of one number of steps, as JSON values; those that are kept are read."""
    recipe = recipe_of(run)
    weights = run / "model" / "model.safetensors"
    asked = {
        "steps": steps,
        "clips": args.num_clips,
        "embeddings": args.embeddings,
        "weights": weights.stat().st_mtime_ns,
    }
    kept = Path(args.runs) / "scores" / f"{run.name}-{steps:03d}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            return found
    model = load_diffusion(run)
    wanted = recipe.generate.model_copy(update={"num_clips": args.num_clips})
    clips = choose_clips(TokenStore(run / "tokens"), model, wanted)
    num_samples = round(clips.duration_s * held_out.codec.sample_rate)
    num_frames = held_out.codec.num_frames(num_samples)
    generate(model, num_frames, settings=Settings(2))  # imports, first calls
    start = time.process_time()
    latents = generate(
        model,
        num_frames,
        batch_size=len(clips),
        conditions=clips.given,
        settings=Settings(steps, cfg_scale=wanted.cfg_scale),
        seed=wanted.seed,
    )
    cpu_s = time.process_time() - start
    audio = held_out.codec.decode_latents(latents, num_samples).clamp(-1, 1).numpy()
    scores = held_out.scores(as_clips(audio, [note["labels"] for note in clips.notes]))
    found = {
        "asked": asked,
        "sampler": choose_sampler(None, model.objective),
        "cfg_scale": wanted.cfg_scale,
        "cpu_s_per_clip": cpu_s / len(clips),
        "scores": as_json(scores),
    }
    write_json(kept, found)
    return found


def as_json(scores: dict[str, Score]) -> dict[str, Any]:
    """Values with their intervals."""
    return {
        name: {"value": one.value, "interval": one.interval and [one.interval.low, one.interval.high]}
        for name, one in scores.items()
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    fads = [f"fad {name}" for name in result["embeddings"]]
    heads = ["model", "sampler", "steps", *(f"FAD {name} ↓" for name in result["embeddings"])]
    lines = [
        "| " + " | ".join([*heads, "right pitch ↑", "CPU s a clip"]) + " |",
        "|---|---|" + "---:|" * (len(heads)),
    ]

    def cells(scores: dict[str, Any]) -> list[str]:
        pitch = scores["pitch-accuracy"]
        values = [scores[name]["value"] for name in fads]
        shown = ["–" if value is None else f"{value:,.4g}" for value in values]
        if pitch["value"] is None:
            return [*shown, "–"]
        low, high = (100 * end for end in pitch["interval"])
        return [*shown, f"{100 * pitch['value']:.0f} % ({low:.0f}–{high:.0f})"]

    for name, rows in result["models"].items():
        for row in rows:
            front = [TITLES[name], row["sampler"], str(row["asked"]["steps"])]
            lines.append(
                "| " + " | ".join([*front, *cells(row["scores"]), f"{row['cpu_s_per_clip']:.3f}"]) + " |"
            )
    for name, scores in result["baselines"].items():
        lines.append("| " + " | ".join([name, "", "", *cells(scores), ""]) + " |")
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """FAD and pitch against steps, and FAD against CPU seconds."""
    first = f"fad {result['embeddings'][0]}"
    panels = [(name, "steps") for name in (*(f"fad {e}" for e in result["embeddings"]), "pitch-accuracy")]
    panels.append((first, "CPU seconds a clip"))
    columns = 3 if len(panels) == 3 else 2
    figure, grid = plt.subplots(
        -(-len(panels) // columns), columns, figsize=(5 * columns, 3.6 * -(-len(panels) // columns)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for (score, across), axes in zip(panels, grid.flat, strict=False):
        for name, rows in result["models"].items():
            x = [row["asked"]["steps"] if across == "steps" else row["cpu_s_per_clip"] for row in rows]
            y = [row["scores"][score]["value"] for row in rows]
            axes.plot(x, y, marker="o", markersize=4, color=COLOURS[name], label=TITLES[name])
        for name, style in (("real, other", "--"), ("white noise", ":")):
            value = result["baselines"][name][score]["value"]
            if value:
                axes.axhline(value, color="gray", linestyle=style, linewidth=1, label=name)
        axes.set_xscale("log")
        if across == "steps":
            ticks = sorted({row["asked"]["steps"] for rows in result["models"].values() for row in rows})
            axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axes.minorticks_off()
        word, _, embedding = score.partition(" ")
        title = SHOWN[word] + (f" in {embedding}, lower is better" if embedding else ", higher is better")
        axes.set(xlabel=across, title=title)
        if embedding:
            axes.set_yscale("log")
        else:
            axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    grid.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train all that are not there, sample, score, and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--set", nargs="+", default=[], help="settings of the recipe, such as model.dim=64")
    parser.add_argument("--objectives", nargs="+", default=["ddpm", "v", "flow"])
    parser.add_argument("--train-steps", type=int, default=450)
    parser.add_argument("--num-clips", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--embeddings", nargs="+", help="default: logmel, and the recipe's if it is another")
    parser.add_argument("--distilled", type=Path, help="the folder of a distilled model's run")
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--out", type=Path, help="folder of objectives.json and .md; default: --runs")
    parser.add_argument("--plot", type=Path, default=Path("objectives.png"))
    args = parser.parse_args()
    runs = {objective: train(objective, args) for objective in args.objectives}
    if args.distilled is not None:
        runs["distilled"] = args.distilled
    recipe: Recipe = recipe_of(runs[args.objectives[0]])
    args.embeddings = args.embeddings or list(dict.fromkeys(["logmel", recipe.eval.embedding]))
    held_out = HeldOut(recipe, args.embeddings, args.num_clips)
    baselines = {name: as_json(held_out.scores(clips)) for name, clips in held_out.baselines().items()}
    models: dict[str, list[dict[str, Any]]] = {}
    for name, run in runs.items():
        if recipe_of(run).data != recipe.data:
            raise SystemExit(f"{run} is of another corpus: it cannot stand beside the others")
        models[name] = []
        for steps in args.steps:
            if name != "distilled" or steps <= MAX_DISTILLED_STEPS:
                models[name].append(measure(run, steps, held_out, args))
                print(f"{name}: {steps} steps done", file=sys.stderr, flush=True)
    logs = {name: read_jsonl(run / "logs" / "train.jsonl")[-1] for name, run in runs.items()}
    result = {
        "embeddings": args.embeddings,
        "num_clips": args.num_clips,
        "reference_clips": len(held_out.reference),
        "training": {
            name: {"steps": log["step"], "minutes": round(log["time_s"] / 60, 2)}
            for name, log in logs.items()
        },
        "models": models,
        "baselines": baselines,
    }
    folder = args.out or args.runs
    write_json(folder / "objectives.json", result)
    text = table(result)
    write_text(folder / "objectives.md", text)
    plot(result, args.plot)
    print(text)
    for name, training in result["training"].items():
        print(f"{TITLES[name]}: {training['steps']} steps in {training['minutes']} minutes by its log")


if __name__ == "__main__":
    main()
