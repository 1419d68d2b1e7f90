"""Programs on a CPU, by `kernels/program.cpp`: one call runs a block of steps, sampling included.

Shapes: B clips, R rows, K codebooks, V codebook size.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Draft
from .native import load_kernel
from .step_program import (
    Clock,
    Embed,
    GruCell,
    Initial,
    Linear,
    LstmCell,
    Operation,
    Place,
    Program,
    places_of,
)

_LANES, _MAX_SOURCES = 16, 8
_ACTIVATIONS = {"none": 0, "relu": 1, "tanh": 2, "gated": 3}

SHARED_WEIGHTS, SHARED_WEIGHTS_OF_MANY, MANY_ROWS = 8192, 90_000, 8
"""A matrix of this size is shared out among cores by its outputs, because a barrier costs about as much as
reading it. Of many rows each core has enough to do, and reads all weights but the largest matrices'."""


class _Clock(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("count", "shift", "div", "mul")]


class _Place(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("base", "width", "row_stride", "slot_stride")],
        ("slot", _Clock),
        ("part", _Clock),
    ]


class _Operation(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("kind", "period", "by_outputs")],
        ("out", _Place),
        ("add", _Place),
        ("sources", _Place * _MAX_SOURCES),
        *[
            (name, ctypes.c_int64)
            for name in (
                "num_sources",
                "has_add",
                "activation",
                "num_outputs",
                "num_inputs",
                "taps",
                "joined",
                "is_bf16",
            )
        ],
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class _Run(ctypes.Structure):
    _fields_ = [
        ("operations", ctypes.c_void_p),
        ("num_operations", ctypes.c_int64),
        ("num_before_head", ctypes.c_int64),
        ("state", ctypes.c_void_p),
        ("logits", _Place),
        *[(name, ctypes.c_int64) for name in ("num_rows", "batch_size", "num_codebooks", "codebook_size")],
        ("tokens", ctypes.c_void_p),
        ("num_tokens", ctypes.c_int64),
        ("to_sample", ctypes.c_void_p),
        ("noise", ctypes.c_void_p),
        ("all_logits", ctypes.c_void_p),
        *[
            (name, ctypes.c_int64)
            for name in ("start", "predict_from", "stop", "num_threads", "guided", "top_k")
        ],
        *[(name, ctypes.c_double) for name in ("temperature", "top_p", "cfg_scale")],
    ]


@dataclass
class _Packed:
    """An operation with its weights in the order in which the kernel reads them."""

    operation: Operation
    weights: Tensor
    bias: Tensor


class NativeProgram:
    """A program packed for the kernel; raises `RuntimeError` where there is no kernel.

    Matrices can be kept in bf16, which is half as much to read; sums are fp32 in any case.
    """

    def __init__(self, program: Program, weights: Literal["fp32", "bf16"] = "fp32") -> None:
        library = load_kernel("program")
        if library is None:
            raise RuntimeError("the kernel 'program' cannot be had")
        assert library.operation_size() == ctypes.sizeof(_Operation)
        assert library.run_size() == ctypes.sizeof(_Run)
        self.library = library
        self.program = program
        self.packed = [_pack(operation) for operation in program.operations]
        if weights == "bf16":
            for packed in self.packed:
                if isinstance(packed.operation, Linear):
                    packed.weights = packed.weights.bfloat16()

    def executor(self, num_rows: int, initial: Initial) -> NativeExecutor:
        """The program's state for `num_rows` rows, before step 0."""
        return NativeExecutor(self, num_rows, initial)


class NativeExecutor:
    """Runs steps of a program; not to be shared by threads."""

    def __init__(self, native: NativeProgram, num_rows: int, initial: Initial) -> None:
        program = native.program
        self._native = native
        self._num_rows = num_rows
        slots = {b: initial[b.name].shape[0] if b.name in initial else b.slots for b in program.buffers}
        self._slots = slots
        sizes = [slots[buffer] * num_rows * buffer.width for buffer in program.buffers]
        # Each buffer begins on a cache line of its own.
        starts = np.concatenate([[0], np.cumsum([-(-size // _LANES) * _LANES for size in sizes])])
        self._bases = dict(zip(program.buffers, starts[:-1].tolist(), strict=True))
        self._state = torch.zeros(int(starts[-1]) + _LANES)
        aligned = -(self._state.data_ptr() // 4) % _LANES
        self._state = self._state[aligned:]
        for buffer in program.buffers:
            if buffer.name in initial:
                base = self._bases[buffer]
                self._state[base : base + initial[buffer.name].numel()] = initial[buffer.name].flatten()
        operations = [self._operation(one) for one in native.packed]
        self._operations = (_Operation * len(operations))(*operations)
        self._is_shared = any(one.by_outputs for one in operations)

    def run(
        self,
        tokens: Tensor,
        start: int,
        stop: int,
        predict_from: int,
        draft: Draft | None = None,
        all_logits: Tensor | None = None,
    ) -> None:
        """Steps `start` to `stop` - 1 over the input `tokens` [B, K, n], which a `draft` lets it write.

        Predictions are made from step `predict_from` on, and kept in `all_logits` [R, stop - start, K V].
        """
        program = self._native.program
        assert tokens.is_contiguous()
        assert tokens.dtype == torch.int64
        run = _Run(
            operations=ctypes.addressof(self._operations),
            num_operations=len(self._operations),
            num_before_head=program.num_before_head,
            state=self._state.data_ptr(),
            logits=self._place(program.logits),
            num_rows=self._num_rows,
            batch_size=tokens.shape[0],
            num_codebooks=program.num_codebooks,
            codebook_size=program.codebook_size,
            tokens=tokens.data_ptr(),
            num_tokens=tokens.shape[2],
            all_logits=None if all_logits is None else all_logits.data_ptr(),
            start=start,
            predict_from=predict_from,
            stop=stop,
            num_threads=torch.get_num_threads() if self._is_shared or self._num_rows > 1 else 1,
        )
        if draft is not None:
            assert draft.noise.is_contiguous()
            assert draft.to_sample.is_contiguous()
            sampling = draft.sampling
            run.to_sample = draft.to_sample.data_ptr()
            run.noise = draft.noise.data_ptr()
            run.guided = sampling.is_guided
            run.top_k = sampling.top_k or 0
            run.temperature = sampling.temperature
            run.top_p = 1.0 if sampling.top_p is None else sampling.top_p
            run.cfg_scale = sampling.cfg_scale
        self._native.library.run_program(ctypes.byref(run))

    def _operation(self, packed: _Packed) -> _Operation:
        operation = packed.operation
        out = places_of(operation)[0]
        found = _Operation(
            period=operation.period,
            out=self._place(out),
            weights=packed.weights.data_ptr(),
            bias=packed.bias.data_ptr(),
            is_bf16=packed.weights.dtype == torch.bfloat16,
        )
        sources: tuple[Place, ...] = ()
        add: Place | None = None
        match operation:
            case Embed():
                found.kind, found.taps, found.joined = 0, operation.table.shape[0], operation.joined
                add = operation.add
            case Linear():
                found.kind = 1
                sources = operation.sources
                found.num_outputs, found.num_inputs = operation.weight.shape
                found.activation = _ACTIVATIONS[operation.activation]
                enough = SHARED_WEIGHTS_OF_MANY if self._num_rows >= MANY_ROWS else SHARED_WEIGHTS
                found.by_outputs = operation.weight.numel() >= enough
                add = operation.add
            case GruCell():
                found.kind, sources = 2, (operation.inputs, operation.recurrent)
            case LstmCell():
                found.kind, sources = 3, (operation.cell, operation.gates)
        if add is not None:
            found.has_add, found.add = 1, self._place(add)
        assert len(sources) <= _MAX_SOURCES
        found.num_sources = len(sources)
        for i, source in enumerate(sources):
            found.sources[i] = self._place(source)
        return found

    def _place(self, place: Place) -> _Place:
        buffer = place.buffer
        return _Place(
            base=self._bases[buffer] + place.column,
            width=place.width,
            row_stride=buffer.width,
            slot_stride=self._num_rows * buffer.width,
            slot=_clock(place.slot, self._slots[buffer]),
            part=_clock(place.part, 1),
        )


def _clock(clock: Clock, num_slots: int) -> _Clock:
    return _Clock(clock.count or -num_slots, clock.shift, clock.div, clock.mul)


def _pack(operation: Operation) -> _Packed:
    nothing = torch.zeros(1)
    match operation:
        case Embed():
            return _Packed(operation, operation.table.detach().float().contiguous(), nothing)
        case Linear():
            weight = operation.weight.detach().float()
            bias = (
                weight.new_zeros(weight.shape[0])
                if operation.bias is None
                else operation.bias.detach().float()
            )
            return _Packed(operation, _panels(weight, operation), _panels(bias[:, None], operation))
        case _:
            return _Packed(operation, nothing, nothing)


def _panels(weight: Tensor, operation: Linear) -> Tensor:
    """[outputs, inputs] as panels of 16 outputs [panel, input, 16], an even number of them, the rest zeros.

    Under `gated` panels of the first half of the outputs take turns with those of the second.
    """
    if operation.activation == "gated":
        halves = [torch.unflatten(_padded(half, _LANES), 0, (-1, _LANES)) for half in weight.chunk(2)]
        panels = torch.stack(halves, dim=1).flatten(0, 1)
    else:
        panels = torch.unflatten(_padded(weight, 2 * _LANES), 0, (-1, _LANES))
    return panels.transpose(1, 2).contiguous()


def _padded(weight: Tensor, multiple: int) -> Tensor:
    return F.pad(weight, (0, 0, 0, -weight.shape[0] % multiple))
