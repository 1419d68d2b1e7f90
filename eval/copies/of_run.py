"""The search for copies in a run: its samples against its training split, calibrated on the other splits.

Shapes: C channels, N samples, K codebooks, T frames.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...core.audio import AudioError
from ...core.device import best_device
from ...core.files import PARTIAL_PREFIX
from ...core.schema import Recipe
from ...core.sections import Split
from ...tokenize.codec import Codec, load_codec_from_config
from ...tokenize.corpus import Clip, Corpus, read_clip
from ...tokenize.load_corpus import load_corpus
from ...tokenize.store import TokenSplit, TokenStore
from ..sets import BATCH_SAMPLES, ClipSet, split_clips
from .find import CopyScores, Queries, Training, find_copies
from .pairs import CopySection, copy_section

MAX_HELD_OUT = 256
HELD_OUT_SPLITS: tuple[Split, ...] = ("test", "valid")


def encode_clips(codec: Codec, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes `[K, T]` of clips `[C, N]` at the codec's rate; equal lengths share a batch."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, samples in enumerate(clips):
        by_length[samples.shape[1]].append(index)
    codes: dict[int, np.ndarray] = {}
    for num_samples, indices in by_length.items():
        batch_size = max(1, BATCH_SAMPLES // num_samples)
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            audio = torch.from_numpy(np.stack([clips[i] for i in batch])).to(codec.device)
            codes.update(zip(batch, codec.encode(audio).cpu().numpy(), strict=True))
    return [codes[i] for i in range(len(clips))]


def held_out_codes(store: TokenStore, num_frames: int, seed: int) -> list[np.ndarray]:
    """Random crops `[K, T]` of `num_frames` frames, of at most `MAX_HELD_OUT` clips not trained on."""
    chosen: list[np.ndarray] = []
    rng = np.random.default_rng(seed)
    for name in HELD_OUT_SPLITS:
        split = store.split(name)
        for clip in rng.permutation(len(split))[: MAX_HELD_OUT - len(chosen)]:
            start = int(rng.integers(max(1, split.num_frames[clip] - num_frames + 1)))
            chosen.append(split.codes(int(clip), start, num_frames))
    return chosen


def held_out_audio(recipe: Recipe, corpus: Corpus, codec: Codec, num_samples: int) -> ClipSet:
    """Random crops as long as the generated clips, of at most `MAX_HELD_OUT` clips not trained on."""
    found = ClipSet()
    rng = np.random.default_rng(recipe.eval.seed)
    for name in HELD_OUT_SPLITS:
        for clip in split_clips(corpus, name, recipe.eval.seed):
            if len(found) == MAX_HELD_OUT:
                return found
            try:
                samples = read_clip(corpus, clip, codec.sample_rate, codec.channels, recipe.audio).samples
            except AudioError:
                continue  # rejects.jsonl lists it
            start = int(rng.integers(max(1, samples.shape[1] - num_samples + 1)))
            found.add(samples[:, start : start + num_samples], clip.labels, clip.id)
    return found


def within_hours(seconds: Sequence[float], max_hours: float | None, seed: int) -> list[int]:
    """Positions of random clips of these lengths, in order, that together last at most `max_hours`."""
    if max_hours is None:
        return list(range(len(seconds)))
    order = np.random.default_rng(seed).permutation(len(seconds))
    fits = np.cumsum(np.asarray(seconds)[order]) <= max_hours * 3600.0
    return sorted(order[fits].tolist())


def training_of(recipe: Recipe, corpus: Corpus, codec: Codec, store: TokenStore) -> Training:
    """The training split: its tokens from the store, its audio from the corpus."""
    split: TokenSplit = store.split("train")
    clips: dict[str, Clip] = {clip.id: clip for clip in corpus.clips()}
    ids = [str(id) for id in split.column("id")]

    def audio(index: int) -> np.ndarray:
        if ids[index] not in clips:
            raise AudioError("is no longer in the corpus")
        return read_clip(corpus, clips[ids[index]], codec.sample_rate, codec.channels, recipe.audio).samples

    seconds = split.num_frames / store.info.frame_rate
    return Training(
        names=ids,
        sample_rate=codec.sample_rate,
        audio=audio,
        heard=within_hours(seconds.tolist(), recipe.eval.copies_max_h, recipe.eval.seed),
        codes=None if store.info.latents else split.codes,
        frame_rate=store.info.frame_rate,
    )


def copies_of_run(recipe: Recipe, samples: ClipSet) -> tuple[CopyScores, CopySection]:
    """Search the sources of the generated `samples` in the run's training split.

    Raises `UserError` if the run has no tokens.
    """
    assert recipe.codec is not None, "a recipe without a codec has no stage that generates"
    store = TokenStore(recipe.folder / "tokens")
    codec = load_codec_from_config(recipe.codec, best_device())
    corpus = load_corpus(recipe.data)
    training = training_of(recipe, corpus, codec, store)
    # A prompt is real audio, possibly of the training split: only what the model added can be a copy.
    prompt = round(recipe.generate.prompt_s * codec.sample_rate)
    added = [clip[:, min(prompt, clip.shape[1] - 1) :] for clip in samples.audio]
    num_samples = max(clip.shape[1] for clip in added)
    real = held_out_audio(recipe, corpus, codec, num_samples)
    generated, held_out = Queries(samples.names, added), Queries(real.names, real.audio)
    if training.codes is not None:
        generated = replace(generated, codes=encode_clips(codec, added))
        crops = held_out_codes(store, codec.num_frames(num_samples), recipe.eval.seed)
        held_out = replace(held_out, codes=crops)
    with tempfile.TemporaryDirectory(dir=recipe.folder, prefix=PARTIAL_PREFIX) as folder:
        scores = find_copies(generated, held_out, training, Path(folder))
    return scores, copy_section(scores, generated, training, recipe.eval.num_players)
