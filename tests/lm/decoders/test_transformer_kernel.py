"""The step's operations, compiled and with PyTorch, against plain formulas on what is stored.

Shapes: R rows, I inputs, O outputs, H heads, H_kv key heads, Dh width of a head.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.lm.decoders import transformer_kernel
from tokkata.lm.decoders.native import load_kernel
from tokkata.lm.decoders.transformer_kernel import (
    Attend,
    KVBuffers,
    Linear,
    Norm,
    Panels,
    Step,
    Stored,
    pack_matrix,
    run_with_torch,
)

FORMATS = ("fp32", "bf16", "int8")

needs_compiler = pytest.mark.skipif(load_kernel("transformer") is None, reason="needs a C++ compiler")


def run_natively(operation):
    Step([operation], operation.x.shape[0]).run()


RUNNERS = [
    pytest.param(run_natively, marks=needs_compiler, id="compiled"),
    pytest.param(run_with_torch, id="torch"),
]


def drawn_linear(data, seed):
    """A `Linear` of any shape and options."""
    torch.manual_seed(seed)
    rows, inputs, outputs = (data.draw(st.integers(1, top)) for top in (32, 200, 70))
    activation = data.draw(st.sampled_from(["none", "gelu", "swiglu"]))
    width = outputs
    if activation == "swiglu":
        outputs *= 2
    out = torch.randn(rows, width)
    norm = None
    kind = data.draw(st.sampled_from(["none", "layernorm", "rmsnorm"]))
    if kind != "none":
        bias = torch.randn(inputs) if kind == "layernorm" and data.draw(st.booleans()) else None
        norm = Norm(kind, torch.randn(inputs), bias, 1e-5)
    return Linear(
        x=torch.randn(rows, inputs) * data.draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0])),
        out=out,
        weight=Panels.pack(
            torch.randn(outputs, inputs) / inputs**0.5,
            data.draw(st.sampled_from(FORMATS)),
            is_gated=activation == "swiglu",
        ),
        bias=torch.randn(outputs) if data.draw(st.booleans()) else None,
        norm=norm,
        activation=activation,
        residual=out if data.draw(st.booleans()) else None,
    )


def expected_linear(operation):
    x = operation.x if operation.norm is None else operation.norm(operation.x)
    y = x @ operation.weight.values().T
    if operation.bias is not None:
        y = y + operation.bias
    if operation.activation == "gelu":
        y = F.gelu(y)
    elif operation.activation == "swiglu":
        gate, up = y.chunk(2, dim=1)
        y = F.silu(gate) * up
    return y if operation.residual is None else y + operation.residual


@pytest.mark.parametrize("run", RUNNERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_linear_is_its_formula(run, data, seed):
    operation = drawn_linear(data, seed)
    expected = expected_linear(operation)
    scale = max(1.0, float(operation.x.abs().max()) if operation.norm is None else 4.0)
    exact = run is run_natively and operation.weight.weights != "int8"
    rounded = run is run_with_torch and operation.weight.weights == "bf16"  # there x is bf16 too
    tolerance = 1e-5 if exact else 2e-2 if rounded else 1e-3
    run(operation)
    size = float(expected.abs().max())
    torch.testing.assert_close(operation.out, expected, rtol=0, atol=tolerance * (scale + size))


def drawn_attend(data, seed):
    """An `Attend` of any shape, lengths and options, over a cache with something in it."""
    torch.manual_seed(seed)
    rows, kv_heads, groups, capacity = (data.draw(st.integers(1, top)) for top in (5, 3, 3, 70))
    head_dim = 2 * data.draw(st.integers(1, 64))
    append = data.draw(st.booleans())
    lengths = torch.tensor([data.draw(st.integers(0, capacity - append)) for _ in range(rows)])
    cache = KVBuffers(
        rows, kv_heads, capacity, head_dim, data.draw(st.sampled_from(FORMATS)), lengths=lengths
    )
    cache.fill(*torch.randn(2, rows, kv_heads, capacity, head_dim))
    heads = kv_heads * groups
    angles = torch.rand(capacity, head_dim // 2) * 7
    return Attend(
        x=torch.randn(rows, (heads + 2 * kv_heads * append) * head_dim),
        out=torch.randn(rows, heads * head_dim),
        cache=cache,
        num_heads=heads,
        append=append,
        q_norm=torch.randn(head_dim) if data.draw(st.booleans()) else None,
        k_norm=torch.randn(head_dim) if data.draw(st.booleans()) else None,
        # The tables are read at `lengths`, which of a full cache that is not appended to is beyond them.
        rotary=(angles.cos(), angles.sin()) if append and data.draw(st.booleans()) else None,
    )


def expected_attend(operation):
    """What is written to `out`, and keys and values that are appended, row by row and head by head."""
    cache, heads = operation.cache, operation.num_heads
    kv_heads, head_dim = cache.keys.data.shape[1], cache.keys.width
    keys, values = cache.keys.values(), cache.values.values()

    def prepared(x, norm, position):
        if norm is not None:
            x = x * (x.square().mean() + operation.norm_epsilon).rsqrt() * norm
        if operation.rotary is not None:
            cos, sin = (table[position] for table in operation.rotary)
            a, b = x.chunk(2)
            x = torch.cat([a * cos - b * sin, b * cos + a * sin])
        return x

    outs, new_keys, new_values = [], [], []
    for row, length in enumerate(cache.lengths.tolist()):
        x = operation.x[row].view(-1, head_dim)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            k, v = keys[row, shared, :length], values[row, shared, :length]
            if operation.append:
                new_key = prepared(x[heads + shared], operation.k_norm, length)
                new_value = x[heads + kv_heads + shared]
                new_keys.append(new_key)
                new_values.append(new_value)
                k, v = torch.cat([k, new_key[None]]), torch.cat([v, new_value[None]])
            q = prepared(x[head], operation.q_norm, length)
            outs.append((k @ q / head_dim**0.5).softmax(0) @ v)
    return torch.stack(outs).view(len(operation.out), -1), new_keys, new_values


@pytest.mark.parametrize("run", RUNNERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_attention_is_its_formula(run, data, seed):
    operation = drawn_attend(data, seed)
    cache = operation.cache
    others = cache.keys.data.clone(), cache.values.data.clone()
    expected, new_keys, new_values = expected_attend(operation)
    run(operation)
    # The step's own key and value are rounded to the cache's format, which the expected ones are not.
    rounding = {"fp32": 1e-5, "bf16": 2e-2, "int8": 3e-2}[cache.keys.weights] if operation.append else 1e-3
    size = max([1.0, *(float(k.abs().max()) for k in new_keys)])
    torch.testing.assert_close(operation.out, expected, rtol=0, atol=rounding * size * 5)

    rows = torch.arange(len(cache.lengths))
    if operation.append:
        share = operation.num_heads // cache.keys.data.shape[1]
        for stored, new in ((cache.keys, new_keys), (cache.values, new_values)):
            found = stored.values()[rows, :, cache.lengths].flatten(0, 1)
            torch.testing.assert_close(found, torch.stack(new)[::share], rtol=1e-2, atol=1e-2 * size)
    for stored, before in zip((cache.keys, cache.values), others, strict=True):  # all else is as it was
        if operation.append:
            before[rows, :, cache.lengths] = stored.data[rows, :, cache.lengths]
        assert torch.equal(stored.data, before)


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_a_row_is_the_same_whatever_is_beside_it_and_however_many_threads(data, seed):
    operation = drawn_linear(data, seed)
    before = operation.out.clone()
    run_natively(operation)
    together = operation.out.clone()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for row in range(len(together)):
            out = before[row : row + 1].clone()
            alone = Linear(
                operation.x[row : row + 1].clone(),
                out,
                operation.weight,
                operation.bias,
                operation.norm,
                operation.activation,
                None if operation.residual is None else out,
            )
            run_natively(alone)
            assert torch.equal(out[0], together[row])
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_compiler), False])
def test_operations_follow_each_other(is_compiled, monkeypatch):
    if not is_compiled:
        monkeypatch.setattr(transformer_kernel, "load_kernel", lambda name: None)
    torch.manual_seed(0)
    hidden, inner = torch.randn(3, 40), torch.zeros(3, 64)
    start = hidden.clone()
    up, down = torch.randn(128, 40) / 6, torch.randn(40, 64) / 8
    step = Step(
        [
            Linear(hidden, inner, pack_matrix(up, "fp32", is_gated=True), activation="swiglu"),
            Linear(inner, hidden, pack_matrix(down, "fp32"), residual=hidden),
        ],
        3,
    )
    expected = start
    for _ in range(3):
        gate, value = (expected @ up.T).chunk(2, dim=1)
        expected = expected + (F.silu(gate) * value) @ down.T
        step.run()
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


def test_fp32_weights_are_shared_with_the_model():
    weight = torch.randn(5, 64)
    assert Stored.pack(weight, "fp32").data.data_ptr() == weight.data_ptr()


@given(
    seed=st.integers(0, 100),
    width=st.integers(1, 80),
    half=st.integers(1, 40),
    weights=st.sampled_from(FORMATS),
    is_gated=st.booleans(),
)
def test_panels_hold_the_rows(seed, width, half, weights, is_gated):
    torch.manual_seed(seed)
    values = torch.randn(2 * half if is_gated else half, width)
    packed, rows = Panels.pack(values, weights, is_gated), Stored.pack(values, weights)
    assert torch.equal(packed.values(), rows.values())
    assert packed.num_bytes >= values.numel() * rows.data.element_size()


@given(seed=st.integers(0, 100), width=st.integers(1, 80))
def test_int8_is_off_by_half_a_step_at_most(seed, width):
    torch.manual_seed(seed)
    values = torch.randn(6, width) * torch.tensor([[0.0], [1e-6], [1.0], [1.0], [5.0], [1e6]])
    error = (Stored.pack(values, "int8").values() - values).abs()
    assert bool((error <= values.abs().amax(1, keepdim=True) / 127 * 0.501).all())
