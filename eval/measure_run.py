"""The scores of a run's sets: whatever the run has the material for.

Shapes: C channels, N samples, T frames, D width, K codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file

from ..core.schema import Eval, Generate, Recipe
from ..core.stages import SAMPLE_CODES
from ..tokenize.codec import Codec
from ..tokenize.store import TokenStore
from .classifier import load_classifier
from .clip_notes import NOTHING, ClipNote
from .compare_sets import FrameSet
from .copies.find import MAX_FRAME_RATE
from .copies.memorisation import MEMORISATION_SCORES, memorisation_of_run
from .copies.of_run import encode_clips
from .embedding import Embedding, TextEmbedding, embed_clips
from .gaussian_stats import GaussianStats
from .measured import Score, no_score
from .pitch import has_pitch, pitch_accuracy
from .sets import ClipSet
from .yardsticks import OF_TEXT, InEmbedding, InLabels, Yardstick, token_scores


@dataclass(frozen=True)
class NamedSet:
    """A set to be scored."""

    name: str
    note: str
    """What the set is and what its score tells."""
    clips: ClipSet
    is_labelled: bool = True
    """Whether the labels say what should be heard."""
    is_generated: bool = False
    """Whether a model made it, after the real clips in `clips.sources`."""


class RunMeasure:
    """Scores of the sets of one run, against its reference."""

    def __init__(
        self,
        recipe: Recipe,
        embedding: Embedding,
        codec: Codec,
        reference: ClipSet,
        captions: Mapping[str, str],
    ) -> None:
        """`captions` are those of real clips by their ids; generated ones share that of their source."""
        self._recipe = recipe
        self._rate = codec.sample_rate
        self._codec = codec
        self._captions = captions
        item = NamedSet("reference", "", reference)
        self._yardsticks = _yardsticks(embedding, recipe.eval, bool(captions))
        self._references = [self._frame_set(one, item) for one in self._yardsticks]
        self._stats = [
            GaussianStats.from_embeddings(np.concatenate(part.frames)) for part in self._references
        ]
        self._has_tokens = bool(codec.num_codebooks) and codec.frame_rate <= MAX_FRAME_RATE
        self._reference_codes = encode_clips(codec, reference.audio) if self._has_tokens else []
        self._has_pitch = any(map(has_pitch, reference.labels))

    @property
    def stats(self) -> GaussianStats:
        """Those of the reference in the embedding."""
        return self._stats[0]

    def scores(self, item: NamedSet) -> tuple[list[Score], int]:
        """The scores of a set, the same ones for each, and its frames in the embedding."""
        found: list[Score] = []
        num_frames = 0
        for one, reference, stats in zip(self._yardsticks, self._references, self._stats, strict=True):
            frames = self._frame_set(one, item)
            found += one.measure(frames, reference, stats)
            num_frames = num_frames or frames.num_frames
        if self._has_pitch:
            labels = item.clips.labels if item.is_labelled else [{} for _ in item.clips.labels]
            found += pitch_accuracy(item.clips.audio, labels, self._rate)
        if self._has_tokens:
            found += self._token_scores(item)
        return found, num_frames

    def _token_scores(self, item: NamedSet) -> list[Score]:
        """Token statistics; where clips continue real ones, memorisation too."""
        ours = self._codes(item.clips)
        found = token_scores(ours, self._reference_codes, self._codec.codebook_size, self._recipe.eval.seed)
        generate = self._recipe.generate
        if not isinstance(generate, Generate) or not generate.prompt_s:
            return found
        if not item.is_generated:
            return [*found, *(no_score(name, "no model continued it") for name in MEMORISATION_SCORES)]
        store = TokenStore(self._recipe.folder / "tokens")
        return [*found, *memorisation_of_run(ours, item.clips.sources, store, generate)]

    def _codes(self, clips: ClipSet) -> list[np.ndarray]:
        """The codes [K, T] of clips: those that were generated, where they were kept, or the audio's."""
        if clips.folder is not None and (clips.folder / SAMPLE_CODES).is_file():
            kept = load_file(clips.folder / SAMPLE_CODES)
            return [kept[name].astype(np.int64) for name in clips.names]
        return encode_clips(self._codec, clips.audio)

    def _frame_set(self, one: Yardstick, item: NamedSet) -> FrameSet:
        clips = item.clips
        frames = embed_clips(one.embedding, clips.audio, self._rate)
        made_after = [source or name for source, name in zip(clips.sources, clips.names, strict=True)]
        kept = [index for index, part in enumerate(frames) if len(part)]
        return FrameSet(
            name=item.name,
            role="generated" if item.is_generated else "baseline",
            note=item.note,
            names=[clips.names[index] for index in kept],
            frames=[frames[index] for index in kept],
            hours=sum(audio.shape[1] for audio in clips.audio) / self._rate / 3600.0,
            notes=[
                ClipNote(
                    self._captions.get(made_after[index]),
                    {name: str(value) for name, value in clips.labels[index].items()},
                )
                if item.is_labelled
                else NOTHING
                for index in kept
            ],
            counterparts=[made_after[index] for index in kept],
        )


def _yardsticks(embedding: Embedding, settings: Eval, has_captions: bool) -> list[Yardstick]:
    names: Sequence[str] = ("fad", "fad-inf")
    if has_captions and isinstance(embedding, TextEmbedding):
        names = (*names, *OF_TEXT)
    found: list[Yardstick] = [InEmbedding(embedding, names, settings.seed)]
    if settings.classifier is not None:
        label = settings.classifier_label
        names = ("kl", "inception-score", *(("label-accuracy",) if label else ()))
        found.append(InLabels(load_classifier(settings.classifier), names, settings.seed, label))
    return found
