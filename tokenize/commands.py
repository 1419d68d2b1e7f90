"""`tokkata data …`, `tokkata tokens …` and `tokkata codec sample` on the command line.

What a command needs is imported when it runs: `tokkata --help` waits for nothing.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from ..core.errors import UserError
from ..core.sections import Split

data_app = typer.Typer(no_args_is_help=True, help="Get and check research datasets.")
tokens_app = typer.Typer(no_args_is_help=True, help="Look into token stores, check and publish them.")


@data_app.command(name="get")
def data_get(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="nsynth, musicnet, maestro or magnatagatune.")],
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="The folder to download and unpack into.")],
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the archives after they are unpacked.")
    ] = False,
) -> None:
    """Download a dataset from its official address, check and unpack it; the same command again resumes."""
    from .corpora.dataset_facts import DATASETS
    from .corpora.download import get_dataset

    if kind not in DATASETS:
        raise UserError(f"no dataset '{kind}': there are {', '.join(DATASETS)}")
    facts = DATASETS[kind]
    print(f"{facts.name}: {facts.licence}, {facts.homepage}", file=sys.stderr)
    get_dataset(facts, to, keep_archives=keep_archives)
    check = shlex.join(["tokkata", "data", "check", kind, str(to)])
    print(f"{facts.name} is in {to}; whether it is complete says: {check}", file=sys.stderr)


@data_app.command(name="check")
def data_check(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="nsynth, gtzan, musicnet, maestro or magnatagatune."),
    ],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="The folder that the dataset was unpacked into.")
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every file to its end instead of opening its header.")
    ] = False,
) -> None:
    """Say whether a dataset is complete: missing, damaged and unlisted files, counts and hours, its licence.

    The exit code is 0 if it is complete, 1 if it is usable but incomplete, 2 if it is unusable.
    """
    from .corpora.check import check_corpus

    report = check_corpus(kind, path, deep)
    print(report.text())
    raise typer.Exit(report.exit_code)


StorePath = Annotated[
    Path, typer.Argument(metavar="PATH", help="A token store, such as runs/quickstart/tokens.")
]


@tokens_app.command(name="info")
def tokens_info(
    path: StorePath,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw how often each code occurs, as a PNG file.")
    ] = None,
) -> None:
    """Say what a store holds: clips, hours, bitrate, how evenly the codebooks are used."""
    from .token_summary import as_text, draw_histogram, summarise

    summary = summarise(path)
    if picture:
        draw_histogram(summary, picture)
    print(as_text(summary))


@tokens_app.command(name="decode")
def tokens_decode(
    path: StorePath,
    to: Annotated[Path, typer.Option(help="Folder that the wav files go to.")],
    id: Annotated[list[str] | None, typer.Option(help="A clip's id; may be given several times.")] = None,
    split: Annotated[str | None, typer.Option(help="Only clips of train, valid or test.")] = None,
    num: Annotated[int, typer.Option(min=1, help="How many clips, unless ids are given.")] = 8,
    window_s: Annotated[float, typer.Option(min=0.1, help="Long clips are decoded in such windows.")] = 20.0,
) -> None:
    """Decode clips of a store to wav files."""
    from .decode import decode_rows

    if split not in (None, *get_args(Split)):
        raise UserError(f"there is no split '{split}': there are {', '.join(get_args(Split))}")
    written = decode_rows(
        path, to, ids=id or [], split=cast("Split | None", split), num_clips=num, window_s=window_s
    )
    print(*written, sep="\n")


@tokens_app.command(name="verify")
def tokens_verify(path: StorePath) -> None:
    """Compare every file of a store with its checksum, and every row with codec.json."""
    from .verify import faults_of_store

    faults = faults_of_store(path)
    print(*(faults or [f"{path}: every file and every row is as it was written"]), sep="\n")
    raise typer.Exit(1 if faults else 0)


@tokens_app.command(name="push")
def tokens_push(
    path: StorePath,
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The dataset on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it visible to you alone.")] = False,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the audio, where the corpus does not tell: cc-by-4.0, …")
    ] = None,
) -> None:
    """Publish a store as a dataset on the Hugging Face Hub, with a card that carries the source's licence."""
    from .publish import push_to_hub

    print(push_to_hub(path, repository, private=private, licence=licence))


def codec_sample(
    codec: Annotated[
        str,
        typer.Argument(metavar="CODEC", help="A VAE: a folder such as runs/vae-pocket/model, or a hub id."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that the wav files go to.")],
    num: Annotated[int, typer.Option(min=1, help="Clips.")] = 4,
    duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.01, help="Of each clip. Default: 2; a note's of a mel_vae."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Standard deviation of the latents; 0: always the prior's mean.")
    ] = 1.0,
) -> None:
    """Sample latents from a VAE's prior, z from N(0, I), and decode them."""
    from .sample_prior import sample_prior

    written = sample_prior(codec, out, num_clips=num, duration_s=duration, seed=seed, temperature=temperature)
    print(*written, sep="\n")
