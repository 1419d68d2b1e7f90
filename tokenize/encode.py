"""Stage `tokenize`: a corpus to a token store.

python -m tokkata.tokenize.encode RECIPE
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..core.audio import AudioError
from ..core.device import best_device
from ..core.errors import UserError
from ..core.progress import progress_bar
from ..core.run import stage_main
from ..core.schema import Recipe
from .codec import Codec, load_codec_from_config
from .corpus import Clip, ClipAudio, Corpus
from .load_corpus import load_corpus
from .store import Reject, TokenRow, TokenWriter

# Clips of equal length are encoded together, up to this many seconds at once.
_BATCH_S = 32.0


def tokenize(recipe: Recipe) -> None:
    """Write `tokens/`; shards that a killed run has finished are kept."""
    assert recipe.codec is not None
    corpus = load_corpus(recipe.data)
    clips = corpus.clips()
    codec = load_codec_from_config(recipe.codec, best_device())
    size = recipe.tokenize.shard_clips
    shards = [clips[i : i + size] for i in range(0, len(clips), size)]
    folder = recipe.folder / "tokens"
    writer = TokenWriter(folder, codec.info, corpus.label_types, len(shards))

    begin, seconds = time.monotonic(), 0.0
    with progress_bar() as bar:
        task = bar.add_task("tokenize", total=len(clips))
        for number, shard in enumerate(shards):
            rows: list[TokenRow] = []
            rejects: list[Reject] = []
            if not writer.has(number):
                for row in _encode_shard(corpus, shard, codec, rejects):
                    rows.append(row)
                    seconds += row.num_samples / codec.sample_rate
                    speed = seconds / (time.monotonic() - begin)
                    bar.update(
                        task,
                        advance=1,
                        description=f"tokenize  {seconds / 3600:.2f} h  {speed:.0f} × real time",
                    )
                writer.write(number, rows, rejects)
            bar.update(task, completed=min((number + 1) * size, len(clips)))
    rejects = writer.finish()
    if len(rejects) == len(clips):
        (folder / "state.json").unlink()
        raise UserError(
            f"none of the {len(clips)} clips can be used, the first ({rejects[0].source}) because:"
            f" {rejects[0].reason}; all reasons are in {folder / 'rejects.jsonl'}"
        )
    told = (
        f", {len(rejects)} rejected, listed in {folder / 'rejects.jsonl'}" if rejects else ", none rejected"
    )
    print(f"tokenize: {len(clips) - len(rejects)} clips encoded{told}", file=sys.stderr)


def _encode_shard(
    corpus: Corpus, clips: Sequence[Clip], codec: Codec, rejects: list[Reject]
) -> Iterator[TokenRow]:
    """Rows of the usable clips, in order; the others are added to `rejects`."""
    for batch in _equal_lengths(_read(corpus, clips, codec, rejects), codec.sample_rate):
        audio = torch.from_numpy(np.stack([found.samples for _, found in batch])).to(codec.device)
        for (clip, found), codes in zip(batch, codec.encode(audio).cpu().numpy(), strict=True):
            yield TokenRow(
                id=clip.id,
                split=clip.split,
                codes=codes,
                num_samples=found.samples.shape[1],
                source=clip.source,
                sha256=found.sha256,
                labels=clip.labels,
                caption=clip.caption,
            )


def _read(
    corpus: Corpus, clips: Sequence[Clip], codec: Codec, rejects: list[Reject]
) -> Iterator[tuple[Clip, ClipAudio]]:
    for clip in clips:
        try:
            yield clip, corpus.read(clip, codec.sample_rate, codec.channels)
        except AudioError as error:
            rejects.append(Reject(clip.id, clip.source, str(error)))


def _equal_lengths(
    clips: Iterator[tuple[Clip, ClipAudio]], sample_rate: int
) -> Iterator[list[tuple[Clip, ClipAudio]]]:
    """Runs of neighbours of equal length: padding a clip would change its last codes."""
    for length, run in itertools.groupby(clips, key=lambda item: item[1].samples.shape[1]):
        most = max(1, int(_BATCH_S * sample_rate / length))
        while batch := list(itertools.islice(run, most)):
            yield batch


if __name__ == "__main__":
    stage_main("tokenize", tokenize)
