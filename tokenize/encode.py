"""Stage `tokenize`: a corpus to a token store.

    python -m tokkata.tokenize.encode RECIPE
    accelerate launch -m tokkata.tokenize.encode RECIPE             (a process for each GPU, on any number of
                                                                     machines that share the run's folder)
    torchrun --nproc_per_node 2 -m tokkata.tokenize.encode RECIPE   (many processes on a CPU)

The clips, sorted by id, are cut into shards; of the shards that are not there yet, process r of n takes those
whose number leaves the remainder r. The processes share nothing but the folder. The first one also makes the
folder a dataset, once all shards are there.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Self

import torch
from rich.progress import Progress

from ..core.device import best_device
from ..core.errors import UserError
from ..core.progress import progress_bar
from ..core.run import is_disk_full, is_main_process, num_processes, process_index, stage_main
from ..core.schema import Recipe
from .chunking import window_frames
from .codec import Codec, CodecInfo, load_codec_from_config
from .corpus import Clip, Corpus
from .encode_clips import ClipEncoder, Part, StoreEncoder, read_windows
from .encode_features import ClipFeatures, load_features
from .fast_codec import fast
from .load_corpus import load_corpus
from .origin import origins_of, write_origins
from .read_ahead import read_ahead
from .store_writer import REJECTS, Reject, TokenWriter

# On a CPU no more than this is encoded at once: short clips gain from company, long windows do not, and their
# activations take memory.
_CPU_BATCH_S = 32.0

# Windows of one clip that wait for the codec. Longer files are read no further ahead.
_WINDOWS_AHEAD = 2

_POLL_S = 0.5


def tokenize(recipe: Recipe) -> None:
    """Write `tokens/`; shards that are there are kept, so the same command goes on after a kill.

    Raises `UserError` if no clip can be used, if the codec lacks what is to be stored, if a setting does not
    fit it, if a feature cannot be made, and if the disk is full.
    """
    assert recipe.codec is not None
    settings = recipe.tokenize
    corpus = load_corpus(recipe.data)
    clips = sorted(corpus.clips(), key=lambda clip: clip.id)
    # Where a GPU would round the convolutions' inputs to 10 bits without being asked, codes would change.
    torch.backends.cudnn.allow_tf32 = False
    codec = fast(load_codec_from_config(recipe.codec, best_device()), settings.precision)
    encoder = StoreEncoder(codec, settings.store)
    features = load_features(settings.features, corpus, clips, codec.device)
    frames = window_frames(codec.chunking, codec.frame_rate, settings.window_s)
    shards = [clips[i : i + settings.shard_clips] for i in range(0, len(clips), settings.shard_clips)]
    writer = TokenWriter(
        recipe.folder / "tokens",
        stored_info(encoder, frames),
        corpus.label_types,
        len(shards),
        has_gains=encoder.has_gains,
        has_scale=encoder.has_scale,
        features=features.infos,
    )
    try:
        if is_main_process():
            write_origins(recipe.folder / "tokens", origins_of(recipe.data))
        _write_shards(recipe, corpus, encoder, features, frames, shards, writer)
        if is_main_process():
            _wait_for_the_others(writer, len(shards))
            _finish(recipe, writer, len(clips))
    except OSError as error:
        if not is_disk_full(error):
            raise
        done = len(clips) - sum(len(shards[number]) for number in writer.missing())
        raise UserError(
            f"the disk of {recipe.folder / 'tokens'} is full after {done} of {len(clips)} clips, which are"
            " kept: free some space, and the same command goes on"
        ) from error


def stored_info(encoder: StoreEncoder, window_frames: int) -> CodecInfo:
    """The codec's description, with how this store is made."""
    codec = encoder.codec
    chunking = codec.chunking
    if not chunking.exact:
        chunking = dataclasses.replace(chunking, window_frames=window_frames)
    latents = None if encoder.store == "codes" else encoder.store
    return dataclasses.replace(codec.info, chunking=chunking, latents=latents)


def _write_shards(
    recipe: Recipe,
    corpus: Corpus,
    encoder: StoreEncoder,
    features: ClipFeatures,
    frames: int,
    shards: Sequence[Sequence[Clip]],
    writer: TokenWriter,
) -> None:
    """Write this process's share of the shards that are missing."""
    mine = range(process_index(), len(shards), num_processes())
    missing = [number for number in mine if not writer.has(number)]
    _say(
        f"tokenize: process {process_index() + 1} of {num_processes()}:"
        f" {len(missing)} of {len(shards)} shards to do, on {encoder.codec.device}"
    )

    def read(clip: Clip) -> Iterator[Part]:
        return read_windows(corpus, clip, encoder.codec, frames, recipe.audio, features.audio)

    settings = recipe.tokenize
    readings = read_ahead(
        (clip for number in missing for clip in shards[number]),
        read,
        num_threads=settings.num_readers,
        num_ahead=settings.num_readers + settings.batch_windows,
        depth=_WINDOWS_AHEAD,
    )
    with closing(readings), _Bar(sum(len(shards[number]) for number in missing)) as bar:
        clip_encoder = ClipEncoder(
            encoder, partial(_batch_size, encoder.codec, settings.batch_windows), bar.advance, features.audio
        )
        for number in missing:
            rejects: list[Reject] = []
            of_shard = itertools.islice(readings, len(shards[number]))
            rows = features.with_texts(clip_encoder.rows(of_shard, rejects), shards[number])
            writer.write(number, rows, rejects)
            bar.shard_done(len(shards[number]))


def _batch_size(codec: Codec, batch_windows: int, num_samples: int) -> int:
    """How many windows of `num_samples` are encoded at once; it may depend on nothing but the recipe and the
    kind of device, or codes could depend on when a shard is made."""
    if codec.device.type != "cpu":
        return batch_windows
    return max(1, min(batch_windows, int(_CPU_BATCH_S * codec.sample_rate / num_samples)))


class _Bar:
    """How far this process is; only the first one shows it."""

    def __init__(self, num_clips: int) -> None:
        self._progress: Progress | None = progress_bar() if is_main_process() else None
        self._num_clips = num_clips
        self._before = 0
        """Clips of finished shards."""
        self._clips = 0.0
        self._seconds = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
            self._task = self._progress.add_task("tokenize", total=self._num_clips)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, clips: float, seconds: float) -> None:
        """Count a window: a share of its clip, and the audio that it gave."""
        self._clips += clips
        self._seconds += seconds
        speed = self._seconds / (time.monotonic() - self._start)
        text = f"tokenize  {self._seconds / 3600:.2f} h  {speed:.0f} × real time"
        if num_processes() > 1:
            text += f"  (process 1 of {num_processes()})"
        self._show(self._clips, text)

    def shard_done(self, num_clips: int) -> None:
        """Count a shard's clips as done, those that were rejected too."""
        self._before += num_clips
        self._clips = float(self._before)
        self._show(self._clips)

    def _show(self, clips: float, text: str | None = None) -> None:
        if self._progress:
            self._progress.update(self._task, completed=clips, description=text)


def _wait_for_the_others(writer: TokenWriter, num_shards: int) -> None:
    """Wait until every shard is there. A launcher ends all its processes when one of them fails."""
    missing = writer.missing()
    if not missing:
        return
    _say(f"tokenize: waits for {len(missing)} shards of the other processes")
    with progress_bar() as bar:
        task = bar.add_task("tokenize  shards of all processes", total=num_shards)
        while missing:
            bar.update(task, completed=num_shards - len(missing))
            time.sleep(_POLL_S)
            missing = writer.missing()
        bar.update(task, completed=num_shards)


def _finish(recipe: Recipe, writer: TokenWriter, num_clips: int) -> None:
    told = recipe.folder / "tokens" / REJECTS
    if not writer.is_finished:
        rejects = writer.write_rejects()
        if len(rejects) == num_clips:
            raise UserError(
                f"none of the {num_clips} clips can be used, the first ({rejects[0].source}) because:"
                f" {rejects[0].reason}; all reasons are in {told}"
            )
    rejects = writer.finish()
    rejected = f"{len(rejects)} rejected, listed in {told}" if rejects else "none rejected"
    _say(f"tokenize: {num_clips - len(rejects)} clips encoded, {rejected}")


def _say(text: str) -> None:
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    stage_main("tokenize", tokenize)
