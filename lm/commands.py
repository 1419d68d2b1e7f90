"""`tokkata generate MODEL` and `tokkata push` on the command line.

What a command needs is imported when it runs: `tokkata --help` waits for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import typer

from ..core.errors import UserError

Source = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|MODEL",
        help="A YAML recipe; or a model: a folder such as runs/quickstart/model, or user/model on the Hub.",
    ),
]
Num = Annotated[
    int | None, typer.Option(min=1, help="Clips. Default: one for each text or value given, or 1.")
]
Duration = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Of each clip, prompt included. Default: what the model was trained on."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A new or empty folder. Default: generated/MODEL-001, -002, …"),
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same clips. Default: 0.")]
Temperature = Annotated[float | None, typer.Option(help="0 always takes the likeliest token. Default: 1.")]
TopK = Annotated[
    int | None, typer.Option(help="Sample among this many likeliest tokens; 0: no limit. Default: 250.")
]
TopP = Annotated[
    float | None, typer.Option(help="Sample among the likeliest tokens that together have this probability.")
]
CfgScale = Annotated[
    float | None, typer.Option(help="How much to insist on what is told; 1 (the default) costs half.")
]
WeightsFormat = Annotated[
    str | None, typer.Option(metavar="fp32|bf16|int8", help="Weights as they are read. Default: fp32.")
]
AssumedNoise = Annotated[
    float | None,
    typer.Option(
        metavar="CLASSES",
        help="How noisy a model with tell_noise takes its own samples to be. Default: half of the most.",
    ),
]
LabelValues = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE[,VALUE…]", help="For all clips, or one a clip in turn."),
]
Pitches = Annotated[
    str | None, typer.Option("--pitch", metavar="N[,N…]", help="Short for --label pitch=N[,N…].")
]
TagSets = Annotated[
    list[str] | None, typer.Option("--tags", metavar="NAME=TAG[,TAG…]", help="Given again: a clip each.")
]
Texts = Annotated[list[str] | None, typer.Option("--text", help="Given again: a clip each, in turn.")]
Melody = Annotated[Path | None, typer.Option(metavar="FILE", help="A recording whose melody is followed.")]
Style = Annotated[Path | None, typer.Option(metavar="FILE", help="A recording whose sound is taken.")]
Prompt = Annotated[Path | None, typer.Option(metavar="FILE", help="A recording that each clip goes on from.")]
PromptSeconds = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="How much of the prompt's beginning is taken. Default: all."),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="What a window of long clips has of the one before. Default: 2/5 of it."
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Clips generated at once. Default: 8; 1 with --stream.")
]
DeviceName = Annotated[
    str | None, typer.Option(metavar="cpu|cuda|…", help="Default: an accelerator, if there is one.")
]
Stream = Annotated[
    bool, typer.Option("--stream", help="Write each clip while it is generated, in constant memory.")
]


def is_recipe(source: str) -> bool:
    """Whether `source` names a recipe, and not a model."""
    return Path(source).suffix in (".yaml", ".yml") or Path(source).is_file()


def family_of(source: str) -> Literal["language model", "diffusion model", "adversarial model"]:
    """What the model `source` is, by the kind in its configuration; raises `UserError` if there is no model.

    What is of no known kind counts as a language model, whose loading says what is wrong.
    """
    from ..core.saved_model import kind_of

    kind = kind_of(source)
    if kind == "diffusion":
        return "diffusion model"
    return "adversarial model" if kind == "gan" else "language model"


def refuse_model_options(options: Mapping[str, Any]) -> None:
    """Raise `UserError` if options that are for models are given beside a recipe."""
    if given := _given(options):
        raise UserError(
            f"{', '.join(given)}: for a model; what a recipe generates is said in its section generate, as in"
            " generate.num_clips=8"
        )


def refuse_options(options: Mapping[str, Any], why: str) -> None:
    """Raise `UserError` if options of another family of models are given."""
    if given := _given(options):
        raise UserError(f"{why}, which has no {', '.join(given)}: see tokkata generate --help")


def labels_with_pitch(label: list[str] | None, pitch: str | None) -> list[str] | None:
    """`--pitch N,N` is short for `--label pitch=N,N`."""
    return label if pitch is None else [*(label or []), f"pitch={pitch}"]


def _given(options: Mapping[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, False)]


def generate_from_model(
    source: str,
    *,
    num: int | None = None,
    duration: float | None = None,
    out: Path | None = None,
    seed: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    cfg_scale: float | None = None,
    weights: str | None = None,
    assumed_noise: float | None = None,
    label: Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
    text: Sequence[str] | None = None,
    melody: Path | None = None,
    style: Path | None = None,
    prompt: Path | None = None,
    prompt_seconds: float | None = None,
    overlap: float | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    stream: bool = False,
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
    from .decoders.decoder import Weights
    from .generate import Generator
    from .load import codec_of, load_lm
    from .prompt import encode_prompt
    from .sampling import Sampling
    from .step_models.input_noise import assume_noise

    known = get_args(Weights)
    if weights not in (None, *known):
        raise UserError(f"--weights {weights}: choose {', '.join(known)}")
    if duration is not None and duration <= 0:
        raise UserError(f"--duration {duration:g} must be positive")
    if prompt is None and prompt_seconds is not None:
        raise UserError("--prompt-seconds says how much of --prompt FILE is taken: give that too")
    sampling = Sampling(
        1.0 if temperature is None else temperature,
        250 if top_k is None else top_k or None,
        top_p,
        1.0 if cfg_scale is None else cfg_scale,
    )
    folder = new_folder(out, source)
    hide_library_bars()
    where = device_named(device) if device else best_device()
    lm = load_lm(source, device=where)
    if assumed_noise is not None:
        assume_noise(lm, assumed_noise)
    config = lm.config
    told = told_by_options(config.conditions, label or (), tags or (), text or (), melody, style)
    num = told.num_clips if num is None else num
    notes = told.notes(config.conditions, num)
    codec = fast(codec_of(lm, where))
    if duration is None:
        if config.window_frames is None:
            raise UserError("this model was trained on clips of any length: say --duration SECONDS")
        duration = config.window_frames / config.frame_rate
    num_frames = codec.num_frames(round(duration * codec.sample_rate))
    codes = None
    if prompt is not None:
        beginning = encode_prompt(prompt, codec, config, num_frames, prompt_seconds)
        codes = beginning[None].expand(num, -1, -1)
        prompted = {"prompt": str(prompt), "prompt_s": beginning.shape[1] / config.frame_rate}
        notes = [note | prompted for note in notes]
    heard_s = min(num_frames, config.window_frames or num_frames) / config.frame_rate
    inputs = told.inputs(config.conditions, num, heard_s, where)
    written = write_clips(
        folder,
        Generator(lm, weights=cast("Literal['fp32', 'bf16', 'int8']", weights or "fp32")),
        codec,
        Clips(notes, duration, config.conditions.encode(inputs, partial=True) if inputs else {}, codes),
        sampling,
        seed=0 if seed is None else seed,
        batch_size=batch_size or (1 if stream else 8),
        overlap_s=overlap,
        stream=_say_heard if stream else None,
    )
    _say(
        f"{num} clip{'s' if num > 1 else ''} of {duration:g} s in {written.elapsed_s:.1f} s"
        f" ({written.audio_s / written.elapsed_s:.2g} × real time): {folder}"
    )
    return folder


def _say_heard(path: Path, after_s: float) -> None:
    _say(f"first audio after {after_s:.2f} s: {path} grows")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def push(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|MODEL", help="A run, such as runs/quickstart, or its model.")
    ],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The model on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it visible to you alone.")] = False,
) -> None:
    """Publish a model or a codec on the Hugging Face Hub, with its card and scores.

    `tokkata generate USER/NAME` then needs nothing else; a model goes with a few clips to listen to.
    """
    from ..core.saved_model import model_folder
    from ..tokenize.training.publish import is_codec, push_codec
    from .publish import push_to_hub

    if not source.is_dir():
        raise UserError(f"there is no folder {source}")
    folder = model_folder(source)
    upload = push_codec if is_codec(folder) else push_to_hub
    print(upload(folder, repository, private=private))
