"""FSDP: parameters of which each process holds a shard, and the whole module that is saved in the end.

Accelerate shards the modules (FSDP2, `torch.distributed.fsdp.fully_shard`). A shard is a `DTensor`; reading
or writing its local tensor needs no other process, while a forward pass or a whole tensor needs them all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds only its shard of the parameters of `module`."""
    return isinstance(module, FSDPModule)


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor: a view of the same memory."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def forget_whole_parameters(module: nn.Module) -> None:
    """Drop whole parameters that a forward pass without a backward pass leaves gathered; they would hide a
    change of the shards."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of `module` whose parameters take no memory (they are on the device `meta`)."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, memo=empty)


def gather_whole(sharded: nn.Module, empty: nn.Module) -> nn.Module | None:
    """Fill `empty`, made by `without_weights`, with whole tensors on the CPU, in the first process; None in
    all others. All processes call this together; a device holds no more than one whole tensor at a time."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(sharded, options=options)  # empty in all processes but the first
    if torch.distributed.get_rank():
        return None
    empty.load_state_dict(state, strict=True, assign=True)
    return empty.eval()
