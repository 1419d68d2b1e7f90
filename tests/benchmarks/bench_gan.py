"""How many times as fast as WaveNet GANSynth makes sound.

    make bench                                             (all of it)
    python tests/benchmarks/bench_gan.py --quick           (without the batch of 64, in fewer rounds)

Both of the published sizes and both CPU-sized, with random weights; nothing is downloaded. GANSynth makes
whole notes, samples included. WaveNet makes the same samples one after another with the compiled kernel, as
`generate` does; its speed does not depend on how long a clip is, so a part of a clip is timed.

Every contender makes its clips before any of them does again, so that what else the machine does hits them
alike. Printed are medians over rounds, and medians of the ratios within a round. The paper (arXiv:1902.08710,
sec. 5.3) has 53,880 for the time to a single note of 4 s, on a GPU, with a WaveNet that had no kernel.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from tokkata.core.conditions import Condition, Conditions
from tokkata.core.recipe import load_recipe
from tokkata.core.schema_gan import GanSynthModel
from tokkata.core.schema_models import WAVENET_PRESETS
from tokkata.gan.gan_model import GanConfig, GanModel
from tokkata.gan.generate import generate
from tokkata.lm.decoders.decoder import Weights
from tokkata.lm.generate import Generator
from tokkata.lm.language_model import LanguageModel
from tokkata.lm.step_models.wavenet import WaveNet, WaveNetConfig
from tokkata.tokenize.codec import load_codec

RATE = 16000
RECIPES = Path(__file__).parents[2] / "recipes"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to make sound."""

    name: str
    batch_size: int
    run: Callable[[], float]
    """Makes some, and returns how many seconds there are of it, in all clips together."""


def of_gansynth(model: GanModel, batch_size: int) -> Contender:
    """Whole clips of any adversarial model whose codec is `linear`, of a pitch each if it knows pitches."""
    num_frames = model.config.num_frames
    conditions = model.config.conditions
    told = None
    if "pitch" in conditions.names:
        pitches = conditions["pitch"].values
        told = {"pitch": [pitches[i % len(pitches)] for i in range(batch_size)]}

    def run() -> float:
        made = generate(model, num_frames, batch_size=batch_size, conditions=told)
        return len(made) * model.config.duration_s

    return Contender(f"{model.config.section.kind}, {millions(model.generator)}", batch_size, run)


def of_wavenet(lm: LanguageModel, batch_size: int, seconds: float, weights: Weights = "fp32") -> Contender:
    """Clips of `seconds` seconds, told nothing."""
    generator = Generator(lm, weights=weights)

    def run() -> float:
        codes = generator.generate(round(seconds * lm.config.frame_rate), batch_size=batch_size)
        return codes.shape[0] * codes.shape[2] / lm.config.frame_rate

    return Contender(f"wavenet, {millions(lm)}", batch_size, run)


def millions(network: torch.nn.Module) -> str:
    """Of parameters, in words."""
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M parameters"


def random_gansynth(section: GanSynthModel, duration_s: float, pitches: Sequence[int]) -> GanModel:
    """With a scale found on noise."""
    info = dataclasses.replace(load_codec(f"linear:{RATE}").info, latents="latents")
    model = GanModel(
        GanConfig(
            section=section,
            codec=dataclasses.asdict(info),
            num_frames=round(duration_s * RATE),
            conditions=Conditions((Condition("pitch", "label", values=tuple(pitches)),)),
        )
    )
    model.fit(0.1 * torch.randn(8, 1, model.config.num_frames))
    return model.eval()


def random_wavenet(**shape: int) -> WaveNet:
    """Over μ-law samples."""
    codec = {"num_codebooks": 1, "codebook_size": 256, "frame_rate": float(RATE)}
    return WaveNet(WaveNetConfig.for_codec(codec, **shape)).eval()


def speed_table(title: str, fast: Sequence[Contender], slow: Sequence[Contender], num_rounds: int) -> str:
    """Markdown: seconds of audio a second of all, and how many times as fast as each of `slow` the others
    are."""
    contenders = [*fast, *slow]
    for one in contenders:
        one.run()
    speeds: list[list[float]] = [[] for _ in contenders]
    for _ in range(num_rounds):
        for one, found in zip(contenders, speeds, strict=True):
            start = time.perf_counter()
            seconds = one.run()
            found.append(seconds / (time.perf_counter() - start))
    slow_speeds = speeds[len(fast) :]
    heads = [title, "clips at once", "audio s/s"]
    heads += [f"× {one.name.split(',')[0]}, {_clips(one)}" for one in slow]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for one, found in zip(contenders, speeds, strict=True):
        ratios = [
            f"{median(a / b for a, b in zip(found, other, strict=True)):,.3g}" if one in fast else ""
            for other in slow_speeds
        ]
        cells = [one.name, str(one.batch_size), f"{median(found):.3g}", *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    threads = torch.get_num_threads()
    note = f"{threads} thread{'' if threads == 1 else 's'}, medians of {num_rounds} rounds."
    return "\n".join([*lines, "", note]) + "\n"


def _clips(one: Contender) -> str:
    return "1 clip" if one.batch_size == 1 else f"{one.batch_size} clips"


def published(num_rounds: int, seconds: float, batch_sizes: Sequence[int]) -> str:
    """The table of GANSynth as its section has it (4.096 s, 61 pitches) and of WaveNet `large`."""
    gansynth = random_gansynth(GanSynthModel(kind="gansynth"), 4.096, range(24, 85))
    wavenet = random_wavenet(**WAVENET_PRESETS["large"])
    return speed_table(
        "published sizes, random weights",
        [of_gansynth(gansynth, size) for size in batch_sizes],
        [of_wavenet(wavenet, 1, seconds), of_wavenet(wavenet, 16, seconds / 4)],
        num_rounds,
    )


def cpu_sized(num_rounds: int, seconds: float, batch_sizes: Sequence[int]) -> str:
    """The table of GANSynth as `notes-gansynth` has it (1.024 s, 13 pitches) and of the WaveNet for CPUs."""
    recipe = load_recipe(RECIPES / "notes-gansynth.yaml")
    assert isinstance(recipe.model, GanSynthModel)
    assert recipe.train.crop_s is not None
    gansynth = random_gansynth(recipe.model, recipe.train.crop_s, range(48, 61))
    wavenet = random_wavenet()
    return speed_table(
        "CPU-sized, random weights",
        [of_gansynth(gansynth, size) for size in batch_sizes],
        [of_wavenet(wavenet, 1, 10 * seconds), of_wavenet(wavenet, 16, 2 * seconds)],
        num_rounds,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="no batch of 64, fewer rounds")
    options = parser.parse_args()
    torch.manual_seed(0)
    num_rounds, seconds = (3, 0.1) if options.quick else (5, 0.2)
    batch_sizes = (1, 8) if options.quick else (1, 8, 64)
    print(cpu_sized(num_rounds, seconds, batch_sizes))
    print(published(num_rounds if options.quick else 2, seconds, batch_sizes))


if __name__ == "__main__":
    main()
