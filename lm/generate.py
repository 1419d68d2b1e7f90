"""Sampling codes from a language model.

Every row of a batch has noise of its own, drawn from (seed, number of the row), so a clip does not depend
on the clips that it is generated with. The loop never waits for the device: which tokens to sample, which
to keep and where they go is decided before it starts.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..tokenize.corpus import Label
from .conditions import HIDDEN
from .transformer import KVCache, TransformerConfig, TransformerLM


def generate(
    lm: TransformerLM,
    num_frames: int,
    *,
    batch_size: int | None = None,
    labels: Tensor | Mapping[str, Sequence[Label]] | None = None,
    prompt: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cfg_scale: float = 1.0,
    seed: int = 0,
    row_offset: int = 0,
) -> Tensor:
    """Sample clips of `num_frames` frames, the prompt's included: codes [B, K, T] int64.

    Args:
        lm: the model; used in evaluation mode and left in the mode it was in. The codes are on its device.
        num_frames: T.
        batch_size: B; by default that of `labels` or `prompt`, or else 1.
        labels: label → one value a clip, or table rows [B, num_conditions] int64; None hides all labels.
        prompt: codes [B, K, T0] with T0 < T that the clips begin with; returned unchanged.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample among this many likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability.
        cfg_scale: classifier-free guidance; 1 is none, and costs half.
        seed: with the same seed, row i of one call is row i of another, whatever the batch sizes.
        row_offset: number of the first row, so that a set generated in parts is that generated at once.

    Raises:
        UserError: for settings that do not fit together or the model, and for a model that predicts NaN.
    """
    config = lm.config
    device = lm.head.weight.device
    _check_sampling(temperature, top_k, top_p, seed, row_offset)
    label_rows = _label_rows(labels, config)
    batch_size = _agreed_batch_size(batch_size, label_rows, prompt)
    if cfg_scale != 1.0 and label_rows is None:
        reason = "give labels" if config.vocabulary.names else "this model was trained without labels"
        raise UserError(f"cfg_scale {cfg_scale:g} has no labels to guide towards ({reason}): leave it at 1")
    num_prompt = _num_prompt_frames(prompt, num_frames, config)

    # The model's input: a step of special tokens, then the pattern, into which sampled tokens are written.
    pattern = lm.pattern
    num_steps = pattern.num_steps(num_frames)
    codes = torch.full((batch_size, config.num_codebooks, num_frames), config.special, device=device)
    if prompt is not None:
        codes[:, :, :num_prompt] = prompt.to(device)
    tokens = torch.nn.functional.pad(pattern.apply(codes, config.special), (1, 0), value=config.special)
    steps = pattern.steps(num_frames)[:, num_prompt:]  # [K, T - T0], where there is something to sample
    to_sample = (
        torch.zeros(config.num_codebooks, num_steps, dtype=torch.bool).scatter_(1, steps, True).to(device)
    )
    first_step = int(steps.min())
    noise = row_noise(seed, row_offset, batch_size, (num_steps, config.num_codebooks)).to(device)

    guided = cfg_scale != 1.0
    if label_rows is not None:
        label_rows = label_rows.to(device)
        if guided:
            label_rows = torch.cat([label_rows, torch.full_like(label_rows, HIDDEN)])
    num_rows = batch_size * (2 if guided else 1)

    was_training = lm.training
    lm.eval()
    try:
        with torch.inference_mode():
            cache = KVCache(config, num_rows, num_steps, device, lm.head.weight.dtype)
            seen = 0
            for step in range(first_step, num_steps):
                new = tokens[:, :, seen : step + 1]
                hidden = lm.hidden_states(torch.cat([new, new]) if guided else new, label_rows, cache)
                logits = lm.head(hidden[:, -1]).unflatten(-1, (config.num_codebooks, -1))  # [B, K, V]
                if guided:
                    logits = guide(logits, cfg_scale)
                sampled = sample_tokens(logits, temperature, top_k, top_p, noise[:, step])
                seen = step + 1
                tokens[:, :, seen] = torch.where(to_sample[:, step], sampled, tokens[:, :, seen])
    finally:
        lm.train(was_training)
    codes = pattern.revert(tokens[:, :, 1:])
    if bool((codes == config.special).any()):  # what the search in `sample_tokens` ends at among NaN
        raise UserError("the model predicts NaN: its weights are damaged, or too large for their precision")
    return codes


# Classifier-free guidance: arXiv:2207.12598, eq. 6, where its w is our scale - 1.
def guide(logits: Tensor, scale: float) -> Tensor:
    """Logits [2 B, ...], conditional rows before unconditional ones, to [B, ...]."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def sample_tokens(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, noise: Tensor
) -> Tensor:
    """Draw one token for each distribution: logits [..., V] and noise [...] in (0, 1] to tokens [...] int64.

    The token is where the cumulative probability reaches the noise (inversion), with tokens in the order of
    the codebook: their order by probability would change with the last bit of a logit. `top_p` is nucleus
    sampling (arXiv:1904.09751, sec. 3.1) of what `top_k` has left. Tokens tied with the last one kept are
    kept too.
    """
    if temperature == 0 or top_k == 1:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        descending = probabilities.sort(-1, descending=True).values
        kept = descending.cumsum(-1) - descending < top_p  # always the first, as 0 < top_p
        smallest = descending.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < smallest, 0)
    cumulative = probabilities.cumsum(-1)
    # Scaled by the sum as rounded, and never 0: a token of probability 0 cannot be reached.
    return torch.searchsorted(cumulative, noise[..., None] * cumulative[..., -1:]).squeeze(-1)


def row_noise(seed: int, row_offset: int, num_rows: int, shape: tuple[int, ...]) -> Tensor:
    """Uniform noise in (0, 1], a function of seed and row number: [num_rows, *shape] float32."""
    rows = [np.random.default_rng((seed, row_offset + i)).random(shape, np.float32) for i in range(num_rows)]
    return 1 - torch.from_numpy(np.stack(rows))


def _check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, seed: int, row_offset: int
) -> None:
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature {temperature:g} must be 0 (greedy) or a positive number")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k {top_k} must be at least 1, or None for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p:g} must be above 0 and at most 1, or None for no limit")
    if seed < 0 or row_offset < 0:
        raise UserError(f"seed {seed} and row_offset {row_offset} must not be negative")


def _label_rows(
    labels: Tensor | Mapping[str, Sequence[Label]] | None, config: TransformerConfig
) -> Tensor | None:
    """Labels as table rows [B, num_conditions], or None where the model is told nothing."""
    if labels is None:
        return None
    sizes = config.vocabulary.table_sizes
    if not isinstance(labels, Tensor):
        labels = config.vocabulary.encode(labels)
    if labels.ndim != 2 or labels.shape[1] != len(sizes):
        raise UserError(
            f"labels must have the shape [B, {len(sizes)}] for this model, not {list(labels.shape)}"
        )
    if bool(((labels < 0) | (labels >= labels.new_tensor(sizes))).any()):
        raise UserError(f"labels must be rows of tables of {sizes} rows (0: hidden), but some lie outside")
    return labels if sizes else None


def _agreed_batch_size(batch_size: int | None, labels: Tensor | None, prompt: Tensor | None) -> int:
    sizes = {
        "batch_size": batch_size,
        "labels": None if labels is None else labels.shape[0],
        "prompt": None if prompt is None else prompt.shape[0],
    }
    given = {name: size for name, size in sizes.items() if size is not None}
    if len(set(given.values())) > 1:
        raise UserError(f"the number of clips must be the same everywhere, but it differs: {given}")
    size = next(iter(given.values()), 1)
    if size < 1:
        raise UserError(f"the number of clips must be at least 1, not {size}")
    return size


def _num_prompt_frames(prompt: Tensor | None, num_frames: int, config: TransformerConfig) -> int:
    """T0, after checking the prompt against the model and the length asked for."""
    if num_frames < 1:
        raise UserError(f"num_frames {num_frames} must be at least 1")
    if prompt is None:
        return 0
    if prompt.ndim != 3 or prompt.shape[1] != config.num_codebooks:
        raise UserError(
            f"this model needs a prompt of shape [B, {config.num_codebooks}, T], not {list(prompt.shape)}"
        )
    if prompt.shape[2] >= num_frames:
        raise UserError(
            f"num_frames {num_frames} is the length with the prompt, which alone has {prompt.shape[2]} frames"
        )
    if bool(((prompt < 0) | (prompt >= config.codebook_size)).any()):
        raise UserError(f"the prompt's codes must lie in 0…{config.codebook_size - 1} for this model")
    return prompt.shape[2]
