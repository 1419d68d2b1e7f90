"""`tokkata codec eval` on the command line.

What a command needs is imported when it runs: `tokkata --help` waits for nothing.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import UserError

if TYPE_CHECKING:
    from ...tokenize.codec import Codec
    from .measure import Item

_SETTINGS = re.compile(r"^(?P<id>.+?)(?:@(?P<kbps>[0-9.]+))?(?:#(?P<codebooks>[0-9]+))?$")

RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Wanted:
    """A codec as it was asked for."""

    name: str
    """What tables call it."""
    id: str
    """What `load_codec` takes."""
    bandwidth_kbps: float | None = None
    num_codebooks: int | None = None


def wanted_codec(word: str) -> Wanted:
    """`[NAME=]CODEC[@KBPS][#CODEBOOKS]`; a folder that is there is taken as it is written.

    A codec without a name is called by its id, and one in a folder `model` by its run. Raises `UserError` for
    a bandwidth that is no number.
    """
    if Path(word).is_dir():
        return Wanted(_folder_name(word), word)
    name, separator, rest = word.partition("=")
    if not separator:
        name, rest = "", word
    found = _SETTINGS.match(rest)
    if found is None or rest.startswith(("@", "#")):
        raise UserError(f"'{word}' names no codec: [NAME=]CODEC[@KBPS][#CODEBOOKS], such as dac:44khz#4")
    id = rest if Path(rest).is_dir() else found["id"]
    kbps, codebooks = (None, None) if id == rest else (found["kbps"], found["codebooks"])
    if kbps is not None and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", kbps):
        raise UserError(f"'{word}': the bandwidth '{kbps}' is no number of kbit/s")
    shown = rest if id != rest or not Path(id).is_dir() else _folder_name(id)
    return Wanted(
        name or shown,
        id,
        None if kbps is None else float(kbps),
        None if codebooks is None else int(codebooks),
    )


def _folder_name(word: str) -> str:
    folder = Path(word).resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def load_codecs(words: Sequence[str]) -> dict[str, Codec]:
    """The codecs by the names that they are to have; raises `UserError` for two of one name."""
    from ...core.device import best_device
    from ...tokenize.codec import load_codec

    wanted = [wanted_codec(word) for word in words]
    names = [one.name for one in wanted]
    for name in names:
        if names.count(name) > 1 or name.startswith("Opus "):
            raise UserError(f"two codecs would be called '{name}': name them, a=CODEC b=CODEC")
    return {
        one.name: load_codec(
            one.id,
            bandwidth_kbps=one.bandwidth_kbps,
            num_codebooks=one.num_codebooks,
            device=best_device(),
        )
        for one in wanted
    }


def find_items(data: Path, max_clips: int, seed: int) -> tuple[list[Item], str]:
    """Random clips of a folder, or of a recipe's corpus in its split `eval.reference`; and what they are.

    Raises `UserError` if there are none.
    """
    import numpy as np

    if data.suffix in RECIPE_SUFFIXES:
        items, told = _of_recipe(data)
    else:
        items, told = _of_folder(data)
    chosen = np.random.default_rng(seed).permutation(len(items))[:max_clips]
    return [items[index] for index in sorted(chosen)], told


def _of_folder(folder: Path) -> tuple[list[Item], str]:
    from ..folder_audio import AudioFile, find_audio
    from .measure import Item

    def source(file: AudioFile) -> Item:
        return Item(file.name, lambda: file.path)

    return [source(file) for file in find_audio(folder)], str(folder)


def _of_recipe(path: Path) -> tuple[list[Item], str]:
    from ...core.recipe import load_recipe
    from ...tokenize.corpus import Clip
    from ...tokenize.load_corpus import load_corpus
    from .measure import Item

    recipe = load_recipe(path, [])
    corpus = load_corpus(recipe.data)
    split = recipe.eval.reference

    def source(clip: Clip) -> Item:
        return Item(clip.id, lambda: corpus.audio(clip), recipe.audio)

    items = [source(clip) for clip in corpus.clips() if clip.split == split]
    if not items:
        raise UserError(f"{path}: its corpus has no clips in the split '{split}' (eval.reference)")
    return items, f"the split '{split}' of {path}"


def eval_codecs(
    words: Sequence[str],
    *,
    data: Path,
    embedding: str,
    max_clips: int,
    players: int,
    seed: int,
    out: Path | None,
) -> None:
    """Measure codecs, print the table, and write scores.json and report.html to `out`.

    Raises `UserError` for a codec, a folder or an embedding that is not there, and where no clip can be used.
    """
    from ...core.files import write_json
    from ...core.progress import hide_library_bars
    from ..compare_commands import check_outside
    from ..embedding import load_embedding
    from .measure import measure
    from .page import write_page
    from .table import table

    if not words:
        raise UserError("nothing to measure: give a codec, such as pocket")
    if out is not None and data.is_dir():
        check_outside(data, out, "--out")
    hide_library_bars()
    items, told = find_items(data, max_clips, seed)
    codecs = load_codecs(words)
    measured = measure(
        codecs,
        items,
        load_embedding(embedding),
        data=told,
        seed=seed,
        num_players=players if out is not None else 0,
    )
    for item in measured.fidelity.rejected:
        print(f"left out: {item.name}: {item.reason}", file=sys.stderr)
    print(table(measured.fidelity))
    if out is not None:
        write_json(out / "scores.json", asdict(measured.fidelity))
        command = shlex.join(["tokkata", *sys.argv[1:]])
        write_page(out / "report.html", measured, title=" and ".join(codecs), command=command)
        print(f"Look and listen: {out / 'report.html'}")
