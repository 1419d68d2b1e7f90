"""WaveNet (arXiv:1609.03499): stacks of dilated causal convolutions with gates, residuals and skips.

It is a language model over samples: over a codec with one codebook and a hop of one sample, such as
`mulaw:16000`. Over other codecs it is the family `causal_conv`.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size, C residual channels, G gate
channels, H skip channels, L layers, D width of a condition, N states of a local condition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.conditioner import Conditioner
from ...core.conditions import Condition, Conditions, GivenConditions
from ...core.errors import UserError
from ..decoders.step_program import Buffer, Clock, Embed, Initial, Linear, Operation, Place, Program, whole
from .input_noise import InputNoise, with_noise
from .ordered_classes import ordered_rows
from .step_model import StepConfig, StepModel


@dataclass(frozen=True, kw_only=True)
class WaveNetConfig(StepConfig):
    """The shape of a WaveNet."""

    kind: ClassVar[str] = "wavenet"

    num_stacks: int = 2
    """How often the dilations 1, 2, 4, … are gone through."""
    layers_per_stack: int = 10
    """Layers of a stack; the last one's dilation is 2^(n - 1)."""
    kernel_size: int = 2
    """Taps of each convolution, the first one on the tokens included."""
    residual_channels: int = 32
    """C."""
    gate_channels: int = 32
    """G: the width of the tanh half, and of the sigmoid half."""
    skip_channels: int = 128
    """H, also the width of the layer before the last."""
    condition_channels: int = 64
    """D."""
    input_noise: float = 0.0
    """Standard deviation, in classes, of the noise on what the model sees in training."""
    tell_noise: bool = False
    """Whether that is the most, each row has its own, and the model is told how much."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == WaveNetConfig.kind and self.num_codebooks != 1:
            raise UserError(
                f"a wavenet needs a codec of one codebook, such as mulaw:16000, not {self.num_codebooks}:"
                " choose kind: causal_conv for this one"
            )

    @property
    def dilations(self) -> list[int]:
        """The dilation of each layer."""
        return [2**i for i in range(self.layers_per_stack)] * self.num_stacks

    @property
    def receptive_field(self) -> int:
        """How many steps of the input a prediction depends on: each convolution adds (taps - 1) dilations."""
        return (self.kernel_size - 1) * (1 + sum(self.dilations)) + 1

    @property
    def context_frames(self) -> int:
        """The receptive field, in frames at most, behind what a crop's beginning lacks under a delay."""
        return self.receptive_field + self.make_pattern().num_steps(0)

    def summary(self) -> str:
        """The receptive field, in steps and in seconds."""
        steps = self.receptive_field
        per_frame = self.make_pattern().num_steps(2) - self.make_pattern().num_steps(1)
        return (
            f"{self.kind} of {len(self.dilations)} layers: receptive field {steps} steps,"
            f" {steps / per_frame / self.frame_rate:.3g} s"
        )


class Layer(nn.Module):
    """One layer: a gated dilated convolution, and what it adds to the residual and to the skip path."""

    def __init__(self, config: WaveNetConfig, dilation: int, is_last: bool) -> None:
        super().__init__()
        self.dilation = dilation
        self.channels = config.residual_channels
        # The taps from the oldest to the newest, as one matrix over all that they see.
        self.taps = nn.Linear(config.kernel_size * config.residual_channels, 2 * config.gate_channels)
        self.skip = nn.Linear(config.gate_channels, config.skip_channels)
        # Nothing follows the last layer but the head, which reads the skips alone.
        self.residual = None if is_last else nn.Linear(config.gate_channels, config.residual_channels)

    def forward(self, x: Tensor, skips: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, S, C] and [B, S, H], with a condition [B, 1 or S, 2 G], to the same two."""
        # The product of each tap is shifted, not its input: no copy of the input for every tap.
        *older, newest = torch.split(self.taps.weight, self.channels, dim=1)
        y = F.linear(x, newest, self.taps.bias)
        for i, weight in enumerate(older):
            shift = (len(older) - i) * self.dilation
            if shift < x.shape[1]:
                y = y + F.pad(F.linear(x[:, :-shift], weight), (0, 0, shift, 0))
        if condition is not None:
            y = y + condition
        value, gate = y.chunk(2, dim=-1)
        z = torch.tanh(value) * torch.sigmoid(gate)  # eq. 2; eq. 3 with a condition
        skips = skips + self.skip(z)
        return (x if self.residual is None else x + self.residual(z)), skips


class WaveNet(StepModel):
    """A WaveNet over codes [B, K, T]; `forward` is its training loss, `logits` its prediction."""

    config_class = WaveNetConfig
    config: WaveNetConfig

    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern = config.make_pattern()
        num_layers = len(config.dilations)
        # The causal convolution on one-hot tokens that the paper begins with: a table for each tap.
        shape = config.kernel_size, config.num_codebooks, config.codebook_size + 1, config.residual_channels
        self.table = nn.Parameter(torch.empty(shape))
        self.blocks = nn.ModuleList(
            Layer(config, dilation, is_last=i == num_layers - 1)
            for i, dilation in enumerate(config.dilations)
        )
        self.head = nn.ModuleList(
            [
                nn.Linear(config.skip_channels, config.skip_channels),
                nn.Linear(config.skip_channels, config.num_codebooks * config.codebook_size),
            ]
        )
        self.local = [c for c in config.conditions if feature_rate(c) is not None]
        steady = Conditions(tuple(c for c in config.conditions if c not in self.local))
        width = config.condition_channels
        self.conditioner = Conditioner(steady, width) if len(steady) else None
        self.local_projections = nn.ModuleDict({c.name: nn.Linear(c.width, width) for c in self.local})
        self.noise = InputNoise(config.input_noise, config.tell_noise, width)
        self.condition_projection = (
            nn.Linear(width, 2 * config.gate_channels * num_layers, bias=False)
            if len(config.conditions) or config.tell_noise
            else None
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """Small weights of the output, so that the loss begins at ln V; classes of samples have an order."""
        config = self.config
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.bias)
        nn.init.normal_(last.weight, std=0.02 / math.sqrt(config.skip_channels))
        nn.init.normal_(self.table)
        with torch.no_grad():
            if config.kind == WaveNetConfig.kind:
                for tap in self.table[:, 0]:
                    tap[:-1] = ordered_rows(config.codebook_size, config.residual_channels)
                last.weight.copy_(ordered_rows(config.codebook_size, config.skip_channels))
                last.weight.mul_(0.5 / math.sqrt(config.skip_channels))
            self.table.div_(math.sqrt(config.kernel_size * config.num_codebooks))

    # ------------------------------------------------------------------------------------------ prediction

    def logits(self, tokens: Tensor, conditions: GivenConditions | None = None) -> Tensor:
        """See `StepModel.logits`. Local conditions begin with the first step."""
        levels = torch.zeros(len(tokens), device=tokens.device)
        if self.training and self.config.input_noise:
            levels = self.noise.draw(len(tokens), tokens.device)
            tokens = with_noise(tokens, levels[:, None, None], self.config.codebook_size)
        num_steps = tokens.shape[2]
        x = self._embed(tokens)
        found = self._conditions(conditions or {}, levels)  # [B, N, L 2 G]
        states = None if found is None else self._state_of_steps(num_steps, found.shape[1], tokens.device)
        skips = x.new_zeros(1, 1, self.config.skip_channels)
        for i, layer in enumerate(self.blocks):
            condition = None
            if found is not None:
                part = found[..., i * 2 * self.config.gate_channels : (i + 1) * 2 * self.config.gate_channels]
                condition = part if part.shape[1] == 1 else part.index_select(1, states)  # type: ignore[arg-type]
            x, skips = layer(x, skips, condition)
        hidden = self.head[0](torch.relu(skips))
        y = self.head[1](torch.relu(hidden))
        return y.unflatten(-1, (self.config.num_codebooks, -1)).transpose(1, 2)  # type: ignore[no-any-return]

    def _embed(self, tokens: Tensor) -> Tensor:
        """[B, K, S] to [B, S, C]; before the beginning stand special tokens."""
        taps, num_codebooks, num_rows, width = self.table.shape
        padded = F.pad(tokens, (taps - 1, 0), value=self.config.special)
        shifted = padded.unfold(2, taps, 1).flip(3)  # [B, K, S, taps], the newest first
        offsets = torch.arange(taps * num_codebooks, device=tokens.device).view(taps, num_codebooks).T
        rows = (shifted + num_rows * offsets[:, None]).permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
        found = F.embedding_bag(rows, self.table.view(-1, width), mode="sum")
        return found.view(tokens.shape[0], tokens.shape[2], width)

    def _conditions(self, given: GivenConditions, levels: Tensor) -> Tensor | None:
        """What conditions and noise add to the gates of all layers [B, N, L 2 G]; N is 1 if none is local."""
        if self.condition_projection is None:
            return None
        weight = self.condition_projection.weight
        batch_size = len(levels)
        total = weight.new_zeros(batch_size, 1, weight.shape[1])
        steady = None if self.conditioner is None else self.conditioner(given, batch_size).added
        added = self.noise.join(steady, levels)
        if added is not None:
            total = total + added[:, None]
        for condition in self.local:
            one = given.get(condition.name)
            if one is not None:
                states = self.local_projections[condition.name](one.values.to(weight.dtype))
                total = total + self._at_common_rate(states * one.mask[..., None], condition)
        found: Tensor = self.condition_projection(total)
        return found

    @property
    def _rate(self) -> Fraction:
        """States of the local conditions for one frame: the fastest one's; 0 where there is none."""
        rates = [rate for c in self.local if (rate := feature_rate(c)) is not None]
        return Fraction(max(rates, default=0.0) / self.config.frame_rate).limit_denominator(100_000)

    def _at_common_rate(self, states: Tensor, condition: Condition) -> Tensor:
        """States [B, n, D] repeated to the rate of the fastest local condition."""
        rate = feature_rate(condition)
        assert rate is not None
        ratio = float(self._rate) * self.config.frame_rate / rate
        if ratio == 1:
            return states
        index = (torch.arange(math.ceil(states.shape[1] * ratio), device=states.device) / ratio).long()
        return states.index_select(1, index.clamp(max=states.shape[1] - 1))

    # Sec. 2.5: y = f(h), here by repetition; the authors found transposed convolution slightly better.
    def _state_of_steps(self, num_steps: int, num_states: int, device: torch.device) -> Tensor:
        steps = torch.arange(num_steps, device=device) // self._steps_per_frame
        rate = self._rate
        return (steps * rate.numerator // rate.denominator).clamp(max=num_states - 1)

    @property
    def _steps_per_frame(self) -> int:
        return self.pattern.num_steps(2) - self.pattern.num_steps(1)

    # ------------------------------------------------------------------------------------------ generation

    # Fast WaveNet (arXiv:1611.09482): each layer keeps what its taps will need again, O(L) a step.
    def step_program(self) -> Program:
        """The step: a ring buffer for the input of each layer, the skips of all layers in one product."""
        config = self.config
        gate, num_layers = config.gate_channels, len(config.dilations)
        z = Buffer("z", num_layers * gate)
        rings = [
            Buffer(f"ring {i}", config.residual_channels, (config.kernel_size - 1) * dilation + 1)
            for i, dilation in enumerate(config.dilations)
        ]
        condition = None
        if self.condition_projection is not None:
            condition = Buffer("condition", num_layers * 2 * gate)
        rate = self._rate
        clock = Clock(count=0, mul=rate.numerator, div=rate.denominator * self._steps_per_frame)
        operations: list[Operation] = [Embed(_ago(rings[0], 0), self.table)]
        skip_weights, skip_bias = [], torch.zeros(())
        for i, (layer, dilation) in enumerate(zip(self.blocks, config.dilations, strict=True)):
            assert isinstance(layer, Layer)
            taps = [_ago(rings[i], j * dilation) for j in reversed(range(config.kernel_size))]
            add = None if condition is None else Place(condition, 2 * gate, i * 2 * gate, clock)
            out = Place(z, gate, i * gate)
            operations.append(
                Linear(out, tuple(taps), layer.taps.weight, layer.taps.bias, add, activation="gated")
            )
            if layer.residual is not None:
                now = _ago(rings[i], 0)
                operations.append(
                    Linear(_ago(rings[i + 1], 0), (out,), layer.residual.weight, layer.residual.bias, now)
                )
            skip_weights.append(layer.skip.weight)
            skip_bias = skip_bias + layer.skip.bias
        first, last = self.head
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        skips, hidden = Buffer("skips", config.skip_channels), Buffer("hidden", config.skip_channels)
        logits = whole(Buffer("logits", last.out_features))
        head = [
            Linear(whole(skips), (whole(z),), torch.cat(skip_weights, 1), skip_bias, activation="relu"),
            Linear(whole(hidden), (whole(skips),), first.weight, first.bias, activation="relu"),
            Linear(logits, (whole(hidden),), last.weight, last.bias),
        ]
        return Program(
            operations=(*operations, *head),
            num_before_head=len(operations),
            logits=logits,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            context=config.receptive_field,
        )

    def initial_state(self, conditions: GivenConditions, num_rows: int) -> Initial:
        """The conditions of every layer, at the rate of the fastest one."""
        found = self._conditions(conditions, self.noise.assumed_levels(num_rows, self.device))
        return {} if found is None else {"condition": found.transpose(0, 1).contiguous()}


def feature_rate(condition: Condition) -> float | None:
    """Frames a second of a condition that follows the clip in time; None for all others."""
    rate = (condition.feature or {}).get("frame_rate")
    return None if rate is None else float(rate)


def _ago(ring: Buffer, num_steps: int) -> Place:
    """What a ring buffer got `num_steps` steps ago."""
    return Place(ring, ring.width, slot=Clock(ring.slots, ring.slots - num_steps))
