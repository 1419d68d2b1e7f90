"""Activation checkpointing and torch.compile, block by block.

A model offers them by an attribute `blocks`: a `ModuleList` of equal blocks, each called in `forward`. What
else is worth compiling it lists in `also_compiled`. Only the `forward` of these modules is replaced, so
parameters, their names and the hooks of DDP and FSDP stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .errors import UserError
from .schema import Train


def prepare_blocks(modules: Collection[nn.Module], config: Train) -> None:
    """Do what `train.activation_checkpointing` and `train.compile` ask for to the blocks of `modules`.

    Also tells FSDP what a block is. Raises `UserError` if no module has blocks.
    """
    found = [block for module in modules for block in blocks_of(module)]
    for setting in ("activation_checkpointing", "compile"):
        if getattr(config, setting) and not found:
            raise UserError(f"train.{setting} needs a model that is made of blocks: set it to false")
    for module in modules:
        # Accelerate's `fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP` reads this name.
        module._no_split_modules = sorted({type(block).__name__ for block in blocks_of(module)})  # type: ignore[assignment]
    if config.compile:
        others = [other for module in modules for other in getattr(module, "also_compiled", [])]
        for part in [*found, *others]:
            # One code object for all blocks: the first one is compiled, the others find it in the cache.
            part.forward = torch.compile(part.forward)
    if config.activation_checkpointing:
        for block in found:
            block.forward = _checkpointed(block.forward)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """What a model has in its attribute `blocks`; none for models that are not made of blocks."""
    return list(getattr(module, "blocks", []))


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keep only the inputs for the backward pass, which computes the rest again, with the same dropout.

    Activation checkpointing: arXiv:1604.06174, sec. 3.
    """

    def run(*inputs: Any, **named: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False, **named)

    return run
