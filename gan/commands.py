"""`tokkata generate MODEL` and `tokkata interpolate` for adversarial models.

What a command needs is imported when it runs: `tokkata --help` waits for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..core.conditions import GivenConditions
    from ..tokenize.codec import Codec
    from .gan_model import GanModel

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="An adversarial model: a folder, or user/model on the Hub."),
]
FromSeed = Annotated[int, typer.Option("--from", metavar="SEED", help="Where the first clip is.")]
ToSeed = Annotated[int, typer.Option("--to", metavar="SEED", help="Where the last clip is.")]
NumSteps = Annotated[int, typer.Option("--steps", min=2, metavar="N", help="Clips, both ends included.")]


def generate_from_model(
    source: str,
    *,
    num: int | None = None,
    duration: float | None = None,
    out: Path | None = None,
    seed: int | None = None,
    label: Sequence[str] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    stream: bool = False,
) -> Path:
    """Make clips by the model `source`; returns the folder of the wavs and `samples.jsonl`.

    The arguments are the command's options. Raises `UserError` for what is missing or does not fit together.
    """
    from ..core.output_folder import new_folder
    from .clips import Clips, grows, write_clips

    folder = new_folder(out, source)
    made_by = _load(source, device)
    model = made_by.model
    if stream and not grows(model):
        raise UserError(
            f"{source} is a {model.config.section.kind}, which makes a clip at once: leave out --stream"
        )
    duration = _duration(model, duration)
    seed = 0 if seed is None else seed
    asked = _ask(model, label or (), num, seed)
    elapsed_s = write_clips(
        folder,
        model,
        made_by.codec,
        Clips(asked.notes, duration, asked.given),
        seed=seed,
        batch_size=batch_size or 8,
        heard=_say_heard if stream else None,
    )
    count = len(asked.notes)
    _say(
        f"{count} clip{'s' if count > 1 else ''} of {duration:g} s in {elapsed_s:.1f} s"
        f" ({count * duration / elapsed_s:.2g} × real time): {folder}"
    )
    return folder


def interpolate(
    source: ModelName,
    from_seed: FromSeed = 0,
    to_seed: ToSeed = 1,
    steps: NumSteps = 8,
    duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Of each clip. Default: what the model was trained on."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="For all clips.")
    ] = None,
    pitch: Annotated[str | None, typer.Option(metavar="N", help="Short for --label pitch=N.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new or empty folder. Default: generated/MODEL-001, -002, …"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda|…", help="Default: an accelerator, if there is one.")
    ] = None,
) -> None:
    """Walk from the noise of one clip to that of another, with the same conditions: to hear and to see.

    Writes a wav file a step, all.wav with one after another, and interpolation.png.
    """
    from ..core.output_folder import new_folder
    from .interpolate import write_walk

    folder = new_folder(out, source)
    made_by = _load(source, device)
    labels = [*(label or []), *([f"pitch={pitch}"] if pitch else [])]
    asked = _ask(made_by.model, labels, 1, from_seed)
    write_walk(
        folder,
        made_by.model,
        made_by.codec,
        asked.notes[0],
        asked.given,
        _duration(made_by.model, duration),
        from_seed,
        to_seed,
        steps,
    )
    _say(f"{steps} clips from seed {from_seed} to seed {to_seed}: {folder}")


@dataclass(frozen=True)
class _MadeBy:
    model: GanModel
    codec: Codec


def _load(source: str, device: str | None) -> _MadeBy:
    from ..core.device import best_device, device_named
    from ..core.progress import hide_library_bars
    from ..tokenize.fast_codec import fast
    from .load import codec_of, load_gan

    hide_library_bars()
    where = device_named(device) if device else best_device()
    model = load_gan(source, device=where)
    return _MadeBy(model, fast(codec_of(model, where)))


@dataclass(frozen=True)
class _Asked:
    notes: list[dict[str, Any]]
    given: GivenConditions


def _ask(model: GanModel, label: Sequence[str], num: int | None, seed: int) -> _Asked:
    """What clips are told: what is said, and what an example adds."""
    import torch
    from torch import Tensor

    from ..tokenize.features.told import told_by_options
    from .conditions.examples import fill_in

    conditions = model.config.conditions
    told = told_by_options(conditions, label, (), (), None, None)
    num = told.num_clips if num is None else num
    inputs = told.inputs(conditions, num, 0.0, torch.device("cpu"))
    filled = fill_in(conditions, model.config.examples, inputs, num, seed=seed)
    notes = [
        {
            "labels": {
                name: values[clip]
                for name, values in filled.inputs.items()
                if not isinstance(values[clip], Tensor)
            }
        }
        | ({} if filled.sources[clip] is None else {"source_id": filled.sources[clip]})
        for clip in range(num)
    ]
    return _Asked(notes, conditions.encode(filled.inputs) if filled.inputs else {})


def _duration(model: GanModel, duration: float | None) -> float:
    """In seconds; by default that of training."""
    if duration is None:
        return model.config.duration_s
    if duration <= 0:
        raise UserError(f"--duration {duration:g} must be positive")
    return duration


def _say_heard(path: Path, after_s: float) -> None:
    _say(f"first audio after {after_s:.2f} s: {path} grows")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
