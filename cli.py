"""The command `tokkata`."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from .core.errors import UserError
from .core.files import read_jsonl
from .core.launcher import ASKED_FOR
from .core.progress import hide_library_bars
from .core.recipe import load_recipe
from .core.run import StageState, run_stage, stage_states
from .core.schema import Recipe
from .core.several_values import SeveralValues
from .diffusion import commands as diffusion_commands
from .eval.compare_commands import (
    CacheFolder,
    EmbeddingNames,
    Threads,
    compare_folders,
    refuse_recipe_options,
    stats_app,
)
from .eval.fidelity.commands import RECIPE_SUFFIXES, eval_codecs
from .eval.listening.commands import listen_app
from .gan import commands as gan_commands
from .lm import commands as lm_commands
from .tokenize.commands import codec_sample, data_app, tokens_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Music from audio: codec tokens, language models, generation and scores, from one recipe.",
)
codec_app = typer.Typer(no_args_is_help=True, help="Train and measure codecs, and sample from VAEs.")
codec_app.command(name="sample")(codec_sample)
app.add_typer(codec_app, name="codec")
app.add_typer(tokens_app, name="tokens")
app.add_typer(data_app, name="data")
app.add_typer(listen_app, name="listen")
app.add_typer(stats_app, name="stats")

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A YAML recipe, such as recipes/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as train.steps=200."),
]


@app.command()
def run(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    stages: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Only these stages: tokenize,train or tokenize train."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, and why, and stop.")
    ] = False,
    launcher: Annotated[
        str,
        typer.Option(
            metavar="COMMAND",
            help="What starts the stage train, such as 'accelerate launch' or 'torchrun --nproc_per_node 2'.",
        ),
    ] = "",
) -> None:
    """Run a recipe from audio to report; the same command again resumes.

    Each stage is printed as the command that it is, and can be run by itself.
    """
    settings, wanted = _told_apart(overrides or [], stages or [])
    recipe = load_recipe(recipe_path, settings)
    states = stage_states(recipe)
    names = [state.stage.name for state in states]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"no stage '{unknown[0]}': this recipe has {', '.join(names)}")
    # A dry run's lines are its result, and a shell script.
    say = print if dry_run else _say
    started = False
    for state in states:
        if wanted and state.stage.name not in wanted:
            continue
        if state.state == "done":
            say(f"# {state.stage.name}: already done")
            continue
        command = _command(state, recipe_path, settings, launcher)
        say(f"# {state.stage.name}" + (f": {state.why}" if state.why else ""))
        say(shlex.join(command))
        if not dry_run:
            _start(state.stage.name, command, launcher if state.stage.name == "train" else "")
            started = True
    if not dry_run:
        _say_outcome(recipe, states, started)


def _told_apart(words: list[str], stages: list[str]) -> tuple[list[str], list[str]]:
    """The settings, and the names of stages."""
    # In `--stages tokenize train` only the first name belongs to the option.
    names = [word for word in words if "=" not in word] if stages else []
    wanted = [name for word in [*stages, *names] for name in word.split(",")]
    return [word for word in words if word not in names], wanted


def _command(state: StageState, recipe_path: Path, overrides: list[str], launcher: str) -> list[str]:
    starter = shlex.split(launcher) if launcher and state.stage.name == "train" else [sys.executable]
    return [*starter, "-m", state.stage.module, str(recipe_path), *overrides]


def _start(name: str, command: list[str], launcher: str) -> None:
    """Run a stage in a process of its own; SIGTERM is passed on, so that it can save a checkpoint."""
    try:
        process = subprocess.Popen(command, env=os.environ | {ASKED_FOR: launcher})
    except OSError as error:
        raise UserError(f"'{command[0]}' cannot be started: {error.strerror}") from error

    def pass_on(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # which the terminal has sent to the stage too
        process.wait()
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code < 0:
        _say(f"{name}: ended by {signal.Signals(-code).name}; to resume, run the same command again")
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


def _say_outcome(recipe: Recipe, states: list[StageState], started: bool) -> None:
    for output in states[0].stage.outputs:
        rejects = recipe.folder / output / "rejects.jsonl"
        if rejects.exists() and (count := len(read_jsonl(rejects))):
            _say(f"rejected clips: {count}, each with its reason in {rejects}")
    report = recipe.folder / "eval" / "report.html"
    if not started and states[-1].state == "done" and report.exists():
        _say(f"report: {report.resolve()}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run_one(name: str, recipe_path: Path, overrides: list[str] | None) -> None:
    recipe = load_recipe(recipe_path, overrides or [])
    for state in stage_states(recipe):
        if state.stage.name == name:
            module = importlib.import_module(state.stage.module)
            hide_library_bars()
            run_stage(recipe, name, getattr(module, state.stage.function))
            return
    raise UserError(f"a run with model '{recipe.model.kind}' has no stage '{name}'")


@app.command()
def tokenize(recipe_path: RecipePath, overrides: Overrides = None) -> None:
    """Encode the audio of a recipe into tokens."""
    _run_one("tokenize", recipe_path, overrides)


@app.command()
def prepare(recipe_path: RecipePath, overrides: Overrides = None) -> None:
    """Write what a recipe's training needs beside tokens, where it needs anything: a codec's audio, say."""
    _run_one("prepare", recipe_path, overrides)


@app.command()
def train(recipe_path: RecipePath, overrides: Overrides = None) -> None:
    """Train the model of a recipe on its tokens, in this process."""
    _run_one("train", recipe_path, overrides)


@app.command()
def generate(
    source: lm_commands.Source,
    overrides: Overrides = None,
    num: lm_commands.Num = None,
    duration: lm_commands.Duration = None,
    out: lm_commands.Out = None,
    seed: lm_commands.Seed = None,
    temperature: lm_commands.Temperature = None,
    top_k: lm_commands.TopK = None,
    top_p: lm_commands.TopP = None,
    cfg_scale: lm_commands.CfgScale = None,
    weights: lm_commands.WeightsFormat = None,
    assumed_noise: lm_commands.AssumedNoise = None,
    label: lm_commands.LabelValues = None,
    pitch: lm_commands.Pitches = None,
    tags: lm_commands.TagSets = None,
    text: lm_commands.Texts = None,
    melody: lm_commands.Melody = None,
    style: lm_commands.Style = None,
    prompt: lm_commands.Prompt = None,
    prompt_seconds: lm_commands.PromptSeconds = None,
    overlap: lm_commands.Overlap = None,
    batch_size: lm_commands.BatchSize = None,
    device: lm_commands.DeviceName = None,
    stream: lm_commands.Stream = False,
    steps: diffusion_commands.Steps = None,
    sampler: diffusion_commands.SamplerName = None,
    init_audio: diffusion_commands.InitAudio = None,
    strength: diffusion_commands.Strength = None,
    inpaint: diffusion_commands.Inpaint = None,
) -> None:
    """Generate audio: from the trained model of a recipe, or from any model here or on the Hub.

    A model: tokkata generate user/model --num 8 --duration 30 --label pitch=60 --out DIR
    """
    of_all: dict[str, Any] = {
        "num": num,
        "duration": duration,
        "out": out,
        "seed": seed,
        "label": label,
        "batch_size": batch_size,
        "device": device,
    }
    guided: dict[str, Any] = {
        "cfg_scale": cfg_scale,
        "tags": tags,
        "text": text,
        "melody": melody,
        "style": style,
        "overlap": overlap,
    }
    of_tokens: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "weights": weights,
        "assumed_noise": assumed_noise,
        "prompt": prompt,
        "prompt_seconds": prompt_seconds,
    }
    of_latents: dict[str, Any] = {
        "steps": steps,
        "sampler": sampler,
        "init_audio": init_audio,
        "strength": strength,
        "inpaint": inpaint,
    }
    if lm_commands.is_recipe(source):
        lm_commands.refuse_model_options(
            of_all | {"pitch": pitch} | guided | of_tokens | {"stream": stream} | of_latents
        )
        _run_one("generate", Path(source), overrides)
        return
    if overrides:
        raise UserError(f"{overrides[0]}: settings change recipes; {source} is a model, see its options")
    of_all["label"] = lm_commands.labels_with_pitch(label, pitch)
    family = lm_commands.family_of(source)
    why = f"{source} is {'an' if family[0] in 'aeiou' else 'a'} {family}"
    if family == "diffusion model":
        lm_commands.refuse_options(of_tokens | {"stream": stream}, why)
        diffusion_commands.generate_from_model(source, **of_all, **guided, **of_latents)
    elif family == "adversarial model":
        lm_commands.refuse_options(guided | of_tokens | of_latents, why)
        gan_commands.generate_from_model(source, **of_all, stream=stream)
    else:
        lm_commands.refuse_options(of_latents, why)
        lm_commands.generate_from_model(source, **of_all, **guided, **of_tokens, stream=stream)


app.command(name="interpolate")(gan_commands.interpolate)
app.command(name="push")(lm_commands.push)


@app.command(name="eval", cls=SeveralValues)
def evaluate(
    recipe_path: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A YAML recipe, to score what its run generated.")
    ] = None,
    overrides: Overrides = None,
    generated: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DIR", help="Folders of audio to score, one for each system."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|STATS", help="Real audio, or statistics: a file, or OWNER/NAME/FILE on the Hub."
        ),
    ] = None,
    embedding: EmbeddingNames = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="fad, fad-inf, kad, prdc, per-song (default); clap-score; kl, inception-score (default with"
            " --classifier), label-accuracy; tokens; copies.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where scores.json, scores.csv and report.html are written."),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="CODEC",
            help="Also score the reference through this codec, such as pocket; tokens are this codec's.",
        ),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(metavar="ID|DIR", help="Audio classifier of transformers, for scores of labels."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Label in metadata.csv that label-accuracy asks for."),
    ] = None,
    cache: CacheFolder = None,
    players: Annotated[int, typer.Option(min=0, help="Clips of each system to listen to.")] = 12,
    seed: Annotated[int, typer.Option(help="Of resamples, subsets and noise.")] = 0,
    threads: Threads = None,
) -> None:
    """Score what a recipe's run generated, or any folders of audio, and write the report.

    Folders: tokkata eval --generated a=DIR b=DIR --reference DIR --embedding logmel pocket --out DIR
    """
    if generated:
        if recipe_path is not None:
            raise UserError(f"give a recipe ({recipe_path}) or --generated, not both")
        compare_folders(
            generated=generated,
            reference=reference,
            embedding=embedding or [],
            metrics=metrics or [],
            out=out,
            cache=cache,
            codec=codec,
            classifier=classifier,
            label=label,
            players=players,
            seed=seed,
            threads=threads,
        )
        return
    if recipe_path is None:
        raise UserError("nothing to score: give a recipe, or --generated DIR --reference DIR --out DIR")
    refuse_recipe_options(
        {
            "reference": reference,
            "embedding": embedding,
            "metrics": metrics,
            "out": out,
            "codec": codec,
            "classifier": classifier,
            "label": label,
            "cache": cache,
        }
    )
    _run_one("eval", recipe_path, overrides)


@codec_app.command(name="train")
def codec_train(recipe_path: RecipePath, overrides: Overrides = None) -> None:
    """Prepare the audio of a codec's recipe and train the codec."""
    _run_one("prepare", recipe_path, overrides)
    _run_one("train", recipe_path, overrides)


@codec_app.command(name="eval", cls=SeveralValues)
def codec_eval(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CODEC…|RECIPE [KEY=VALUE…]",
            help="Codecs, [NAME=]CODEC[@KBPS][#CODEBOOKS], with --data; or the recipe of a trained codec.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|RECIPE", help="A folder of audio, or a recipe, for its corpus' split eval.reference."
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the Fréchet distance: logmel (default), vggish, clap, codec:ID, …"
        ),
    ] = None,
    max_clips: Annotated[
        int | None, typer.Option(min=1, help="At most so many clips, random ones. Default: 256.")
    ] = None,
    players: Annotated[
        int | None, typer.Option(min=0, help="Clips to listen to on the page. Default: 8.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the choice of clips. Default: 0.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where scores.json and report.html are written.")
    ] = None,
) -> None:
    """Measure how codecs reconstruct audio, beside Opus.

    Any codecs: tokkata codec eval pocket dac:44khz mine=runs/codec/model --data DIR --out DIR
    """
    if data is not None:
        eval_codecs(
            words,
            data=data,
            embedding=embedding or "logmel",
            max_clips=256 if max_clips is None else max_clips,
            players=8 if players is None else players,
            seed=seed or 0,
            out=out,
        )
        return
    if not words[0].endswith(RECIPE_SUFFIXES):
        raise UserError(f"what is {words[0]} to be measured on? Give --data DIR, a folder of audio")
    options = {"embedding": embedding, "max-clips": max_clips, "players": players, "seed": seed, "out": out}
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} is for --data: a recipe says itself how it is scored")
    _run_one("eval", Path(words[0]), words[1:])


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, without a traceback."""
    try:
        app()
    except UserError as error:
        error.end_process()


if __name__ == "__main__":  # for launchers: torchrun --nproc_per_node 2 -m tokkata.cli eval …
    main()
