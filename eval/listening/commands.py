"""`tokkata listen`: listening tests on the command line.

What a command needs is imported when it runs: `tokkata --help` waits for nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ...core.errors import UserError

listen_app = typer.Typer(no_args_is_help=True, help="Listening tests: make, serve and evaluate them.")

TestPath = Annotated[Path, typer.Argument(metavar="TEST.yaml", help="The definition of a listening test.")]


@listen_app.command(name="new")
def listen_new(
    test: Annotated[Path, typer.Argument(metavar="TEST.yaml", help="The definition to write.")],
    system: Annotated[
        list[str], typer.Option(metavar="NAME=DIR", help="A system under test and its clips; repeat it.")
    ],
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real recordings, hidden among the clips.")
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="CODEC", help="Add the recordings as this codec reconstructs them (the ceiling)."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="acr (five points), ab (preference) or mushra.")] = "acr",
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=QUESTION]",
            help="What is asked (default: quality); musicality, coherence and adherence have questions too.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A text file for each item, shown with its clips.")
    ] = None,
    items: Annotated[int, typer.Option(help="Items that each listener rates, in all versions.")] = 8,
    practice: Annotated[int, typer.Option(help="Trials at the beginning that do not count.")] = 2,
    repeated: Annotated[int, typer.Option(help="Clips that are asked about a second time.")] = 2,
    attention: Annotated[
        int | None, typer.Option(help="Trials that ask how many tones there are. Default: 2; mushra: 0.")
    ] = None,
    anchors: Annotated[
        bool | None,
        typer.Option(
            help="Low anchors: 3.5 kHz, in mushra 7 kHz too. Default: yes with a reference, no in ab."
        ),
    ] = None,
    loudness: Annotated[float, typer.Option(metavar="LUFS", help="Loudness of all clips.")] = -23.0,
    name: Annotated[str, typer.Option(help="The heading that listeners see.")] = "Listening test",
    contact: Annotated[str, typer.Option(help="Whom listeners can ask; shown on the page.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of all orders.")] = 0,
) -> None:
    """Make a listening test from folders of audio files.

    Files of the same name are versions of one item. All clips are copied at one loudness under opaque names;
    TEST.yaml holds every setting.
    """
    from ...core.recipe import check_section
    from .build import build_test
    from .definition import Definition

    if attention is None:
        attention = 0 if method == "mushra" else 2
    if anchors is None:
        anchors = reference is not None and method != "ab"
    values: dict[str, Any] = {
        "name": name,
        "method": method,
        "attributes": [_attribute(method, text) for text in attribute or ["quality"]],
        "systems": [_system(text) for text in system],
        "reference": reference and reference.resolve(),
        "codec": codec,
        "anchors_hz": ([3500, 7000] if method == "mushra" else [3500]) if anchors else [],
        "prompts": prompts and prompts.resolve(),
        "items_per_listener": items,
        "practice_items": practice,
        "repeated_items": repeated,
        "attention_items": attention,
        "loudness_lufs": loudness,
        "contact": contact,
        "seed": seed,
    }
    built = build_test(test, check_section(Definition, values))
    how = "matched by file name" if built.definition.paired else "matched by number: no file name is shared"
    left = f", {built.num_left_out} files left out" if built.num_left_out else ""
    print(f"{built.num_items} items, {how}{left}")
    if built.quieter_because_of:
        print(
            f"All clips are at {built.definition.loudness_lufs} LUFS instead of {loudness}:"
            f" {built.quieter_because_of} would clip if it were louder"
        )
    print(f"Try it: tokkata listen serve {test}")


def _attribute(method: str, text: str) -> dict[str, str]:
    from .definition import QUESTIONS

    if method not in QUESTIONS:
        raise UserError(f"no method '{method}': there are {', '.join(QUESTIONS)}")
    known = QUESTIONS[method]
    name, equals, question = text.partition("=")
    if not equals and name not in known:
        raise UserError(
            f"attribute '{name}' needs a question, such as --attribute '{name}=How good is …?'; only"
            f" {', '.join(known)} have one"
        )
    return {"name": name, "question": question if equals else known[name]}


def _system(text: str) -> dict[str, Any]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise UserError(
            f"'{text}' is no system: write --system NAME=DIR, such as --system ours=runs/a/samples"
        )
    return {"name": name, "path": Path(folder).resolve()}


@listen_app.command(name="serve")
def listen_serve(
    test: TestPath,
    host: Annotated[str, typer.Option(help="The address to listen on; 127.0.0.1 is this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")] = 8000,
    invitations: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Let only invited listeners in, and print N new links. Without it, anybody can take part.",
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="How links begin, if not http://HOST:PORT.")
    ] = None,
) -> None:
    """Serve a listening test in the browser, and keep its answers beside TEST.yaml."""
    from .server import serve

    serve(test, host, port, invitations, url)


@listen_app.command(name="export")
def listen_export(
    test: TestPath,
    listener: Annotated[str, typer.Option(metavar="CODE", help="The code that the page showed.")],
) -> None:
    """Print all that is stored about one listener, as JSON."""
    from .listeners import export_listener

    json.dump(export_listener(test, listener), sys.stdout, indent=2)
    print()


@listen_app.command(name="forget")
def listen_forget(
    test: TestPath,
    listener: Annotated[str, typer.Option(metavar="CODE", help="The code that the page showed.")],
) -> None:
    """Delete all that is stored about one listener; the link becomes invalid."""
    from .listeners import forget_listener

    num = forget_listener(test, listener)
    print(f"listener {listener} is forgotten, with {num} ratings")


@listen_app.command(name="report")
def listen_report(
    test: TestPath,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write. Default: TEST-report beside TEST.yaml."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SYSTEM=]PATH",
            help="Computed scores to correlate with: JSON by system, or SYSTEM=eval/scores.json of its run.",
        ),
    ] = None,
) -> None:
    """Evaluate a listening test: report.html, CSV and JSON lines. Can be run while the test is served."""
    from .listening_report import report

    print(f"Look: {report(test, out, scores or [])}")


@listen_app.command(name="power")
def listen_power(
    difference: Annotated[float, typer.Option(help="The difference to find, in points of the scale.")],
    test: Annotated[
        Path | None,
        typer.Argument(metavar="[TEST.yaml]", help="A test that was held, whose variances are taken."),
    ] = None,
    listeners: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of listeners to try.")] = (
        "5,10,15,20,30,40,60"
    ),
    items: Annotated[int, typer.Option(help="Items in the test.")] = 20,
    items_per_listener: Annotated[
        int | None, typer.Option(metavar="N", help="Items that each listener rates. Default: all.")
    ] = None,
    comparisons: Annotated[
        int, typer.Option(min=1, help="Pairs of systems that the test compares; each needs more.")
    ] = 1,
    studies: Annotated[int, typer.Option(min=10, help="Studies to simulate for each line.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulation.")] = 0,
) -> None:
    """Say how many listeners a difference needs: the chance of finding it, from simulated studies."""
    from .power import Plan, print_power, whole_numbers

    plan = Plan(difference, items, items_per_listener, comparisons, studies, seed)
    print_power(plan, whole_numbers(listeners), test)
