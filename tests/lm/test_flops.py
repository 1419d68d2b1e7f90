"""The count of operations is that of torch's own counter."""

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokkata.core.conditions import Conditions
from tokkata.lm.flops import clip_flops, flops_per_token
from tokkata.lm.transformer import TransformerConfig
from tokkata.tests.lm.tiny_lm import (
    CODEC,
    EVERYTHING,
    LABELS,
    PATTERNS,
    STYLES,
    K,
    random_codes,
    some_of_everything,
    tiny,
)

STATES = {"style": 3, "text": 4, "melody": 5, "chroma": 3}  # of `some_of_everything`, with padding


def counted(lm, codes, given=None):
    """Operations of a training step, forward and backward, all of attention included."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        lm(codes, given).mean.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_count_is_that_of_torch(pattern, style):
    lm = tiny(EVERYTHING, pattern=pattern, **STYLES[style])
    found = clip_flops(lm.config, 6, STATES, causal=False)
    assert counted(lm, random_codes(3, num_frames=6), some_of_everything()) == 3 * found


@pytest.mark.parametrize("conditions", [Conditions(), LABELS, Conditions((EVERYTHING["text"],))], ids=len)
def test_what_there_is_not_costs_nothing(conditions):
    lm = tiny(conditions)
    given = {name: one for name, one in some_of_everything().items() if name == "text" in conditions.names}
    found = clip_flops(lm.config, 6, STATES, causal=False)
    assert counted(lm, random_codes(3, num_frames=6), given) == 3 * found


def test_a_causal_kernel_skips_half_of_self_attention():
    config = tiny(pattern="parallel").config
    whole, half = (clip_flops(config, 10, {}, causal=causal) for causal in (False, True))
    assert whole - half == 6 * config.num_layers * config.dim * 10 * 10


class Batches:
    """Stands in for `TokenBatches`."""

    num_frames = 8

    class split:
        num_frames = np.array([5, 8, 17, 5])

    def num_states(self, num_frames):
        return {}


def test_a_token_costs_its_share_of_a_pass_over_the_clips():
    lm = tiny()
    short, long = (lm.clip_flops(num_frames, {}) for num_frames in (5, 8))
    # Crops of 5, 8, 8, 8 and 5 frames.
    assert flops_per_token(lm, Batches()) == pytest.approx((2 * short + 3 * long) / (K * (2 * 5 + 3 * 8)))
    lm.head.requires_grad_(False)
    assert flops_per_token(lm, Batches()) is None
    other = tiny()
    other.clip_flops = lambda *_: None
    assert flops_per_token(other, Batches()) is None


def test_six_operations_a_weight_is_what_is_left_for_large_models():
    config = TransformerConfig.for_codec(CODEC, pattern="parallel", dim=512, num_layers=8, num_heads=8)
    num_blocks = 8 * (4 * 512**2 + 3 * 512 * config.hidden_dim)
    assert clip_flops(config, 10, {}) == pytest.approx(10 * 6 * num_blocks, rel=0.01)
