"""The beginning of a recording as codes that a language model goes on from.

Shapes: K codebooks, T frames.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import UserError
from ..tokenize.codec import Codec
from ..tokenize.features.told import load_recording
from .language_model import LMConfig


def encode_prompt(
    path: Path, codec: Codec, config: LMConfig, num_frames: int, prompt_s: float | None = None
) -> Tensor:
    """The beginning of a recording as the prompt of clips of `num_frames` frames: codes [K, T0].

    Any rate and number of channels will do; the file is resampled and mixed to the codec's. T0 is a whole
    number of frames, but at least one: of a recording shorter than that, the rest of it is silence.

    Args:
        prompt_s: how much of the file; all of it if None.

    Raises `UserError` for a file that cannot be read, is silent or shorter than 50 ms, and for a prompt that
    leaves nothing to generate or does not fit the model's window.
    """
    samples = torch.from_numpy(load_recording(path, codec.sample_rate, codec.channels, "prompt"))
    duration_s = samples.shape[1] / codec.sample_rate
    if prompt_s is not None:
        if prompt_s <= 0:
            raise UserError(f"--prompt-seconds {prompt_s:g} must be positive")
        if prompt_s > duration_s:
            raise UserError(f"--prompt-seconds {prompt_s:g}: {path} lasts only {duration_s:.3g} s")
        duration_s = prompt_s
    num_samples = round(duration_s * codec.sample_rate)
    length = codec.num_frames(num_samples)
    if length >= num_frames:
        raise UserError(
            f"the prompt of {duration_s:.3g} s leaves nothing to generate, as the clip of"
            f" {num_frames / config.frame_rate:.3g} s begins with it: ask for a longer clip, or lower"
            " --prompt-seconds"
        )
    window = config.window_frames
    if window is not None and length >= window:
        raise UserError(
            f"the prompt of {duration_s:.3g} s does not fit the model's window of"
            f" {window / config.frame_rate:.3g} s: lower --prompt-seconds"
        )
    return codec.encode_beginning(samples[None, :, :num_samples].to(codec.device))[0]
