"""Checkpoints: `checkpoints/step-000500/` holds everything that training needs to go on after step 500.

A checkpoint is written under a temporary name and renamed when every file of it is on the disk, so a
folder called `step-…` is complete by construction and a half-written one is never taken for one.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from .files import PARTIAL_PREFIX, fsync, remove_folder, write_json

_NAME = re.compile(r"step-(\d+)")


def checkpoint_step(folder: Path) -> int | None:
    """The step that a checkpoint folder's name tells, or None if it is not a checkpoint."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def list_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints below `root`, oldest first."""
    found = [folder for folder in root.glob("step-*") if checkpoint_step(folder) is not None]
    return sorted(found, key=lambda folder: checkpoint_step(folder) or 0)


def save_checkpoint(
    root: Path, step: int, accelerator: Accelerator, averaged: nn.Module | None, keep: int
) -> Path:
    """Write `root/step-<step>` from all processes together, then delete all but the newest `keep`."""
    final = root / f"step-{step:06d}"
    partial = root / (PARTIAL_PREFIX + final.name)
    if accelerator.is_main_process:
        for leftover in root.glob(PARTIAL_PREFIX + "*"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        if averaged is not None:
            save_file(averaged.state_dict(), partial / "averaged.safetensors")
        write_json(partial / "loop.json", {"step": step, "num_processes": accelerator.num_processes})
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for file in sorted(partial.rglob("*")):
            fsync(file)
        fsync(partial)
        remove_folder(final)
        partial.replace(final)
        fsync(root)
        for old in list_checkpoints(root)[:-keep]:
            remove_folder(old)
    accelerator.wait_for_everyone()
    return final


def load_newest_checkpoint(root: Path, accelerator: Accelerator, averaged: nn.Module | None) -> int:
    """Restore the newest complete checkpoint; returns its step, or 0 where there is none."""
    found = list_checkpoints(root)
    if not found:
        return 0
    newest = found[-1]
    accelerator.load_state(str(newest))
    if averaged is not None:
        averaged.load_state_dict(load_file(newest / "averaged.safetensors"), strict=True)
    step: int = json.loads((newest / "loop.json").read_text(encoding="utf-8"))["step"]
    return step
