"""The Triton kernels of a step against PyTorch; `test_triton_step.py` runs this, interpreted or on a GPU."""

import builtins
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokkata.core.conditions import Condition, Conditions, GivenConditions
from tokkata.core.rotary import rotary_frequencies, rotary_tables, rotate
from tokkata.core.schema_models import Lora
from tokkata.lm.decoders.decoder import Draft
from tokkata.lm.decoders.gpu import triton_attention, triton_linear
from tokkata.lm.decoders.gpu.fused_step import runs_triton
from tokkata.lm.decoders.gpu.graph_decoder import GraphDecoder, GraphTransformer
from tokkata.lm.decoders.gpu.triton_attention import NewKeys, attend
from tokkata.lm.decoders.gpu.triton_ends import draw, embed
from tokkata.lm.decoders.gpu.triton_linear import Norm, Tiling, linear
from tokkata.lm.decoders.gpu.triton_step import TritonStep
from tokkata.lm.decoders.transformer_decoder import PlainTransformer
from tokkata.lm.generate import Generator
from tokkata.lm.lora import add_adapters
from tokkata.lm.sampling import Sampling
from tokkata.lm.transformer import TransformerConfig, TransformerLM, sinusoid_frequencies, sinusoids

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.bfloat16]

if IS_INTERPRETED:
    # The interpreter's numbers are arrays of one element, which numpy 2.4 takes no longer for a range.
    triton_attention.range = lambda *bounds: builtins.range(  # type: ignore[attr-defined]
        *(int(b.handle.data.item()) if hasattr(b, "handle") else b for b in bounds)
    )


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------------------------------------ linear


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 8])
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
def test_normed_linear(norm: str, num_rows: int, dtype: torch.dtype) -> None:
    num_outputs, num_inputs = 21, 24
    x, weight = normal(num_rows, num_inputs), normal(num_outputs, num_inputs, dtype=dtype, seed=1)
    gain, bias = (normal(num_inputs, dtype=dtype, seed=seed) for seed in (2, 3))
    norms = {
        "none": (Norm(), x),
        "layernorm": (
            Norm("layernorm", gain, bias, 1e-5),
            F.layer_norm(x, (num_inputs,), gain.float(), bias.float(), 1e-5),
        ),
        "rmsnorm": (Norm("rmsnorm", gain, None, 1e-6), F.rms_norm(x, (num_inputs,), gain.float(), 1e-6)),
    }
    given, normed = norms[norm]
    out = torch.full((num_rows, num_outputs), torch.nan, device=DEVICE)
    linear(x, weight, out, norm=given, tiles=Tiling(4, 4))
    close(out, normed @ weight.float().T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_follows_a_product(dtype: torch.dtype) -> None:
    num_rows, num_outputs, num_inputs = 3, 10, 12
    x, weight = normal(num_rows, num_inputs, dtype=dtype), normal(2 * num_outputs, num_inputs, dtype=dtype)
    y = x.float() @ weight.float().T
    out = torch.empty(num_rows, num_outputs, device=DEVICE, dtype=dtype)
    linear(x, weight[:num_outputs], out, epilogue="gelu")
    close(out, F.gelu(y[:, :num_outputs]), dtype)
    linear(x, weight, out, epilogue="swiglu")
    close(out, F.silu(y[:, :num_outputs]) * y[:, num_outputs:], dtype)
    residual = normal(num_rows, num_outputs, seed=4)
    total = residual.clone()
    linear(x, weight[:num_outputs], total, epilogue="add")
    close(total, residual + y[:, :num_outputs])


# --------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_parts", [1, 4])
@pytest.mark.parametrize("position", [0, 70])
@pytest.mark.parametrize("is_modern", [False, True])
def test_attention(is_modern: bool, position: int, num_parts: int, dtype: torch.dtype) -> None:
    num_rows, num_heads, num_kv_heads, head_dim, num_prepended = 2, 4, 2, 6, 3
    width = (num_heads + 2 * num_kv_heads) * head_dim
    x = normal(num_rows, width, dtype=dtype)
    length = position + num_prepended
    keys, values = (normal(num_rows, num_kv_heads, 150, head_dim, dtype=dtype, seed=s) for s in (1, 2))
    mask = torch.tensor([[True, True, True], [False, True, False]], device=DEVICE)
    parts = torch.full((num_parts, num_rows, num_heads, head_dim), torch.nan, device=DEVICE)
    logs = torch.full(parts.shape[:3], torch.nan, device=DEVICE)
    gains = [normal(head_dim, dtype=dtype, seed=seed) for seed in (3, 4)]
    q, k, v = x.float().view(num_rows, -1, head_dim).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    new = NewKeys(torch.tensor([position], device=DEVICE), num_prepended)
    if is_modern:
        hidden = (~mask).sum(1)
        frequencies = rotary_frequencies(head_dim, x.device)
        new = NewKeys(new.position, num_prepended, gains[0], gains[1], 1e-6, frequencies, hidden)
        tables = rotary_tables((length - hidden)[:, None, None], head_dim)
        q, k = (
            rotate(F.rms_norm(t, (head_dim,), gain.float(), 1e-6)[:, :, None], *tables)[:, :, 0]
            for t, gain in zip((q, k), gains, strict=True)
        )
    expected_keys, expected_values = keys.clone(), values.clone()
    expected_keys[:, :, length], expected_values[:, :, length] = k.to(dtype), v.to(dtype)
    seen = torch.ones(num_rows, length + 1, dtype=torch.bool, device=DEVICE)
    seen[:, :num_prepended] = mask
    expected = F.scaled_dot_product_attention(
        q[:, :, None],
        expected_keys[:, :, : length + 1].float(),
        expected_values[:, :, : length + 1].float(),
        attn_mask=seen[:, None, None],
        enable_gqa=True,
    )

    attend(x, keys, values, parts, logs, new=new, seen=mask)

    close(keys, expected_keys, dtype)
    close(values, expected_values, dtype)
    weight = torch.eye(num_heads * head_dim, device=DEVICE)
    out = torch.empty(num_rows, num_heads * head_dim, device=DEVICE)
    linear(parts, weight, out, weights_of_parts=logs)
    close(out, expected.flatten(1), dtype)


@pytest.mark.parametrize("num_parts", [1, 4])
def test_attention_to_a_memory(num_parts: int) -> None:
    num_rows, num_heads, head_dim, num_states = 2, 2, 8, 5
    x = normal(num_rows, num_heads * head_dim)
    both = normal(num_rows, num_states, 2 * num_heads * head_dim, seed=1)
    keys, values = (t.unflatten(-1, (num_heads, head_dim)).transpose(1, 2) for t in both.chunk(2, dim=-1))
    seen = torch.tensor([[True] * 5, [True, False, True, False, False]], device=DEVICE)
    parts = torch.full((num_parts, num_rows, num_heads, head_dim), torch.nan, device=DEVICE)
    logs = torch.full(parts.shape[:3], torch.nan, device=DEVICE)
    attend(x, keys, values, parts, logs, seen=seen)
    q = x.view(num_rows, num_heads, 1, head_dim)
    expected = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[:, None, None])
    found = (parts * torch.softmax(logs * torch.log(torch.tensor(2.0)), 0)[..., None]).sum(0)
    close(found, expected[:, :, 0])
    assert not bool(parts.isnan().any())


# --------------------------------------------------------------------------------------------- both ends


def test_embedding() -> None:
    num_clips, num_codebooks, num_steps, dim, size = 2, 3, 6, 10, 7
    tokens = torch.randint(0, size + 1, (num_clips, num_codebooks, num_steps), device=DEVICE)
    table, added = normal((size + 1) * num_codebooks, dim), normal(2 * num_clips, dim, seed=1)
    hidden = torch.tensor([0, 1, 2, 0], device=DEVICE)
    out = torch.empty(2 * num_clips, dim, device=DEVICE)
    position = torch.tensor([4], device=DEVICE)
    frequencies = sinusoid_frequencies(dim, out.device)
    embed(
        tokens,
        position,
        table,
        out,
        added=added,
        frequencies=frequencies,
        num_prepended=2,
        num_hidden=hidden,
    )
    rows = tokens[:, :, 4] + torch.arange(num_codebooks, device=DEVICE) * (size + 1)
    expected = table[rows].sum(1).repeat(2, 1) + added + sinusoids(6 - hidden[:, None], dim)[:, 0]
    close(out, expected)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.0),
        Sampling(0.7),
        Sampling(1.3, top_k=4),
        Sampling(top_k=4, cfg_scale=2.5),
        Sampling(0.0, cfg_scale=0.0),
    ],
)
def test_drawing(sampling: Sampling) -> None:
    num_clips, num_codebooks, num_steps, size = 3, 2, 4, 11
    logits = normal(num_clips * (2 if sampling.is_guided else 1), num_codebooks, size)
    logits[0, 0, :6] = logits[0, 0, 6]  # ties are kept
    logits[1, 0] = -logits[1, 0].abs()
    logits[1, 1, 3] = torch.nan
    noise = torch.rand(num_clips, num_codebooks, num_steps, generator=torch.Generator().manual_seed(1)).to(
        DEVICE
    )
    to_sample = torch.ones(num_clips, num_codebooks, num_steps, dtype=torch.bool, device=DEVICE)
    to_sample[2, 0, 2] = False
    tokens = torch.full((num_clips, num_codebooks, num_steps + 1), 5, device=DEVICE)
    position = torch.tensor([2], device=DEVICE)
    expected = Draft(tokens.clone(), to_sample, noise, sampling)
    expected.take(logits, position)
    draw(logits, noise, to_sample, tokens, position, sampling)
    assert torch.equal(tokens, expected.tokens)


# ---------------------------------------------------------------------------------------------- the step

CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 62)),
        Condition("text", "sequence", "cross", width=6),
        Condition("melody", "sequence", "prepend", width=3),
    )
)
MUSICGEN = {"norm": "layernorm", "activation": "gelu", "positions": "sinusoidal", "qk_norm": False}


def conditioned(**shape: object) -> TransformerLM:
    torch.manual_seed(0)
    config = TransformerConfig(
        num_codebooks=2,
        codebook_size=11,
        frame_rate=50.0,
        conditions=CONDITIONS,
        dim=12,
        num_layers=1 if IS_INTERPRETED else 3,
        num_heads=2,
        **shape,  # type: ignore[arg-type]
    )
    lm = TransformerLM(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)
    return lm.to(DEVICE)


def given(seed: int) -> GivenConditions:
    rng = torch.Generator().manual_seed(seed)
    text, melody = torch.randn(4, 6, generator=rng), torch.randn(5, 3, generator=rng)
    encoded = CONDITIONS.encode({"pitch": [60, 62], "text": [text, None], "melody": [melody[:2], melody]})
    return {name: one.to(torch.device(DEVICE)) for name, one in encoded.items()}


@pytest.mark.parametrize(
    ("shape", "sampling"),
    [
        (MUSICGEN, Sampling(0.0, cfg_scale=2.0)),
        ({"num_kv_heads": 1}, Sampling(top_k=5)),
        ({}, Sampling(top_p=0.8, cfg_scale=2.0)),
    ],
)
def test_generation_is_that_of_the_plain_decoder(shape: dict[str, object], sampling: Sampling) -> None:
    lm = conditioned(**shape)
    fused, plain = Generator(lm), Generator(lm)
    fused._prepared, plain._prepared = GraphTransformer(lm, use_kernels=True), PlainTransformer(lm)
    for seed in range(2):  # the second time in the buffers of the first
        found, expected = (
            generator.generate(2 if IS_INTERPRETED else 80, conditions=given(seed), sampling=sampling)
            for generator in (fused, plain)
        )
        if IS_INTERPRETED:
            assert torch.equal(found, expected)
        else:
            assert (found == expected).float().mean() > 0.9  # sums in another order can turn a close call


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [MUSICGEN, {"num_kv_heads": 1}])
def test_logits_of_a_step(shape: dict[str, object], dtype: torch.dtype) -> None:
    lm, num_steps = conditioned(**shape), 3
    tokens = torch.randint(0, 11, (2, 2, num_steps + 1), generator=torch.Generator().manual_seed(0)).to(
        DEVICE
    )
    noise = torch.ones(2, 2, num_steps, device=DEVICE)
    draft = Draft(tokens, torch.zeros_like(noise, dtype=torch.bool), noise, Sampling(0.0))
    with torch.inference_mode():
        plain = PlainTransformer(lm).decoder(given(0), 2, num_steps)
        expected = plain.feed(tokens[:, :, :num_steps])
        decoder = GraphTransformer(lm.to(dtype), use_kernels=True).decoder(given(0), 2, num_steps)
        decoder.run(draft, 0, num_steps)
    assert isinstance(decoder, GraphDecoder)
    assert isinstance(decoder._fused_step, TritonStep)
    error = (decoder._fused_step.logits - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 3e-2)


def tiny() -> TransformerLM:
    config = TransformerConfig(num_codebooks=1, codebook_size=4, frame_rate=1.0, dim=8, num_heads=2)
    return TransformerLM(config).to(DEVICE)


def test_adapters_are_not_overlooked() -> None:
    lm = tiny()
    assert TritonStep.can_run(lm, 2)
    assert not TritonStep.can_run(lm, 17)
    add_adapters(lm, Lora(), "somewhere")
    assert not TritonStep.can_run(lm, 2)


def test_a_machine_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify\nmore")

    monkeypatch.setattr(triton_linear, "linear", fail)
    runs_triton.cache_clear()
    for _ in range(2):
        assert not TritonStep.can_run(tiny(), 2)
    runs_triton.cache_clear()
    message = "(Failed to find C compiler. Please specify); using PyTorch\n"
    assert capsys.readouterr().err == f"generation: Triton cannot be used on {tiny().device} {message}"
