"""What a family of models hands to the training loop (`loop.py`): a job, made of phases.

A *phase* is one optimizer and the loss that it minimises; a GAN has two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass
class Loss:
    """What a phase minimises, for one micro-batch."""

    mean: Tensor  # scalar, differentiable
    weight: Tensor  # scalar: how many elements `mean` is the mean of
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars for the log, averaged with the same weight."""
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    """What the next step's batch finds under these names in the same rows; see `Job.carried`."""
    made: Mapping[str, Tensor] = field(default_factory=dict)
    """What the later phases of this step, and `Job.after_step`, find under these names in the same
    micro-batch, without gradient: what a generator has made, for its discriminator. Of a phase that does not
    run in this step they find nothing."""


def num_rows(x: Tensor) -> Tensor:
    """How many rows a batch has, as a `Loss.weight` on its device (`torch.tensor` would copy the number
    there, and the CPU would wait for a GPU)."""
    return torch.full((), float(len(x)), device=x.device)


@dataclass
class Phase:
    """One optimizer and its loss."""

    name: str
    module: str
    """Which of the job's modules the optimizer updates."""
    optimizer: torch.optim.Optimizer
    """A fused one: it can leave a step out by itself (`phase_step.py`)."""
    loss: Callable[[Mapping[str, nn.Module], Batch], Loss]
    first_step: int = 0
    """The phase is left out of the steps before this one."""
    every: int = 1
    """It runs in one of so many steps, the last one of them: with 5 in steps 4, 9, 14 … (the first is 0).
    In the others its optimizer and its weights stand still, and nothing of it is in the log."""
    clip_grad_norm: float | None = None
    """None: `train.clip_grad_norm`."""
    watched: str | None = None
    level: str | None = None
    """The metrics by which a run that diverges or falls silent is noticed and ended (`divergence.py`)."""
    ceiling: float | None = None
    """What the watched metric has to stay below; None: 1.5 times its best."""

    def runs_in(self, step: int) -> bool:
        """Whether the phase has a part in this step (from 0)."""
        return step >= self.first_step and (step + 1) % self.every == 0


@dataclass
class Job:
    """What a family of models hands to the loop."""

    modules: dict[str, nn.Module]
    phases: list[Phase]
    averaged: str
    """The module whose weights are averaged, validated and saved."""
    batch: Callable[[int, range], Batch]
    """(step, rows of the global batch) → tensors on the CPU; a pure function. Scalars stay there, where they
    can be read without waiting for a GPU."""
    validate: Callable[[nn.Module], dict[str, float]]
    """Scores of the averaged module on held-out data; `loss` is shown on the progress bar. Every process
    calls it, and each must call the module equally often: FSDP needs all of them for a forward pass."""
    save: Callable[[nn.Module, dict[str, float]], None]
    """Write the finished model from the averaged module and its last validation, in the first process."""
    unit: str
    """What `Loss.weight` counts, in the plural: `tokens`, `clips`."""
    carried: dict[str, Tensor] = field(default_factory=dict)
    """What a recurrent model carries from one step to the next (truncated back-propagation), as it is before
    the first step: `[batch_size, …]` each. Every micro-batch has its rows of these beside what `batch` made,
    and `Loss.carried` replaces them. Where a recording begins, `batch` has to say so."""
    after_step: Callable[[int, list[Batch]], Mapping[str, Tensor]] | None = None
    """Called with the step's number and this process's micro-batches when all phases of the step are done,
    unless one of them was skipped: what changes weights without a gradient, alike in all processes. Returns
    scalars for the log."""
    flops_per_unit: float | None = None
    """Model FLOPs, forward and backward, for one `unit` (see `mfu.py`); None: no MFU in the log."""
    preview: Callable[[nn.Module, Path], None] | None = None
    """Write clips from the averaged module into an empty folder, always with the same noise and conditions,
    in the first process alone while the others wait (see `previews.py`); None: the family has none, or none
    are asked for."""
    unused_parameters: bool = False
    """Whether there are steps in which trained parameters get no gradient, the same ones in all processes: a
    network that grows has them. Processes then look for them in every step, which takes a little time."""
