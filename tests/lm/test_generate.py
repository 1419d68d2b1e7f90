import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.lm.conditions import LabelVocabulary
from tokkata.lm.generate import generate, guide, row_noise, sample_tokens
from tokkata.lm.transformer import TransformerConfig, TransformerLM

K, V = 3, 11
CODEC = {"num_codebooks": K, "codebook_size": V, "frame_rate": 50.0}


def tiny(labels: bool = True, scale: float = 20.0) -> TransformerLM:
    """A small model with opinions: its distributions are far from uniform."""
    torch.manual_seed(0)
    vocabulary = LabelVocabulary({"pitch": [60, 62, 64]} if labels else {})
    config = TransformerConfig.for_codec(CODEC, dim=16, num_layers=2, num_heads=2, vocabulary=vocabulary)
    lm = TransformerLM(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(scale if parameter.ndim == 2 else 1)
    return lm


LABELS = {"pitch": [60, 64, 62, 62]}


def naive_greedy(lm: TransformerLM, num_frames: int, rows: Tensor, prompt: Tensor, scale: float) -> Tensor:
    """Recompute everything at every step, one clip and one token at a time."""
    clips = []
    for row, start in zip(rows, prompt, strict=True):
        codes = torch.full((1, K, num_frames), V)
        codes[0, :, : start.shape[1]] = start
        for step in range(lm.pattern.num_steps(num_frames)):
            inputs = torch.cat([torch.full((1, K, 1), V), lm.pattern.apply(codes, V)[:, :, :step]], dim=2)
            conditional, hidden = lm.logits(inputs, row[None]), lm.logits(inputs)
            logits = hidden + scale * (conditional - hidden)
            for k in range(K):
                frame = step - k  # delays 0, 1, 2
                if start.shape[1] <= frame < num_frames:
                    codes[0, k, frame] = logits[0, k, step].argmax()
        clips.append(codes)
    return torch.cat(clips)


@pytest.mark.parametrize("num_prompt", [0, 1, 4])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_greedy_is_what_the_naive_loop_finds(num_prompt: int, scale: float) -> None:
    lm = tiny()
    prompt = torch.randint(0, V, (4, K, num_prompt), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = naive_greedy(lm, 6, lm.config.vocabulary.encode(LABELS), prompt, scale)
    codes = generate(lm, 6, labels=LABELS, prompt=prompt, temperature=0, cfg_scale=scale)
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
    together = generate(lm, 12, labels=LABELS, seed=5, top_k=6)
    for i, pitch in enumerate(LABELS["pitch"]):
        alone = generate(lm, 12, labels={"pitch": [pitch]}, seed=5, top_k=6, row_offset=i)
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[2], together[3])  # the same label, another number
    assert not torch.equal(generate(lm, 12, labels=LABELS, seed=6, top_k=6), together)
    assert torch.equal(generate(lm, 12, labels=LABELS, seed=5, top_k=6), together)


def test_a_prompt_of_ones_own_changes_nothing() -> None:
    lm = tiny()
    codes = generate(lm, 12, labels=LABELS, seed=1)
    assert torch.equal(generate(lm, 12, labels=LABELS, seed=1, prompt=codes[:, :, :5]), codes)


def test_narrow_limits_are_greedy() -> None:
    lm = tiny()
    greedy = generate(lm, 10, labels=LABELS, temperature=0)
    settings: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}]
    for setting in settings:
        assert torch.equal(generate(lm, 10, labels=LABELS, **setting), greedy)
    assert not torch.equal(generate(lm, 10, labels=LABELS), greedy)


def test_guidance_moves_between_the_unconditional_and_the_conditional_model() -> None:
    lm = tiny()
    conditional = generate(lm, 10, labels=LABELS, seed=3)
    unconditional = generate(lm, 10, batch_size=4, seed=3)
    assert torch.equal(generate(lm, 10, labels=LABELS, seed=3, cfg_scale=0.0), unconditional)
    assert torch.equal(generate(lm, 10, labels=LABELS, seed=3, cfg_scale=1 + 1e-9), conditional)
    assert not torch.equal(conditional, unconditional)
    assert not torch.equal(generate(lm, 10, labels=LABELS, seed=3, cfg_scale=3.0), conditional)
    logits = torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    torch.testing.assert_close(guide(logits, 3.0), torch.tensor([[2.0, 0.0]]))


def test_label_rows_are_labels() -> None:
    lm = tiny()
    assert torch.equal(
        generate(lm, 6, labels=LABELS), generate(lm, 6, labels=torch.tensor([[1], [3], [2], [2]]))
    )
    assert torch.equal(
        generate(lm, 6, batch_size=2), generate(lm, 6, labels=torch.zeros(2, 1, dtype=torch.int64))
    )


def test_every_token_has_noise_of_its_own() -> None:
    lm = tiny()
    torch.nn.init.zeros_(lm.head.weight)  # all tokens are equally likely, so the noise alone decides
    noise = row_noise(3, 7, 2, (lm.pattern.num_steps(9), K)).transpose(1, 2)  # [B, K, S]
    expected = lm.pattern.revert((noise * V).ceil() - 1)
    assert torch.equal(generate(lm, 9, batch_size=2, seed=3, row_offset=7), expected.long())


def test_a_prompt_is_read_at_once_and_every_later_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    lengths: list[int] = []
    hidden_states = lm.hidden_states

    def counting(tokens: Tensor, *args: Any) -> Tensor:
        lengths.append(tokens.shape[2])
        return hidden_states(tokens, *args)

    monkeypatch.setattr(lm, "hidden_states", counting)
    generate(lm, 9, prompt=torch.zeros(1, K, 5, dtype=torch.int64))
    assert lengths == [
        6,
        1,
        1,
        1,
        1,
        1,
    ]  # 9 frames and 2 of delay are 11 steps, of which the prompt settles 5


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    lm = tiny().train()
    generate(lm, 2)
    assert lm.training
    assert all(parameter.requires_grad for parameter in lm.parameters())


# ------------------------------------------------------------------------------------------------ sampling

LOGITS = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5])


def frequencies(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Shares of the tokens over 20,000 equally spaced values of the noise: exact to 1 / 20,000."""
    noise = (torch.arange(20_000) + 0.5) / 20_000
    tokens = sample_tokens(LOGITS.expand(20_000, -1), temperature, top_k, top_p, noise)
    return torch.bincount(tokens, minlength=5) / 20_000


def renormalised(kept: list[int], temperature: float = 1.0) -> Tensor:
    masked = torch.full((5,), -torch.inf)
    masked[kept] = LOGITS[kept]
    return (masked / temperature).softmax(0)


def test_samples_have_the_probabilities_asked_for() -> None:
    exact = {"atol": 1e-4, "rtol": 0.0}
    torch.testing.assert_close(frequencies(), LOGITS.softmax(0), **exact)
    torch.testing.assert_close(frequencies(temperature=0.5), (LOGITS / 0.5).softmax(0), **exact)
    torch.testing.assert_close(frequencies(top_k=3), renormalised([0, 2, 4]), **exact)
    torch.testing.assert_close(frequencies(top_k=99), LOGITS.softmax(0), **exact)
    # Probabilities are .46 .06 .17 .02 .28: the first two reach .74, the first three .91.
    torch.testing.assert_close(frequencies(top_p=0.73), renormalised([0, 4]), **exact)
    torch.testing.assert_close(frequencies(top_p=0.75), renormalised([0, 2, 4]), **exact)
    torch.testing.assert_close(frequencies(top_p=1.0), LOGITS.softmax(0), **exact)
    # Of the three that top_k leaves, .51 .19 .31, two reach .82.
    torch.testing.assert_close(frequencies(top_k=3, top_p=0.8), renormalised([0, 4]), **exact)
    torch.testing.assert_close(frequencies(2.0, top_k=2), renormalised([0, 4], 2.0), **exact)


def test_noise_is_uniform_and_independent_between_rows_and_positions() -> None:
    noise = row_noise(0, 0, 50, (40, 10))
    assert noise.min() > 0
    assert noise.max() <= 1
    share = torch.histc(noise, bins=10, min=0, max=1) / noise.numel()
    assert (share - 0.1).abs().max() < 0.012  # five standard deviations
    assert noise.unique().numel() > 0.99 * noise.numel()
    assert torch.equal(noise[7:9], row_noise(0, 7, 2, (40, 10)))
    assert not torch.equal(row_noise(1, 0, 1, (4,)), row_noise(0, 1, 1, (4,)))


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([-200.0, 0.0, -200.0, 0.0, -200.0]).expand(3, -1)
    tokens = sample_tokens(logits, 1.0, None, None, torch.tensor([1e-30, 0.5, 1.0]))
    assert set(tokens.tolist()) <= {1, 3}


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature -1 must be 0"),
        ({"temperature": math.nan}, "temperature nan must be 0"),
        ({"top_k": 0}, "top_k 0 must be at least 1"),
        ({"top_p": 0.0}, "top_p 0 must be above 0"),
        ({"top_p": 1.5}, "top_p 1.5 must be above 0"),
        ({"seed": -1}, "seed -1 and row_offset 0 must not be negative"),
        ({"num_frames": 0}, "num_frames 0 must be at least 1"),
        ({"batch_size": 0}, "number of clips must be at least 1"),
        ({"cfg_scale": 3.0}, r"cfg_scale 3 has no labels to guide towards \(give labels\)"),
        ({"labels": {"pitch": [61]}}, "unknown value 61"),
        ({"labels": {"tempo": [61]}}, "unknown label 'tempo'"),
        ({"labels": torch.tensor([[4]])}, r"rows of tables of \[4\] rows"),
        ({"labels": torch.tensor([1])}, r"labels must have the shape \[B, 1\] for this model, not \[1\]"),
        ({"labels": LABELS, "batch_size": 3}, "differs: {'batch_size': 3, 'labels': 4}"),
        ({"prompt": torch.zeros(1, K, 8, dtype=torch.int64)}, "prompt, which alone has 8 frames"),
        ({"prompt": torch.zeros(1, K + 1, 2, dtype=torch.int64)}, r"shape \[B, 3, T\], not \[1, 4, 2\]"),
        ({"prompt": torch.full((1, K, 2), V)}, "codes must lie in 0…10"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(tiny(), **{"num_frames": 8} | settings)


def test_guidance_needs_a_model_with_labels() -> None:
    with pytest.raises(UserError, match="trained without labels"):
        generate(tiny(labels=False), 4, cfg_scale=2.0)
    with pytest.raises(UserError, match="trained without labels"):
        generate(tiny(labels=False), 4, labels={"pitch": [60]})
    assert generate(tiny(labels=False), 4, labels={}, batch_size=2).shape == (2, K, 4)


def test_a_model_that_predicts_nan_is_named() -> None:
    lm = tiny()
    torch.nn.init.constant_(lm.head.weight, math.nan)
    with pytest.raises(UserError, match="predicts NaN"):
        generate(lm, 4)


# ------------------------------------------------------------------------------------------------- learning


def test_an_overfitted_model_plays_back_what_it_learnt() -> None:
    torch.manual_seed(0)
    vocabulary = LabelVocabulary({"pitch": [60, 62, 64]})
    config = TransformerConfig.for_codec(CODEC, dim=32, num_layers=2, num_heads=2, vocabulary=vocabulary)
    lm = TransformerLM(config)
    codes = torch.randint(0, V, (3, K, 10))
    labels = {"pitch": [60, 62, 64]}
    rows = vocabulary.encode(labels)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    for _ in range(60):
        loss = lm(codes, rows)
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    assert loss.mean.item() < 0.1
    assert torch.equal(generate(lm, 10, labels=labels, temperature=0), codes)
    assert torch.equal(generate(lm, 10, labels=labels, temperature=0, prompt=codes[:, :, :4]), codes)
