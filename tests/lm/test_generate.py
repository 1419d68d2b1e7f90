import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokkata.core.attention import attend
from tokkata.core.conditions import Conditions, Given
from tokkata.core.errors import UserError
from tokkata.lm.decoders.transformer_decoder import PlainTransformer
from tokkata.lm.generate import Generator, generate
from tokkata.lm.sampling import Sampling, clip_noise, sample_tokens
from tokkata.lm.transformer import TransformerConfig, TransformerLM
from tokkata.tests.lm import tiny_lm
from tokkata.tests.lm.tiny_lm import (
    CODEC,
    EVERYTHING,
    PATTERNS,
    PITCH,
    STYLES,
    K,
    V,
    naive_greedy,
    random_codes,
    some_of_everything,
)

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

    monkeypatch.setattr(lm, "prepare", lambda weights: PlainTransformer(lm))
    monkeypatch.setattr(lm, "hidden_states", counting)
    generate(lm, 9, prompt=torch.zeros(1, K, 5, dtype=torch.int64))
    # 9 frames and 2 of delay are 11 steps, of which the prompt settles 5.
    assert lengths == [6, 1, 1, 1, 1, 1]


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    lm = tiny().train()
    generate(lm, 2)
    assert lm.training
    assert all(parameter.requires_grad for parameter in lm.parameters())


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_and_style_is_what_the_naive_loop_finds(pattern: str, style: str) -> None:
    """With ragged prompts, guided, and given some of everything."""
    lm = tiny_lm.tiny(EVERYTHING, scale=12.0, pattern=pattern, **STYLES[style])
    given, codes = some_of_everything(), random_codes(3, num_frames=5)
    prompts = [codes[0, :, :2], codes[1, :, :0], codes[2, :, :4]]
    found = generate(lm, 6, conditions=given, prompt=prompts, temperature=0, cfg_scale=1.5)
    assert torch.equal(found, naive_greedy(lm, 6, given, prompts, 1.5))
    for row, prompt in zip(found, prompts, strict=True):
        assert torch.equal(row[:, : prompt.shape[1]], prompt)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ragged_prompts_are_each_clip_alone(pattern: str) -> None:
    lm = tiny(pattern=pattern)
    codes = random_codes(4, num_frames=9)
    prompts = [codes[row, :, :length] for row, length in enumerate([4, 0, 9, 1])]
    together = generate(lm, 10, conditions=LABELS, prompt=prompts, seed=2, top_k=5)
    for i, prompt in enumerate(prompts):
        one = {"pitch": LABELS["pitch"][i : i + 1]}
        alone = generate(lm, 10, conditions=one, prompt=[prompt], seed=2, top_k=5, first_clip=i)
        assert torch.equal(alone[0], together[i])


# ---------------------------------------------------------------------------------------- windows and chunks


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("overlap", [1, 3, 5])
def test_each_window_continues_the_end_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, pattern: str, overlap: int
) -> None:
    lm = tiny(pattern=pattern, window_frames=6)
    prompt = random_codes(4, num_frames=2)
    settings: dict[str, Any] = {"conditions": LABELS, "seed": 4, "top_k": 6, "cfg_scale": 1.5}
    whole = generate(lm, 15, prompt=prompt, overlap_frames=overlap, **settings)
    assert torch.equal(whole[:, :, :2], prompt)
    starts = range(0, 15 - overlap, 6 - overlap)
    for start in starts:
        stop = min(15, start + 6)
        known = prompt if start == 0 else whole[:, :, start : start + overlap]
        with monkeypatch.context() as patch:  # a token's noise belongs to its place in the clip
            patch.setattr(
                "tokkata.lm.generate.clip_noise",
                lambda seed, clip, k, t, start=start: clip_noise(seed, clip, k, start + t)[:, start:],
            )
            found = generate(lm, stop - start, prompt=known, **settings)
        assert torch.equal(found, whole[:, :, start:stop])


def test_a_clip_within_the_window_is_one_window() -> None:
    short, free = tiny(window_frames=12), tiny()
    assert torch.equal(generate(short, 12, seed=1), generate(free, 12, seed=1))
    longer = generate(short, 20, seed=1)
    assert torch.equal(longer[:, :, :12], generate(free, 12, seed=1))
    assert not torch.equal(longer, generate(free, 20, seed=1))
    assert torch.equal(longer, generate(short, 20, seed=1, overlap_frames=5))  # two fifths of 12


def test_no_step_sees_beyond_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny(window_frames=6)
    lengths = []

    def watch(q: Tensor, k: Tensor, *more: Any) -> Tensor:
        lengths.append(k.shape[2])
        return attend(q, k, *more)

    monkeypatch.setattr(lm, "prepare", lambda weights: PlainTransformer(lm))
    monkeypatch.setattr("tokkata.lm.transformer.attend", watch)
    generate(lm, 40)
    assert max(lengths) == 6 + 2  # and the delays


@st.composite
def streams(draw: st.DrawFn) -> dict[str, Any]:
    num_frames = draw(st.integers(1, 14))
    window = draw(st.none() | st.integers(2, 8))
    longest = num_frames - 1 if window is None or num_frames <= window else min(num_frames, window) - 1
    lengths = draw(st.lists(st.integers(0, longest), min_size=2, max_size=2))
    return {
        "pattern": draw(st.sampled_from(PATTERNS)),
        "num_frames": num_frames,
        "chunk_frames": draw(st.integers(1, 16)),
        "lengths": lengths,
        "window": window,
        "overlap": None if window is None else draw(st.integers(1, window - 1)),
    }


@settings(max_examples=60, deadline=None)
@given(streams())
def test_chunks_are_the_whole(case: dict[str, Any]) -> None:
    lm = tiny(pattern=case["pattern"], window_frames=case["window"])
    codes = random_codes(2, num_frames=14)
    more: dict[str, Any] = {
        "prompt": [codes[row, :, :length] for row, length in enumerate(case["lengths"])],
        "conditions": {"pitch": [60, None]},
        "sampling": Sampling(top_k=6, cfg_scale=1.5),
        "overlap_frames": case["overlap"],
    }
    generator = Generator(lm)
    chunks = list(generator.stream(case["num_frames"], chunk_frames=case["chunk_frames"], **more))
    assert torch.equal(torch.cat(chunks, dim=2), generator.generate(case["num_frames"], **more))
    lengths = [chunk.shape[2] for chunk in chunks]
    lengths[0] -= min(case["lengths"])
    assert all(length >= case["chunk_frames"] for length in lengths[:-1])
    if case["pattern"] != "coarse_first":
        assert all(length == case["chunk_frames"] for length in lengths[:-1])
    assert lengths[-1] > 0


def test_chunks_come_as_soon_as_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    num_steps = 0

    def watch(*more: Any) -> Tensor:
        nonlocal num_steps
        num_steps += 1
        return sample_tokens(*more)

    monkeypatch.setattr(lm, "prepare", lambda weights: PlainTransformer(lm))
    monkeypatch.setattr("tokkata.lm.sampling.sample_tokens", watch)
    steps_before = [num_steps for _ in Generator(lm).stream(10, chunk_frames=3)]
    assert steps_before == [5, 8, 11, 12]  # a frame is complete 2 steps after its first token


def test_a_stream_is_checked_before_it_begins() -> None:
    generator = Generator(tiny())
    with pytest.raises(UserError, match="chunk_frames 0 must be at least 1"):
        generator.stream(5, chunk_frames=0)
    with pytest.raises(UserError, match="unknown condition 'tempo'"):
        generator.stream(5, chunk_frames=2, conditions={"tempo": [1]})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"prompt": torch.zeros(1, K, 6).long()},
            r"prompt of 6 frames does not fit the model's window of 6",
        ),
        ({"prompt": torch.zeros(1, K, 8).long()}, r"6 frames \(0.12 s\): give its last 5 frames at most"),
        (
            {"overlap_frames": 6},
            "overlap_frames 6 must be at least 1 and below the model's window of 6 frames",
        ),
        ({"overlap_frames": 0}, "overlap_frames 0 must be at least 1"),
    ],
)
def test_what_no_window_holds_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(tiny(window_frames=6), 10, **more)


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


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("name", ["head.weight", "blocks.0.attention.qkv.weight", "token_embedding.weight"])
def test_a_model_that_predicts_nan_is_named(name: str, more: dict[str, Any]) -> None:
    lm = tiny()
    torch.nn.init.constant_(lm.get_parameter(name), math.nan)
    with pytest.raises(UserError, match="the model predicts NaN: its weights are damaged, or too large"):
        generate(lm, 4, **more)


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
