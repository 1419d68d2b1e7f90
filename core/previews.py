"""Previews: a few clips from the model as it is, after each validation of a training.

    previews/
      step-000500/     what the family writes: wavs and a list of them

They disturb nothing: every step seeds torch anew, and the model is that of the validation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from .errors import UserError
from .files import atomic_folder
from .job import Job
from .log import TrainingLog
from .schema import Train


class Previews:
    """What `train.previews` asks of a job, in the first process."""

    def __init__(self, job: Job, config: Train, folder: Path, accelerator: Accelerator) -> None:
        """Raises `UserError` for a job that has none. Under FSDP there are none, and a line says so."""
        self._preview = job.preview if config.previews else None
        self._folder = folder
        if config.previews and job.preview is None:
            raise UserError("train.previews: this kind of model has none yet, so set it to 0")
        if not accelerator.is_main_process:
            self._preview = None
        elif self._preview is not None and accelerator.distributed_type == DistributedType.FSDP:
            _say("no previews with FSDP, where no process has the whole model")
            self._preview = None

    def write(self, module: nn.Module, step: int, log: TrainingLog) -> None:
        """Write `step-<step>` from a module with averaged weights, or say why not; training goes on then."""
        if self._preview is None:
            return
        # Blocks that are compiled for training's crops are not compiled again for these clips.
        with log.paused(), torch.compiler.set_stance("force_eager"):
            try:
                with atomic_folder(self._folder / f"step-{step:06d}") as partial:
                    self._preview(module, partial)
            except (UserError, torch.OutOfMemoryError) as error:
                why = str(error).partition("\n")[0]
                _say(f"no previews of step {step}: {why}")


def _say(text: str) -> None:
    print(f"train: {text}", file=sys.stderr, flush=True)
