"""What ends a training run early: gradients that stay not finite, a loss that diverges, a signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .divergence import Divergence
from .errors import UserError
from .job import Phase
from .phase_step import StepResult
from .readback import Readback

# After this many steps in a row without a finite gradient, going on only burns time.
MAX_SKIPPED_IN_A_ROW = 50


class Guard:
    """Judges each step on the CPU, a step late where that spares a GPU the wait (`readback.py`).

    All processes judge the same numbers at the same step.
    """

    def __init__(self, phases: Sequence[Phase], device: torch.device, checkpoints: Path) -> None:
        self._readback = Readback(device)
        self._checkpoints = checkpoints
        self._skipped_in_a_row = dict.fromkeys((phase.name for phase in phases), 0)
        self._watches = {
            phase.name: Divergence(phase.watched, phase.level, phase.ceiling)
            for phase in phases
            if phase.watched
        }
        self.stopping = False
        """Whether a process was asked to stop."""

    @property
    def suspect(self) -> bool:
        """Whether the weights may be spoilt, so that no checkpoint should follow those that there are."""
        skipped = max(self._skipped_in_a_row.values()) > 1
        return skipped or any(watch.suspect for watch in self._watches.values())

    def see(self, step: int, results: Mapping[str, StepResult], num_asked_to_stop: Tensor) -> None:
        """Take in what the phases did in step number `step` (from 0); returns at once."""
        scalars = {"stop": num_asked_to_stop}
        for name, result in results.items():
            scalars[f"{name} taken"] = result.taken
            if name in self._watches:
                for metric in self._watches[name].metrics:
                    scalars[f"{name} {metric}"] = result.sums[metric] / result.weight
        self._readback.send(step, scalars)

    def judge(self, *, up_to_now: bool) -> None:
        """Judge the steps whose numbers are there; `up_to_now`: wait for those of all.

        Raises `UserError` if the run has to end.
        """
        for step, found in self._readback.read(up_to_now=up_to_now):
            self.stopping = self.stopping or found["stop"] > 0
            for name in [name for name in self._skipped_in_a_row if f"{name} taken" in found]:
                self._judge_phase(name, step, found)

    def _judge_phase(self, name: str, step: int, found: Mapping[str, float]) -> None:
        if found[f"{name} taken"]:
            self._skipped_in_a_row[name] = 0
            if name in self._watches:
                watch = self._watches[name]
                watch.see({m: found[f"{name} {m}"] for m in watch.metrics}, step, self._checkpoints)
            return
        self._skipped_in_a_row[name] += 1
        skipped = self._skipped_in_a_row[name]
        if skipped >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"the gradient has not been finite for {skipped} steps (now {step}):"
                " lower train.lr or look at the data;"
                f" the newest checkpoint is kept in {self._checkpoints}"
            )
