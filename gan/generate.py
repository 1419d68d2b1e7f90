"""Generating a codec's latents with an adversarial model: for most of them, samples as they are.

    latents = generate(model, 16000, conditions={"pitch": [60]}, seed=0)                # [1, D, 16000]

Shapes: B batch, D latent width of the codec, T its frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core.conditions import Given, GivenConditions
from ..core.errors import UserError
from ..core.label import Label
from ..core.loop import step_seed
from .batches import draw_noise
from .conditions.examples import all_lengthened, fill_in
from .gan_model import GanModel
from .networks.musika import MusikaGenerator

Inputs = Mapping[str, Given] | Mapping[str, Sequence[Label | Tensor | None]]
"""Condition → one value a clip (`Conditions.encode` says what a value is), or tensors."""


@torch.no_grad()
def generate(
    model: GanModel,
    num_frames: int,
    *,
    batch_size: int | None = None,
    conditions: Inputs | None = None,
    seed: int = 0,
    first_clip: int = 0,
    noise: Tensor | None = None,
) -> Tensor:
    """Make clips of `num_frames` frames: the codec's latents `[B, D, T]`, on the model's device.

    Args:
        model: used in evaluation mode.
        num_frames: T. Of families that make clips of one length, shorter ones are the beginning of that.
        batch_size: B; by default that of `conditions` or `noise`, or else 1.
        conditions: what each clip is. Values that are left out, or None, are those of a training clip
            (`examples.fill_in`); tensors must say everything. Sequences are drawn out for longer clips.
        seed: clip i of one call has the noise of clip i of another, whatever the batch sizes; how exactly the
            clips are equal depends on the network's arithmetic, which may differ with the batch in the last
            bits of a float32.
        first_clip: number of the first clip, so that a set made in parts is that made at once.
        noise: `[B, …]`, as `clip_noise` gives it, instead of the noise of the seed.

    Raises:
        UserError: for clips that are longer than the model can make, and for conditions that it does not know
            or that are missing.
    """
    check_length(model, num_frames)
    if batch_size is None:
        batch_size = _batch_size(conditions, noise)
    given = all_lengthened(
        model.config.conditions,
        _given(model, conditions, batch_size, seed, first_clip),
        image_frames(model, num_frames),
    )
    if noise is None:
        noise = clip_noise(model, num_frames, seed, range(first_clip, first_clip + batch_size))
    was_training = model.training
    model.eval()
    try:
        return model.make(
            noise.to(model.device), {name: one.to(model.device) for name, one in given.items()}, num_frames
        )
    finally:
        model.train(was_training)


def check_length(model: GanModel, num_frames: int) -> None:
    """Raise `UserError` for clips without a frame, and for longer ones than the model can make."""
    config = model.config
    if num_frames < 1:
        raise UserError("a clip must have a frame at least: ask for a longer one")
    if num_frames > config.num_frames and not model.generator.has_any_length:
        rate = config.codec_info.frame_rate
        raise UserError(
            f"{num_frames / rate:.3g} s are more than the {config.duration_s:.3g} s that this"
            f" {config.section.kind} makes: ask for shorter clips"
        )


def image_frames(model: GanModel, num_frames: int) -> int:
    """Frames of the image that a clip of `num_frames` frames of the codec is made as."""
    if not model.generator.has_any_length:
        return model.shape.num_frames
    return model.representation.shape(num_frames).num_frames


def clip_noise(model: GanModel, num_frames: int, seed: int, clips: range) -> Tensor:
    """The noise `[B, …]` of clips by their numbers, on the CPU: each clip's is a function of (seed, number).

    Of a Musika's, that of a longer clip begins with that of a shorter one.
    """
    generator, frames = model.generator, image_frames(model, num_frames)
    if isinstance(generator, MusikaGenerator):
        anchors = generator.noise_shape(frames)[0] - 1
        return torch.stack([generator.draw_noise_window(seed, clip, 0, anchors) for clip in clips])
    generators = [torch.Generator().manual_seed(step_seed(seed, clip)) for clip in clips]
    return draw_noise(generator, frames, generators)


def _batch_size(conditions: Inputs | None, noise: Tensor | None) -> int:
    if noise is not None:
        return len(noise)
    for one in (conditions or {}).values():
        return one.batch_size if isinstance(one, Given) else len(one)
    return 1


def _given(
    model: GanModel, inputs: Inputs | None, batch_size: int, seed: int, first_clip: int
) -> GivenConditions:
    conditions = model.config.conditions
    tensors = {name: one for name, one in (inputs or {}).items() if isinstance(one, Given)}
    if tensors:
        conditions.check(tensors)
        missing = [name for name in conditions.names if name not in tensors]
        if missing:
            raise UserError(
                f"condition {missing[0]!r} is missing: this model needs {', '.join(conditions.names)}"
            )
        return tensors
    lists = {name: one for name, one in (inputs or {}).items() if not isinstance(one, Given)}
    _ = conditions.encode(lists, partial=True)  # says what is wrong with them
    filled = fill_in(conditions, model.config.examples, lists, batch_size, seed=seed, first_clip=first_clip)
    return conditions.encode(filled.inputs) if filled.inputs else {}
