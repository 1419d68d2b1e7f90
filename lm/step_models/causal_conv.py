"""Causal convolutions over codec tokens: WaveNet's layers where a step is a frame of a codec.

A small baseline of discrete sequence modelling; all K codebooks enter summed and leave by heads of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .step_model import StepPattern
from .wavenet import WaveNet, WaveNetConfig


@dataclass(frozen=True, kw_only=True)
class CausalConvConfig(WaveNetConfig):
    """WaveNet's settings, with the widths and dilations of frames."""

    kind: ClassVar[str] = "causal_conv"

    pattern: StepPattern = "delay"
    num_stacks: int = 2
    layers_per_stack: int = 5
    kernel_size: int = 3
    residual_channels: int = 128
    gate_channels: int = 128
    skip_channels: int = 256


class CausalConvLM(WaveNet):
    """A stack of causal convolutions over codes [B, K, T]."""

    config_class = CausalConvConfig
    config: CausalConvConfig
