"""The one training loop: language models, codecs, diffusion models and GANs hand it a job.

One *step* runs every phase of a job (`job.py`) once, or those whose turn it is, on one global batch of
`train.batch_size` clips.

Three properties hold by construction rather than by bookkeeping:

- Nothing depends on state outside a checkpoint: batches, dropout and the learning rate are pure functions
  of (seed, step), so a resumed run is the uninterrupted one, bit for bit on CPU.
- A loss is a mean over `Loss.weight` elements. Gradients are summed with those weights over micro-batches
  and processes and divided by the total, so how many processes share a batch does not change the step.
- All processes see the same gradient norm, so they agree on skipping a step that is not finite.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .average import Average
from .blocks import prepare_blocks
from .checkpoint import load_newest_checkpoint, save_checkpoint
from .divergence import Divergence
from .errors import UserError
from .job import Batch, Job, Phase
from .log import TrainingLog
from .mfu import mfu_per_speed
from .optimizer import learning_rate
from .previews import Previews
from .processes import start_accelerator, tell_of_lost_processes
from .schema import Train
from .sharding import gather_whole, is_sharded, local_tensors, without_weights

# After this many steps in a row without a finite gradient, going on only burns time.
MAX_SKIPPED_IN_A_ROW = 50

# Kept for as long as the process lives. Else the reducer of a wrapped module would be a group's last owner:
# its end waits for Gloo's thread with the interpreter's lock in hand, while that thread may be waiting for
# it to let go of a barrier's tensor: one of four processes has been seen to hang so, all its work done.
_ended_groups: list[torch.distributed.ProcessGroup | None] = []


@dataclass
class StepResult:
    """What one phase did in one step, over all processes."""

    sums: dict[str, Tensor]
    """Metrics, each multiplied by the weight and summed."""
    weight: Tensor  # scalar
    taken: bool
    """False if the gradient was not finite, and the weights were left alone."""
    carried: list[Batch]
    """What each micro-batch hands to the next step, where a loss says so."""
    made: list[Batch]
    """And to what comes later in this step."""


class StoppedError(UserError):
    """Training was asked to stop, and has saved a checkpoint."""

    exit_code = 128 + signal.SIGTERM


def process_rows(batch_size: int, num_processes: int, process: int, num_micro: int) -> list[range]:
    """The rows of the global batch that each micro-batch of one process holds.

    Raises `UserError` if the batch cannot be shared out evenly.
    """
    if batch_size % (num_processes * num_micro):
        raise UserError(
            f"train.batch_size {batch_size} cannot be shared evenly by {num_processes} processes"
            f" with {num_micro} micro-batches each: make it a multiple of {num_processes * num_micro}"
        )
    size = batch_size // (num_processes * num_micro)
    first = process * num_micro * size
    return [range(first + i * size, first + (i + 1) * size) for i in range(num_micro)]


def _run_phase(
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
    taken = bool(torch.isfinite(norm))
    if taken:
        phase.optimizer.step()
    elif accelerator.scaler is not None:
        accelerator.scaler.update()  # fp16: lower the scale that has overflowed
    phase.optimizer.zero_grad(set_to_none=True)
    sums = dict(zip(names, totals[1:], strict=True)) | {"grad_norm": norm.detach() * weight}
    return StepResult(sums, weight, taken, carried, made)


def _prepare(accelerator: Accelerator, job: Job) -> dict[str, nn.Module]:
    """Hand the modules and their optimizers to Accelerate, which wraps or shards them."""
    modules = {}
    for name, module in job.modules.items():
        # FSDP replaces parameters, so a module goes with its optimizers.
        phases = [phase for phase in job.phases if phase.module == name]
        prepared = accelerator.prepare(module, *(phase.optimizer for phase in phases))
        modules[name], *optimizers = prepared if phases else [prepared]
        for phase, optimizer in zip(phases, optimizers, strict=True):
            phase.optimizer = optimizer
    return modules


def train(job: Job, config: Train, run_folder: Path) -> None:
    """Train `job` to `config.steps`, resuming from the newest checkpoint in `run_folder`, then save it.

    Raises `StoppedError` after SIGTERM (a checkpoint is saved first), `LostProcessError` when another process
    does not answer, and `UserError` when the loss stays non-finite or diverges, or when this machine or the
    job cannot do what is asked.
    """
    accelerator = start_accelerator(config, unused_parameters=job.unused_parameters)
    device = accelerator.device
    rows = process_rows(
        config.batch_size, accelerator.num_processes, accelerator.process_index, config.grad_accumulation
    )
    previews = Previews(job, config, run_folder / "previews", accelerator)
    empty = without_weights(job.modules[job.averaged])  # takes the whole weights if they get sharded
    prepare_blocks(job.modules.values(), config)
    modules = _prepare(accelerator, job)
    source: nn.Module = accelerator.unwrap_model(modules[job.averaged])
    average = Average(source, config.ema_decay, config.ema_every, config.ema_sigma_rel)
    checkpoints = run_folder / "checkpoints"
    whole = dict(job.carried)
    step = load_newest_checkpoint(checkpoints, accelerator, average, whole)
    carried = [{name: t[r.start : r.stop].to(device) for name, t in whole.items()} for r in rows]
    stop = torch.zeros((), device=device)

    def ask_to_stop(signum: int, frame: FrameType | None) -> None:
        stop.fill_(1)

    previous_handler = signal.signal(signal.SIGTERM, ask_to_stop)
    scores: dict[str, float] = {}
    skipped_in_a_row = dict.fromkeys((phase.name for phase in job.phases), 0)
    watches = {
        phase.name: Divergence(phase.watched, phase.level, phase.ceiling)
        for phase in job.phases
        if phase.watched
    }
    mfu = mfu_per_speed(accelerator, config.precision, job.flops_per_unit)
    is_main = accelerator.is_main_process
    log = TrainingLog(run_folder / "logs", config.steps, job.unit, step, mfu_per_speed=mfu, enabled=is_main)
    try:
        with log, tell_of_lost_processes(accelerator, config, checkpoints):
            for module in modules.values():
                module.train()
            while step < config.steps:
                # Dropout, crops drawn on the device and the like: a function of (seed, step, process) too.
                torch.manual_seed(step_seed(config.seed, step, accelerator.process_index))
                batches = [
                    {name: t.to(device) for name, t in job.batch(step, r).items()} | rows_carried
                    for r, rows_carried in zip(rows, carried, strict=True)
                ]
                all_taken = True
                for phase in [phase for phase in job.phases if phase.runs_in(step)]:
                    for group in phase.optimizer.param_groups:
                        group["lr"] = learning_rate(config, step) * group.get("lr_scale", 1.0)
                    result = _run_phase(accelerator, phase, modules, batches, config.clip_grad_norm)
                    all_taken &= result.taken
                    if result.taken:  # else what is carried may be not finite either
                        carried = [old | new for old, new in zip(carried, result.carried, strict=True)]
                        if phase.name in watches:
                            watches[phase.name].see(result.sums, result.weight, step, checkpoints)
                    batches = [old | new for old, new in zip(batches, result.made, strict=True)]
                    skipped = skipped_in_a_row[phase.name] = (
                        0 if result.taken else skipped_in_a_row[phase.name] + 1
                    )
                    prefix = f"{phase.name}/" if len(job.phases) > 1 else ""
                    log.add(prefix, result.sums, result.weight, skipped=not result.taken)
                    if skipped >= MAX_SKIPPED_IN_A_ROW:
                        raise UserError(
                            f"the gradient has not been finite for {skipped} steps (now {step}):"
                            " lower train.lr or look at the data;"
                            f" the newest checkpoint is kept in {checkpoints}"
                        )
                if job.after_step is not None and all_taken:
                    log.add("", dict(job.after_step(step, batches)), torch.ones(()), skipped=False)
                step += 1
                average.update(step)
                stopping = bool(accelerator.reduce(stop.clone(), reduction="sum"))
                at_end = step == config.steps
                if step % config.log_every == 0 or at_end:
                    log.write(step, learning_rate(config, step - 1))
                if step % config.validate_every == 0 or at_end:
                    with average.in_place() as module:
                        scores = job.validate(module)
                        previews.write(module, step, log)
                    log.write_validation(step, scores)
                suspect = any(w.suspect for w in watches.values()) or max(skipped_in_a_row.values()) > 1
                if (step % config.save_every == 0 and not suspect) or at_end or stopping:
                    joined = {name: torch.cat([part[name] for part in carried]) for name in job.carried}
                    keep = config.keep_checkpoints
                    save_checkpoint(checkpoints, step, accelerator, average, joined, keep)
                if stopping and not at_end:
                    raise StoppedError(
                        f"stopped at step {step} of {config.steps} with a checkpoint;"
                        " to resume, run the same command again"
                    )
            with average.in_place() as module:
                scores = scores or job.validate(module)  # resumed after the last step
                finished = gather_whole(module, empty) if is_sharded(module) else module
                if is_main and finished is not None:
                    job.save(finished, scores)
            accelerator.wait_for_everyone()
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
        if torch.distributed.is_initialized():
            _ended_groups.append(torch.distributed.group.WORLD)
        accelerator.end_training()


def step_seed(*parts: int) -> int:
    """A seed for torch from any numbers, well mixed: neighbours give unrelated streams."""
    return int(np.random.SeedSequence([part % 2**32 for part in parts]).generate_state(1, np.uint64)[0] >> 1)
