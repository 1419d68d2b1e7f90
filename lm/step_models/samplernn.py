"""SampleRNN (arXiv:1612.07837): tiers of recurrent networks, each at a clock of its own, over a small network
that predicts single samples.

It is a language model over samples: over a codec with one codebook and a hop of one sample. `linear:16000` is
the paper's quantisation, without companding; `mulaw:16000` is the alternative.

It is trained on consecutive chunks of recordings (truncated back-propagation): the state at the end of a
chunk is where the next one begins.

Shapes: B batch, T samples (a step each), V classes, D width, F samples of a tier's frame, U vectors that a
tier hands down for each of its frames, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from ...core.conditioner import Conditioner
from ...core.conditions import GivenConditions
from ...core.errors import UserError
from ..decoders.step_program import Buffer, Clock, Embed, Initial, Linear, Operation, Place, Program, whole
from ..language_model import LMLoss
from .input_noise import InputNoise, with_noise
from .ordered_classes import ordered_rows
from .rnn import Cell, cell_name, hidden_name, make_rnn, rnn_operations
from .step_model import StepConfig, StepModel, token_loss

State = dict[str, Tensor]
"""What a chunk leaves to the next one, [B, …] each: `last` [B, F] int64, the samples before the next one;
`noise` [B], where it is told, the level of noise in the recording; for tier i `hidden i` and, of an LSTM,
`cell i` [B, layers, D]."""


@dataclass(frozen=True, kw_only=True)
class SampleRNNConfig(StepConfig):
    """The shape of a SampleRNN."""

    kind: ClassVar[str] = "samplernn"

    frame_sizes: tuple[int, ...] = (8, 2)
    """F of each recurrent tier from the slowest on, each a multiple of the next; the samples themselves are
    one more tier. The paper's three tiers are (8, 2), its two are (16,)."""
    dim: int = 1024
    """D, of all tiers."""
    cell: Cell = "gru"
    num_layers: int = 1
    """Recurrent layers in each tier."""
    embedding_dim: int = 256
    """Width of a sample's embedding in the last tier."""
    input_noise: float = 0.0
    """Standard deviation, in classes, of the noise on what the model sees in training."""
    tell_noise: bool = False
    """Whether that is the most, each row has its own, and the model is told how much."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_codebooks != 1:
            raise UserError(
                f"a samplernn needs a codec of one codebook, such as linear:16000, not {self.num_codebooks}"
            )
        ends = (*self.frame_sizes, 1)
        if len(ends) < 2 or any(a % b or a <= b for a, b in pairwise(ends)):
            raise UserError(
                f"frame_sizes {list(self.frame_sizes)} must fall, each a multiple of the next: try [8, 2]"
            )

    @property
    def ratios(self) -> tuple[int, ...]:
        """U of each tier: one vector for each frame of the next one; the last tier's next are samples."""
        slower, faster = self.frame_sizes, (*self.frame_sizes[1:], 1)
        return tuple(a // b for a, b in zip(slower, faster, strict=True))

    def summary(self) -> str:
        """The clocks of the tiers."""
        clocks = ", ".join(f"{self.frame_rate / size:g} Hz" for size in self.frame_sizes)
        return f"{self.kind} of {len(self.frame_sizes) + 1} tiers: {clocks} and {self.frame_rate:g} Hz"


@dataclass
class StatefulLoss(LMLoss):
    """The loss of a chunk, and what it leaves to the next one."""

    state: State


register_dataclass(StatefulLoss, field_names=["mean", "num_tokens", "per_codebook", "state"])


# Weight normalisation: arXiv:1602.07868, eq. 2.
class NormedLinear(nn.Module):
    """A linear map whose rows have a direction and a length of their own."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool = True) -> None:
        super().__init__()
        plain = nn.Linear(num_inputs, num_outputs, bias)
        self.direction = plain.weight  # [outputs, inputs]
        self.length = nn.Parameter(plain.weight.detach().norm(dim=1))  # [outputs]
        self.bias = plain.bias

    @property
    def weight(self) -> Tensor:
        """[outputs, inputs]."""
        norms = torch.linalg.vector_norm(self.direction, dim=1)
        weight: Tensor = self.direction * (self.length / norms)[:, None]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return F.linear(x, self.weight, self.bias)


class Tier(nn.Module):
    """A recurrent network over frames, conditioned by the tier above, which hands vectors down."""

    def __init__(self, config: SampleRNNConfig, frame_size: int, ratio: int) -> None:
        super().__init__()
        self.frame_size = frame_size
        self.ratio = ratio
        self.expand = NormedLinear(frame_size, config.dim)
        self.rnn = make_rnn(config.cell, config.dim, config.num_layers)
        self.down = NormedLinear(config.dim, ratio * config.dim)  # a transposed convolution without overlap
        # What the network starts from is learned: hidden state and, of an LSTM, cell.
        num_states = 2 if config.cell == "lstm" else 1
        self.start = nn.Parameter(torch.zeros(num_states, config.num_layers, config.dim))

    def forward(
        self, frames: Tensor, above: Tensor | None, added: Tensor | None, state: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Frames [B, n, F], `above` [B, n, D] and a condition [B, D] to [B, n U, D], and the state after."""
        x = self.expand(frames)
        if above is not None:
            x = x + above
        if added is not None:
            x = x + added[:, None]
        # PyTorch's states are [layers, B, D].
        given = [one.transpose(0, 1).contiguous() for one in state]
        y, after = self.rnn(x, given[0] if len(given) == 1 else tuple(given))
        ended = [after] if len(given) == 1 else list(after)
        down = self.down(y).unflatten(2, (self.ratio, -1)).flatten(1, 2)
        return down, [one.transpose(0, 1) for one in ended]


class SampleRNN(StepModel):
    """A SampleRNN over codes [B, 1, T]; `forward` is its training loss, `logits` its prediction."""

    config_class = SampleRNNConfig
    config: SampleRNNConfig

    def __init__(self, config: SampleRNNConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern = config.make_pattern()
        dim, size = config.dim, config.codebook_size
        self.tiers = nn.ModuleList(
            Tier(config, frame_size, ratio)
            for frame_size, ratio in zip(config.frame_sizes, config.ratios, strict=True)
        )
        self.conditioner = Conditioner(config.conditions, dim)
        self.noise = InputNoise(config.input_noise, config.tell_noise, dim)
        self.condition_projections = nn.ModuleList(
            nn.Linear(dim, dim, bias=False) for _ in self.tiers if len(config.conditions) or config.tell_noise
        )
        self.embedding = nn.Embedding(size + 1, config.embedding_dim)
        with torch.no_grad():
            self.embedding.weight[:-1] = ordered_rows(size, config.embedding_dim)
        # The convolution over the last frame's embeddings, its taps from the oldest to the newest.
        self.taps = NormedLinear(config.frame_sizes[-1] * config.embedding_dim, dim, bias=False)
        self.hidden = nn.ModuleList([NormedLinear(dim, dim), NormedLinear(dim, dim)])
        self.head = NormedLinear(dim, size)
        nn.init.constant_(self.head.length, 0.02)  # the loss begins at ln V
        nn.init.zeros_(self.head.bias)
        # The middles of V equal parts of -2…2, the scale of the authors' code; what is not there is 0.
        values = 4 * (torch.arange(size) + 0.5) / size - 2
        self.register_buffer("values", F.pad(values, (0, 1)), persistent=False)
        self.values: Tensor  # [V + 1]

    def empty_state(self, batch_size: int) -> State:
        """A state of the right shapes, for chunks that begin a recording."""
        config = self.config
        names = [
            f"{name} {i}"
            for i in range(len(config.frame_sizes))
            for name in (("hidden", "cell") if config.cell == "lstm" else ("hidden",))
        ]
        last = torch.full((batch_size, config.frame_sizes[0]), config.special)
        zeros = torch.zeros(batch_size, config.num_layers, config.dim)
        state = {name: zeros.clone() for name in names} | {"last": last}
        return state | {"noise": torch.zeros(batch_size)} if config.tell_noise else state

    # ------------------------------------------------------------------------------------------ prediction

    def logits(self, tokens: Tensor, conditions: GivenConditions | None = None) -> Tensor:
        """See `StepModel.logits`; of whole recordings."""
        state = {name: one.to(tokens.device) for name, one in self.empty_state(len(tokens)).items()}
        begins = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        # The input holds the special token first, and so does what stands before a recording.
        codes = F.pad(tokens[:, 0, 1:], (0, 1), value=self.config.special)
        return self._predict(codes, conditions, state, begins)[0][:, None]

    def _predict(
        self, codes: Tensor, conditions: GivenConditions | None, state: State, begins: Tensor
    ) -> tuple[Tensor, State]:
        """Samples [B, T] to the logits of each [B, T, V], and the state after them."""
        config = self.config
        slowest = config.frame_sizes[0]
        num_steps = codes.shape[1]
        # Rows that begin a recording forget what stands in the state.
        last = state["last"].masked_fill(begins[:, None], config.special)
        padded = F.pad(codes, (0, -num_steps % slowest), value=config.special)
        sequence = torch.cat([last, padded], dim=1)
        values = self.values[sequence]
        after: State = state | {"last": sequence[:, -slowest:]}
        added = self.noise.join(self.conditioner(conditions or {}, len(codes)).added, state.get("noise"))
        above: Tensor | None = None
        for i, tier in enumerate(self.tiers):
            assert isinstance(tier, Tier)
            first = slowest - tier.frame_size
            frames = torch.unflatten(values[:, first : first + padded.shape[1]], 1, (-1, tier.frame_size))
            names = [f"hidden {i}", f"cell {i}"][: len(tier.start)]
            given = [
                torch.where(begins[:, None, None], start, state[name])
                for start, name in zip(tier.start, names, strict=True)
            ]
            condition = None if added is None else self.condition_projections[i](added)
            above, ended = tier(frames, above, condition, given)
            after |= {name: one.detach() for name, one in zip(names, ended, strict=True)}
        num_taps = config.frame_sizes[-1]
        embedded = self.embedding(sequence[:, slowest - num_taps : -1])
        windows = embedded.unfold(1, num_taps, 1).transpose(2, 3).flatten(2)  # [B, T, taps · E]
        assert above is not None
        x = self.taps(windows[:, :num_steps]) + above[:, :num_steps]
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x), after

    # -------------------------------------------------------------------------------------------- training

    def forward(  # type: ignore[override]  # chunks of recordings, not crops
        self,
        codes: Tensor,
        conditions: GivenConditions | None = None,
        frame_mask: Tensor | None = None,
        state: State | None = None,
        begins: Tensor | None = None,
    ) -> StatefulLoss:
        """The loss of a chunk of codes [B, 1, T] after `state`, and the state after it.

        Rows that are True in `begins` [B] begin a recording; without a state all do. Frames that are False in
        `frame_mask` [B, T] (after the end of a recording) are neither seen nor counted. T must be a multiple
        of the slowest tier's frame where a recording goes on.
        """
        special = self.config.special
        if frame_mask is not None:
            codes = codes.masked_fill(~frame_mask[:, None], special)
        if state is None:
            state = {name: one.to(codes.device) for name, one in self.empty_state(len(codes)).items()}
            begins = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        assert begins is not None
        levels = torch.zeros(len(codes), device=codes.device)
        seen = codes[:, 0]
        if self.training and self.config.input_noise:
            levels = self.noise.draw(len(codes), codes.device)
            if self.config.tell_noise:  # a recording keeps the level that it begins with
                levels = torch.where(begins, levels, state["noise"])
            seen = with_noise(seen, levels[:, None], self.config.codebook_size)
        if self.config.tell_noise:
            state = state | {"noise": levels}
        logits, after = self._predict(seen, conditions, state, begins)
        loss = token_loss([logits], codes, special)
        return StatefulLoss(loss.mean, loss.num_tokens, loss.per_codebook, after)

    # ------------------------------------------------------------------------------------------ generation

    def step_program(self) -> Program:
        """The step: each tier at the steps where a frame of its own is complete."""
        config = self.config
        dim = config.dim
        operations: list[Operation] = []
        above: Place | None = None
        for i, tier in enumerate(self.tiers):
            assert isinstance(tier, Tier)
            size = tier.frame_size
            frame, x = whole(Buffer(f"frame {i}", size)), whole(Buffer(f"x {i}", dim))
            values = self.values.view(1, 1, -1, 1).expand(size, 1, -1, 1)
            condition = None
            if len(self.condition_projections):
                condition = whole(Buffer(f"condition {i}", (4 if config.cell == "lstm" else 3) * dim))
            assert isinstance(tier.rnn, nn.GRU | nn.LSTM)
            cells, top = rnn_operations(f"tier {i}", tier.rnn, x, condition, size)
            down = Buffer(f"down {i}", tier.ratio * dim)
            operations += [
                Embed(frame, values, joined=True, period=size),
                Linear(x, (frame,), tier.expand.weight, tier.expand.bias, above, period=size),
                *cells,
                Linear(whole(down), (top,), tier.down.weight, tier.down.bias, period=size),
            ]
            above = Place(down, dim, part=Clock(tier.ratio, div=size // tier.ratio))
        # Embedding and convolution are one table for each tap.
        taps = torch.unflatten(self.taps.weight, 1, (config.frame_sizes[-1], -1)).flip(
            1
        )  # [D, taps, E], newest first
        table = torch.einsum("ve,dte->tvd", self.embedding.weight, taps)[:, None]
        places = [whole(Buffer(name, dim)) for name in ("sample", "hidden 1", "hidden 2")]
        logits = whole(Buffer("logits", config.codebook_size))
        num_before_head = len(operations)
        operations.append(Embed(places[0], table, add=above))
        for source, out, layer in zip(places[:-1], places[1:], self.hidden, strict=True):
            assert isinstance(layer, NormedLinear)
            operations.append(Linear(out, (source,), layer.weight, layer.bias, activation="relu"))
        operations.append(Linear(logits, (places[-1],), self.head.weight, self.head.bias))
        return Program(
            operations=tuple(operations),
            num_before_head=num_before_head,
            logits=logits,
            num_codebooks=1,
            codebook_size=config.codebook_size,
            context=None,
            period=config.frame_sizes[0],
        )

    def initial_state(self, conditions: GivenConditions, num_rows: int) -> Initial:
        """The learned states, and what the conditions add to the gates of each tier."""
        initial: dict[str, Tensor] = {}
        levels = self.noise.assumed_levels(num_rows, self.device)
        added = self.noise.join(self.conditioner(conditions, num_rows).added, levels)
        for i, tier in enumerate(self.tiers):
            assert isinstance(tier, Tier)
            for layer in range(self.config.num_layers):
                for name, start in zip((hidden_name, cell_name), tier.start, strict=False):
                    initial[name(f"tier {i}", layer)] = start[layer].expand(1, num_rows, -1).contiguous()
            if added is not None:
                assert isinstance(tier.rnn, nn.GRU | nn.LSTM)
                weight = tier.rnn.weight_ih_l0
                assert isinstance(weight, Tensor)
                initial[f"condition {i}"] = F.linear(self.condition_projections[i](added), weight)[None]
        return initial
