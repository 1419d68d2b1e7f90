"""Runs over one corpus in one table: FAD, KAD, pitch, what training took, and how fast they generate.

    python tests/benchmarks/notes_table.py runs/quickstart runs/quickstart-diffusion [runs/notes-wavenet …]

Of each run, whatever its family: the clips in its `samples/` against the held-out clips
of the corpus, in log-mel frames and in the embedding of the runs' recipes (and `--embeddings`); the share
with the pitch of their label and its 95 % interval; how different clips are from each other, as a share of
what held-out ones are (`gan/collapse.py`); steps and minutes of training by its log, or CPU minutes where
`families.py` has measured them; and seconds of audio generated in a second here, in one batch of
`--speed-clips` clips, decoding and writing included. Below: other real clips, the first run's codec,
untrained models, and white noise. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tokkata.core.files import read_jsonl, write_text
from tokkata.core.saved_model import kind_of
from tokkata.core.schema import Generate, Recipe
from tokkata.core.schema_gan import CollapseWatch
from tokkata.core.schema_generate import DiffusionGenerate, GanGenerate
from tokkata.diffusion import clips as diffusion_clips
from tokkata.diffusion.diffusion_model import KIND
from tokkata.diffusion.generate import Settings
from tokkata.diffusion.load import load_diffusion
from tokkata.diffusion.sample import choose_clips
from tokkata.eval.measured import Score
from tokkata.eval.sets import ClipSet, Skipped, generated_clips
from tokkata.gan import clips as gan_clips
from tokkata.gan import gan_model
from tokkata.gan.collapse import collapse_statistics
from tokkata.gan.load import load_gan
from tokkata.gan.sample import choose_clips as choose_gan_clips
from tokkata.lm.load import load_lm
from tokkata.lm.sample import choose_requests, write_samples
from tokkata.tests.benchmarks.families import CPU_SECONDS
from tokkata.tests.benchmarks.held_out_notes import HeldOut, recipe_of
from tokkata.tokenize.codec import load_codec_from_info
from tokkata.tokenize.fast_codec import fast
from tokkata.tokenize.store import TokenStore

SCORES = ("fad", "kad")


def num_parameters(run: Path) -> int:
    """Of the trained model."""
    load = {KIND: load_diffusion, gan_model.KIND: load_gan}.get(kind_of(str(run)))
    model: torch.nn.Module = load_lm(str(run / "model")) if load is None else load(run)
    return sum(parameter.numel() for parameter in model.parameters())


def generator_of(run: Path, recipe: Recipe) -> Callable[[int, Path], None]:
    """(number of clips, folder): makes them as the stage `generate` does, in one batch."""
    store = TokenStore(run / "tokens")
    codec = load_codec_from_info(store.info)

    def config(num_clips: int) -> Generate | DiffusionGenerate:
        return recipe.generate.model_copy(update={"num_clips": num_clips, "batch_size": num_clips})

    if isinstance(recipe.generate, Generate):
        lm = load_lm(str(run / "model"))

        def of_tokens(num_clips: int, folder: Path) -> None:
            asked = config(num_clips)
            assert isinstance(asked, Generate)
            write_samples(folder, lm, codec, choose_requests(store, lm, asked), asked, "generate")

        return of_tokens
    if isinstance(recipe.generate, GanGenerate):
        gan = load_gan(run)

        def of_images(num_clips: int, folder: Path) -> None:
            asked = recipe.generate.model_copy(update={"num_clips": num_clips})
            assert isinstance(asked, GanGenerate)
            chosen = choose_gan_clips(store, gan, asked, run)
            gan_clips.write_clips(folder, gan, fast(codec), chosen, batch_size=num_clips)

        return of_images
    model, decoder = load_diffusion(run), fast(codec)

    def of_latents(num_clips: int, folder: Path) -> None:
        asked = config(num_clips)
        assert isinstance(asked, DiffusionGenerate)
        settings = Settings(
            asked.steps, asked.sampler, asked.cfg_scale, asked.cfg_interval, asked.cfg_rescale
        )
        clips = choose_clips(store, model, asked)
        diffusion_clips.write_clips(folder, model, decoder, clips, settings, batch_size=num_clips)

    return of_latents


def speed(run: Path, recipe: Recipe, num_clips: int) -> float:
    """Seconds of audio in a second, after a first clip, for which kernels are built."""
    make = generator_of(run, recipe)
    with tempfile.TemporaryDirectory() as folder:
        make(1, Path(folder) / "first")
        start = time.perf_counter()
        make(num_clips, Path(folder) / "second")
        return num_clips * recipe.generate.duration_s / (time.perf_counter() - start)


def training(run: Path) -> str:
    """Steps, and minutes."""
    log = read_jsonl(run / "logs" / "train.jsonl")[-1]
    measured = run / CPU_SECONDS
    if measured.exists():
        return f"{log['step']} steps, {json.loads(measured.read_text()) / 60:.1f} CPU min"
    return f"{log['step']} steps, {log['time_s'] / 60:.1f} min"


def diversity(clips: ClipSet, reference: ClipSet, sample_rate: int) -> str:
    """Of mono clips of one length."""
    length = min(one.shape[1] for one in [*clips.audio, *reference.audio])
    made, real = (
        torch.from_numpy(np.stack([audio[:, :length].mean(0) for audio in one.audio]))
        for one in (clips, reference)
    )
    watch = CollapseWatch()
    found = collapse_statistics(made, real, sample_rate, watch).scores()
    return f"{found['diversity']:.2f}" if "diversity" in found else "–"


def number(value: float) -> str:
    """Three digits, or all before the point; what rounding leaves of 0 is 0."""
    value = 0.0 if abs(value) < 1e-9 else value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(score: Score | None) -> str:
    """A value with its interval."""
    if score is None or score.value is None:
        return "–"
    scale, unit = (100, " %") if score.name == "pitch-accuracy" else (1, "")
    interval = score.interval
    ends = f" ({number(scale * interval.low)} … {number(scale * interval.high)})" if interval else ""
    return f"{number(scale * score.value)}{unit}{ends}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs that are done")
    parser.add_argument("--embeddings", nargs="+", default=[], help="besides logmel and the runs' own")
    parser.add_argument("--speed-clips", type=int, default=8, help="0: speed is not measured")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    recipes = {run: recipe_of(run) for run in args.runs}
    first = recipes[args.runs[0]]
    for run, recipe in recipes.items():
        if (recipe.data, recipe.generate.duration_s) != (first.data, first.generate.duration_s):
            raise SystemExit(
                f"{run} is of another corpus than {args.runs[0]}, or its clips of another length"
            )
    wanted = ["logmel", *(recipe.eval.embedding for recipe in recipes.values()), *args.embeddings]
    held_out = HeldOut(first, list(dict.fromkeys(wanted)), first.generate.num_clips)
    names = [f"{score} {embedding}" for embedding in held_out.embeddings for score in SCORES]
    heads = [f"{name.upper().split()[0]} {name.split()[1]} ↓" for name in names]
    heads = ["run", "clips", *heads, "right pitch ↑", "diversity", "parameters", "training", "audio s/s"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    skipped: list[Skipped] = []

    def clips_in(folder: Path, name: str) -> ClipSet:
        return generated_clips(
            folder, held_out.codec, set_name=name, max_clips=first.eval.max_clips, skipped=skipped
        )

    def line(name: str, clips: ClipSet, *rest: str) -> str:
        scores = held_out.scores(clips, SCORES)
        shown = [cell(scores.get(one)) for one in (*names, "pitch-accuracy")]
        shown.append(diversity(clips, held_out.reference, held_out.codec.sample_rate))
        return "| " + " | ".join([name, str(len(clips)), *shown, *rest]) + " |"

    for run, recipe in recipes.items():
        pace = f"{speed(run, recipe, args.speed_clips):.3g}" if args.speed_clips else ""
        lines.append(
            line(
                run.name, clips_in(run / "samples", run.name), f"{num_parameters(run):,}", training(run), pace
            )
        )
    sets = held_out.baselines()
    for run in args.runs:
        untrained = run / "samples" / "untrained"
        if (untrained / "samples.jsonl").exists():
            sets[f"{run.name}, untrained"] = clips_in(untrained, "untrained")
    lines += [line(name, clips, "", "", "") for name, clips in sets.items()]
    note = f"Against {len(held_out.reference)} held-out clips of {first.generate.duration_s:g} s;"
    note += " 95 % intervals in brackets."
    if skipped:
        note += f" {len(skipped)} files could not be read, the first: {skipped[0].reason}."
    text = "\n".join([*lines, "", note]) + "\n"
    if args.out is not None:
        write_text(args.out, text)
    print(text)


if __name__ == "__main__":
    main()
