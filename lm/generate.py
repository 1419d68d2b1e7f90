"""Generating codes with a language model, of any family.

    codes = generate(lm, 500, conditions={"pitch": [60]}, seed=0)              # [1, K, 500]

    generator = Generator(lm, weights="int8")                                  # weights are prepared once
    for chunk in generator.stream(1500, chunk_frames=25): …                    # [1, K, 25], …

The loop never waits for the device: which tokens to sample, which to keep and where they go is decided before
it starts.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.conditions import Conditions, Given, GivenConditions, hide_all, join
from ..core.errors import UserError
from ..core.label import Label
from .decoders.decoder import Decoder, Draft, Weights
from .language_model import LanguageModel, LMConfig
from .sampling import Sampling, clip_noise

Inputs = Mapping[str, Given] | Mapping[str, Sequence[Label | Tensor | None]]
"""Condition → one value a clip (`Conditions.encode` says what a value is), or tensors."""


def generate(
    lm: LanguageModel,
    num_frames: int,
    *,
    batch_size: int | None = None,
    conditions: Inputs | None = None,
    prompt: Tensor | Sequence[Tensor] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cfg_scale: float = 1.0,
    seed: int = 0,
    first_clip: int = 0,
    overlap_frames: int | None = None,
    weights: Weights = "fp32",
) -> Tensor:
    """Sample clips of `num_frames` frames, the prompt's included: codes [B, K, T] int64.

    Args:
        lm: the model; used in evaluation mode and left in the mode it was in. The codes are on its device.
        num_frames: T.
        batch_size: B; by default that of `conditions` or `prompt`, or else 1.
        conditions: what each clip is; those left out, and None altogether, are hidden.
        prompt: codes that the clips begin with, [B, K, T0] or one [K, T0] a clip, of any lengths below T;
            returned unchanged.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample among this many likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability.
        cfg_scale: classifier-free guidance; 1 is none, and costs half.
        seed: with the same seed, clip i of one call is clip i of another, whatever the batch sizes.
        first_clip: number of the first clip, so that a set generated in parts is that generated at once.
        overlap_frames: clips longer than the model's window are generated window after window, each of which
            begins with this many frames of the one before; by default two fifths of a window, as MusicGen
            does (12 s of 30 s).
        weights: number format of the weights that are read.

    Raises:
        UserError: for settings that do not fit together or the model, and for a model that predicts NaN.
    """
    return Generator(lm, weights=weights).generate(
        num_frames,
        batch_size=batch_size,
        conditions=conditions,
        prompt=prompt,
        sampling=Sampling(temperature, top_k, top_p, cfg_scale),
        seed=seed,
        first_clip=first_clip,
        overlap_frames=overlap_frames,
    )


class Generator:
    """A model whose weights are prepared for generation; change them later, and it does not see that."""

    def __init__(self, lm: LanguageModel, *, weights: Weights = "fp32") -> None:
        self.config = lm.config
        self._lm = lm
        self._prepared = lm.prepare(weights)

    def generate(
        self,
        num_frames: int,
        *,
        batch_size: int | None = None,
        conditions: Inputs | None = None,
        prompt: Tensor | Sequence[Tensor] | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        first_clip: int = 0,
        overlap_frames: int | None = None,
    ) -> Tensor:
        """Codes [B, K, T]; the arguments are those of the function `generate`."""
        chunks = self.stream(
            num_frames,
            chunk_frames=num_frames,
            batch_size=batch_size,
            conditions=conditions,
            prompt=prompt,
            sampling=sampling,
            seed=seed,
            first_clip=first_clip,
            overlap_frames=overlap_frames,
        )
        return torch.cat(list(chunks), dim=2)

    def stream(
        self,
        num_frames: int,
        *,
        chunk_frames: int,
        batch_size: int | None = None,
        conditions: Inputs | None = None,
        prompt: Tensor | Sequence[Tensor] | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        first_clip: int = 0,
        overlap_frames: int | None = None,
    ) -> Iterator[Tensor]:
        """The same codes as they come: [B, K, t], t at least `chunk_frames` but for the last.

        The prompt (of ragged ones, the length of the shortest) comes with the first chunk, and is no part of
        that length.

        All arguments are checked at the call, before the first chunk is asked for.
        """
        sampling = sampling or Sampling()
        if seed < 0 or first_clip < 0:
            raise UserError(f"seed {seed} and first_clip {first_clip} must not be negative")
        prompts = _checked_prompts(prompt, num_frames, self.config)
        if chunk_frames < 1:
            raise UserError(f"chunk_frames {chunk_frames} must be at least 1")
        given = _encoded(conditions, self.config.conditions)
        batch_size = _agreed_batch_size(batch_size, given, prompts)
        if sampling.is_guided and not given:
            names = self.config.conditions.names
            reason = f"give {', '.join(names)}" if names else "this model was trained without conditions"
            raise UserError(
                f"cfg_scale {sampling.cfg_scale:g} has no conditions to guide towards ({reason}):"
                " leave it at 1"
            )
        lengths = [one.shape[1] for one in prompts] or [0]
        windows = _windows(num_frames, lengths, overlap_frames, self.config)
        device = self._lm.device
        codes = torch.full((batch_size, self.config.num_codebooks, num_frames), self.config.special)
        for row, known in enumerate(prompts):
            codes[row, :, : known.shape[1]] = known
        noise = torch.stack(
            [
                clip_noise(seed, first_clip + i, self.config.num_codebooks, num_frames)
                for i in range(batch_size)
            ]
        )
        given = {name: one.to(device) for name, one in given.items()}
        return self._chunks(codes.to(device), noise.to(device), given, windows, sampling, chunk_frames)

    def _chunks(
        self,
        codes: Tensor,
        noise: Tensor,
        given: GivenConditions,
        windows: list[_Window],
        sampling: Sampling,
        chunk_frames: int,
    ) -> Iterator[Tensor]:
        pattern, special = self._lm.pattern, self.config.special
        if sampling.is_guided:
            given = join(given, hide_all(given))
        num_rows = codes.shape[0] * (2 if sampling.is_guided else 1)
        done = 0  # frames handed out
        for window in windows:
            part = codes[:, :, window.start : window.stop]
            num_frames = part.shape[2]
            begin = torch.full_like(part[:, :, :1], special)
            tokens = torch.cat([begin, pattern.apply(part, special)], dim=2)
            known = part != special
            draft = Draft(
                tokens=tokens,
                # Only where the pattern has a token: elsewhere nothing is known, and nothing is sampled.
                to_sample=pattern.apply((~known).long(), 0).bool(),
                noise=pattern.apply(noise[:, :, window.start : window.stop], 1),
                sampling=sampling,
            )
            num_steps = pattern.num_steps(num_frames)
            num_complete = pattern.num_complete_frames(num_frames).tolist()
            places = pattern.steps(num_frames, codes.device).expand(codes.shape[0], -1, -1)  # [B, K, T]
            complete = window.num_known
            step = pattern.first_step(window.num_known, num_frames)
            with self._decoder(given, num_rows, num_steps) as decoder:
                while step < num_steps:
                    chunk_end = max(done, windows[0].num_known) + chunk_frames
                    wanted = min(num_frames, max(chunk_end - window.start, window.num_known + 1))
                    stop = next(s for s in range(step, num_steps) if num_complete[s] >= wanted) + 1
                    with _inference(self._lm):
                        decoder.run(draft, step, stop)
                    step = stop
                    before, complete = complete, num_complete[stop - 1]
                    found = draft.tokens[:, :, 1:].gather(2, places[:, :, before:complete])
                    if bool((found == special).any()):  # what inversion ends at among NaN
                        raise UserError(
                            "the model predicts NaN: its weights are damaged, or too large for their"
                            " precision"
                        )
                    codes[:, :, window.start + before : window.start + complete] = found
                    ready = window.start + complete
                    if ready >= chunk_end or ready == codes.shape[2]:  # a chunk may go on in the next window
                        yield codes[:, :, done:ready].clone()
                        done = ready

    @contextlib.contextmanager
    def _decoder(self, given: GivenConditions, num_rows: int, num_steps: int) -> Iterator[Decoder]:
        with _inference(self._lm):
            decoder = self._prepared.decoder(given, num_rows, num_steps)
        try:
            yield decoder
        finally:
            decoder.close()


@dataclass(frozen=True)
class _Window:
    """A stretch of the clips that the model is asked for in one go."""

    start: int
    stop: int
    num_known: int
    """Frames at its beginning that all clips already have."""


def _windows(
    num_frames: int, prompt_lengths: Sequence[int], overlap: int | None, config: LMConfig
) -> list[_Window]:
    """The windows that cover `num_frames`, after prompts of these lengths."""
    limit, num_known = config.window_frames, min(prompt_lengths)
    if limit is None or num_frames <= limit:
        return [_Window(0, num_frames, num_known)]
    longest = max(prompt_lengths)
    if longest >= limit:
        raise UserError(
            f"a prompt of {longest} frames does not fit the model's window of {limit} frames"
            f" ({limit / config.frame_rate:g} s): give its last {limit - 1} frames at most"
        )
    overlap = round(limit * 0.4) if overlap is None else overlap
    if not 1 <= overlap < limit:
        raise UserError(
            f"overlap_frames {overlap} must be at least 1 and below the model's window of {limit} frames"
        )
    windows = [_Window(0, limit, num_known)]
    while windows[-1].stop < num_frames:
        start = windows[-1].stop - overlap
        windows.append(_Window(start, min(num_frames, start + limit), overlap))
    return windows


@contextlib.contextmanager
def _inference(lm: LanguageModel) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is in the mode it was in."""
    was_training = lm.training
    if was_training:  # else not: going through all modules takes as long as some frames on a GPU
        lm.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            lm.train()


def _encoded(inputs: Inputs | None, conditions: Conditions) -> GivenConditions:
    """Conditions as tensors, after checking them against the model; {} where nothing is given."""
    if not inputs:
        return {}
    tensors = {name: one for name, one in inputs.items() if isinstance(one, Given)}
    values = {name: one for name, one in inputs.items() if not isinstance(one, Given)}
    given = conditions.encode(values, partial=True) | tensors
    conditions.check(given)
    return given


def _agreed_batch_size(batch_size: int | None, given: GivenConditions, prompts: list[Tensor]) -> int:
    sizes = {"batch_size": batch_size, "prompt": len(prompts) or None}
    sizes |= {f"condition {name!r}": one.batch_size for name, one in given.items()}
    found = {name: size for name, size in sizes.items() if size is not None}
    if len(set(found.values())) > 1:
        raise UserError(f"the number of clips must be the same everywhere, but it differs: {found}")
    size = next(iter(found.values()), 1)
    if size < 1:
        raise UserError(f"the number of clips must be at least 1, not {size}")
    return size


def _checked_prompts(
    prompt: Tensor | Sequence[Tensor] | None, num_frames: int, config: LMConfig
) -> list[Tensor]:
    """One [K, T0] a clip, after checking them against the model and the length asked for."""
    if num_frames < 1:
        raise UserError(f"num_frames {num_frames} must be at least 1")
    if prompt is None:
        return []
    if isinstance(prompt, Tensor) and prompt.ndim != 3:
        raise UserError(
            f"this model needs a prompt of shape [B, {config.num_codebooks}, T], not {list(prompt.shape)}"
        )
    prompts = list(prompt)
    for one in prompts:
        if one.ndim != 2 or one.shape[0] != config.num_codebooks:
            raise UserError(
                f"this model needs a prompt of {config.num_codebooks} codebooks, [K, T] a clip,"
                f" not {list(one.shape)}"
            )
        if one.shape[1] >= num_frames:
            raise UserError(
                f"num_frames {num_frames} is the length with the prompt, which alone has"
                f" {one.shape[1]} frames"
            )
        if bool(((one < 0) | (one >= config.codebook_size)).any()):
            raise UserError(f"the prompt's codes must lie in 0…{config.codebook_size - 1} for this model")
    return prompts
