"""Scores from a classifier's labels, and from embeddings of audio and text in one space.

Shapes: N clips, L labels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .bootstrap import centred_interval, draw_counts, group_clips, mean_interval, share_interval
from .measured import Score

PROBABILITY_FLOOR = 1e-6
"""Least probability of a label: a classifier's certainty below it is not what a divergence should rest on."""

Direction = Literal["generated-reference", "reference-generated"]


def kl_paired(generated: np.ndarray, reference: np.ndarray, direction: Direction, *, seed: int) -> Score:
    """Mean over clips of the KL divergence, in nats, between a classifier's labels for clip and counterpart.

    `generated` and `reference` [N, L] are probabilities; row i of the one was made to match row i of the
    other (by caption or by labels). With g and r the two distributions, `generated-reference` is
    KL(g‖r) = Σ g log g/r, as in stable-audio-metrics, and `reference-generated` KL(r‖g), as in audiocraft.
    The two are different numbers, so the direction is in the score's name. Probabilities are raised to
    `PROBABILITY_FLOOR` and scaled to sum to 1. Raises `ValueError` if they are no probabilities, or not
    equally many.
    """
    g, r = _floored(generated, "generated"), _floored(reference, "reference")
    if g.shape != r.shape:
        raise ValueError(
            f"paired labels must be as many on both sides, these are {list(g.shape)} and {list(r.shape)}"
        )
    values = _divergence(g, r) if direction == "generated-reference" else _divergence(r, g)
    return Score(
        name=f"kl-{direction}",
        value=float(values.mean()),
        interval=mean_interval(values, seed=seed, lowest=0.0),
        better="lower",
        detail={"clips": float(len(g)), "pairing": "clip by clip", "values": values.tolist()},
    )


def kl_unpaired(generated: np.ndarray, reference: np.ndarray, direction: Direction, *, seed: int) -> Score:
    """KL divergence, in nats, between the mean label distributions of two sets, [N, L] and [M, L].

    Says whether the labels occur equally often, not whether each clip has the right ones. Otherwise like
    `kl_paired`.
    """
    g, r = _floored(generated, "generated"), _floored(reference, "reference")
    if g.shape[1] != r.shape[1]:
        raise ValueError(f"the sets are classified into {g.shape[1]} and {r.shape[1]} labels")
    target = r.mean(axis=0)

    def distance(means: np.ndarray) -> np.ndarray:
        if direction == "generated-reference":
            return _divergence(means, target)
        return _divergence(target, means)

    value = float(distance(g.mean(axis=0)))
    groups = group_clips(len(g), seed)
    num_groups = int(groups.max()) + 1
    resampled = distance(_resampled_means(g, groups, seed)) if num_groups > 1 else np.array([value])
    return Score(
        name=f"kl-unpaired-{direction}",
        value=value,
        interval=centred_interval(value, resampled, num_groups, lowest=0.0),
        better="lower",
        detail={"clips": float(len(g)), "pairing": "sets"},
    )


def inception_score(probabilities: np.ndarray, *, seed: int) -> Score:
    """exp of the mean KL divergence of each clip's labels from the mean labels of all clips, [N, L].

    Salimans et al., arXiv:1606.03498. From 1 (all clips alike, or the classifier unsure of each) to L. No
    splits are averaged: the interval comes from resampling clips. It grows with N, and no reference enters
    it: a set of clear and varied wrong sounds scores well.
    """
    p = _floored(probabilities, "generated")
    entropies = -np.sum(p * np.log(p), axis=1)

    def score(means: np.ndarray, entropy: np.ndarray) -> np.ndarray:
        information: np.ndarray = np.exp(-np.sum(means * np.log(means), axis=-1) - entropy)
        return information

    value = float(score(p.mean(axis=0), entropies.mean()))
    groups = group_clips(len(p), seed)
    num_groups = int(groups.max()) + 1
    resampled = np.array([value])
    if num_groups > 1:
        resampled = score(
            _resampled_means(p, groups, seed), _resampled_means(entropies[:, None], groups, seed)[:, 0]
        )
    return Score(
        name="inception-score",
        value=value,
        interval=centred_interval(value, resampled, num_groups, lowest=1.0, highest=float(p.shape[1])),
        better="higher",
        detail={"clips": float(len(p)), "labels": float(p.shape[1])},
    )


def text_score(audio: np.ndarray, text: np.ndarray, *, seed: int) -> Score:
    """Mean cosine of each clip's embedding [N, D] with that of its caption [N, D], in a shared space.

    With CLAP this is the CLAP score (Wu et al., arXiv:2211.06687), from −1 to 1. Raises `ValueError` if the
    shapes differ, or an embedding is zero or not finite.
    """
    if audio.shape != text.shape or audio.ndim != 2:
        raise ValueError(
            f"clips and captions must have embeddings of one shape [clips, width], these have"
            f" {list(audio.shape)} and {list(text.shape)}"
        )
    cosines = np.sum(_normalised(audio, "clip") * _normalised(text, "caption"), axis=1)
    return Score(
        name="clap-score",
        value=float(cosines.mean()),
        interval=mean_interval(cosines, seed=seed, lowest=-1.0, highest=1.0),
        better="higher",
        detail={"clips": float(len(audio)), "values": cosines.tolist()},
    )


def label_accuracy(found: Sequence[str], wanted: Sequence[str]) -> Score:
    """Share of the clips whose label `found` is the one `wanted`, one of each a clip; Wilson's interval."""
    if len(found) != len(wanted) or not found:
        raise ValueError(
            f"labels must be found and wanted for the same clips, here for {len(found)} and {len(wanted)}"
        )
    right = [float(a == b) for a, b in zip(found, wanted, strict=True)]
    num_right = round(sum(right))
    return Score(
        name="label-accuracy",
        value=num_right / len(found),
        interval=share_interval(num_right, len(found)),
        better="higher",
        detail={"clips": float(len(found)), "values": right},
    )


def _floored(probabilities: np.ndarray, what: str) -> np.ndarray:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or 0 in p.shape:
        raise ValueError(f"labels of the {what} set must have the shape [clips, labels], not {list(p.shape)}")
    if not np.isfinite(p).all() or (p < 0.0).any() or not np.allclose(p.sum(axis=1), 1.0, atol=1e-3):
        raise ValueError(f"labels of the {what} set are no probabilities: each clip's must sum to 1")
    floored = np.maximum(p, PROBABILITY_FLOOR)
    scaled: np.ndarray = floored / floored.sum(axis=1, keepdims=True)
    return scaled


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p‖q) over the last axis."""
    divergence: np.ndarray = np.sum(p * np.log(p / q), axis=-1)
    return divergence


def _resampled_means(rows: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Means [B, L] of `rows` [N, L] in each resample of the clips."""
    num_groups = int(groups.max()) + 1
    sums = np.zeros((num_groups, rows.shape[1]))
    np.add.at(sums, groups, rows)
    counts = draw_counts(num_groups, seed)
    means: np.ndarray = counts @ sums / (counts @ np.bincount(groups, minlength=num_groups))[:, None]
    return means


def _normalised(embeddings: np.ndarray, what: str) -> np.ndarray:
    x = np.asarray(embeddings, dtype=np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0.0))
    if len(wrong):
        raise ValueError(f"{what} {wrong[0]} has an embedding that is zero or not finite")
    unit: np.ndarray = x / lengths
    return unit
