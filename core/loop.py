"""The one training loop: language models, codecs, diffusion models and GANs hand it a job.

One *step* runs every phase of a job (`job.py`) once, or those whose turn it is, on one global batch of
`train.batch_size` clips.

Four properties hold by construction rather than by bookkeeping:

- Nothing depends on state outside a checkpoint: batches, dropout and the learning rate are pure functions
  of (seed, step), so a resumed run is the uninterrupted one, bit for bit on CPU.
- A loss is a mean over `Loss.weight` elements. Gradients are summed with those weights over micro-batches
  and processes and divided by the total, so how many processes share a batch does not change the step.
- All processes see the same gradient norm, so they agree on skipping a step that is not finite.
- A GPU never waits for the CPU's decisions: it skips such a step by itself, and the CPU learns of it a step
  later (`guard.py`), or where a line of the log, a validation or a checkpoint is due.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .average import Average
from .blocks import prepare_blocks
from .checkpoint import load_newest_checkpoint, save_checkpoint
from .errors import UserError
from .guard import Guard
from .job import Batch, Job
from .log import TrainingLog
from .mfu import mfu_per_speed
from .optimizer import learning_rate
from .phase_step import StepResult, run_phase
from .previews import Previews
from .processes import start_accelerator, tell_of_lost_processes
from .schema import Train
from .sharding import gather_whole, is_sharded, without_weights

# Kept for as long as the process lives. Else the reducer of a wrapped module would be a group's last owner:
# its end waits for Gloo's thread with the interpreter's lock in hand, while that thread may be waiting for
# it to let go of a barrier's tensor: one of four processes has been seen to hang so, all its work done.
_ended_groups: list[torch.distributed.ProcessGroup | None] = []


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
    guard = Guard(job.phases, device, checkpoints)
    asked_to_stop = False

    def ask_to_stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    def is_due(every: int) -> bool:
        return step % every == 0 or step == config.steps

    previous_handler = signal.signal(signal.SIGTERM, ask_to_stop)
    scores: dict[str, float] = {}
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
                    _moved(job.batch(step, r), device) | rows_carried
                    for r, rows_carried in zip(rows, carried, strict=True)
                ]
                results: dict[str, StepResult] = {}
                for phase in [phase for phase in job.phases if phase.runs_in(step)]:
                    for group in phase.optimizer.param_groups:
                        group["lr"] = learning_rate(config, step) * group.get("lr_scale", 1.0)
                    result = run_phase(accelerator, phase, modules, batches, config.clip_grad_norm)
                    results[phase.name] = result
                    carried = [
                        _replaced(old, new, result.taken)
                        for old, new in zip(carried, result.carried, strict=True)
                    ]
                    batches = [old | new for old, new in zip(batches, result.made, strict=True)]
                    prefix = f"{phase.name}/" if len(job.phases) > 1 else ""
                    log.add(prefix, result.sums, result.weight, result.taken)
                if job.after_step is not None and all(result.taken for result in results.values()):
                    log.add("", dict(job.after_step(step, batches)), torch.ones(()))
                num_asked = torch.full((), float(asked_to_stop), device=device)
                guard.see(step, results, accelerator.reduce(num_asked, reduction="sum"))
                step += 1
                average.update(step)
                at_end = step == config.steps
                intervals = config.log_every, config.validate_every, config.save_every
                guard.judge(up_to_now=any(is_due(every) for every in intervals))
                if guard.stopping:
                    guard.judge(up_to_now=True)
                if is_due(config.log_every):
                    log.write(step, learning_rate(config, step - 1))
                if is_due(config.validate_every):
                    with average.in_place() as module:
                        scores = job.validate(module)
                        previews.write(module, step, log)
                    log.write_validation(step, scores)
                if (is_due(config.save_every) and not guard.suspect) or at_end or guard.stopping:
                    joined = {name: torch.cat([part[name] for part in carried]) for name in job.carried}
                    keep = config.keep_checkpoints
                    save_checkpoint(checkpoints, step, accelerator, average, joined, keep)
                if guard.stopping and not at_end:
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


def _moved(batch: Batch, device: torch.device) -> Batch:
    """All but scalars on the device."""
    arrays = {name: t for name, t in batch.items() if t.ndim}
    if device.type == "cuda":
        # A copy waits for what the GPU was given before, unless it is from pinned memory and may come later.
        moved = {name: t.pin_memory().to(device, non_blocking=True) for name, t in arrays.items()}
    else:
        moved = {name: t.to(device) for name, t in arrays.items()}
    return batch | moved


def _replaced(old: Batch, new: Batch, taken: Tensor) -> Batch:
    """What is carried, unless the step that made it was not taken: then it may be not finite either."""
    return old | {name: torch.where(taken, value, old[name]) for name, value in new.items()}


def step_seed(*parts: int) -> int:
    """A seed for torch from any numbers, well mixed: neighbours give unrelated streams."""
    return int(np.random.SeedSequence([part % 2**32 for part in parts]).generate_state(1, np.uint64)[0] >> 1)
