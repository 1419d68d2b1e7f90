import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.lm.conditions import Conditions, Given
from tokkata.lm.generate import generate
from tokkata.lm.sampling import clip_noise
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.lm import tiny_lm
from tokkata.tests.lm.tiny_lm import CODEC, PITCH, K, V, naive_greedy

PITCHES = Conditions((PITCH,))


def tiny(conditions: Conditions = PITCHES, **shape: Any) -> TransformerLM:
    """A small model with opinions: its distributions are far from uniform."""
    return tiny_lm.tiny(conditions, scale=20.0, **shape)


LABELS = {"pitch": [60, 64, 62, 62]}


@pytest.mark.parametrize("num_prompt", [0, 1, 4])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_greedy_is_what_the_naive_loop_finds(num_prompt: int, scale: float) -> None:
    lm = tiny()
    prompt = torch.randint(0, V, (4, K, num_prompt), generator=torch.Generator().manual_seed(2))
    expected = naive_greedy(lm, 6, PITCHES.encode(LABELS), list(prompt), scale)
    codes = generate(lm, 6, conditions=LABELS, prompt=prompt, temperature=0, cfg_scale=scale)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, expected)
    assert torch.equal(codes[:, :, :num_prompt], prompt)


def test_tokens_are_codes_and_vary() -> None:
    codes = generate(tiny(), 40, batch_size=4)
    assert codes.shape == (4, K, 40)
    assert codes.min() >= 0
    assert codes.max() < V
    assert codes.unique().numel() > V // 2


def test_a_clip_does_not_depend_on_its_batch() -> None:
    lm = tiny()
    together = generate(lm, 12, conditions=LABELS, seed=5, top_k=6)
    for i, pitch in enumerate(LABELS["pitch"]):
        alone = generate(lm, 12, conditions={"pitch": [pitch]}, seed=5, top_k=6, first_clip=i)
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[2], together[3])  # the same label, another number
    assert not torch.equal(generate(lm, 12, conditions=LABELS, seed=6, top_k=6), together)
    assert torch.equal(generate(lm, 12, conditions=LABELS, seed=5, top_k=6), together)


def test_a_prompt_of_ones_own_changes_nothing() -> None:
    lm = tiny()
    codes = generate(lm, 12, conditions=LABELS, seed=1)
    assert torch.equal(generate(lm, 12, conditions=LABELS, seed=1, prompt=codes[:, :, :5]), codes)


def test_narrow_limits_are_greedy() -> None:
    lm = tiny()
    greedy = generate(lm, 10, conditions=LABELS, temperature=0)
    settings: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}]
    for setting in settings:
        assert torch.equal(generate(lm, 10, conditions=LABELS, **setting), greedy)
    assert not torch.equal(generate(lm, 10, conditions=LABELS), greedy)


def test_guidance_moves_between_the_unconditional_and_the_conditional_model() -> None:
    lm = tiny()
    conditional = generate(lm, 10, conditions=LABELS, seed=3)
    unconditional = generate(lm, 10, batch_size=4, seed=3)
    assert torch.equal(generate(lm, 10, conditions=LABELS, seed=3, cfg_scale=0.0), unconditional)
    assert torch.equal(generate(lm, 10, conditions=LABELS, seed=3, cfg_scale=1 + 1e-9), conditional)
    assert not torch.equal(conditional, unconditional)
    assert not torch.equal(generate(lm, 10, conditions=LABELS, seed=3, cfg_scale=3.0), conditional)


def test_encoded_conditions_are_conditions() -> None:
    lm = tiny()
    rows = Given(torch.tensor([[1], [3], [2], [2]]), torch.ones(4, 1, dtype=torch.bool))
    assert torch.equal(generate(lm, 6, conditions=LABELS), generate(lm, 6, conditions={"pitch": rows}))
    hidden = Given(torch.ones(2, 1, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.bool))
    assert torch.equal(generate(lm, 6, batch_size=2), generate(lm, 6, conditions={"pitch": hidden}))


def test_every_token_has_noise_of_its_own() -> None:
    lm = tiny()
    torch.nn.init.zeros_(lm.head.weight)  # all tokens are equally likely, so the noise alone decides
    noise = torch.stack([clip_noise(3, clip, K, 9) for clip in (7, 8)])  # [B, K, T]
    expected = (noise * V).ceil() - 1
    assert torch.equal(generate(lm, 9, batch_size=2, seed=3, first_clip=7), expected.long())


def test_a_prompt_is_read_at_once_and_every_later_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    lengths: list[int] = []
    hidden_states = lm.hidden_states

    def counting(tokens: Tensor, *args: Any, **more: Any) -> Tensor:
        lengths.append(tokens.shape[2])
        return hidden_states(tokens, *args, **more)

    monkeypatch.setattr(lm, "hidden_states", counting)
    generate(lm, 9, prompt=torch.zeros(1, K, 5, dtype=torch.int64))
    # 9 frames and 2 of delay are 11 steps, of which the prompt settles 5.
    assert lengths == [6, 1, 1, 1, 1, 1]


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    lm = tiny().train()
    generate(lm, 2)
    assert lm.training
    assert all(parameter.requires_grad for parameter in lm.parameters())


# ------------------------------------------------------------------------------------------------ refusals


def rows(values: list[Any]) -> Given:
    """A label's rows as they come."""
    found = torch.tensor(values)
    return Given(found, torch.ones_like(found, dtype=torch.bool))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature -1 must be 0"),
        ({"temperature": math.nan}, "temperature nan must be 0"),
        ({"top_k": 0}, "top_k 0 must be at least 1"),
        ({"top_p": 0.0}, "top_p 0 must be above 0"),
        ({"top_p": 1.5}, "top_p 1.5 must be above 0"),
        ({"seed": -1}, "seed -1 and first_clip 0 must not be negative"),
        ({"num_frames": 0}, "num_frames 0 must be at least 1"),
        ({"batch_size": 0}, "number of clips must be at least 1"),
        ({"first_clip": -2}, "seed 0 and first_clip -2 must not be negative"),
        ({"cfg_scale": 3.0}, r"cfg_scale 3 has no conditions to guide towards \(give pitch\)"),
        ({"conditions": {"pitch": [61]}}, "unknown value 61"),
        ({"conditions": {"tempo": [61]}}, "unknown condition 'tempo'"),
        ({"conditions": {"pitch": rows([[4]])}}, "'pitch' must hold rows of a table of 4, 0 for hidden"),
        ({"conditions": {"pitch": rows([1])}}, r"'pitch' must have the shape \[B, 1\], not \[1\]"),
        ({"conditions": LABELS, "batch_size": 3}, r"differs: {'batch_size': 3, \"condition 'pitch'\": 4}"),
        ({"prompt": torch.zeros(1, K, 8, dtype=torch.int64)}, "prompt, which alone has 8 frames"),
        (
            {"prompt": torch.zeros(1, K + 1, 2, dtype=torch.int64)},
            r"3 codebooks, \[K, T\] a clip, not \[4, 2\]",
        ),
        ({"prompt": torch.zeros(K, 2, dtype=torch.int64)}, r"shape \[B, 3, T\], not \[3, 2\]"),
        ({"prompt": torch.full((1, K, 2), V)}, "codes must lie in 0…10"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(tiny(), **{"num_frames": 8} | settings)


def test_guidance_needs_a_model_with_conditions() -> None:
    lm = tiny(Conditions())
    with pytest.raises(UserError, match="trained without conditions"):
        generate(lm, 4, cfg_scale=2.0)
    with pytest.raises(UserError, match="trained without conditions"):
        generate(lm, 4, conditions={"pitch": [60]})
    assert generate(lm, 4, conditions={}, batch_size=2).shape == (2, K, 4)


def test_a_model_that_predicts_nan_is_named() -> None:
    lm = tiny()
    torch.nn.init.constant_(lm.head.weight, math.nan)
    with pytest.raises(UserError, match="predicts NaN"):
        generate(lm, 4)


# ------------------------------------------------------------------------------------------------- learning


def test_an_overfitted_model_plays_back_what_it_learnt() -> None:
    torch.manual_seed(0)
    lm = TransformerLM(TransformerConfig.for_codec(CODEC, PITCHES, dim=32, num_layers=2, num_heads=2))
    codes = torch.randint(0, V, (3, K, 10))
    labels = {"pitch": [60, 62, 64]}
    given = PITCHES.encode(labels)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    for _ in range(60):
        loss = lm(codes, given)
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    assert loss.mean.item() < 0.1
    assert torch.equal(generate(lm, 10, conditions=labels, temperature=0), codes)
    assert torch.equal(generate(lm, 10, conditions=labels, temperature=0, prompt=codes[:, :, :4]), codes)
