"""`tokkata eval --generated …` and `tokkata stats …` on the command line.

What a command needs is imported when it runs: `tokkata --help` waits for nothing.
"""

from __future__ import annotations

import csv
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UserError
from ..core.several_values import SeveralValues

if TYPE_CHECKING:
    from rich.console import Console

    from .compare import Measured, Result

stats_app = typer.Typer(no_args_is_help=True, help="Statistics of a reference: compute once, share, look.")

CSV_COLUMNS = (
    *("embedding", "set", "role", "score", "value", "low", "high", "level"),
    *("better", "clips", "frames", "note"),
)

CacheFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where embeddings are kept. Default: ~/.cache/tokkata/embeddings."),
]
EmbeddingNames = Annotated[
    list[str] | None,
    typer.Option(metavar="NAMES", help="logmel, pocket, vggish, clap, … One or several. Default: logmel."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads that read audio. Default: one a core, at most 16.")
]


def compare_folders(
    *,
    generated: Sequence[str],
    reference: str | None,
    embedding: Sequence[str],
    metrics: Sequence[str],
    out: Path | None,
    cache: Path | None,
    codec: str | None,
    classifier: str | None,
    label: str | None,
    players: int,
    seed: int,
    threads: int | None,
) -> None:
    """Compare, print the tables, and write scores.json, scores.csv and report.html to `out`.

    Raises `UserError` for what is missing or does not fit together.
    """
    from ..core.files import write_json, write_text
    from ..core.progress import hide_library_bars
    from .compare import COPIES, DEFAULT_METRICS, Request, as_json, compare
    from .compare_report import write_comparison
    from .embedding_cache import default_cache

    if reference is None or out is None:
        missing = "--reference DIR" if reference is None else "--out DIR"
        raise UserError(f"comparing folders needs {missing} besides --generated")
    names = list(metrics) or [*DEFAULT_METRICS, *(("kl", "inception-score") if classifier else ())]
    systems = systems_of(generated)
    cache = cache or default_cache()
    folders = [*systems.values(), *([Path(reference)] if Path(reference).is_dir() else [])]
    for folder in folders:
        for what, target in (("--out", out), ("--cache", cache)):
            check_outside(folder, target, what)
    if COPIES in names and not Path(reference).is_dir():
        raise UserError("copies are searched in audio: give --reference the folder of the training set")
    hide_library_bars()
    request = Request(
        generated=systems,
        reference=reference,
        embeddings=list(embedding) or ["logmel"],
        metrics=names,
        cache=cache,
        codec=codec,
        classifier=classifier,
        label=label,
        seed=seed,
        num_threads=threads,
    )
    compared = compare(request)
    if compared is None:
        return
    copies, sections = {}, {}
    if COPIES in names:
        from .compare_copies import search_copies

        assert compared.reference_folder is not None
        found = search_copies(compared.folders, compared.reference_folder, seed)
        copies = {name: asdict(scores) for name, (scores, _) in found.items()}
        sections = {name: section for name, (_, section) in found.items()}
    print_tables(compared.result)
    for name, scores in copies.items():
        print(f"copies in {name}: {scores['num_flagged']} of {scores['num_generated']} clips flagged")
    write_json(out / "scores.json", as_json({**asdict(compared.result), "copies": copies}))
    write_text(out / "scores.csv", as_csv(compared.result))
    write_comparison(
        out / "report.html",
        compared,
        sections,
        title=" and ".join(systems),
        command=shlex.join(["tokkata", *sys.argv[1:]]),
        num_players=players,
    )
    print(f"Look and listen: {out / 'report.html'}")


def systems_of(words: Sequence[str]) -> dict[str, Path]:
    """The folder of each system, of `DIR` or `name=DIR`; raises `UserError` for two of one name."""
    from .compare_sets import FLOOR, NOISE, RECONSTRUCTED

    systems: dict[str, Path] = {}
    for word in words:
        name, separator, folder = word.partition("=")
        # A folder's name may have an equals sign in it.
        if not separator or Path(word).is_dir():
            folder = word
            name = Path(word).resolve().name
        if name in systems or name in (FLOOR, NOISE, RECONSTRUCTED, "reference", ""):
            raise UserError(f"two sets are called '{name}': name them, --generated a=DIR b=DIR")
        systems[name] = Path(folder)
    return systems


def check_outside(folder: Path, target: Path, what: str) -> None:
    """Raise `UserError` if `target`, the value of the option `what`, lies in the audio folder `folder`."""
    if target.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{what} {target} lies in the audio folder {folder}, where nothing is written: choose another"
        )


def print_tables(result: Result) -> None:
    """The scores, their differences, and what to know of them, on the terminal."""
    from rich.console import Console

    console = Console()
    for scores in result.embeddings:
        _print_scores(console, scores)
    for warning in result.warnings:
        console.print(f"Warning: {warning}", markup=False, highlight=False)


def _print_scores(console: Console, scores: Measured) -> None:
    from rich.table import Table

    from .compare import shown_interval
    from .report import number

    facts = scores.reference
    table = Table(
        "",
        title=f"{scores.info.name}, against {facts.num_clips} clips ({facts.hours:.2f} h) of {facts.name}",
        title_justify="left",
    )
    for row in scores.rows:
        table.add_column(row.name, justify="right", style=None if row.role == "generated" else "dim")
    for index, score in enumerate(scores.rows[0].scores):
        cells = []
        for row in scores.rows:
            low, high = shown_interval(row.scores[index].interval)
            between = "" if low is None else f"\n{number(low)}…{number(high)}"
            cells.append(number(row.scores[index].value) + between)
        table.add_row(f"{score.name} {'↓' if score.better == 'lower' else '↑'}", *cells)
    table.add_row("clips", *(str(row.num_clips) for row in scores.rows))
    console.print(table)
    for item in scores.differences:
        verdict = "significant" if item.is_significant else "not significant"
        console.print(
            f"{item.metric}: {item.first} - {item.second} = {number(item.difference)},"
            f" p = {item.p_holm:.3f} after Holm: {verdict}",
            markup=False,
            highlight=False,
        )


def as_csv(result: Result) -> str:
    """One line a set and score."""
    from .compare import shown_interval

    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for scores in result.embeddings:
        for row in scores.rows:
            for score in row.scores:
                low, high = shown_interval(score.interval)
                level = score.interval.level if score.interval else None
                values = (scores.info.name, row.name, row.role, score.name, score.value, low, high, level)
                facts = (score.better, row.num_clips, row.num_frames, score.note)
                writer.writerow(dict(zip(CSV_COLUMNS, values + facts, strict=True)))
    return text.getvalue()


@stats_app.command(name="build", cls=SeveralValues)
def stats_build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of audio; it is read only.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, FILE.safetensors.")],
    embedding: EmbeddingNames = None,
    cache: CacheFolder = None,
    threads: Threads = None,
) -> None:
    """Compute a reference's statistics; the same command again resumes.

    The file can be given to `tokkata eval --reference`, and uploaded to a dataset on the Hub.
    """
    from ..core.progress import hide_library_bars
    from ..core.run import is_main_process
    from .embed_folder import embed_folder
    from .embedding import load_embedding
    from .embedding_cache import default_cache
    from .reference_stats import described, reference_stats, save_stats

    cache = cache or default_cache()
    for what, target in (("--out", out), ("--cache", cache)):
        check_outside(folder, target, what)
    if out.suffix != ".safetensors":
        raise UserError(f"statistics are written to a file FILE.safetensors, not to {out}")
    hide_library_bars()
    built = {}
    for name in embedding or ["logmel"]:
        loaded = load_embedding(name)
        embedded = embed_folder(loaded, folder, cache, set_name=folder.name, num_threads=threads)
        if is_main_process():
            built[name] = reference_stats(embedded)
            for item in embedded.unusable:
                print(f"left out: {item.file}: {item.reason}", file=sys.stderr)
    if is_main_process():
        save_stats(out, list(built.values()))
        print(described(built))


@stats_app.command(name="show")
def stats_show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or OWNER/NAME/FILE on the Hub.")],
) -> None:
    """Say what a file of statistics holds."""
    from .find_reference import find_reference
    from .reference_stats import described, load_stats

    print(described(load_stats(find_reference(file))))


def refuse_recipe_options(given: Mapping[str, object]) -> None:
    """Raise `UserError` if options for folders were given with a recipe."""
    for name, value in given.items():
        if value:
            raise UserError(
                f"--{name} is for folders, and a recipe says itself what is scored: leave one out"
            )
