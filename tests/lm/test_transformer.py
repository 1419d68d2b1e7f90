import math

import pytest
import torch
import torch.nn.functional as F

from tokkata.core.attention import Visible
from tokkata.core.conditions import select
from tokkata.core.rotary import rotary_tables, rotate
from tokkata.lm.transformer import (
    KVCache,
    LMLoss,
    Surroundings,
    TransformerConfig,
    TransformerLM,
    sinusoids,
)
from tokkata.tests.lm.tiny_lm import (
    CODEC,
    EVERYTHING,
    LABELS,
    PATTERNS,
    STYLES,
    K,
    V,
    random_codes,
    shifted,
    some_of_everything,
    tiny,
)

GIVEN = LABELS.encode({"pitch": [60, 62, 64, None], "form": ["chord", "note", "chord", None]})


# ------------------------------------------------------------------------------------------------ the loss


def test_the_loss_is_the_cross_entropy_of_the_logits_where_the_pattern_has_tokens() -> None:
    lm, codes = tiny(), random_codes()
    sequence, inputs = shifted(lm, codes)
    log_probabilities = lm.logits(inputs, GIVEN).log_softmax(-1)  # [B, K, S, V]
    per_codebook = []
    for k in range(K):
        losses = [
            -log_probabilities[b, k, s, sequence[b, k, s]]
            for b in range(codes.shape[0])
            for s in range(sequence.shape[2])
            if sequence[b, k, s] != V
        ]
        per_codebook.append(torch.stack(losses).mean())
    loss = lm(codes, GIVEN)
    assert isinstance(loss, LMLoss)
    torch.testing.assert_close(loss.per_codebook, torch.stack(per_codebook))
    torch.testing.assert_close(loss.mean, torch.stack(per_codebook).mean())
    assert loss.num_tokens == codes.numel()


def test_an_untrained_model_knows_nothing() -> None:
    torch.manual_seed(0)
    config = TransformerConfig.for_codec(CODEC | {"codebook_size": 1024}, dim=64, num_layers=3, num_heads=4)
    codes = torch.randint(0, 1024, (2, K, 20))
    assert TransformerLM(config)(codes).mean.item() == pytest.approx(math.log(1024), abs=0.01)


def test_padding_is_neither_seen_nor_counted() -> None:
    lm, codes = tiny(), random_codes(num_frames=7)
    lengths = torch.tensor([7, 5, 6, 2])
    mask = torch.arange(7) < lengths[:, None]
    padded = lm(codes, GIVEN, mask)
    alone = [
        lm(codes[i : i + 1, :, :n], select(GIVEN, slice(i, i + 1))) for i, n in enumerate(lengths.tolist())
    ]
    total = sum(loss.mean * loss.num_tokens for loss in alone)
    assert padded.num_tokens == lengths.sum() * K == sum(loss.num_tokens for loss in alone)
    torch.testing.assert_close(padded.mean, total / padded.num_tokens)

    other_padding = torch.where(mask[:, None], codes, (codes + 1) % V)
    assert torch.equal(lm(other_padding, GIVEN, mask).mean, padded.mean)
    assert not torch.equal(lm(other_padding, GIVEN).mean, lm(codes, GIVEN).mean)


def test_every_parameter_learns() -> None:
    lm = tiny()
    lm(random_codes(), GIVEN).mean.backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_loss_is_float32_under_autocast() -> None:
    lm, codes = tiny(), random_codes()
    with torch.autocast("cpu", torch.bfloat16):
        loss = lm(codes, GIVEN)
    assert loss.mean.dtype == torch.float32
    assert loss.mean.item() == pytest.approx(lm(codes, GIVEN).mean.item(), rel=0.05)


# ------------------------------------------------------------------------------------------- what sees what


def test_no_step_sees_a_later_one_and_all_see_the_earlier_ones() -> None:
    lm, codes = tiny(), random_codes(batch_size=1)
    _, inputs = shifted(lm, codes)
    before = lm.logits(inputs, select(GIVEN, slice(1)))
    for step in range(1, inputs.shape[2]):
        changed = inputs.clone()
        changed[:, :, step] = (changed[:, :, step] + 1) % V
        differs = (lm.logits(changed, select(GIVEN, slice(1))) - before).abs().amax(dim=(0, 1, 3)) > 1e-6
        assert differs.tolist() == [s >= step for s in range(inputs.shape[2])]


def test_codebooks_do_not_share_embeddings() -> None:
    lm = tiny()
    inputs = torch.tensor([[[1], [2], [V]], [[2], [1], [V]], [[1], [V], [2]]])
    a, b, c = lm.logits(inputs)
    assert not torch.allclose(a, b)
    assert not torch.allclose(a, c)


def test_labels_change_the_prediction_and_hidden_ones_are_those_not_given() -> None:
    lm = tiny()
    _, inputs = shifted(lm, random_codes(batch_size=1))
    hidden = LABELS.encode({"pitch": [None], "form": [None]})
    assert torch.equal(lm.logits(inputs, hidden), lm.logits(inputs, None))
    pairs = [(pitch, form) for pitch in (None, 60, 62, 64) for form in (None, "chord", "note")]
    seen = [lm.logits(inputs, LABELS.encode({"pitch": [p], "form": [f]})) for p, f in pairs]
    for i, a in enumerate(seen):
        for b in seen[:i]:
            assert not torch.allclose(a, b)


def test_attention_is_the_textbook_formula() -> None:
    lm = tiny()
    attention = lm.blocks[0].attention
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    rotary = rotary_tables(torch.arange(5), 8)
    q, k, v = (part.view(5, 2, 8) for part in attention.qkv(x)[0].chunk(3, dim=-1))
    expected = torch.zeros(5, 2, 8)
    for head in range(2):
        rms = [y[:, head] / (y[:, head].square().mean(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k)]
        turned_q, turned_k = (rotate(y, *rotary) for y in rms)
        for i in range(5):
            weights = (turned_k[: i + 1] @ turned_q[i] / math.sqrt(8)).softmax(0)
            expected[i, head] = weights @ v[: i + 1, head]
    found = attention(x, Surroundings(Visible(5), rotary))[0]
    torch.testing.assert_close(found, attention.out(expected.flatten(1)))


def test_sinusoids_are_the_formula() -> None:
    found = sinusoids(torch.tensor([0, 3]), 8)
    frequencies = [10000 ** (-i / 3) for i in range(4)]
    expected = [[math.cos(3 * f) for f in frequencies] + [math.sin(3 * f) for f in frequencies]]
    torch.testing.assert_close(found, torch.tensor([[1.0] * 4 + [0.0] * 4, *expected]))


def test_shared_key_heads_are_repeated_key_heads() -> None:
    shared, whole = tiny(num_kv_heads=1), tiny()
    with torch.no_grad():
        for few, many in zip(shared.blocks, whole.blocks, strict=True):
            many.load_state_dict(few.state_dict() | {"attention.qkv.weight": many.attention.qkv.weight})
            q, k, v = few.attention.qkv.weight.split([16, 8, 8])
            many.attention.qkv.weight.copy_(torch.cat([q, k, k, v, v]))
    for name in ("token_embedding", "conditioner", "norm", "head"):
        getattr(whole, name).load_state_dict(getattr(shared, name).state_dict())
    _, inputs = shifted(whole, random_codes())
    torch.testing.assert_close(shared.logits(inputs, GIVEN), whole.logits(inputs, GIVEN))


def test_feed_forward_layers_are_their_formulas() -> None:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    gated = tiny().blocks[0].feed_forward
    gate, value = gated.up.weight.chunk(2)
    torch.testing.assert_close(gated(x), gated.down((x @ gate.T).sigmoid() * (x @ gate.T) * (x @ value.T)))
    plain = tiny(activation="gelu").blocks[0].feed_forward
    hidden = x @ plain.up.weight.T
    torch.testing.assert_close(plain(x), plain.down(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2))
    assert plain.up.weight.shape == (64, 16)
    assert gated.up.weight.shape == (2 * 64, 16)  # 8/3 of 16, rounded up to a multiple of 32


# ------------------------------------------------------------------------------------------------ the cache


@pytest.mark.parametrize("chunks", [[1] * 9, [9], [4, 1, 1, 3], [1, 8]])
def test_cached_logits_are_the_uncached_ones(chunks: list[int]) -> None:
    lm, codes = tiny(), random_codes(num_frames=7)
    _, inputs = shifted(lm, codes)
    cache = KVCache(lm.config, 4, 9)
    buffers = cache.keys.data_ptr(), cache.values.data_ptr()
    with torch.no_grad():
        expected = lm.logits(inputs, GIVEN)
        parts = [lm.logits(part, GIVEN, cache) for part in inputs.split(chunks, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), expected, atol=1e-5, rtol=1e-5)
    assert cache.length == 9
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == buffers


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_cache_changes_nothing_in_any_style(pattern: str, style: str) -> None:
    """With conditions that are summed, prepended and attended to."""
    lm = tiny(EVERYTHING, pattern=pattern, **STYLES[style])
    given = some_of_everything()
    _, inputs = shifted(lm, random_codes(3, num_frames=4))
    num_prepended = 1 + 1 + 5 + 3
    cache = KVCache(lm.config, 3, num_prepended + inputs.shape[2])
    with torch.no_grad():
        expected = lm.logits(inputs, given)
        parts = [lm.logits(part, given, cache) for part in inputs.split([2, 1, inputs.shape[2] - 3], dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), expected, atol=1e-4, rtol=1e-4)
    assert cache.length == cache.max_length


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_loss_in_any_style_is_that_of_the_logits(pattern: str, style: str) -> None:
    lm = tiny(EVERYTHING, pattern=pattern, **STYLES[style])
    codes, given = random_codes(3), some_of_everything()
    sequence, inputs = shifted(lm, codes)
    logits = lm.logits(inputs, given).flatten(0, 2)
    expected = F.cross_entropy(logits, sequence.flatten(), ignore_index=V)
    loss = lm(codes, given)
    torch.testing.assert_close(loss.mean, expected)
    torch.testing.assert_close(loss.per_codebook.mean(), expected)


def test_a_full_cache_is_an_error() -> None:
    lm = tiny()
    with pytest.raises(ValueError, match="holds 2 steps, 3 are needed"):
        lm.logits(torch.zeros(1, K, 3, dtype=torch.int64), cache=KVCache(lm.config, 1, 2))


@pytest.mark.parametrize("style", ["modern", "musicgen"])
def test_clips_may_be_longer_than_any_seen(style: str) -> None:
    """No table of positions has an end that a step, alone or with others, could lie beyond."""
    lm = tiny(**STYLES[style])
    cache = KVCache(lm.config, 1, 3001)
    with torch.no_grad():
        logits = lm.logits(torch.zeros(1, K, 3000, dtype=torch.int64), cache=cache)
        last = lm.logits(torch.zeros(1, K, 1, dtype=torch.int64), cache=cache)
    assert logits.isfinite().all()
    assert last.isfinite().all()


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    config = TransformerConfig.for_codec(CODEC, dim=16, num_layers=1, num_heads=2, dropout=0.5)
    lm, codes = TransformerLM(config), random_codes()
    hidden = F.pad(codes, (1, 0), value=V)
    assert not torch.equal(lm.hidden_states(hidden), lm.hidden_states(hidden))
    lm.eval()
    assert torch.equal(lm.hidden_states(hidden), lm.hidden_states(hidden))


def test_a_model_falls_back_and_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    lm, codes = tiny(), random_codes()
    expected = lm(codes).mean
    lm.use_attention("xformers")
    assert lm.backend == "sdpa"
    assert torch.equal(lm(codes).mean, expected)
    assert "attention: 'xformers' cannot be used on cpu" in capsys.readouterr().err
