"""Prompted memorisation: does a model, given the beginning of a training clip, continue it as it was?

The experiment of MusicGen (arXiv:2306.05284, on memorisation), after MusicLM (arXiv:2301.11325): training
examples are chosen at random, the model is prompted with the beginning of each and with its conditions, and
continues for 5 s, always with the likeliest token. Of the first codebook are reported the share of examples
whose continuation equals the original in all tokens, and in at least 80 % of them.

`memorisation_of_run` looks at the samples that a run has generated from prompts; `prompted_memorisation` asks
any model, as a function.

Shapes: B clips, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import UserError
from ...core.progress import track
from ...core.schema import Generate
from ...tokenize.store import TokenSplit, TokenStore
from ..bootstrap import share_interval
from ..measured import BETTER, Detail, Score, no_score
from .token_index import PARTIAL_SHARE

CONTINUATION_S = 5.0

Continue = Callable[[Sequence[int], np.ndarray, int], np.ndarray]
"""`(clips, prompts [B, K, P], num_frames) → codes [B, K, num_frames]`: greedy continuations of the prompts.

`clips` are the positions of the prompted clips in their split, for the conditions that go with them.
"""


@dataclass(frozen=True)
class Memorisation:
    """How much of some clips a model knows by heart."""

    exact: float
    """Share of the clips whose continuation has all tokens of the original."""
    partial: float
    """Share of the clips whose continuation has at least 80 % of them."""
    mean_share: float
    """Mean share of equal tokens."""
    shares: list[float]
    """Share of equal tokens of each clip."""
    clips: list[int]
    """Which clips: positions in the split."""
    prompt_frames: int
    continuation_frames: int


def prompted_memorisation(
    continue_greedily: Continue,
    split: TokenSplit,
    *,
    frame_rate: float,
    prompt_s: float,
    continuation_s: float = CONTINUATION_S,
    num_clips: int = 200,
    batch_size: int = 8,
    seed: int = 0,
) -> Memorisation:
    """Prompt a model with `num_clips` random clips of `split`, each at a random place.

    Ask it of the split `test` too: what a model reaches there it owes to steady sounds, not to memory.

    Raises `UserError` if no clip is long enough for prompt and continuation.
    """
    prompt, added = max(1, round(prompt_s * frame_rate)), max(1, round(continuation_s * frame_rate))
    long_enough = np.flatnonzero(split.num_frames >= prompt + added)
    if not len(long_enough):
        raise UserError(
            f"no clip of the split '{split.name}' has the {prompt_s:g} s of a prompt and {continuation_s:g} s"
            " to continue: ask for less"
        )
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(long_enough)[:num_clips])
    starts = rng.integers(0, split.num_frames[chosen] - prompt - added + 1)
    shares: list[float] = []
    for first in track(range(0, len(chosen), batch_size), "memorisation"):
        batch = chosen[first : first + batch_size]
        codes = np.stack(
            [
                split.codes(int(clip), int(start), prompt + added)
                for clip, start in zip(batch, starts[first : first + batch_size], strict=True)
            ]
        )
        continued = continue_greedily(batch.tolist(), codes[..., :prompt], added)
        if continued.shape != (*codes.shape[:2], added):
            raise ValueError(f"codes {[*codes.shape[:2], added]} expected, not {list(continued.shape)}")
        shares += (continued[:, 0] == codes[:, 0, prompt:]).mean(axis=1).tolist()
    values = np.asarray(shares)
    return Memorisation(
        exact=float((values == 1.0).mean()),
        partial=float((values >= PARTIAL_SHARE).mean()),
        mean_share=float(values.mean()),
        shares=shares,
        clips=chosen.tolist(),
        prompt_frames=prompt,
        continuation_frames=added,
    )


MEMORISATION_SCORES = ("memorised-exact", "memorised-partial")


def memorisation_of_run(
    codes: Sequence[np.ndarray], sources: Sequence[str | None], store: TokenStore, config: Generate
) -> list[Score]:
    """Two scores of clips that continue the beginnings of stored clips: `memorised-exact` and `-partial`.

    Args:
        codes: the codes [K, T_i] of generated clips, the prompt's included.
        sources: the id of the stored clip whose beginning is each one's prompt.
        store: the tokens of the run.
        config: how the clips were generated; prompts are the first `prompt_s` of clips of `labels_from`.

    At most `CONTINUATION_S` after the prompt are compared, fewer where either clip ends sooner. The
    experiment is one on training clips (`labels_from: train`) with the likeliest tokens (`temperature: 0`);
    for others, a note says how they were made. Intervals are Wilson's.
    """
    split = store.split(config.labels_from)
    place = {str(id): index for index, id in enumerate(split.column("id"))}
    prompt, added = (round(s * store.info.frame_rate) for s in (config.prompt_s, CONTINUATION_S))
    shares = []
    for clip, source in zip(codes, sources, strict=True):
        if source in place:
            original = split.codes(place[source], prompt, added)[0]
            continued = clip[0, prompt:][: len(original)]
            if len(continued):
                shares.append(float((continued == original[: len(continued)]).mean()))
    if not shares:
        return [no_score(name, "no clip goes on after its prompt") for name in MEMORISATION_SCORES]
    note = f"prompts from the split '{config.labels_from}', temperature {config.temperature:g}"
    found = []
    for name, least in zip(MEMORISATION_SCORES, (1.0, PARTIAL_SHARE), strict=True):
        num_known = sum(share >= least for share in shares)
        detail: dict[str, Detail] = {
            "clips": float(len(shares)),
            "shares": shares,
            "mean share": float(np.mean(shares)),
        }
        interval = share_interval(num_known, len(shares))
        found.append(Score(name, num_known / len(shares), interval, BETTER[name], detail, note))
    return found
