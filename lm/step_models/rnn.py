"""A recurrent network over codec tokens: a small baseline of discrete sequence modelling.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size, D model width, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...core.conditioner import Conditioner
from ...core.conditions import GivenConditions
from ..decoders.step_program import (
    Buffer,
    Embed,
    GruCell,
    Initial,
    Linear,
    LstmCell,
    Operation,
    Place,
    Program,
    whole,
)
from .step_model import StepConfig, StepModel, StepPattern

Cell = Literal["gru", "lstm"]


@dataclass(frozen=True, kw_only=True)
class RNNConfig(StepConfig):
    """The shape of a recurrent language model."""

    kind: ClassVar[str] = "rnn"

    pattern: StepPattern = "delay"
    cell: Cell = "lstm"
    dim: int = 384
    """D."""
    num_layers: int = 2
    dropout: float = 0.0
    """On the input and between the layers, while training."""


class RNNLM(StepModel):
    """A recurrent network over codes [B, K, T]; `forward` is its training loss, `logits` its prediction."""

    config_class = RNNConfig
    config: RNNConfig

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern = config.make_pattern()
        self.table = nn.Parameter(
            torch.randn(1, config.num_codebooks, config.codebook_size + 1, config.dim)
            / config.num_codebooks**0.5
        )
        self.conditioner = Conditioner(config.conditions, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.rnn = make_rnn(config.cell, config.dim, config.num_layers, config.dropout)
        self.head = nn.Linear(config.dim, config.num_codebooks * config.codebook_size)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def logits(self, tokens: Tensor, conditions: GivenConditions | None = None) -> Tensor:
        """See `StepModel.logits`."""
        batch_size, num_codebooks, num_steps = tokens.shape
        offsets = torch.arange(num_codebooks, device=tokens.device) * self.table.shape[2]
        rows = (tokens + offsets[:, None]).transpose(1, 2).reshape(-1, num_codebooks)
        x = nn.functional.embedding_bag(rows, self.table.view(-1, self.config.dim), mode="sum")
        x = x.view(batch_size, num_steps, -1)
        added = self.conditioner(conditions or {}, batch_size).added
        x = x if added is None else x + added[:, None]
        y = self.head(self.rnn(self.dropout(x))[0])
        return y.unflatten(-1, (num_codebooks, -1)).transpose(1, 2)  # type: ignore[no-any-return]

    def step_program(self) -> Program:
        """The step: the layers' cells, one after another."""
        config = self.config
        x = whole(Buffer("x", config.dim))
        condition = whole(Buffer("condition", config.dim))
        operations: list[Operation] = [
            Embed(x, self.table, add=condition if len(config.conditions) else None)
        ]
        cells, top = rnn_operations("rnn", self.rnn, x)
        operations += cells
        logits = whole(Buffer("logits", self.head.out_features))
        return Program(
            operations=(*operations, Linear(logits, (top,), self.head.weight, self.head.bias)),
            num_before_head=len(operations),
            logits=logits,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            context=None,
        )

    def initial_state(self, conditions: GivenConditions, num_rows: int) -> Initial:
        """The conditions; the cells begin at zero."""
        added = self.conditioner(conditions, num_rows).added
        return {} if added is None else {"condition": added[None]}


def make_rnn(cell: Cell, dim: int, num_layers: int, dropout: float = 0.0) -> nn.GRU | nn.LSTM:
    """Layers of one width, [B, S, D] to [B, S, D]."""
    between = dropout if num_layers > 1 else 0.0
    kind = nn.GRU if cell == "gru" else nn.LSTM
    return kind(dim, dim, num_layers, batch_first=True, dropout=between)


def hidden_name(name: str, layer: int) -> str:
    """The buffer with the hidden state of a layer of the network `name`."""
    return f"{name} hidden {layer}"


def cell_name(name: str, layer: int) -> str:
    """The buffer with the cell of a layer of the LSTM `name`."""
    return f"{name} cell {layer}"


def rnn_operations(
    name: str, rnn: nn.GRU | nn.LSTM, x: Place, add: Place | None = None, period: int = 1
) -> tuple[list[Operation], Place]:
    """The step of all layers, and where the last one's output is.

    `add` [R, 3 D or 4 D] is added to what the first layer's matrix makes of `x`.
    """
    operations: list[Operation] = []
    dim = rnn.hidden_size
    for layer in range(rnn.num_layers):
        input_weight, hidden_weight, input_bias, hidden_bias = (
            getattr(rnn, f"{kind}_{part}_l{layer}") for kind in ("weight", "bias") for part in ("ih", "hh")
        )
        hidden = whole(Buffer(hidden_name(name, layer), dim))
        added = add if layer == 0 else None
        if isinstance(rnn, nn.LSTM):
            gates = whole(Buffer(f"{name} gates {layer}", 4 * dim))
            weight = torch.cat([input_weight, hidden_weight], dim=1)
            operations += [
                Linear(gates, (x, hidden), weight, input_bias + hidden_bias, added, period=period),
                LstmCell(hidden, whole(Buffer(cell_name(name, layer), dim)), gates, period),
            ]
        else:
            inputs = whole(Buffer(f"{name} inputs {layer}", 3 * dim))
            recurrent = whole(Buffer(f"{name} recurrent {layer}", 3 * dim))
            operations += [
                Linear(inputs, (x,), input_weight, input_bias, added, period=period),
                Linear(recurrent, (hidden,), hidden_weight, hidden_bias, period=period),
                GruCell(hidden, inputs, recurrent, period),
            ]
        x = hidden
    return operations, x
