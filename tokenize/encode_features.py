"""The features of a corpus's clips, for the store: which there are, and the texts' part of them.

Features of audio are made in `encode_clips.py`, beside the codes. Which texts share a batch depends on the
clips of a shard alone, as there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from ..core import schema_features as schema
from ..core.errors import UserError
from .corpus import Clip, Corpus
from .features.feature import (
    AudioEncoder,
    FeatureInfo,
    TextEncoder,
    has_words,
    load_feature,
    stored,
)
from .store_writer import TokenRow, feature_column

# Clips whose texts are encoded together; so many features of texts are held at once, whatever the shard.
_GROUP_CLIPS = 64


class ClipFeatures:
    """The encoders that a recipe lists, ready to be used on a corpus."""

    def __init__(self, encoders: Sequence[TextEncoder | AudioEncoder]) -> None:
        self.infos: list[FeatureInfo] = [encoder.info for encoder in encoders]
        self.audio = [encoder for encoder in encoders if isinstance(encoder, AudioEncoder)]
        self._texts = [encoder for encoder in encoders if isinstance(encoder, TextEncoder)]

    def with_texts(self, rows: Iterable[TokenRow], clips: Sequence[Clip]) -> Iterator[TokenRow]:
        """`rows` with their features of text added; `clips` are all those of the shard, in its order."""
        if not self._texts:
            yield from rows
            return
        places = {clip.id: place for place, clip in enumerate(clips)}
        current = -1
        encoded: dict[str, list[np.ndarray]] = {}
        for row in rows:
            group, place = divmod(places[row.id], _GROUP_CLIPS)
            if group != current:
                of_group = clips[group * _GROUP_CLIPS : (group + 1) * _GROUP_CLIPS]
                encoded = {encoder.name: _encode(encoder, of_group) for encoder in self._texts}
                current = group
            texts = {name: found[place] for name, found in encoded.items()}
            yield dataclasses.replace(row, features={**row.features, **texts})


def _encode(encoder: TextEncoder, clips: Sequence[Clip]) -> list[np.ndarray]:
    column = encoder.info.column
    assert column is not None
    texts = [text_of(clip, column) for clip in clips]
    return [stored(encoder.info, values) for values in encoder.encode_text(texts)]


def text_of(clip: Clip, column: str) -> str | None:
    """The caption of a clip, or its label `column` that holds text."""
    return clip.caption if column == "caption" else str(clip.labels[column])


def load_features(
    configs: Sequence[schema.Feature], corpus: Corpus, clips: Sequence[Clip], device: torch.device
) -> ClipFeatures:
    """The features of a recipe's `tokenize.features` for `clips`, all those of `corpus`.

    Raises `UserError` if a text is taken from where there is none, and as `load_feature` does.
    """
    for config in configs:
        if feature_column(config.name) in corpus.label_types:
            raise UserError(
                f"feature '{config.name}' is stored in a column '{feature_column(config.name)}', but the"
                " corpus has a label of that name: give the feature another name"
            )
        if isinstance(config, schema.TextFeature):
            _check_column(config, corpus, clips)
    return ClipFeatures([load_feature(config, device) for config in configs])


def _check_column(config: schema.TextFeature, corpus: Corpus, clips: Sequence[Clip]) -> None:
    textual = ", ".join(name for name, kind in corpus.label_types.items() if kind is str) or "none"
    where = f"feature '{config.name}'"
    if config.column != "caption" and config.column not in corpus.label_types:
        raise UserError(
            f"{where}: the corpus has no column '{config.column}'; besides `caption`, its columns of text"
            f" are: {textual}"
        )
    if config.column != "caption" and corpus.label_types[config.column] is not str:
        raise UserError(
            f"{where}: column '{config.column}' holds no text; the columns that do are: {textual}"
        )
    if not any(has_words(text_of(clip, config.column)) for clip in clips):
        raise UserError(
            f"{where}: no clip has any text in '{config.column}': set its `column` to one of text"
            f" ({textual}), or remove the feature"
        )
