"""What scripts beside this file compare models by: held-out real clips of one corpus, FAD, KAD and pitch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tokkata.core.recipe import load_recipe
from tokkata.core.schema import Recipe
from tokkata.eval.embedding import embed_clips, load_embedding
from tokkata.eval.measured import Score
from tokkata.eval.metrics import measure
from tokkata.eval.pitch import pitch_accuracy
from tokkata.eval.sets import ClipSet, real_clips, reconstruct, split_clips, white_noise
from tokkata.tokenize.codec import Codec, load_codec_from_config
from tokkata.tokenize.fast_codec import fast
from tokkata.tokenize.load_corpus import load_corpus


def recipe_of(run: Path) -> Recipe:
    """As the run was made; the folder may have been moved since."""
    recipe = load_recipe(run / "recipe.yaml")
    return recipe.model_copy(update={"runs_dir": run.parent, "name": run.name})


class HeldOut:
    """Real clips of the corpus of a recipe, and scores against them."""

    def __init__(self, recipe: Recipe, embeddings: list[str], num_clips: int) -> None:
        """`num_clips` are in the baselines: Fréchet distances depend on how many there are."""
        assert recipe.codec is not None
        self.codec: Codec = fast(load_codec_from_config(recipe.codec))
        self.embeddings = {name: load_embedding(name) for name in embeddings}
        self._recipe, self._num_clips = recipe, num_clips
        self.reference = self._real("test", recipe.eval.max_clips)
        self._frames = {
            name: embed_clips(one, self.reference.audio, self.codec.sample_rate)
            for name, one in self.embeddings.items()
        }

    def _real(self, split: str, max_clips: int) -> ClipSet:
        recipe = self._recipe
        corpus = load_corpus(recipe.data)
        return real_clips(
            corpus,
            split_clips(corpus, split, recipe.eval.seed),
            self.codec,
            set_name=split,
            duration_s=recipe.generate.duration_s,
            max_clips=max_clips,
            seed=recipe.eval.seed,
            skipped=[],
            settings=recipe.audio,
        )

    def baselines(self) -> dict[str, ClipSet]:
        """Real clips of the split `valid`, the reference through the codec, and white noise."""
        paired = self.reference.first(self._num_clips)
        return {
            "real, other": self._real("valid", self._num_clips),
            "reconstructed": reconstruct(self.codec, paired, self._recipe.tokenize.store),
            "white noise": white_noise(paired, self._recipe.eval.seed),
        }

    def scores(self, clips: ClipSet, names: tuple[str, ...] = ("fad",)) -> dict[str, Score]:
        """`NAME EMBEDDING` for each, and `pitch-accuracy`."""
        found = {}
        for embedding, reference in self._frames.items():
            frames = embed_clips(self.embeddings[embedding], clips.audio, self.codec.sample_rate)
            for score in measure(names, frames, reference, self._recipe.eval.seed):
                found[f"{score.name} {embedding}"] = score
        pitch = pitch_accuracy(clips.audio, clips.labels, self.codec.sample_rate)
        return found | {score.name: score for score in pitch}


def as_clips(audio: np.ndarray, labels: list[dict[str, object]]) -> ClipSet:
    """Audio [B, C, N] of one model as a set."""
    found = ClipSet()
    for number, (one, told) in enumerate(zip(audio, labels, strict=True)):
        found.add(one, told, f"{number:05d}")
    return found
