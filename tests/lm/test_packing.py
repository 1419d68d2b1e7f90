"""Several clips in a row: each has the loss, and the gradient, that it has alone.

Shapes: B batch, K codebooks, T frames.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokkata.core.conditions import GivenConditions, select
from tokkata.lm.transformer import LMLoss, TransformerLM
from tokkata.tests.lm.tiny_lm import EVERYTHING, LABELS, STYLES, K, V, tiny

PACKING = ["delay", "parallel", "flatten"]


def told(num_clips: int) -> GivenConditions:
    """Labels that differ from clip to clip, some of them hidden."""
    pitches, forms = [60, None, 64, 62], ["note", "chord", None]
    return LABELS.encode(
        {name: [values[i % len(values)] for i in range(num_clips)]
         for name, values in (("pitch", pitches), ("form", forms))}
    )  # fmt: skip


def packed(rows: list[list[int]], gap: int, num_frames: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Random clips of these lengths [1, K, n], and rows of them: codes, mask and numbers of clips."""
    codes = torch.randint(0, V, (len(rows), K, num_frames), generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(len(rows), num_frames, dtype=torch.bool)
    clips = torch.zeros(len(rows), num_frames, dtype=torch.int64)
    alone = []
    for row, lengths in enumerate(rows):
        place = 0
        for length in lengths:
            clips[row, place:] = len(alone)
            mask[row, place : place + length] = True
            alone.append(codes[row : row + 1, :, place : place + length])
            place += length + gap
    return alone, codes, mask, clips


def total(losses: list[LMLoss]) -> Tensor:
    return torch.stack([loss.mean * loss.num_tokens for loss in losses]).sum()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("pattern", PACKING)
def test_every_clip_has_the_loss_that_it_has_alone(pattern: str, style: str) -> None:
    lm = tiny(pattern=pattern, **STYLES[style])
    alone, codes, mask, clips = packed([[3, 1, 4], [8], [2, 5]], lm.pattern.gap, 14)
    given = told(len(alone))
    losses = [lm(clip, select(given, slice(i, i + 1))) for i, clip in enumerate(alone)]
    whole = lm(codes, given, mask, clips)
    assert whole.num_tokens == sum(loss.num_tokens for loss in losses) == mask.sum() * K
    torch.testing.assert_close(whole.mean * whole.num_tokens, total(losses))
    per_codebook = torch.stack([loss.per_codebook * loss.num_tokens for loss in losses]).sum(0)
    torch.testing.assert_close(whole.per_codebook * whole.num_tokens, per_codebook)
    for i, loss in enumerate(losses):  # with the tokens of all other clips gone, it is still there
        one = lm(codes, given, mask & (clips == i), clips)
        assert one.num_tokens == loss.num_tokens
        torch.testing.assert_close(one.mean, loss.mean)
        torch.testing.assert_close(one.per_codebook, loss.per_codebook)


@pytest.mark.parametrize("pattern", PACKING)
def test_every_clip_has_the_gradient_that_it_has_alone(pattern: str) -> None:
    lm = tiny(pattern=pattern, scale=2.0)
    alone, codes, mask, clips = packed([[3, 1, 4], [2, 5]], lm.pattern.gap, 14)
    given = told(len(alone))
    total([lm(clip, select(given, slice(i, i + 1))) for i, clip in enumerate(alone)]).backward()
    expected = {name: parameter.grad for name, parameter in lm.named_parameters()}
    lm.zero_grad()
    total([lm(codes, given, mask, clips)]).backward()
    for name, parameter in lm.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    pattern=st.sampled_from(PACKING),
    positions=st.sampled_from(["rope", "sinusoidal"]),
)
def test_any_lengths_pack(lengths: list[int], padding: int, pattern: str, positions: str) -> None:
    lm = tiny(pattern=pattern, positions=positions)
    gap = lm.pattern.gap
    alone, codes, mask, clips = packed([lengths], gap, sum(lengths) + gap * (len(lengths) - 1) + padding)
    given = told(len(alone))
    losses = [lm(clip, select(given, slice(i, i + 1))) for i, clip in enumerate(alone)]
    whole = lm(codes, given, mask, clips)
    torch.testing.assert_close(whole.mean * whole.num_tokens, total(losses), atol=1e-4, rtol=1e-5)


def test_what_clips_do_not_see_does_not_matter() -> None:
    """Padding, gaps, and how clips are numbered; and it does matter that rows have several."""
    lm = tiny()
    _, codes, mask, clips = packed([[3, 1, 4]], lm.pattern.gap, 17)
    given = told(3)
    expected = lm(codes, given, mask, clips).mean
    other = torch.where(mask[:, None], codes, (codes + 1) % V)
    assert torch.equal(lm(other, given, mask, clips).mean, expected)
    same = select(given, slice(1, 2))
    numbered = clips.clone()
    numbered[:, 14:] = -1  # what follows the last clip and its gap is of no clip
    assert torch.equal(lm(codes, given, mask, numbered).mean, expected)
    assert not torch.allclose(lm(codes, same, mask).mean, expected)


def test_clips_without_conditions_pack_too() -> None:
    lm = tiny()
    alone, codes, mask, clips = packed([[3, 4], [5]], lm.pattern.gap, 9)
    torch.testing.assert_close(
        lm(codes, None, mask, clips).mean * mask.sum() * K, total([lm(clip) for clip in alone])
    )


def test_what_cannot_share_a_row() -> None:
    _, codes, mask, clips = packed([[2, 2]], 2, 6)

    def loss(lm: TransformerLM) -> Any:
        return lm(codes, None, mask, clips)

    with pytest.raises(ValueError, match="clips cannot share a row under CoarseFirstPattern"):
        loss(tiny(pattern="coarse_first"))
    with pytest.raises(ValueError, match="only if all conditions are summed"):
        loss(tiny(EVERYTHING))
    with pytest.raises(ValueError, match="have their sequences in a row"):
        _ = tiny(pattern="coarse_first").pattern.gap
    assert loss(tiny()).mean.isfinite()
