"""Every family on the same notes, each trained for about ten minutes of one CPU core, or some for 45.

    python tests/benchmarks/families.py                       # all, one after another: about two hours
    python tests/benchmarks/families.py --only gansynth wavenet
    python tests/benchmarks/notes_table.py runs/families/*    # the table of those that are there
    python tests/benchmarks/families.py --longer              # WaveNet and SampleRNN, an hour and a half
    python tests/benchmarks/notes_table.py runs/longer/*
    python tests/benchmarks/bits_per_sample.py runs/longer/{wavenet,samplernn}

The notes are the quickstart's, cut to 1.024 s; each family is told what its recipe says. Training runs in one
thread. `train_cpu_s.json` beside each run has the CPU seconds of its stages `prepare` and `train`, of all
attempts together. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from tokkata.core.files import write_json

RECIPES = Path(__file__).parents[2] / "recipes"
CPU_SECONDS = "train_cpu_s.json"

NOTES = "data={kind: synth, num_clips: 520, duration_s: 2.0, forms: [note], pitch_min: 48, pitch_max: 60}"
COMMON = [
    NOTES,
    "audio.max_duration_s=1.024",
    "generate.duration_s=1.0",
    "generate.num_clips=48",
    "eval.embedding=logmel",
]
_SAMPLES = [
    "train.precision=no",
    "train.warmup_steps=50",
    "train.ema_decay=0.99",
    "train.lr=4e-3",
    "generate.batch_size=24",
    "train.validate_every=400",
    "train.save_every=200",
]
_TOLD = "conditions: [pitch, velocity, instrument_family]"


def _wavenet(noise: str, steps: int) -> tuple[str, list[str]]:
    settings = [
        *_SAMPLES,
        f"model={{kind: wavenet, {_TOLD}, {noise}}}",
        f"train.steps={steps}",
        "train.batch_size=2",
        "train.crop_s=0.4",
    ]
    return "nsynth-wavenet.yaml", settings


def _samplernn(noise: str, steps: int) -> tuple[str, list[str]]:
    settings = [
        *_SAMPLES,
        "codec={kind: mulaw, sample_rate_hz: 16000}",
        f"model={{kind: samplernn, dim: 256, embedding_dim: 64, {_TOLD}, {noise}}}",
        f"train.steps={steps}",
        "train.batch_size=16",
        "train.crop_s=0.128",
        "train.schedule=cosine",
    ]
    return "nsynth-samplernn.yaml", settings


SYSTEMS: dict[str, tuple[str, list[str]]] = {
    "wavenet": _wavenet("input_noise: 4", 1150),
    "samplernn": _samplernn("input_noise: 4", 450),
    "transformer": ("quickstart.yaml", ["train.steps=2600", "train.crop_s=1.024"]),
    "diffusion": ("quickstart-diffusion.yaml", ["train.steps=4500", "train.crop_s=1.024"]),
    "wavegan": ("notes-wavegan.yaml", []),
    "specgan": ("notes-specgan.yaml", []),
    "gansynth": ("notes-gansynth.yaml", ["train.steps=2700"]),
    "drumgan": ("notes-drumgan.yaml", ["train.steps=2700"]),
    "darkgan": ("notes-darkgan.yaml", ["train.steps=2500"]),
    "vqcpc-gan": ("notes-vqcpc-gan.yaml", ["train.steps=1800"]),
    "musika": ("notes-musika.yaml", []),
}
"""By name: a recipe, and the settings that make it one of this comparison."""

LONGER: dict[str, tuple[str, list[str]]] = {
    "wavenet": _wavenet("input_noise: 8, tell_noise: true", 5500),
    "samplernn": _samplernn("frame_sizes: [16, 4], input_noise: 8, tell_noise: true", 2400),
}
"""Sample-level models that are told how noisy what they see is, with about 45 minutes each. (A Transformer of
these notes is at its best after four, and then learns them by heart.)"""


def stage(recipe: Path, settings: list[str], names: str) -> float:
    """Run stages of a recipe in one thread; returns the CPU seconds that this took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "tokkata.cli", "run", str(recipe), *settings, "--stages", names]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Train and sample the families that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SYSTEMS)
    parser.add_argument("--longer", action="store_true", help=f"45 minutes: {', '.join(LONGER)}")
    parser.add_argument("--runs", type=Path, help="default: runs/families, or runs/longer")
    parser.add_argument("--set", nargs="+", default=[], help="settings for all, such as train.steps=100")
    args = parser.parse_args()
    systems = LONGER if args.longer else SYSTEMS
    runs = args.runs or Path("runs/longer" if args.longer else "runs/families")
    if unknown := set(args.only or ()) - set(systems):
        parser.error(f"--longer has no {', '.join(sorted(unknown))}: {', '.join(systems)}")
    for name in args.only or systems:
        file, settings = systems[name]
        recipe = RECIPES / file
        settings = [f"name={name}", f"runs_dir={runs}", *COMMON, *settings, *args.set]
        has_prepare = name in ("darkgan", "vqcpc-gan")
        stage(recipe, settings, "tokenize")
        kept = runs / name / CPU_SECONDS
        spent = json.loads(kept.read_text()) if kept.exists() else 0.0
        spent += stage(recipe, settings, "prepare,train" if has_prepare else "train")
        write_json(kept, round(spent, 1))
        stage(recipe, settings, "generate,eval")


if __name__ == "__main__":
    main()
