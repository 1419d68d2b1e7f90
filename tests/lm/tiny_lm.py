"""Small language models whose weights are large enough for every part of them to matter.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokkata.core.conditions import Condition, Conditions, GivenConditions, hide_all
from tokkata.lm.transformer import TransformerConfig, TransformerLM

K, V = 3, 11
CODEC = {"id": "pocket", "num_codebooks": K, "codebook_size": V, "frame_rate": 50.0}

PITCH = Condition("pitch", "label", values=(60, 62, 64))
FORM = Condition("form", "label", values=("chord", "note"))
LABELS = Conditions((PITCH, FORM))

EVERYTHING = Conditions(
    (
        PITCH,
        Condition("form", "label", "prepend", values=("chord", "note")),
        Condition("player", "label", "cross", values=("ann", "bob")),
        Condition("mood", "tags", values=("calm", "glad", "wild")),
        Condition("tags", "tags", "prepend", values=("loud", "slow")),
        Condition("tempo", "number", width=4, maximum=240.0),
        Condition("start", "number", "cross", width=4, maximum=10.0),
        Condition("style", "sequence", width=4),
        Condition("text", "sequence", "cross", width=6),
        Condition("melody", "sequence", "prepend", width=3),
        Condition("chroma", "sequence", "prepend", width=3, length=3, attend_padding=True),
    )
)
"""One condition of every kind, and every way in which each kind enters."""

MUSICGEN: dict[str, Any] = {
    "norm": "layernorm",
    "activation": "gelu",
    "positions": "sinusoidal",
    "qk_norm": False,
}
STYLES: dict[str, dict[str, Any]] = {
    "modern": {},
    "musicgen": MUSICGEN,
    "layernorm": {"norm": "layernorm"},
    "gelu": {"activation": "gelu", "feed_forward_dim": 24},
    "sinusoidal": {"positions": "sinusoidal"},
    "no-qk-norm": {"qk_norm": False},
    "grouped": {"num_kv_heads": 1},
    "grouped-musicgen": MUSICGEN | {"num_kv_heads": 1},
}
PATTERNS = ["delay", "parallel", "flatten", "coarse_first"]


def tiny(
    conditions: Conditions = LABELS, *, scale: float = 8.0, seed: int = 0, **shape: Any
) -> TransformerLM:
    """A model of 2 layers in evaluation mode; the matrices are `scale` times as large as initial ones."""
    torch.manual_seed(seed)
    shape = {"dim": 16, "num_layers": 2, "num_heads": 2} | shape
    lm = TransformerLM(TransformerConfig.for_codec(CODEC, conditions, **shape)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(scale if parameter.ndim == 2 else 1)
    return lm


def random_codes(batch_size: int = 4, num_frames: int = 7, seed: int = 1) -> Tensor:
    """Codes [B, K, T]."""
    return torch.randint(0, V, (batch_size, K, num_frames), generator=torch.Generator().manual_seed(seed))


def shifted(lm: TransformerLM, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The pattern's sequence, and the same one step late behind the step that begins it."""
    sequence = lm.pattern.apply(codes, V)
    begin = torch.full_like(sequence[:, :, :1], V)
    return sequence, torch.cat([begin, sequence[:, :, :-1]], dim=2)


def some_of_everything(seed: int = 0) -> GivenConditions:
    """What three clips may be given of `EVERYTHING`: all, some, and almost nothing."""
    generator = torch.Generator().manual_seed(seed)

    def states(length: int, width: int) -> Tensor:
        return torch.randn(length, width, generator=generator)

    return EVERYTHING.encode(
        {
            "pitch": [60, 64, None],
            "form": ["note", None, "chord"],
            "player": ["bob", None, "ann"],
            "mood": [("wild", "calm"), None, ()],
            "tags": [("slow",), None, ("slow", "loud")],
            "tempo": [120, None, 60.5],
            "start": [2.5, None, 10],
            "style": [states(1, 4), states(3, 4), None],
            "text": [states(4, 6), None, states(2, 6)],
            "melody": [states(2, 3), states(5, 3), None],
            "chroma": [states(2, 3), None, states(4, 3)],
        }
    )


def naive_greedy(
    lm: TransformerLM, num_frames: int, given: GivenConditions, prompts: list[Tensor], cfg_scale: float = 1.0
) -> Tensor:
    """Codes [B, K, T] of the likeliest tokens, everything recomputed at every step, token after token."""
    batch_size = len(prompts)
    codes = torch.full((batch_size, K, num_frames), V)
    for row, prompt in enumerate(prompts):
        codes[row, :, : prompt.shape[1]] = prompt
    steps = lm.pattern.steps(num_frames)
    with torch.no_grad():
        for step in range(lm.pattern.num_steps(num_frames)):
            before = lm.pattern.apply(codes, V)[:, :, :step]
            inputs = torch.cat([torch.full((batch_size, K, 1), V), before], dim=2)
            conditional, hidden = (lm.logits(inputs, c)[:, :, -1] for c in (given, hide_all(given)))
            logits = hidden + cfg_scale * (conditional - hidden)
            for k, t in (steps == step).nonzero().tolist():
                for row, prompt in enumerate(prompts):
                    if t >= prompt.shape[1]:
                        codes[row, k, t] = logits[row, k].argmax()
    return codes
