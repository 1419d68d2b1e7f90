"""`tokkata generate MODEL` for diffusion models.

What a command needs is imported when it runs: `tokkata --help` waits for nothing.

Shapes: D latent width, T frames.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from ..core.errors import UserError
from ..core.schema_generate import Sampler

if TYPE_CHECKING:
    from ..tokenize.codec import Codec
    from .diffusion_model import DiffusionModel
    from .generate import From

Steps = Annotated[
    int | None,
    typer.Option(metavar="N", help="Of a diffusion model: steps from noise. Default: 50; distilled, 4."),
]
SamplerName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Of a diffusion model: ddpm, ddim, dpm++2m, dpm++2m-sde, euler, heun or consistency.",
    ),
]
InitAudio = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Of a diffusion model: a recording to vary or fill in.")
]
Strength = Annotated[
    float | None,
    typer.Option(help="How far from --init-audio: near 0 little is changed, 1 is all new. Default: 0.7."),
]
Inpaint = Annotated[
    str | None,
    typer.Option(metavar="FROM:TO", help="Make these seconds of --init-audio anew, and keep the rest."),
]

_STRENGTH = 0.7


def generate_from_model(
    source: str,
    *,
    num: int | None = None,
    duration: float | None = None,
    out: Path | None = None,
    seed: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    cfg_scale: float | None = None,
    label: Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
    text: Sequence[str] | None = None,
    melody: Path | None = None,
    style: Path | None = None,
    init_audio: Path | None = None,
    strength: float | None = None,
    inpaint: str | None = None,
    overlap: float | None = None,
    batch_size: int | None = None,
    device: str | None = None,
) -> Path:
    """Generate clips from the model `source`; returns the folder of the wavs and `samples.jsonl`.

    The arguments are the command's options. Raises `UserError` for what is missing or does not fit together.
    """
    from ..core.device import best_device, device_named
    from ..core.output_folder import new_folder
    from ..core.progress import hide_library_bars
    from ..tokenize.fast_codec import fast
    from ..tokenize.features.told import told_by_options
    from .clips import Clips, write_clips
    from .generate import Settings
    from .load import codec_of, load_diffusion
    from .sampler import usual_steps

    known = get_args(Sampler)
    if sampler not in (None, *known):
        raise UserError(f"--sampler {sampler}: choose {', '.join(known)}")
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps}: at least 1 is needed")
    if duration is not None and duration <= 0:
        raise UserError(f"--duration {duration:g} must be positive")
    for option, value in (("strength", strength), ("inpaint", inpaint)):
        if value is not None and init_audio is None:
            raise UserError(f"--{option} says what becomes of --init-audio FILE: give that too")
    if strength is not None and inpaint is not None:
        raise UserError("--strength varies all of --init-audio and --inpaint a part: give one of them")
    folder = new_folder(out, source)
    hide_library_bars()
    where = device_named(device) if device else best_device()
    model = load_diffusion(source, device=where)
    conditions = model.config.conditions
    told = told_by_options(conditions, label or (), tags or (), text or (), melody, style)
    num = told.num_clips if num is None else num
    notes = told.notes(conditions, num)
    codec = fast(codec_of(model, where))
    window_s = model.network.max_frames / model.config.frame_rate
    begin = None
    if init_audio is not None:
        begin, duration = encode_init_audio(init_audio, model, codec, duration, strength, inpaint)
        told_of_audio = {"init_audio": str(init_audio)} | (
            {"inpaint": inpaint} if inpaint else {"strength": begin.strength}
        )
        notes = [note | told_of_audio for note in notes]
    if duration is None:
        duration = window_s
    if overlap is None and round(duration * model.config.frame_rate) > model.network.max_frames:
        raise UserError(
            f"{duration:g} s are more than the {window_s:g} s that this model was trained on: lower"
            " --duration, or say --overlap SECONDS for windows that overlap"
        )
    inputs = told.inputs(conditions, num, min(duration, window_s), where)
    for name, number in (("seconds_start", 0.0), ("seconds_total", duration)):
        if name in conditions.by_name and name not in inputs:
            maximum = conditions[name].maximum
            inputs[name] = [number if maximum is None else min(number, maximum)] * num
    settings = Settings(
        usual_steps(model.objective) if steps is None else steps,
        cast("Sampler | None", sampler),
        1.0 if cfg_scale is None else cfg_scale,
    )
    elapsed_s = write_clips(
        folder,
        model,
        codec,
        Clips(notes, duration, conditions.encode(inputs, partial=True) if inputs else {}, begin),
        settings,
        seed=0 if seed is None else seed,
        batch_size=batch_size or 8,
        overlap_s=overlap,
    )
    print(
        f"{num} clip{'s' if num > 1 else ''} of {duration:g} s in {elapsed_s:.1f} s"
        f" ({num * duration / elapsed_s:.2g} × real time): {folder}",
        file=sys.stderr,
        flush=True,
    )
    return folder


def encode_init_audio(
    path: Path,
    model: DiffusionModel,
    codec: Codec,
    duration: float | None,
    strength: float | None,
    inpaint: str | None,
) -> tuple[From, float]:
    """A recording as the latents to begin from, and the clips' length in seconds.

    Raises `UserError` for a file that cannot be read, one that is too short, and a part outside the clip.
    """
    import torch
    import torch.nn.functional as F

    from ..tokenize.features.told import load_recording
    from ..tokenize.latent_coding import latent_coding
    from .generate import From

    samples = torch.from_numpy(load_recording(path, codec.sample_rate, codec.channels, "init-audio"))
    recorded_s = samples.shape[1] / codec.sample_rate
    duration = recorded_s if duration is None else duration
    rate = model.config.frame_rate
    num_samples = round(duration * codec.sample_rate)
    num_frames = codec.num_frames(num_samples)
    known = None
    needed_s = duration
    if inpaint is not None:
        first_s, last_s = _range(inpaint, duration)
        known = torch.ones(num_frames, dtype=torch.bool)
        known[int(first_s * rate) : max(int(first_s * rate) + 1, round(last_s * rate))] = False
        needed_s = duration if bool(known[-1]) else first_s
    if recorded_s < needed_s - 1 / rate:
        raise UserError(
            f"--init-audio: {path} lasts {recorded_s:.3g} s, and {needed_s:.3g} s of it are needed: lower"
            " --duration, or give a longer recording"
        )
    audio = F.pad(samples, (0, max(0, num_samples - samples.shape[1])))[None, :, :num_samples]
    latents = latent_coding(codec, model.config.codec_info.latents).encode(audio.to(codec.device))[0]
    given = 1.0 if inpaint is not None else _STRENGTH if strength is None else strength
    return From(latents, given, known), duration


def _range(text: str, duration: float) -> tuple[float, float]:
    first, colon, last = text.partition(":")
    try:
        found = (float(first), float(last))
    except ValueError as error:
        raise UserError(f"--inpaint {text}: FROM:TO in seconds is needed, such as 2.0:4.0") from error
    if not (colon and 0 <= found[0] < found[1] <= duration + 1e-6):
        raise UserError(f"--inpaint {text} lies outside the clip, which is from 0 to {duration:.3g} s")
    return found
