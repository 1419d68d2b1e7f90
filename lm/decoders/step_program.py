"""One step of an autoregressive model as a list of operations on buffers, for models of one token a sample.

A model over single samples takes 16,000 steps a second, each of some hundred small operations: called one by
one from Python they would cost far more than what they compute. So WaveNet, SampleRNN and the small
baselines say what a step is as data, a `Program`, and an executor runs blocks of many steps: compiled for a
CPU (`step_program_native.py`), or with PyTorch's operations, one after another or as a CUDA graph
(`step_program_torch.py`).

What an operation reads and writes is a `Place`: a matrix `[R, width]` in a buffer. Where it stands can depend
on the step, by a `Clock`: that is how a ring buffer works, and how a slow tier hands out one vector after
another.

Shapes: R rows of the model, K codebooks, V codebook size, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Activation = Literal["none", "relu", "tanh", "gated"]


@dataclass(frozen=True)
class Clock:
    """A number that follows the step: `(step * mul // div + shift) % count`.

    `count` 0 stands for a buffer whose slots come with its initial content: the number then stays at the last
    one.
    """

    count: int = 1
    shift: int = 0
    div: int = 1
    mul: int = 1

    def at(self, step: int, num_slots: int = 1) -> int:
        """The number at `step`, for a buffer of `num_slots` slots."""
        number = step * self.mul // self.div + self.shift
        return number % self.count if self.count else min(number, num_slots - 1)


@dataclass(frozen=True)
class Buffer:
    """State `[slots, R, width]` float32; zeros at first, unless `Program.initial` says otherwise."""

    name: str
    width: int
    slots: int = 1


@dataclass(frozen=True)
class Place:
    """A matrix `[R, width]` in a buffer: the slot and the columns that the clocks point at."""

    buffer: Buffer
    width: int
    column: int = 0
    """First column of part 0."""
    slot: Clock = Clock()
    part: Clock = Clock()
    """Part p is the columns from `column + p * width` on."""

    def first_column(self, step: int) -> int:
        """Where the columns begin at `step`."""
        return self.column + self.part.at(step) * self.width


@dataclass(frozen=True)
class Embed:
    """Rows of tables for the last tokens of the input, summed (with `add`), or joined from the oldest on.

    Tokens before the beginning of the input are special tokens.
    """

    out: Place
    table: Tensor  # [taps, K, V + 1, E]: tap j is for the input j steps ago
    joined: bool = False
    add: Place | None = None  # as wide as `out`; of a sum only
    period: int = 1


@dataclass(frozen=True)
class Linear:
    """`activation(weight [sources joined] + bias + add)`; `gated` is tanh of the first half of the outputs
    times the sigmoid of the second."""

    out: Place
    sources: tuple[Place, ...]
    weight: Tensor  # [outputs, sum of the sources' widths]
    bias: Tensor | None = None  # [outputs]
    add: Place | None = None  # as wide as there are outputs
    activation: Activation = "none"
    period: int = 1


@dataclass(frozen=True)
class GruCell:
    """The gates of a GRU (PyTorch's form), which renew `hidden`."""

    hidden: Place  # H wide
    inputs: Place  # 3 H: reset, update, new, from the cell's input
    recurrent: Place  # 3 H: the same from the hidden state before
    period: int = 1


@dataclass(frozen=True)
class LstmCell:
    """The gates of an LSTM, which renew `hidden` and `cell`."""

    hidden: Place  # H wide
    cell: Place  # H
    gates: Place  # 4 H: input, forget, cell, output
    period: int = 1


Operation = Embed | Linear | GruCell | LstmCell


@dataclass(frozen=True)
class Program:
    """A model's step. An operation is run at the steps that are multiples of its `period`."""

    operations: tuple[Operation, ...]
    num_before_head: int
    """The operations from this one on are only needed where a prediction is wanted."""
    logits: Place
    """[R, K V], codebook after codebook."""
    num_codebooks: int
    codebook_size: int
    context: int | None
    """A prediction depends on no more than this many steps of the input; None: on all."""
    period: int = 1
    """A common multiple of the operations' periods."""

    @property
    def buffers(self) -> list[Buffer]:
        """All buffers, each once, in the order in which operations name them."""
        found = [place.buffer for operation in self.operations for place in places_of(operation)]
        return list(dict.fromkeys([*found, self.logits.buffer]))

    def num_weights(self) -> int:
        """Numbers in the operations' matrices."""
        return sum(op.weight.numel() for op in self.operations if isinstance(op, Linear))


Initial = Mapping[str, Tensor]
"""What buffers hold before step 0: name → `[slots, R, width]`."""


def places_of(operation: Operation) -> list[Place]:
    """What an operation reads and writes."""
    match operation:
        case Embed():
            return [operation.out] + ([] if operation.add is None else [operation.add])
        case Linear():
            added = [] if operation.add is None else [operation.add]
            return [operation.out, *operation.sources, *added]
        case GruCell():
            return [operation.hidden, operation.inputs, operation.recurrent]
        case LstmCell():
            return [operation.hidden, operation.cell, operation.gates]


def whole(buffer: Buffer) -> Place:
    """The place that is a buffer of one slot."""
    return Place(buffer, buffer.width)
