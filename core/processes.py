"""The processes of a training run: starting Accelerate in each, and telling that one of them was lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import bfloat16, float32
from torch.distributed.fsdp import MixedPrecisionPolicy

from .errors import UserError
from .launcher import check_num_processes
from .run import num_processes
from .schema import Train


def start_accelerator(config: Train, *, unused_parameters: bool = False) -> Accelerator:
    """Accelerate, as its own launcher and config file have set it up.

    `unused_parameters`: see `Job`.

    Raises `UserError` for what would otherwise be ignored in silence: a precision that this machine cannot
    compute in, fewer processes than the launcher was asked for, and FSDP where there is none.
    """
    asks_for_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asks_for_fsdp and config.precision == "fp16":
        raise UserError("train.precision cannot be 'fp16' with FSDP: choose 'bf16'")
    if asks_for_fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP version 1 is not supported: set fsdp_version: 2 in Accelerate's config file")
    try:
        accelerator = Accelerator(
            mixed_precision=config.precision,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout_s)),
                DistributedDataParallelKwargs(find_unused_parameters=unused_parameters),
            ],
            fsdp_plugin=_fsdp_plugin(config) if asks_for_fsdp else None,
        )
    except ValueError as error:
        raise UserError(f"train.precision cannot be '{config.precision}' here: {error}") from error
    if config.precision != "no" and not accelerator.native_amp:  # Accelerate would go on in float32
        raise UserError(
            f"train.precision cannot be '{config.precision}' on {accelerator.device.type}: choose 'bf16'"
        )
    check_num_processes(accelerator.num_processes)
    started = num_processes()
    if started > accelerator.num_processes:  # each would train alone, and overwrite the others' checkpoints
        raise UserError(
            f"a launcher has started {started} processes, but Accelerate sees {accelerator.num_processes}:"
            " on CPUs, set ACCELERATE_USE_CPU=true before torchrun"
        )
    many = accelerator.num_processes > 1
    if asks_for_fsdp and many and accelerator.distributed_type != DistributedType.FSDP:
        raise UserError(
            f"Accelerate has no FSDP on {accelerator.device.type} and would train whole copies of the model"
            " instead: start the run without ACCELERATE_USE_FSDP"
        )
    return accelerator


def _fsdp_plugin(config: Train) -> FullyShardedDataParallelPlugin:
    """All from Accelerate's config file, but: its own policy for bf16 would also sum gradients and return the
    loss in bf16, which has two to three digits."""
    policy = MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32)
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=policy if config.precision == "bf16" else None
    )


class LostProcessError(UserError):
    """Another process of the run does not answer."""

    # Gloo's threads drop tensors, for which they need the interpreter, and its destructor waits for them with
    # the interpreter held: ending the usual way, a process may wait for ever.
    leaves_threads = True


@contextlib.contextmanager
def tell_of_lost_processes(accelerator: Accelerator, config: Train, checkpoints: Path) -> Iterator[None]:
    """Raise `LostProcessError` where the network, or the process at its other end, has failed.

    On a CPU (gloo) every wait ends after `train.timeout_s`. NCCL's own watchdog ends a process on a GPU after
    the same time, with a report of its own.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not _is_of_the_network(error):
            raise
        raise LostProcessError(
            f"process {accelerator.process_index + 1} of {accelerator.num_processes} has lost another one (a"
            f" machine or the network failed, or it was silent for train.timeout_s = {config.timeout_s:g} s):"
            f" the newest checkpoint is kept in {checkpoints}; to resume, run the same command again"
        ) from error


def _is_of_the_network(error: RuntimeError) -> bool:
    # Gloo's errors have no class of their own; they begin with the file of Gloo that raised them.
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
