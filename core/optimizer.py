"""Learning rates and the optimizer that most phases have."""

from __future__ import annotations

import math

import torch
from torch import nn

from .schema import Train


def learning_rate(config: Train, step: int) -> float:
    """Linear warm-up, then a constant, or a half cosine or an exponential down to `final_lr_fraction`.

    `step` counts from 0.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "exponential":
        return float(config.lr * config.final_lr_fraction**progress)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def adamw(module: nn.Module, config: Train, betas: tuple[float, float] | None = None) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) with weight decay on matrices only, not on gains and biases.

    `betas`: None: `train.betas`.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Fused: one pass over the weights for what would be eight.
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.lr, betas=betas or config.betas, fused=True
    )
