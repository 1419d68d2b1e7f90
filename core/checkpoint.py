"""Checkpoints: `checkpoints/step-000500/` holds everything that training needs to go on after step 500.

A checkpoint is written under a temporary name and renamed when every file of it is on the disk, so a
folder called `step-…` is complete by construction and a half-written one is never taken for one.

Beside what Accelerate saves there are the averaged weights and `carried.safetensors`, what is carried from
step to step, of the global batch. Under FSDP the weights, their averages and the optimizer's state are
written in parallel by the processes that hold them (`torch.distributed.checkpoint`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor

from .average import Average
from .errors import UserError
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
    root: Path,
    step: int,
    accelerator: Accelerator,
    average: Average,
    carried: Mapping[str, Tensor],
    keep: int,
) -> Path:
    """Write `root/step-<step>` from all processes together, then delete all but the newest `keep`.

    `carried` are this process's rows of what is carried from step to step.
    """
    final = root / f"step-{step:06d}"
    partial = root / (PARTIAL_PREFIX + final.name)
    if accelerator.is_main_process:
        for leftover in root.glob(PARTIAL_PREFIX + "*"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    sharded = _is_sharded(average.tensors)
    if sharded:
        save_shards(dict(average.tensors), checkpoint_id=partial / "averaged")
    whole = {name: accelerator.gather(rows).contiguous() for name, rows in carried.items()}
    if accelerator.is_main_process:
        if average.tensors and not sharded:
            save_file(average.tensors, partial / "averaged.safetensors")
        if whole:
            save_file(whole, partial / "carried.safetensors")
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


def load_newest_checkpoint(
    root: Path, accelerator: Accelerator, average: Average, carried: dict[str, Tensor]
) -> int:
    """Restore the newest complete checkpoint; returns its step, or 0 where there is none.

    `carried` gets all rows of what is carried from step to step. The number of processes may differ from that
    which wrote the checkpoint. Raises `UserError` if only one of the two has sharded weights (FSDP).
    """
    found = list_checkpoints(root)
    if not found:
        return 0
    newest = found[-1]
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharded == (newest / "model.safetensors").exists():
        raise UserError(
            f"{newest} was written {'without' if sharded else 'with'} FSDP and can only be resumed so: start"
            " the run as before, or under another name"
        )
    accelerator.load_state(str(newest))
    if _is_sharded(average.tensors):
        load_shards(dict(average.tensors), checkpoint_id=newest / "averaged")
    elif average.tensors:
        saved = load_file(newest / "averaged.safetensors")
        for name, tensor in average.tensors.items():
            tensor.copy_(saved[name])
    if carried:
        carried |= load_file(newest / "carried.safetensors")
    step: int = json.loads((newest / "loop.json").read_text(encoding="utf-8"))["step"]
    return step


def _is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())
