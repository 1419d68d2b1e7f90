"""What adversarial models promise beyond a score: to do as they are told, without seams, and fast.

    python tests/benchmarks/gan_measures.py runs/families/drumgan runs/families/gansynth [runs/… …]

Of each run, whatever applies to it (`families.py` makes them, `notes_table.py` has FAD and KAD):

- **pitch**: of models that are told one, the share of clips with it by `eval/pitch.py`, over all its values.
- **numbers**: of a DrumGAN's features by `gan/conditions/descriptors.py` and a DarkGAN's soft labels by its
  own teacher, the rank correlation of what was asked with what is heard. Once for each alone, drawn evenly
  from 0 to 1, while the rest is that of training clips (soft labels that must sum to 1 are made to); with
  random weights for comparison; and once told all of held-out clips.
- **seams**: of models of any length, clips several times as long as those of training. At multiples of that
  length, in whose windows a Musika makes them, the energy and the spectral flux of about 60 ms are divided by
  the median of the neighbourhood, half such a length to both sides. There is no seam where the interval of
  their median includes 1, or where it is among the medians at random places alike for all clips (for the
  flux, not above them). Below, what there is in clips that are pasted together of others' parts.
- **speed**: where a `gansynth` and a `wavenet` are among the runs, seconds of audio a second of both.

Intervals are of 95 %, of clips. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy import stats
from torch import Tensor

from tokkata.core.conditions import GivenConditions, select
from tokkata.core.files import write_text
from tokkata.core.hub_classifier import load_hub_classifier
from tokkata.core.label import Label
from tokkata.core.saved_model import kind_of
from tokkata.core.schema import Recipe
from tokkata.core.schema_gan import DarkGanModel, DrumGanModel, GanSynthModel
from tokkata.core.schema_generate import GanGenerate
from tokkata.core.schema_models import WaveNetModel
from tokkata.eval.bootstrap import centred_interval, share_interval
from tokkata.eval.pitch import HIGHEST, LOWEST, MARGIN, TOLERANCE, median_pitch
from tokkata.gan.clips import Clips, file_name, write_clips
from tokkata.gan.conditions.descriptors import DESCRIPTORS, raw_descriptors
from tokkata.gan.conditions.examples import fill_in
from tokkata.gan.conditions.prepared import ABOUT_SOFT_LABELS, TEACHER
from tokkata.gan.conditions.teacher import HubTeacher, Teacher, TeacherNetwork, TrainedTeacher
from tokkata.gan.gan_model import KIND, GanModel
from tokkata.gan.load import load_gan
from tokkata.gan.networks.musika import MusikaGenerator
from tokkata.gan.sample import choose_clips
from tokkata.lm.load import load_lm
from tokkata.tests.benchmarks.bench_gan import of_gansynth, of_wavenet, speed_table
from tokkata.tests.benchmarks.held_out_notes import recipe_of
from tokkata.tokenize.codec import Codec, load_codec_from_info
from tokkata.tokenize.fast_codec import fast
from tokkata.tokenize.store import TokenStore

FLUX_WINDOW_S = 0.032
WIDTH = 5
"""Windows, each a quarter further on, that see a joint."""
NUM_RANDOM = 200

Told = Mapping[str, Sequence[Label | Tensor | None]]


@dataclass(frozen=True)
class Run:
    """An adversarial model's."""

    folder: Path
    recipe: Recipe
    model: GanModel
    codec: Codec

    @property
    def numbers(self) -> list[str]:
        """Conditions from 0 to 1."""
        return [one.name for one in self.model.config.conditions if one.kind == "number"]

    def filled(self, asked: Told, num_clips: int, seed: int) -> dict[str, list[Label | Tensor | None]]:
        """What is asked of each clip, and the rest by training clips."""
        config = self.model.config
        if not len(config.conditions):
            return {}
        filled = fill_in(config.conditions, config.examples, asked, num_clips, seed=seed)
        return {name: list(values) for name, values in filled.inputs.items()}

    def encoded(self, told: Told) -> GivenConditions:
        """As the model takes it."""
        return self.model.config.conditions.encode(dict(told)) if told else {}

    def heard(
        self,
        given: GivenConditions,
        num_clips: int,
        duration_s: float | None = None,
        model: GanModel | None = None,
    ) -> np.ndarray:
        """Clips `[B, N]` as `tokkata generate` writes them."""
        duration_s = self.model.config.duration_s if duration_s is None else duration_s
        notes: list[dict[str, object]] = [{} for _ in range(num_clips)]
        with tempfile.TemporaryDirectory() as folder:
            write_clips(
                Path(folder),
                self.model if model is None else model,
                self.codec,
                Clips(notes, duration_s, given),
                batch_size=16,
            )
            found = [
                soundfile.read(Path(folder) / file_name(row), dtype="float32", always_2d=True)[0].mean(1)
                for row in range(num_clips)
            ]
        return np.stack(found)


def load_run(folder: Path) -> Run:
    """From the folder of a run that is done."""
    codec = fast(load_codec_from_info(TokenStore(folder / "tokens").info))
    return Run(folder, recipe_of(folder), load_gan(folder), codec)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


# ---------------------------------------------------------------------------------------------------- pitch


def pitch_row(run: Run, num_each: int) -> list[str]:
    """`num_each` clips of each value; what else they are told is that of training clips of the pitch."""
    values = [
        value
        for value in run.model.config.conditions["pitch"].values
        if isinstance(value, int) and LOWEST <= value <= HIGHEST
    ]
    asked = [value for value in values for _ in range(num_each)]
    clips = run.heard(run.encoded(run.filled({"pitch": asked}, len(asked), seed=1)), len(asked))
    lowest, highest = max(LOWEST, min(values) - MARGIN), min(HIGHEST, max(values) + MARGIN)
    right: dict[int, int] = dict.fromkeys(values, 0)
    octaves = 0
    for clip, value in zip(clips, asked, strict=True):
        found = median_pitch(clip[None], run.codec.sample_rate, lowest, highest)
        if found is None:
            continue
        error = found - value
        right[value] += abs(error) <= TOLERANCE
        octaves += abs(error - 12 * round(error / 12)) <= TOLERANCE
    worst = min(values, key=lambda value: right[value])
    return [
        run.folder.name,
        str(len(values)),
        str(len(asked)),
        share(sum(right.values()), len(asked)),
        share(octaves, len(asked)),
        f"{worst} ({right[worst]} of {num_each})",
    ]


def share(num_right: int, num_clips: int) -> str:
    """In percent, with its interval."""
    interval = share_interval(num_right, num_clips)
    assert interval is not None
    ends = f"{100 * interval.low:.0f} … {100 * interval.high:.0f}"
    return f"{100 * num_right / num_clips:.0f} % ({ends})"


# -------------------------------------------------------------------------------------------------- numbers


def listener_of(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """Clips `[B, N]` to what is heard of each number `[B, n]`, in the order of `run.numbers`."""
    section, rate = run.model.config.section, run.codec.sample_rate
    if isinstance(section, DrumGanModel):
        places = [DESCRIPTORS.index(name) for name in run.numbers]

        def descriptors(clips: np.ndarray) -> np.ndarray:
            found: np.ndarray = raw_descriptors(torch.from_numpy(clips), rate)[:, places].numpy()
            return found

        return descriptors
    by = teacher_of(run)

    def soft_labels(clips: np.ndarray) -> np.ndarray:
        found: np.ndarray = by.teacher.soft_labels(torch.from_numpy(clips), rate, by.temperature).numpy()
        return found

    return soft_labels


@dataclass(frozen=True)
class HeardBy:
    """A DarkGAN's teacher, as its stage `prepare` used it."""

    teacher: Teacher
    temperature: float


def teacher_of(run: Run) -> HeardBy:
    """Of a DarkGAN."""
    section, folder = run.model.config.section, run.folder / TEACHER
    assert isinstance(section, DarkGanModel)
    about = json.loads((folder / ABOUT_SOFT_LABELS).read_text(encoding="utf-8"))
    assert about["names"] == run.numbers
    device = torch.device("cpu")
    if section.teacher.source is None:
        trained = TrainedTeacher(TeacherNetwork.load(folder / "model"), device)
        return HeardBy(trained, about["temperature"])
    classifier = load_hub_classifier(
        section.teacher.source, device=device, revision=section.teacher.source_revision
    )
    return HeardBy(HubTeacher(classifier), about["temperature"])


def one_at_a_time(run: Run, name: str, num_clips: int, *, sum_to_one: bool) -> Told:
    """Numbers of which `name` is drawn evenly from 0 to 1."""
    told = run.filled({}, num_clips, seed=2)
    drawn = np.random.default_rng(run.numbers.index(name)).random(num_clips)
    for row, value in enumerate(drawn.tolist()):
        others = [other for other in run.numbers if other != name]
        if sum_to_one:
            kept = [float(told[other][row]) for other in others]  # type: ignore[arg-type]
            for other, was in zip(others, kept, strict=True):
                told[other][row] = was * (1 - value) / max(sum(kept), 1e-9)
        told[name][row] = value
    return told


def correlation(asked: np.ndarray, heard: np.ndarray) -> str:
    """Spearman's, with its interval (Bonett and Wright, Psychometrika 65(1), 2000)."""
    if len(asked) < 5 or np.ptp(asked) == 0 or np.ptp(heard) == 0:
        return "–"
    rho = float(stats.spearmanr(asked, heard).statistic)
    reach = stats.norm.ppf(0.975) * math.sqrt((1 + rho**2 / 2) / (len(asked) - 3))
    centre = math.atanh(min(max(rho, -0.9999), 0.9999))
    return f"{rho:.2f} ({math.tanh(centre - reach):.2f} … {math.tanh(centre + reach):.2f})"


def number_rows(run: Run, num_clips: int) -> list[list[str]]:
    """Of each number."""
    listen = listener_of(run)
    section = run.model.config.section
    sum_to_one = isinstance(section, DarkGanModel) and not teacher_of(run).teacher.is_multi_label
    torch.manual_seed(0)
    untrained = run.model.untrained()
    generate = run.recipe.generate.model_copy(update={"num_clips": num_clips})
    assert isinstance(generate, GanGenerate)
    real = choose_clips(TokenStore(run.folder / "tokens"), run.model, generate, run.folder)
    # Clips are taken in turn where there are fewer.
    num_real = len({note["source_id"] for note in real.notes})
    heard_of_real = listen(run.heard(select(real.given, slice(num_real)), num_real))
    rows = []
    for place, name in enumerate(run.numbers):
        told = one_at_a_time(run, name, num_clips, sum_to_one=sum_to_one)
        asked = np.array(told[name], dtype=np.float64)
        given = run.encoded(told)
        made = listen(run.heard(given, num_clips))[:, place]
        random = listen(run.heard(given, num_clips, model=untrained))[:, place]
        asked_of_real = real.given[name].values[:num_real, 0].numpy()
        rows.append(
            [
                run.folder.name,
                name,
                correlation(asked, made),
                correlation(asked, random),
                correlation(asked_of_real, heard_of_real[:, place]),
                str(num_real),
            ]
        )
    return rows


# ---------------------------------------------------------------------------------------------------- seams


@dataclass(frozen=True)
class Loudness:
    """What may jump at a joint, each `[B, T]` over windows of which `WIDTH` are averaged."""

    energy: np.ndarray
    flux: np.ndarray
    hop: int

    def place(self, sample: int) -> int:
        """Where the windows begin that see a sample."""
        return round(sample / self.hop) - WIDTH + 1


def loudness(clips: np.ndarray, sample_rate: int) -> Loudness:
    """Of clips `[B, N]`. The flux is the distance of neighbouring magnitude spectra, as a share of both."""
    window = 2 ** round(math.log2(FLUX_WINDOW_S * sample_rate))
    hop = window // 4
    spectra = torch.stft(
        torch.from_numpy(clips),
        window,
        hop,
        window=torch.hann_window(window),
        center=False,
        return_complex=True,
    ).abs()
    norms = spectra.norm(dim=1)
    steps = (spectra[:, :, 1:] - spectra[:, :, :-1]).norm(dim=1)
    flux = steps / (norms[:, 1:] + norms[:, :-1]).clamp(min=1e-9)
    energy = spectra.square().sum(1)[:, 1:]
    return Loudness(*(one.unfold(1, WIDTH, 1).mean(-1).numpy() for one in (energy, flux)), hop=hop)


def ratios(values: np.ndarray, places: Sequence[int], reach: int) -> np.ndarray:
    """Log of `values` `[B, T]` at places over the median of `reach` to both sides, `[B, places]`."""
    found = []
    for place in places:
        beside = [*range(max(0, place - reach), place - WIDTH)]
        beside += range(place + WIDTH + 1, min(values.shape[1], place + reach))
        # Silence has no ratio; it lies alike on both sides.
        floor = 1e-9 * max(float(values.max()), 1e-9)
        found.append(np.log(values[:, place] + floor) - np.log(np.median(values[:, beside], axis=1) + floor))
    return np.stack(found, axis=1)


def seam_cells(values: np.ndarray, joints: Sequence[int], spacing: int, *, dips: bool) -> list[str]:
    """The median at joints over that beside them with its interval, medians at random places, and what
    follows; `dips` says whether a low value is a seam, too."""
    reach = spacing // 2
    at_joints = ratios(values, joints, reach)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(at_joints), (NUM_RANDOM, len(at_joints)))
    resampled = np.array([np.median(at_joints[rows]) for rows in drawn])
    value = float(np.median(at_joints))
    interval = centred_interval(value, resampled, len(at_joints))
    assert interval is not None
    shifts = rng.choice([-1, 1], NUM_RANDOM) * rng.integers(2 * WIDTH, reach, NUM_RANDOM)
    elsewhere = [
        np.median(ratios(values, [place + shift for place in joints], reach)) for shift in shifts.tolist()
    ]
    low, high = np.quantile(elsewhere, [0.025, 0.975])
    none = interval.low <= 0.0 <= interval.high or (value <= high and (value >= low or not dips))
    return [
        f"{math.exp(value):.2f} ({math.exp(interval.low):.2f} … {math.exp(interval.high):.2f})",
        f"{math.exp(low):.2f} … {math.exp(high):.2f}",
        "no" if none else "yes",
    ]


def pasted(clips: np.ndarray, spacing: int) -> np.ndarray:
    """Clips `[B, N]` whose part k is that of the clip k further on: what seams would be."""
    parts = np.array_split(clips, range(spacing, clips.shape[1], spacing), axis=1)
    return np.concatenate([np.roll(part, -k, axis=0) for k, part in enumerate(parts)], axis=1)


def seam_rows(run: Run, num_clips: int, times: int) -> list[list[str]]:
    """Energy and flux, of the model's clips and of pasted ones."""
    model, rate = run.model, run.codec.sample_rate
    window = model.config.num_frames
    if isinstance(model.generator, MusikaGenerator):  # as `gan/clips.py` cuts them
        step = model.generator.lowest_frames
        window = -(-window // step) * step
    spacing = round(window / model.config.codec_info.frame_rate * rate)
    given = run.encoded(run.filled({}, num_clips, seed=3))
    clips = run.heard(given, num_clips, times * spacing / rate)
    rows = []
    for name, one in ((run.folder.name, clips), (f"{run.folder.name}, pasted", pasted(clips, spacing))):
        found = loudness(one, rate)
        joints = [found.place(k * spacing) for k in range(1, times)]
        for what, values in (("energy", found.energy), ("flux", found.flux)):
            cells = seam_cells(values, joints, spacing // found.hop, dips=what == "energy")
            rows.append([name, what, f"{num_clips} × {times * spacing / rate:.3g} s", *cells])
    return rows


# ----------------------------------------------------------------------------------------------------- main


def speed_of(gansynth: Run, wavenet: Path, num_rounds: int) -> str:
    """The table of two trained models."""
    lm = load_lm(str(wavenet / "model"))
    return speed_table(
        "trained here",
        [of_gansynth(gansynth.model, size) for size in (1, 8, 64)],
        [of_wavenet(lm, 1, 1.0), of_wavenet(lm, 16, 0.25)],
        num_rounds,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs that are done")
    parser.add_argument("--clips", type=int, default=64, help="for each number")
    parser.add_argument("--pitch-clips", type=int, default=5, help="of each pitch")
    parser.add_argument("--long-clips", type=int, default=32, help="in which seams are looked for")
    parser.add_argument("--times", type=int, default=4, help="lengths of training that those are long")
    parser.add_argument("--speed-rounds", type=int, default=3, help="0: speed is not measured")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    runs = [load_run(one) for one in args.runs if kind_of(str(one)) == KIND]
    wavenets = [one for one in args.runs if isinstance(recipe_of(one).model, WaveNetModel)]
    parts = []
    pitched = [one for one in runs if "pitch" in one.model.config.conditions.names]
    if pitched:
        heads = ["pitch", "values", "clips", "right", "but for octaves", "worst"]
        parts.append(table(heads, [pitch_row(one, args.pitch_clips) for one in pitched]))
    told = [one for one in runs if one.numbers]
    if told:
        heads = ["rank correlation", "of", f"alone, {args.clips} clips", "random weights"]
        heads += ["as held-out clips", "clips"]
        parts.append(table(heads, [row for one in told for row in number_rows(one, args.clips)]))
    long = [one for one in runs if one.model.generator.has_any_length]
    if long:
        heads = ["joints over elsewhere", "of", "clips", "ratio", "at random places", "seams"]
        rows = [row for one in long for row in seam_rows(one, args.long_clips, args.times)]
        parts.append(table(heads, rows))
    gansynth = next((one for one in runs if isinstance(one.model.config.section, GanSynthModel)), None)
    if gansynth is not None and wavenets and args.speed_rounds:
        parts.append(speed_of(gansynth, wavenets[0], args.speed_rounds))
    text = "\n".join(parts)
    if args.out is not None:
        write_text(args.out, text)
    print(text)


if __name__ == "__main__":
    main()
