"""One step of a phase: gradients over this process's micro-batches, and the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .job import Batch, Phase
from .sharding import local_tensors


@dataclass
class StepResult:
    """What one phase did in one step, over all processes."""

    sums: dict[str, Tensor]
    """Metrics, each multiplied by the weight and summed."""
    weight: Tensor  # scalar
    taken: Tensor  # scalar, bool
    """False if the gradient was not finite, and the weights were left alone. On the device, which need not be
    waited for."""
    carried: list[Batch]
    """What each micro-batch hands to the next step, where a loss says so."""
    made: list[Batch]
    """And to what comes later in this step."""


def run_phase(
    accelerator: Accelerator,
    phase: Phase,
    modules: Mapping[str, nn.Module],
    batches: list[Batch],
    clip: float,
) -> StepResult:
    """One optimizer step over this process's micro-batches."""
    module = modules[phase.module]
    names: list[str] = []
    carried: list[Batch] = []
    made: list[Batch] = []
    totals = torch.zeros((), device=accelerator.device)
    for i, batch in enumerate(batches):
        with contextlib.nullcontext() if i == len(batches) - 1 else accelerator.no_sync(module):
            loss = phase.loss(modules, batch)
            accelerator.backward(loss.mean * loss.weight)
        carried.append({name: t.detach() for name, t in loss.carried.items()})
        made.append({name: t.detach() for name, t in loss.made.items()})
        metrics = {"loss": loss.mean, **loss.metrics}
        names = list(metrics)
        weighted = torch.stack([value.detach().float() for value in metrics.values()]) * loss.weight
        totals = totals + torch.cat([loss.weight.float().reshape(1), weighted])
    totals = accelerator.reduce(totals, reduction="sum")
    weight = totals[0]
    parameters = [p for g in phase.optimizer.param_groups for p in g["params"] if p.grad is not None]
    # DDP and FSDP have averaged the processes' sums: undo the average, divide by what was summed.
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(local_tensors(gradients), accelerator.num_processes / weight)
    accelerator.unscale_gradients(phase.optimizer)  # which are scaled with fp16
    norm = nn.utils.clip_grad_norm_(parameters, phase.clip_grad_norm or clip)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    taken = torch.isfinite(norm)
    if accelerator.scaler is None:
        step_if(phase.optimizer, taken)
    elif taken:
        phase.optimizer.step()
    else:
        accelerator.scaler.update()  # fp16: lower the scale that has overflowed
    phase.optimizer.zero_grad(set_to_none=True)
    sums = dict(zip(names, totals[1:], strict=True)) | {"grad_norm": norm.detach() * weight}
    return StepResult(sums, weight, taken, carried, made)


def step_if(optimizer: torch.optim.Optimizer, taken: Tensor) -> None:
    """A step of a fused optimizer that leaves weights and state alone unless `taken` [], which the device
    decides for itself."""
    inner: Any = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    # PyTorch's own way to say so, made for its scaler of gradients; only fused optimizers listen to it.
    if not getattr(inner, "_step_supports_amp_scaling", False):
        raise TypeError(f"{type(inner).__name__} has to be fused (fused=True)")
    inner.found_inf = (~taken).to(torch.float32)  # what the kernels read
    try:
        optimizer.step()
    finally:
        del inner.found_inf
