"""Stage `eval` of a codec's run: how well it reconstructs held-out audio, beside Opus.

    python -m tokkata.eval.reconstruction RECIPE

Writes eval/scores.json and eval/report.html, puts the table into the codec's card, and prints it. Opus needs
`opusenc` and `opusdec` (Debian: opus-tools); where they are absent its rows are left out, and the table says
so. `tokkata codec eval CODEC --data DIR` does the same for any codecs (`fidelity/commands.py`).

Shapes: C channels, N samples.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np

from ..core.audio import Samples
from ..core.card import fill_scores
from ..core.device import best_device
from ..core.errors import UserError
from ..core.files import write_json
from ..core.run import stage_main
from ..core.schema import Recipe
from ..tokenize.codec import load_codec
from ..tokenize.families.codec_encodec import known_bandwidths
from ..tokenize.training.audio_store import AudioStore, StoredClip
from ..tokenize.training.card import CARD_NAME
from .embedding import load_embedding
from .fidelity.measure import Item, measure
from .fidelity.page import write_page
from .fidelity.table import table


def evaluate_codec(recipe: Recipe) -> None:
    """Write `eval/` for the codec in `model/`, on the recipe's reference split, and fill its card.

    A codec of several bandwidths is measured at each.
    """
    split = recipe.eval.reference
    store = AudioStore(recipe.folder / "audio")
    found = store.split(split)
    if not found:
        raise UserError(f"eval.reference: the corpus has no clips in its split '{split}'")
    chosen = np.random.default_rng(recipe.eval.seed).permutation(len(found))[: recipe.eval.max_clips]
    model = recipe.folder / "model"
    bandwidths: list[float] | list[None] = known_bandwidths(model) or [None]
    codecs = {
        recipe.name if kbps is None else f"{recipe.name}, {kbps:g} kbit/s": load_codec(
            str(model), bandwidth_kbps=kbps, device=best_device()
        )
        for kbps in bandwidths
    }
    codec = next(iter(codecs.values()))
    measured = measure(
        codecs,
        [_item(store, found[index], codec.sample_rate) for index in sorted(chosen)],
        load_embedding(recipe.eval.embedding),
        data=f"the split '{split}'",
        seed=recipe.eval.seed,
        num_players=recipe.eval.num_players,
    )
    folder = recipe.folder / "eval"
    text = table(measured.fidelity)
    write_json(folder / "scores.json", asdict(measured.fidelity))
    command = f"tokkata codec eval {recipe.folder / 'recipe.yaml'}"
    write_page(folder / "report.html", measured, title=recipe.name, command=command)
    card = model / CARD_NAME
    if card.exists():
        fill_scores(card, text)
    print(text, file=sys.stderr)


def _item(store: AudioStore, clip: StoredClip, sample_rate: int) -> Item:
    """A clip of the store, which is at the codec's rate."""

    def source() -> Samples:
        return Samples(store.crop_channels(clip, 0, clip.num_samples), sample_rate, clip.id)

    return Item(clip.id, source)


if __name__ == "__main__":
    stage_main("eval", evaluate_codec)
