"""The operations that make one decoding step of a Transformer, over few rows, as fast as memory can be read.

A step is a list of operations on buffers. Where there is a compiler, one call runs them all
(`kernels/transformer.cpp`); elsewhere PyTorch does, one after another. Weights, keys and values are stored as
fp32, bf16, or int8 with one scale an output, or a row; all that is computed is float32. Int8 is multiplied by
16-bit integers, so that activations lose nothing to speak of.

A row's result does not depend on the rows beside it, nor on the number of threads.

Shapes: R rows, I inputs, O outputs, H heads, H_kv key heads, S steps, C capacity of a cache, Dh width of a
head, Dp the same rounded up to a multiple of 32.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Weights
from .native import load_kernel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
MAX_HEAD_DIM = 128

_CHUNK = 32  # elements of which stored rows are multiples
_LANES = 16
_KINDS = {"fp32": 0, "bf16": 1, "int8": 2}
_NORMS = {"layernorm": 1, "rmsnorm": 2}
_ACTIVATIONS = {"none": 0, "gelu": 1, "swiglu": 2}


@dataclass(frozen=True)
class Stored:
    """Rows of numbers in the format in which they are read."""

    data: Tensor  # [..., width rounded up to a multiple of 32]
    scales: Tensor | None  # [...], of int8
    width: int
    weights: Weights

    @classmethod
    def pack(cls, values: Tensor, weights: Weights) -> Stored:
        """`values` [..., width] float32; those of fp32 are shared, not copied, where the width allows it."""
        width = values.shape[-1]
        values = values.detach().float().contiguous()
        if width % _CHUNK:
            values = F.pad(values, (0, -width % _CHUNK))
        if weights != "int8":
            return cls(values.to(DTYPES[weights]), None, width, weights)
        scales = values.abs().amax(-1) / 127
        data = (values / scales.clamp(min=1e-30)[..., None]).round().to(torch.int8)
        return cls(data, scales, width, weights)

    def values(self) -> Tensor:
        """[..., width] float32."""
        values = self.data[..., : self.width].float()
        return values if self.scales is None else values * self.scales[..., None]

    @property
    def num_bytes(self) -> int:
        """What has to be read."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return self.data.nbytes + scales


@dataclass(frozen=True)
class Panels:
    """A matrix [O, I] as the kernel reads it: in panels of 16 outputs, a copy in any format."""

    data: Tensor  # [panels, I, 16], of int8 [panels, I / 2, 16, 2]; the rest zeros
    scales: Tensor | None  # [O], of int8
    num_outputs: int
    width: int
    weights: Weights
    is_gated: bool
    """Whether panels of the first half of the outputs take turns with those of the second, as in swiglu."""

    @classmethod
    def pack(cls, values: Tensor, weights: Weights, is_gated: bool = False) -> Panels:
        """`values` [O, I] float32."""
        num_outputs, width = values.shape
        stored = Stored.pack(values, weights)
        pair = 2 if weights == "int8" else 1
        data = F.pad(stored.data[:, :width], (0, -width % pair))
        halves = data.chunk(2) if is_gated else (data,)
        panels = [
            torch.unflatten(F.pad(half, (0, 0, 0, -len(half) % _LANES)), 0, (-1, _LANES)) for half in halves
        ]
        joined = torch.stack(panels, dim=1).flatten(0, 1)  # [panels, 16, I]
        pairs = torch.unflatten(joined, 2, (-1, pair)).transpose(1, 2)  # [panels, I / pair, 16, pair]
        return cls(pairs.contiguous(), stored.scales, num_outputs, width, weights, is_gated)

    def rows(self) -> Stored:
        """The matrix as rows, a copy."""
        joined = self.data.transpose(1, 2).flatten(2)  # [panels, 16, I]
        count = 2 if self.is_gated else 1
        halves = [joined[half::count].flatten(0, 1)[: self.num_outputs // count] for half in range(count)]
        return Stored(torch.cat(halves), self.scales, self.width, self.weights)

    def values(self) -> Tensor:
        """[O, I] float32."""
        return self.rows().values()

    @property
    def num_bytes(self) -> int:
        """What has to be read."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


Matrix = Stored | Panels


def pack_matrix(values: Tensor, weights: Weights, is_gated: bool = False) -> Matrix:
    """A matrix [O, I] for `Linear`, as whatever runs it reads it; `is_gated`: for the activation swiglu."""
    if load_kernel("transformer") is None:
        return Stored.pack(values, weights)
    return Panels.pack(values, weights, is_gated)


class KVBuffers:
    """Keys and values of one layer, in buffers that never move: of R rows, each with a length of its own."""

    def __init__(
        self,
        num_rows: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        weights: Weights,
        lengths: Tensor,
    ) -> None:
        """`lengths` [R] int64 are the filled positions; layers share them, and who runs the steps counts."""
        assert head_dim <= MAX_HEAD_DIM
        rows = num_rows, num_kv_heads, capacity
        self.keys, self.values = (
            Stored(
                torch.zeros(*rows, -(-head_dim // _CHUNK) * _CHUNK, dtype=DTYPES[weights]),
                torch.zeros(rows) if weights == "int8" else None,
                head_dim,
                weights,
            )
            for _ in range(2)
        )
        self.capacity = capacity
        self.lengths = lengths

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Write [R, H_kv, S, Dh] float32 to the first S positions."""
        for to, given in ((self.keys, keys), (self.values, values)):
            packed = Stored.pack(given, to.weights)
            to.data[:, :, : given.shape[2]] = packed.data
            if to.scales is not None and packed.scales is not None:
                to.scales[:, :, : given.shape[2]] = packed.scales


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last dimension."""

    kind: Literal["layernorm", "rmsnorm"]
    weight: Tensor  # [I]
    bias: Tensor | None
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """[R, I] to the same."""
        if self.kind == "layernorm":
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class Linear:
    """`out = activation(norm(x) weightᵀ + bias) + residual`."""

    x: Tensor  # [R, I]
    out: Tensor  # [R, O], or [R, O / 2] of swiglu: silu of the first half of the outputs times the second
    weight: Matrix  # [O, I]
    bias: Tensor | None = None  # [O]
    norm: Norm | None = None
    activation: Literal["none", "gelu", "swiglu"] = "none"
    residual: Tensor | None = None  # as `out`, which it may be


@dataclass(frozen=True)
class Attend:
    """One query a row and head, over that row's cache; a row of length 0 gets zeros.

    With `append`, keys and values of this step are behind the queries in `x`, and enter the cache first, at
    position `lengths` of each row; nobody counts `lengths` up but the caller, after the step.
    """

    x: Tensor  # [R, H Dh], or [R, (H + 2 H_kv) Dh]
    out: Tensor  # [R, H Dh]
    cache: KVBuffers
    num_heads: int
    append: bool = False
    q_norm: Tensor | None = None  # [Dh], gains of a root mean square norm
    k_norm: Tensor | None = None
    norm_epsilon: float = 1e-6
    rotary: tuple[Tensor, Tensor] | None = None
    """Cosines and sines at each position, [C, Dh / 2] each."""


Operation = Linear | Attend


class Step:
    """Operations that are run again and again over the same buffers."""

    def __init__(self, operations: list[Operation], num_rows: int) -> None:
        self._operations = operations
        self._num_rows = num_rows
        self._library = load_kernel("transformer")
        if self._library is not None:
            assert self._library.operation_size() == ctypes.sizeof(_Operation)
            self._array = (_Operation * len(operations))(*map(_described, operations))

    def run(self) -> None:
        """All operations, in order."""
        if self._library is None:
            with torch.inference_mode():
                for operation in self._operations:
                    run_with_torch(operation)
            return
        self._library.run_operations(
            ctypes.byref(self._array),
            ctypes.c_int64(len(self._array)),
            ctypes.c_int64(self._num_rows),
            ctypes.c_int64(torch.get_num_threads()),
        )


# ------------------------------------------------------------------------------------------- with PyTorch


def run_with_torch(operation: Operation) -> None:
    """What the kernel does."""
    if isinstance(operation, Linear):
        _linear(operation)
    else:
        _attend(operation)


def _linear(operation: Linear) -> None:
    x = operation.x if operation.norm is None else operation.norm(operation.x)
    weight = operation.weight
    if isinstance(weight, Panels):
        weight = weight.rows()
    if weight.weights == "bf16":
        y = F.linear(x.bfloat16(), weight.data[:, : weight.width]).float()
    else:
        y = F.linear(x, weight.data[:, : weight.width].float())
    if weight.scales is not None:
        y = y * weight.scales
    if operation.bias is not None:
        y = y + operation.bias
    if operation.activation == "gelu":
        y = F.gelu(y)
    elif operation.activation == "swiglu":
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    operation.out.copy_(y if operation.residual is None else y + operation.residual)


def _attend(operation: Attend) -> None:
    cache, head_dim = operation.cache, operation.cache.keys.width
    heads = operation.x.view(len(operation.x), -1, head_dim)
    lengths = cache.lengths
    q = _prepared(heads[:, : operation.num_heads], operation.q_norm, operation)
    if operation.append:
        k, v = heads[:, operation.num_heads :].chunk(2, dim=1)
        rows = torch.arange(len(lengths))
        for to, given in ((cache.keys, _prepared(k, operation.k_norm, operation)), (cache.values, v)):
            packed = Stored.pack(given, to.weights)
            to.data[rows, :, lengths] = packed.data
            if to.scales is not None and packed.scales is not None:
                to.scales[rows, :, lengths] = packed.scales
        lengths = lengths + 1
    longest = max(1, int(lengths.max()))
    keys, values = (_first(stored, longest) for stored in (cache.keys, cache.values))
    seen = torch.arange(longest) < lengths[:, None]
    y = F.scaled_dot_product_attention(
        q[:, :, None],
        keys,
        values,
        attn_mask=(seen | (lengths[:, None] == 0))[:, None, None],
        enable_gqa=keys.shape[1] != operation.num_heads,
    )
    operation.out.copy_(y.flatten(1).masked_fill(lengths[:, None] == 0, 0.0))


def _first(stored: Stored, length: int) -> Tensor:
    scales = None if stored.scales is None else stored.scales[:, :, :length]
    return Stored(stored.data[:, :, :length], scales, stored.width, stored.weights).values()


def _prepared(heads: Tensor, norm: Tensor | None, operation: Attend) -> Tensor:
    """Queries or keys [R, H, Dh], normalised and turned."""
    if norm is not None:
        heads = F.rms_norm(heads, norm.shape, norm, operation.norm_epsilon)
    if operation.rotary is not None:
        cos, sin = (table[operation.cache.lengths, None] for table in operation.rotary)
        a, b = heads.chunk(2, dim=-1)
        heads = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return heads


# ---------------------------------------------------------------------------------------- with the kernel


class _Operation(ctypes.Structure):
    """`Operation` of kernels/transformer.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("kind", "storage")],
        *[(name, ctypes.c_void_p) for name in ("x", "out")],
        ("epsilon", ctypes.c_float),
        *[(name, ctypes.c_int32) for name in ("norm", "activation")],
        *[
            (name, ctypes.c_void_p)
            for name in ("weight", "scales", "bias", "norm_weight", "norm_bias", "residual")
        ],
        *[(name, ctypes.c_int64) for name in ("num_inputs", "num_outputs")],
        ("append", ctypes.c_int32),
        *[(name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales", "lengths")],
        *[(name, ctypes.c_void_p) for name in ("q_norm", "k_norm", "cosines", "sines")],
        *[(name, ctypes.c_int64) for name in ("x_stride", "num_heads", "num_kv_heads")],
        *[(name, ctypes.c_int64) for name in ("head_dim", "padded_head_dim", "capacity")],
    ]


def _described(operation: Operation) -> _Operation:
    if isinstance(operation, Linear):
        return _described_linear(operation)
    cache, rotary = operation.cache, operation.rotary
    assert cache.lengths.dtype == torch.int64
    return _Operation(
        kind=1,
        storage=_KINDS[cache.keys.weights],
        x=_floats(operation.x),
        out=_floats(operation.out),
        epsilon=operation.norm_epsilon,
        append=operation.append,
        keys=cache.keys.data.data_ptr(),
        values=cache.values.data.data_ptr(),
        key_scales=_floats(cache.keys.scales),
        value_scales=_floats(cache.values.scales),
        lengths=cache.lengths.data_ptr(),
        q_norm=_floats(operation.q_norm),
        k_norm=_floats(operation.k_norm),
        cosines=None if rotary is None else _floats(rotary[0]),
        sines=None if rotary is None else _floats(rotary[1]),
        x_stride=operation.x.shape[1],
        num_heads=operation.num_heads,
        num_kv_heads=cache.keys.data.shape[1],
        head_dim=cache.keys.width,
        padded_head_dim=cache.keys.data.shape[3],
        capacity=cache.capacity,
    )


def _described_linear(operation: Linear) -> _Operation:
    weight, norm = operation.weight, operation.norm
    assert isinstance(weight, Panels)
    assert weight.is_gated == (operation.activation == "swiglu")
    described = _Operation(
        kind=0,
        storage=_KINDS[weight.weights],
        x=_floats(operation.x),
        out=_floats(operation.out),
        activation=_ACTIVATIONS[operation.activation],
        weight=weight.data.data_ptr(),
        scales=_floats(weight.scales),
        bias=_floats(operation.bias),
        residual=_floats(operation.residual),
        num_inputs=weight.width,
        num_outputs=weight.num_outputs,
    )
    if norm is not None:
        described.norm = _NORMS[norm.kind]
        described.epsilon = norm.epsilon
        described.norm_weight = _floats(norm.weight)
        described.norm_bias = _floats(norm.bias)
    return described


def _floats(tensor: Tensor | None) -> int | None:
    """The address of a tensor's numbers; the operation, which has the tensor, keeps it alive."""
    if tensor is None:
        return None
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    return tensor.data_ptr()
