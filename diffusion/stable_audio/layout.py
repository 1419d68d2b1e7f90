"""How `diffusers` names and lays out the tensors of Stable Audio's network, and what ours are of them.

Ours join what is multiplied with the same vectors: queries, keys and values; keys and values of the memory.
Of each head, `diffusers` rotates dimensions 0…R/2 with R/2…R and leaves those after R alone (R = Dh/2); ours
pair dimension i with i + Dh/2, so rows of queries and keys change places.

Shapes: W model width, Dh width of a head, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import UserError
from .network import TIMINGS, StableAudioConfig

_NUMBERS = dict(zip(TIMINGS, ("start_number_conditioner", "end_number_conditioner"), strict=True))

_SAME = {
    "time.frequencies": "time_proj.weight",
    "time.hidden.weight": "timestep_proj.0.weight",
    "time.hidden.bias": "timestep_proj.0.bias",
    "time.out.weight": "timestep_proj.2.weight",
    "time.out.bias": "timestep_proj.2.bias",
    "timing.0.weight": "global_proj.0.weight",
    "timing.2.weight": "global_proj.2.weight",
    "memory.0.weight": "cross_attention_proj.0.weight",
    "memory.2.weight": "cross_attention_proj.2.weight",
    "mix_in.weight": "preprocess_conv.weight",
    "embed.weight": "proj_in.weight",
    "head.weight": "proj_out.weight",
    "mix_out.weight": "postprocess_conv.weight",
}
"""Ours and theirs that are the same tensor."""

_SAME_IN_BLOCK = {
    "attention_norm.weight": "norm1.weight",
    "attention_norm.bias": "norm1.bias",
    "attention.out.weight": "attn1.to_out.0.weight",
    "cross_norm.weight": "norm2.weight",
    "cross_norm.bias": "norm2.bias",
    "cross_attention.query.weight": "attn2.to_q.weight",
    "cross_attention.out.weight": "attn2.to_out.0.weight",
    "feed_forward_norm.weight": "norm3.weight",
    "feed_forward_norm.bias": "norm3.bias",
    "feed_forward.down.weight": "ff.net.2.weight",
    "feed_forward.down.bias": "ff.net.2.bias",
}


def _pairs_of_head(head_dim: int) -> Tensor:
    """Their dimension at each of our places of a head, [Dh]."""
    quarter, still = head_dim // 4, head_dim // 2 + torch.arange(head_dim // 2)
    first, second = torch.arange(quarter), quarter + torch.arange(quarter)
    # Of Dh/2 pairs, Dh/4 are rotated.
    half = head_dim // 2 - quarter
    return torch.cat([first, still[:half], second, still[half:]])


def _rows(config: StableAudioConfig) -> Tensor:
    """Their row at each of our rows of queries and keys, [W]."""
    heads = torch.arange(config.num_heads)[:, None] * config.head_dim
    return (heads + _pairs_of_head(config.head_dim)).flatten()


def from_diffusers(
    transformer: dict[str, Tensor], projection: dict[str, Tensor], config: StableAudioConfig
) -> dict[str, Tensor]:
    """The tensors of a `StableAudio` from those of `StableAudioDiTModel` and `StableAudioProjectionModel`.

    Raises `UserError` that names tensors which are missing or of no use.
    """
    left = _Left(transformer | {f"projection.{name}": tensor for name, tensor in projection.items()})
    ours = {name: left.take(theirs) for name, theirs in _SAME.items()}
    rows = _rows(config)
    for layer in range(config.num_layers):
        own, their = f"blocks.{layer}.", f"transformer_blocks.{layer}."
        ours |= {own + name: left.take(their + theirs) for name, theirs in _SAME_IN_BLOCK.items()}
        q, k, v = (left.take(f"{their}attn1.to_{part}.weight") for part in "qkv")
        ours[f"{own}attention.qkv.weight"] = torch.cat([q[rows], k[rows], v])
        k, v = (left.take(f"{their}attn2.to_{part}.weight") for part in "kv")
        ours[f"{own}cross_attention.key_value.weight"] = torch.cat([k, v])
        for part in ("weight", "bias"):
            value, gate = left.take(f"{their}ff.net.0.proj.{part}").chunk(2)
            ours[f"{own}feed_forward.up.{part}"] = torch.cat([gate, value])
    ours |= {name: left.take(theirs) for name, theirs in _conditioner(config).items()}
    left.check()
    return ours


def to_diffusers(
    ours: dict[str, Tensor], config: StableAudioConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Undo `from_diffusers`: tensors of `StableAudioDiTModel` and `StableAudioProjectionModel`."""
    transformer = {theirs: ours[name] for name, theirs in _SAME.items()}
    back = _rows(config).argsort()
    for layer in range(config.num_layers):
        own, their = f"blocks.{layer}.", f"transformer_blocks.{layer}."
        transformer |= {their + theirs: ours[own + name] for name, theirs in _SAME_IN_BLOCK.items()}
        q, k, v = ours[f"{own}attention.qkv.weight"].chunk(3)
        for part, rows in (("q", q[back]), ("k", k[back]), ("v", v)):
            transformer[f"{their}attn1.to_{part}.weight"] = rows
        k, v = ours[f"{own}cross_attention.key_value.weight"].chunk(2)
        transformer |= {f"{their}attn2.to_k.weight": k, f"{their}attn2.to_v.weight": v}
        for part in ("weight", "bias"):
            gate, value = ours[f"{own}feed_forward.up.{part}"].chunk(2)
            transformer[f"{their}ff.net.0.proj.{part}"] = torch.cat([value, gate])
    projection = {
        theirs.removeprefix("projection."): ours[name] for name, theirs in _conditioner(config).items()
    }
    return _contiguous(transformer), _contiguous(projection)


def _conditioner(config: StableAudioConfig) -> dict[str, str]:
    """Ours and theirs of what conditions go through first."""
    names = {}
    for condition in config.conditions:
        if condition.kind == "number":
            own, their = f"conditioner.numbers.{condition.name}.", f"projection.{_NUMBERS[condition.name]}."
            their += "time_positional_embedding."
            names[f"{own}frequencies"] = f"{their}0.weights"
            for part in ("weight", "bias"):
                names[f"{own}projection.{part}"] = f"{their}1.{part}"
        elif condition.project:
            own = f"conditioner.projections.{condition.name}."
            names |= {own + part: f"projection.text_projection.{part}" for part in ("weight", "bias")}
    return names


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


class _Left:
    """Tensors that nothing has asked for yet."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def take(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise UserError(f"these are not the weights of a Stable Audio: {name} is missing")
        return self._tensors.pop(name)

    def check(self) -> None:
        if self._tensors:
            unknown = ", ".join(sorted(self._tensors)[:3])
            raise UserError(
                f"these are not the weights of this Stable Audio: there is no place for {unknown}"
            )
