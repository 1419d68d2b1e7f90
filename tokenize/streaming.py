"""Decoding codes that come in parts: audio as soon as what it depends on is there.

A decoder is cut where it remembers. Convolutions go through windows that begin with as many earlier frames as
they look back to, and give what no later frame can change; an LSTM or causal attention goes on from the state
that it was left in. So the parts together are the decoded whole, to the rounding of float32, and what is held
is a window. Each step is a generator over the parts of the one before.

Shapes: B batch, K codebooks, X and Y channels of a network, C channels, T frames in all, t frames of a part,
n samples of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .receptive_field import Reach

Parts = Iterable[Tensor]
"""Stretches `[B, X, t]` of one clip's frames, in order, none of them empty."""


def in_windows(
    parts: Parts,
    network: Callable[[Tensor], Tensor],
    hop_length: int,
    reach: Reach,
    num_frames: int,
    *,
    mirrors: bool = False,
) -> Iterator[Tensor]:
    """What a convolutional `network`, `[B, X, t]` to `[B, Y, t * hop_length]`, makes of frames in parts.

    Args:
        parts: `num_frames` frames in all.
        network: may come out short at its end by less than it looks ahead, as with odd strides; the last part
            is then as much shorter.
        reach: how far it looks.
        mirrors: whether it continues a clip beyond its ends by its mirror image: then what looks back from
            the first frame sees as far ahead.
    """
    kept: Tensor | None = None  # frames from the first that a later window needs
    given = lead = arrived = 0  # frames given; those of them that are kept; frames that have come
    for part in parts:
        kept = part if kept is None else torch.cat([kept, part], dim=-1)
        arrived += part.shape[-1]
        final = arrived - reach.after
        if mirrors and arrived <= reach.before:
            final = 0
        if arrived >= num_frames:
            final = arrived
        if final <= given:
            continue
        yield network(kept)[..., lead * hop_length : (lead + final - given) * hop_length]
        dropped = max(0, lead + final - given - reach.before)
        kept = kept[..., dropped:]
        lead += final - given - dropped
        given = final


def through_lstm(parts: Parts, lstm: nn.LSTM) -> Iterator[Tensor]:
    """Frames with what an LSTM adds to them, as in EnCodec (arXiv:2210.13438, sec. 3.1); X = Y."""
    state: tuple[Tensor, Tensor] | None = None
    for part in parts:
        steps = part.permute(2, 0, 1)  # [t, B, X]
        added, state = lstm(steps, state)
        yield (added + steps).permute(1, 2, 0)


def regrouped(parts: Parts, sizes: Iterable[int]) -> Iterator[Tensor]:
    """The same frames in parts of these sizes, which must have the same sum."""
    source = iter(parts)
    kept: list[Tensor] = []
    for size in sizes:
        while (there := sum(part.shape[-1] for part in kept)) < size:
            kept.append(next(source))
        joined = torch.cat(kept, dim=-1)
        yield joined[..., :size]
        kept = [joined[..., size:]] if there > size else []


def checked(parts: Parts, num_frames: int) -> Iterator[Tensor]:
    """The same parts; raises `ValueError` if they turn out to have more or fewer than `num_frames` frames."""
    arrived = 0
    for part in parts:
        arrived += part.shape[-1]
        if arrived > num_frames:
            raise ValueError(f"{num_frames} frames were announced, {arrived} have come")
        if part.shape[-1]:
            yield part
    if arrived < num_frames:
        raise ValueError(f"{num_frames} frames were announced, {arrived} have come")


def fitted(parts: Parts, num_samples: int) -> Iterator[Tensor]:
    """Audio in parts `[B, C, n]`, cut or filled up with zeros to `num_samples` in all."""
    given = 0
    part: Tensor | None = None
    for part in parts:
        part = part[..., : num_samples - given]
        given += part.shape[-1]
        if part.shape[-1]:
            yield part
    if part is not None and given < num_samples:
        yield F.pad(part[..., :0], (0, num_samples - given))
