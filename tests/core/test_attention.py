"""Which keys are seen, and that every backend computes the same.

Shapes: B batch, H query heads, H_kv key heads, S queries, L keys, Dh width of a head.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokkata.core import attention as module
from tokkata.core.attention import (
    Backend,
    SeenKeys,
    Visible,
    attend,
    attend_memory,
    usable_backend,
)

CPU = torch.device("cpu")


def queries_keys_values(
    num_queries: int, num_keys: int, num_heads: int = 4, num_kv_heads: int = 4, batch_size: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch_size, num_heads, num_queries, 8, generator=generator)
    k, v = torch.randn(2, batch_size, num_kv_heads, num_keys, 8, generator=generator)
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """The formula, one query at a time; `seen` [B, S, L]."""
    groups = q.shape[1] // k.shape[1]
    y = torch.zeros_like(q)
    for b, h, s in itertools.product(*map(range, q.shape[:3])):
        keys, values = k[b, h // groups, seen[b, s]], v[b, h // groups, seen[b, s]]
        y[b, h, s] = (keys @ q[b, h, s] / q.shape[3] ** 0.5).softmax(0) @ values
    return y


def seen_by_definition(visible: Visible, batch_size: int) -> Tensor:
    """[B, S, L]: a query sees itself, and keys before it of its own clip that are no padding."""
    num_keys = visible.num_past + visible.num_queries
    seen = torch.zeros(batch_size, visible.num_queries, num_keys, dtype=torch.bool)
    for b, s, key in itertools.product(*map(range, seen.shape)):
        position = visible.num_past + s
        is_own = visible.clips is None or visible.clips[b, s] == visible.clips[b, min(key, s)]
        is_there = visible.keys is None or bool(visible.keys[b, key])
        seen[b, s, key] = key == position or (key < position and bool(is_own) and is_there)
    return seen


@st.composite
def visibilities(draw: st.DrawFn) -> Visible:
    """For two rows: with padding among the keys after some past, or with clips in a row, or neither."""
    num_queries = draw(st.integers(1, 6))
    kind = draw(st.sampled_from(["plain", "keys", "clips"]))
    num_past = 0 if kind == "clips" else draw(st.integers(0, 4))
    if kind == "keys":
        rows = st.lists(st.booleans(), min_size=num_past + num_queries, max_size=num_past + num_queries)
        return Visible(num_queries, num_past, keys=torch.tensor([draw(rows), draw(rows)]))
    if kind == "clips":
        steps = st.lists(st.integers(0, 2), min_size=num_queries, max_size=num_queries).map(sorted)
        return Visible(num_queries, clips=torch.tensor([draw(steps), draw(steps)]))
    return Visible(num_queries, num_past)


@settings(deadline=None)
@given(visibilities())
def test_what_is_seen_is_what_the_definition_says(visible: Visible) -> None:
    expected = seen_by_definition(visible, 2)
    assert torch.equal(visible.dense(CPU)[:, 0].expand(2, -1, -1), expected)
    if visible.is_plain:  # what the backends then take for granted
        assert torch.equal(expected, expected.new_ones(expected.shape).tril(visible.num_past))


@settings(deadline=None, max_examples=30)
@given(visibilities())
def test_a_mask_is_used_and_not_replaced_by_the_causal_one(visible: Visible) -> None:
    q, k, v = queries_keys_values(visible.num_queries, visible.num_past + visible.num_queries)
    expected = by_hand(q, k, v, seen_by_definition(visible, 2))
    torch.testing.assert_close(attend(q, k, v, visible), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_kv_heads", [2, 4])
def test_keys_of_padding_are_seen_by_no_query(num_kv_heads: int) -> None:
    q, k, v = queries_keys_values(5, 5, num_kv_heads=num_kv_heads)
    keys = torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])
    seen = keys[:, None].expand(2, 5, 5)
    torch.testing.assert_close(attend(q, k, v, SeenKeys(keys)), by_hand(q, k, v, seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "visible",
    [None, Visible(5), Visible(1, 4), Visible(3, 2), Visible(5, clips=torch.tensor([[0, 0, 1, 1, 1]] * 2))],
    ids=["all", "causal", "one", "past", "clips"],
)
def test_shared_heads_are_repeated_heads(num_kv_heads: int, visible: Visible | None) -> None:
    q, k, v = queries_keys_values(visible.num_queries if visible else 5, 5, num_kv_heads=num_kv_heads)
    repeated = (t.repeat_interleave(4 // num_kv_heads, dim=1) for t in (k, v))
    torch.testing.assert_close(attend(q, k, v, visible), attend(q, *repeated, visible))
    seen = seen_by_definition(visible, 2) if visible else torch.ones(2, 5, 5, dtype=torch.bool)
    torch.testing.assert_close(attend(q, k, v, visible), by_hand(q, k, v, seen), atol=1e-5, rtol=1e-5)


def test_memory_is_seen_where_its_mask_says() -> None:
    q, k, v = queries_keys_values(3, 4, num_kv_heads=2)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    v[1] = 0  # as the values of hidden states are
    found = attend_memory(q, k, v, mask)
    torch.testing.assert_close(found[:1], attend_memory(q[:1], k[:1, :, ::2], v[:1, :, ::2], None))
    assert not found[1].any()
    torch.testing.assert_close(found[:1], by_hand(q, k, v, mask[:, None].expand(2, 3, 4))[:1])


# --- other libraries


@pytest.fixture(autouse=True)
def _probe_again():
    module._probe.cache_clear()
    yield
    module._probe.cache_clear()


def test_what_cannot_be_used_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert usable_backend("xformers", CPU, 8) == "sdpa"
    err = capsys.readouterr().err
    assert err.startswith("attention: 'xformers' cannot be used on cpu (")
    assert err.endswith("); using 'sdpa'\n")
    assert err.count("\n") == 1
    assert usable_backend("sdpa", CPU, 8) == "sdpa"
    assert capsys.readouterr().err == ""


def test_a_library_that_is_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "it does not give the result of 'sdpa'": lambda q, k, v, visible: v + 1,
        "it does not give the result": lambda q, k, v, visible: attend(q, k.detach(), v, visible),
        "does not require grad": lambda *inputs: attend(*inputs).detach(),
    }
    for why, attention in wrong.items():
        module._probe.cache_clear()
        monkeypatch.setattr(module, "_attend_xformers", attention)
        assert usable_backend("xformers", CPU, 8) == "sdpa"
        assert why in capsys.readouterr().err
    module._probe.cache_clear()
    monkeypatch.setattr(module, "_attend_xformers", attend)
    assert usable_backend("xformers", CPU, 8) == "xformers"
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "visible",
    [
        None,
        Visible(16),
        Visible(1, 15),
        Visible(6, 10, keys=torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.6),
        Visible(16, clips=torch.tensor([[0] * 5 + [1] * 11, [2] * 9 + [3] * 7])),
        SeenKeys(torch.arange(16) < torch.tensor([[16], [9]])),
    ],
    ids=["all", "causal", "one", "keys", "clips", "padding"],
)
def test_flex_attention_gives_the_same(visible: Visible | SeenKeys | None) -> None:
    torch._dynamo.reset()
    num_queries = visible.num_queries if isinstance(visible, Visible) else 16
    q, k, v = queries_keys_values(num_queries, 16, num_kv_heads=2)
    with torch.no_grad():
        found = attend(q, k, v, visible, "flex")
    torch.testing.assert_close(found, attend(q, k, v, visible), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["flex", "xformers"])
def test_other_libraries_give_the_same_on_a_gpu(backend: Backend, dtype: torch.dtype) -> None:
    device, num_steps = torch.device("cuda"), 150
    if usable_backend(backend, device, 64) != backend:
        pytest.skip(f"{backend} cannot be used here")
    torch._dynamo.reset()
    lengths = torch.tensor([[num_steps], [91]], device=device)
    clips = (torch.arange(num_steps, device=device) >= lengths - 40).long()
    masks = {
        "causal": Visible(num_steps),
        "clips": Visible(num_steps, clips=clips),
        "padding": SeenKeys(torch.arange(num_steps, device=device) < lengths),
    }
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, num_steps, 64, generator=generator).to(device, dtype)
    k, v = torch.randn(2, 2, 2, num_steps, 64, generator=generator).to(device, dtype)
    tolerance = 2e-3 if dtype == torch.float32 else 3e-2  # products in TF32 are as good as exact
    for name, visible in masks.items():
        with torch.no_grad():
            found, expected = attend(q, k, v, visible, backend), attend(q, k, v, visible)
        torch.testing.assert_close(
            found, expected, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
