"""Generating latents with a diffusion model.

    latents = generate(model, 500, conditions={"pitch": [60]}, seed=0)                  # [1, D, 500]

Shapes: B batch, D latent width, T frames, W windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.conditions import Conditions, Given, GivenConditions, hide_all, join
from ..core.errors import UserError
from ..core.label import Label
from ..core.schema_generate import Sampler
from ..tokenize.features.clip_conditions import SECONDS_START
from .diffusion_model import DiffusionModel
from .networks.network import Conditioned
from .networks.packed_linears import packed_linears
from .objective import Denoised
from .replayed import FEWEST_CALLS, Replayed
from .sampler import Callback, Start, clip_generators, draw_noise, sample

Inputs = Mapping[str, Given] | Mapping[str, Sequence[Label | Tensor | None]]
"""Condition → one value a clip (`Conditions.encode` says what a value is), or tensors."""

# Windows of long clips go through the network in parts of about so many rows.
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Settings:
    """How latents are sampled."""

    steps: int = 50
    sampler: Sampler | None = None
    """None: the usual one of the model's objective."""
    cfg_scale: float = 1.0
    """Classifier-free guidance (arXiv:2207.12598); 1 is none, and costs half."""
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Times between which there is guidance (arXiv:2404.07724), 1 being noise alone."""
    cfg_rescale: float = 0.0
    """How much of the growth of the standard deviation is taken back (arXiv:2305.08891, sec. 3.4)."""

    def __post_init__(self) -> None:
        if self.cfg_scale < 0:
            raise UserError(f"cfg_scale {self.cfg_scale:g} must not be negative")
        low, high = self.cfg_interval
        if not 0 <= low < high <= 1:
            raise UserError(f"cfg_interval {low:g}…{high:g} must lie in 0…1 and begin before it ends")
        if not 0 <= self.cfg_rescale <= 1:
            raise UserError(f"cfg_rescale {self.cfg_rescale:g} must be from 0 to 1")

    def guides_at(self, time: float) -> bool:
        """Whether there is guidance at a time."""
        low, high = self.cfg_interval
        return self.cfg_scale != 1 and low < time <= high


@dataclass(frozen=True)
class From:
    """Latents to begin from or to keep, in the codec's scale."""

    latents: Tensor  # [D, T], of all clips
    strength: float = 1.0
    """The time to begin at: near 0 little is changed, at 1 nothing is left."""
    known: Tensor | None = None  # [T] bool: frames that stay as they are

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise UserError(f"strength {self.strength:g} must be above 0 and at most 1")

    def padded(self, num_frames: int) -> From:
        """The same for longer clips: zeros, which are not kept, come after."""
        missing = num_frames - self.latents.shape[1]
        known = None if self.known is None else F.pad(self.known, (0, missing))
        return From(F.pad(self.latents, (0, missing)), self.strength, known)


@torch.no_grad()
def generate(
    model: DiffusionModel,
    num_frames: int,
    *,
    batch_size: int | None = None,
    conditions: Inputs | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    first_clip: int = 0,
    overlap_frames: int | None = None,
    begin: From | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample clips of `num_frames` frames: the codec's latents [B, D, T].

    Args:
        model: used in evaluation mode. The latents are on its device.
        num_frames: T.
        batch_size: B; by default that of `conditions`, or else 1.
        conditions: what each clip is; those left out, and None altogether, are hidden.
        settings: steps, sampler and guidance.
        seed: clip i of one call has the noise of clip i of another, whatever the batch sizes; how exactly the
            clips are equal depends on the network's arithmetic, which may differ with the batch in the last
            bits of a float32.
        first_clip: number of the first clip, so that a set generated in parts is that generated at once.
        overlap_frames: frames that windows of longer clips than the model's share with their neighbours.
        begin: latents to vary, or to keep in parts.
        callback: is shown the estimate of the clean latents, in the codec's scale, at every step.

    Raises:
        UserError: for settings that do not fit together or the model, and for clips that are longer than the
            model was trained for, unless `overlap_frames` is given.
    """
    whole = model.network.max_frames
    if model.network.whole_clips and 0 < num_frames < whole:
        return generate(
            model,
            whole,
            batch_size=batch_size,
            conditions=conditions,
            settings=settings,
            seed=seed,
            first_clip=first_clip,
            begin=None if begin is None else begin.padded(whole),
            callback=None if callback is None else _cut(callback, num_frames),
        )[:, :, :num_frames]
    settings = settings or Settings()
    given = _given(model.config.conditions, conditions)
    if batch_size is None:
        batch_size = next((one.batch_size for one in given.values()), 1)
    windows = windows_of(num_frames, model.network.max_frames, overlap_frames, model.config.frame_rate)
    if settings.cfg_scale != 1 and not any(bool(one.mask.any()) for one in given.values()):
        raise UserError("cfg_scale steers towards what the model is told, but it is told nothing")
    start = None if begin is None else _start(model, begin, batch_size, num_frames)
    generators = clip_generators(seed, first_clip, batch_size)
    noise = draw_noise(generators, model.network.latent_dim, num_frames).to(model.device)
    guided = _Guided(model, given, batch_size, windows, settings, start)

    def show(step: int, x0: Tensor) -> None:
        assert callback is not None
        callback(step, model.denormalise(x0))

    was_training = model.training
    model.eval()
    try:
        with packed_linears(model.network):
            found = sample(
                guided,
                model.objective,
                noise,
                steps=settings.steps,
                sampler=settings.sampler,
                generators=generators,
                start=start,
                callback=None if callback is None else show,
            )
    finally:
        model.train(was_training)
    latents = model.denormalise(found)
    if begin is not None and begin.known is not None:  # bit for bit, also after scaling there and back
        known = begin.known.to(latents.device)
        latents = torch.where(known, begin.latents.to(latents), latents)
    return latents


def windows_of(num_frames: int, window: int, overlap: int | None, frame_rate: float) -> list[slice]:
    """Windows of `window` frames over a clip, each sharing at least `overlap` with the one before.

    They are spread evenly, so that the last one ends with the clip. Raises `UserError` where the clip is
    longer than a window and there is no overlap, or one that leaves no way forward.
    """
    if num_frames < 1:
        raise UserError("a clip must have a frame at least: ask for a longer one")
    if num_frames <= window:
        return [slice(0, num_frames)]
    length = f"{num_frames / frame_rate:.3g} s is longer than the model's {window / frame_rate:.3g} s"
    if overlap is None:
        raise UserError(f"{length}: ask for a shorter clip, or for windows that overlap (overlap_s)")
    if not 0 < overlap < window:
        raise UserError(
            f"{length}, and windows of that length cannot share {overlap / frame_rate:.3g} s: choose an"
            " overlap between 0 and their length"
        )
    count = 1 + -(-(num_frames - window) // (window - overlap))
    starts = [round(i * (num_frames - window) / (count - 1)) for i in range(count)]
    return [slice(start, start + window) for start in starts]


class _Guided:
    """What a model sees in noisy latents: with guidance, window by window.

    Windows are predicted at every step, and what overlaps is averaged, as in MultiDiffusion
    (arXiv:2302.08113), with weights that fall towards the ends of a window.
    """

    def __init__(
        self,
        model: DiffusionModel,
        given: GivenConditions,
        batch_size: int,
        windows: Sequence[slice],
        settings: Settings,
        start: Start | None,
    ) -> None:
        self._model, self._settings, self._start = model, settings, start
        self._batch_size = batch_size
        per_part = max(1, _ROWS_AT_ONCE // batch_size)
        given = {name: one.to(model.device) for name, one in given.items()}
        self._parts = [
            _Part(model, given, batch_size, windows[i : i + per_part], settings)
            for i in range(0, len(windows), per_part)
        ]
        # Of many windows each pass keeps the device busy for long, and a graph of each would need memory.
        predict = self._parts[0].predict
        self._predict: dict[bool, Callable[[Tensor, Tensor], Tensor]] = {
            guided: partial(predict, guided=guided) for guided in (False, True)
        }
        if settings.steps >= FEWEST_CALLS:
            self._predict = {guided: Replayed(one) for guided, one in self._predict.items()}
        length = windows[0].stop - windows[0].start
        ramp = torch.arange(1, length + 1, device=model.device)
        self._weights = torch.minimum(ramp, ramp.flip(0)).float()
        total = torch.zeros(windows[-1].stop, device=model.device)
        for window in windows:
            total[window] += self._weights
        self._total = total

    def __call__(self, x: Tensor, time: Tensor) -> Denoised:
        inputs = self._inputs(x)
        now = float(time[0])
        guided = self._settings.guides_at(now)
        time = torch.full((len(x),), now, device=x.device)
        if len(self._parts) == 1 and len(self._parts[0].windows) == 1:
            output = self._predict[guided](inputs, time)
        else:
            output = torch.zeros_like(x)
            for part in self._parts:
                predicted = torch.split(part.predict(inputs, time, guided), self._batch_size)
                for window, one in zip(part.windows, predicted, strict=True):
                    output[:, :, window] += one * self._weights
            output = output / self._total
        return self._model.objective.denoised(output, x, time)

    def _inputs(self, x: Tensor) -> Tensor:
        known = None if self._start is None else self._start.known
        if known is None or self._start is None:
            return self._model.inputs(x)
        return self._model.inputs(x, known.expand(len(x), -1), self._start.latents)


class _Part:
    """Some windows, which go through the network together: W·B rows, the first window's clips first."""

    def __init__(
        self,
        model: DiffusionModel,
        given: GivenConditions,
        batch_size: int,
        windows: Sequence[slice],
        settings: Settings,
    ) -> None:
        self.windows = windows
        self._network, self._settings = model.network, settings
        rows = len(windows) * batch_size
        told = {name: _of_windows(name, one, windows, model) for name, one in given.items()}
        self._plain = self._network.condition(told, rows, keep_keys=True)
        self._both: Conditioned | None = None
        if settings.cfg_scale != 1:
            self._both = self._network.condition(join(told, hide_all(told)), 2 * rows, keep_keys=True)

    def predict(self, inputs: Tensor, time: Tensor, guided: bool) -> Tensor:
        """Inputs [B, D_in, T] to outputs [W·B, D, t]; both halves of guidance are one batch."""
        rows = torch.cat([inputs[:, :, window] for window in self.windows])
        times = time.repeat(len(self.windows))
        if not guided or self._both is None:
            return self._network.predict(rows, times, self._plain)
        conditional, hidden = self._network.predict(rows.repeat(2, 1, 1), times.repeat(2), self._both).chunk(
            2
        )
        return guide(conditional, hidden, self._settings.cfg_scale, self._settings.cfg_rescale)


# arXiv:2207.12598, eq. 6, in the scale of which 1 is no guidance; then arXiv:2305.08891, eq. 15 and 16.
def guide(conditional: Tensor, hidden: Tensor, scale: float, rescale: float) -> Tensor:
    """Predictions [B, D, T] with and without conditions to the guided one."""
    guided = hidden + scale * (conditional - hidden)
    if not rescale:
        return guided
    # Untrained networks predict 0, which has no deviation to divide by.
    growth = conditional.std((1, 2), keepdim=True) / guided.std((1, 2), keepdim=True).clamp(min=1e-8)
    return guided * (rescale * growth + 1 - rescale)


def _cut(callback: Callback, num_frames: int) -> Callback:
    """Shows the first frames alone."""
    return lambda step, latents: callback(step, latents[:, :, :num_frames])


def _of_windows(name: str, given: Given, windows: Sequence[slice], model: DiffusionModel) -> Given:
    """A condition of clips as that of their windows: each begins later than the one before."""
    found = Given(torch.cat([given.values] * len(windows)), torch.cat([given.mask] * len(windows)))
    if name == SECONDS_START and model.config.conditions[name].kind == "number":
        starts = torch.tensor([window.start for window in windows]) / model.config.frame_rate
        found.values = found.values + starts.to(found.values).repeat_interleave(given.batch_size)[:, None]
    return found


def _given(conditions: Conditions, inputs: Inputs | None) -> GivenConditions:
    found: GivenConditions = {}
    if inputs and all(isinstance(one, Given) for one in inputs.values()):
        found = {name: one for name, one in inputs.items() if isinstance(one, Given)}
        conditions.check(found)
    elif inputs:
        found = conditions.encode(inputs, partial=True)  # type: ignore[arg-type]
    return found


def _start(model: DiffusionModel, begin: From, batch_size: int, num_frames: int) -> Start:
    dim = model.network.latent_dim
    if begin.latents.shape != (dim, num_frames):
        raise UserError(
            f"the latents to begin from must be [{dim}, {num_frames}] for this model and these clips, not"
            f" {list(begin.latents.shape)}"
        )
    if begin.known is not None and bool(begin.known.all()):
        raise UserError("all of the clip is kept, so there is nothing to generate")
    latents = model.normalise(begin.latents.to(model.device)[None]).expand(batch_size, -1, -1)
    known = None if begin.known is None else begin.known.to(model.device)
    return Start(latents, begin.strength, known)
