"""What a diffusion model learns: how noise is added, what is predicted, and what counts how much.

    x_t = alpha(t) x_0 + sigma(t) noise        t in 0…1, where 1 is noise alone

An objective says alpha and sigma, at which times clips are trained, what the network's output means, and how
to get from it to the clean latents and the noise. Samplers know that alone, so each works with each.

Latents have mean 0 and standard deviation 1 here. Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import UserError

NUM_STEPS = 1000
"""T of a DDPM: step t of 0…T-1 is the time (t + 1) / T."""

Schedule = Literal["linear", "cosine", "trigonometric"]


@dataclass(frozen=True)
class Denoised:
    """What a prediction says of noisy latents."""

    x0: Tensor  # [B, D, T], the clean latents
    noise: Tensor  # [B, D, T]


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """One way to train; its fields travel in `config.json`."""

    kind: ClassVar[str]
    """As recipes name it."""

    @abstractmethod
    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times [count] float32 to train at."""

    @abstractmethod
    def levels(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times of any shape."""

    def add_noise(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Latents [B, D, T] as they are at `time` [B]."""
        alpha, sigma = self._levels_of_clips(time, x0)
        return alpha * x0 + sigma * noise

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the network has to predict, [B, D, T]."""

    @abstractmethod
    def denoised(self, output: Tensor, x: Tensor, time: Tensor) -> Denoised:
        """What the network's output says of latents x [B, D, T] at `time` [B]."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"kind": self.kind} | dataclasses.asdict(self)

    def _levels_of_clips(self, time: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.levels(time)
        return alpha[:, None, None].to(x.dtype), sigma[:, None, None].to(x.dtype)


# ------------------------------------------------------------------------------------------------ beta tables


@functools.cache
def alphas_cumprod(schedule: Schedule, zero_terminal_snr: bool = False) -> Tensor:
    """Products of 1 - beta up to each step, [T] float64: alpha² of x_t = alpha x_0 + sigma noise."""
    steps = torch.arange(1, NUM_STEPS + 1, dtype=torch.float64)
    if schedule == "trigonometric":
        found = torch.cos(math.pi / 2 * steps / NUM_STEPS) ** 2  # Stable Audio's alpha = cos(pi t / 2)
        found[-1] = 0  # which it is but for rounding
        return found
    if schedule == "linear":  # arXiv:2006.11239, sec. 4
        betas = torch.linspace(1e-4, 0.02, NUM_STEPS, dtype=torch.float64)
    else:  # arXiv:2102.09672, eq. 17, and the limit below it
        bars = (
            torch.cos((torch.arange(NUM_STEPS + 1) / NUM_STEPS + 0.008).double() / 1.008 * math.pi / 2) ** 2
        )
        betas = (1 - bars[1:] / bars[:-1]).clamp(max=0.999)
    found = (1 - betas).cumprod(0)
    return _without_signal_at_the_end(found) if zero_terminal_snr else found


# arXiv:2305.08891, algorithm 1: the last step becomes noise alone, the first stays as it is.
def _without_signal_at_the_end(cumprod: Tensor) -> Tensor:
    root = cumprod.sqrt()
    rescaled: Tensor = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return rescaled**2


class TableObjective(Objective):
    """An objective whose alpha² + sigma² is 1, at the steps of a table at least."""

    @property
    @abstractmethod
    def cumprod(self) -> Tensor:
        """alpha² at each step of a DDPM, [T] float64."""

    @property
    def betas(self) -> Tensor:
        """beta of each step, [T] float64."""
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.cumprod[:-1]])
        return 1 - self.cumprod / before

    def levels(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`; of the step nearest to each time."""
        step = (time.double() * NUM_STEPS).round().long().clamp(1, NUM_STEPS) - 1
        squared = self.cumprod.to(time.device)[step]
        return squared.sqrt().float(), (1 - squared).sqrt().float()

    def sampled_times(self, num_steps: int, strength: float = 1.0) -> Tensor | None:
        """Times of a sampler's steps, falling from `strength`, [num_steps] float64; None: they are even."""
        return None

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Any step as often as any other."""
        return (torch.randint(NUM_STEPS, (count,), generator=generator) + 1) / NUM_STEPS


@dataclass(frozen=True, kw_only=True)
class DDPM(TableObjective):
    """The network predicts the noise: arXiv:2006.11239, with the simple loss of eq. 14."""

    kind: ClassVar[str] = "ddpm"

    schedule: Schedule = "linear"

    @property
    def cumprod(self) -> Tensor:
        """See `TableObjective`."""
        return alphas_cumprod(self.schedule)

    # Eq. 2.
    def forward_step(self, x: Tensor, step: int, noise: Tensor) -> Tensor:
        """q(x_t | x_{t-1}): latents of step - 1 (clean ones where `step` is 0) as they are at `step`."""
        beta = float(self.betas[step])
        return math.sqrt(1 - beta) * x + math.sqrt(beta) * noise

    # Eq. 11, with the smaller of the two variances of sec. 3.2: that of q(x_{t-1} | x_t, x_0), eq. 7.
    def reverse_step(self, output: Tensor, x: Tensor, step: int, noise: Tensor) -> Tensor:
        """p(x_{t-1} | x_t), with the network's `output` at `step`; step 0 adds no noise."""
        beta, bar = float(self.betas[step]), float(self.cumprod[step])
        mean = (x - beta / math.sqrt(1 - bar) * output) / math.sqrt(1 - beta)
        if step == 0:
            return mean
        variance = (1 - float(self.cumprod[step - 1])) / (1 - bar) * beta
        return mean + math.sqrt(variance) * noise

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The noise."""
        return noise

    def denoised(self, output: Tensor, x: Tensor, time: Tensor) -> Denoised:
        """Eq. 4, solved for the clean latents."""
        alpha, sigma = self._levels_of_clips(time, x)
        return Denoised((x - sigma * output) / alpha, output)


@dataclass(frozen=True, kw_only=True)
class Velocity(TableObjective):
    """The network predicts v = alpha noise - sigma x_0: arXiv:2202.00512, appendix D."""

    kind: ClassVar[str] = "v"

    schedule: Schedule = "trigonometric"
    """`trigonometric` is Stable Audio's: alpha = cos(pi t / 2), at any time."""
    zero_terminal_snr: bool = True
    """Whether tables of the other two end with noise alone, which the first one does in any case."""
    sigma_min: float | None = None
    """Noise level sigma / alpha at the last step of sampling, and in the next line at the first; steps
    between are even in its logarithm, as Stable Audio has them. None: steps are even in time."""
    sigma_max: float | None = None

    @property
    def cumprod(self) -> Tensor:
        """See `TableObjective`."""
        return alphas_cumprod(self.schedule, self.zero_terminal_snr and self.schedule != "trigonometric")

    def levels(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        if self.schedule != "trigonometric":
            return super().levels(time)
        return _on_the_circle(time)

    def sampled_times(self, num_steps: int, strength: float = 1.0) -> Tensor | None:
        """See `TableObjective`."""
        if self.sigma_min is None or self.sigma_max is None:
            return None
        first, last = math.log(self.sigma_max), math.log(self.sigma_min)
        levels = torch.linspace(first, last, num_steps, dtype=torch.float64).exp()
        return strength * 2 / math.pi * levels.atan()

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform."""
        if self.schedule != "trigonometric":
            return super().draw_times(count, generator)
        return torch.rand(count, generator=generator)

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """v."""
        alpha, sigma = self._levels_of_clips(time, x0)
        return alpha * noise - sigma * x0

    def denoised(self, output: Tensor, x: Tensor, time: Tensor) -> Denoised:
        """Appendix D: x_0 = alpha x - sigma v; its counterpart is the noise."""
        alpha, sigma = self._levels_of_clips(time, x)
        return Denoised(alpha * x - sigma * output, sigma * x + alpha * output)


@dataclass(frozen=True, kw_only=True)
class EDM(TableObjective):
    """Preconditioning, weighting and noise levels of arXiv:2206.00364 (table 1), where sigma_data is 1.

    EDM's noisy latents are x_0 + s noise with s = sigma / alpha; the network sees them divided by
    sqrt(1 + s²) (c_in), and so they are alpha x_0 + sigma noise, with alpha = cos(pi t / 2), here too. Its
    output F means x_0 = c_skip (x_0 + s noise) + c_out F. The weight lambda(s) c_out² of the loss of F is 1.
    """

    kind: ClassVar[str] = "edm"

    log_sigma_mean: float = -0.5
    """P_mean; the paper's -1.2 stands beside a sigma_data of 0.5."""
    log_sigma_std: float = 1.2
    """P_std."""
    sigma_min: float = 0.004
    """Where sampling ends, and in the next line where it begins, in standard deviations of the latents."""
    sigma_max: float = 160.0

    @property
    def cumprod(self) -> Tensor:
        """See `TableObjective`."""
        return alphas_cumprod("trigonometric")

    def levels(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        return _on_the_circle(time)

    def time_of(self, s: Tensor) -> Tensor:
        """The time at which sigma / alpha is `s`."""
        return 2 / math.pi * s.atan()

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """The logarithm of sigma / alpha is normal."""
        drawn = torch.randn(count, generator=generator)
        return self.time_of((self.log_sigma_mean + self.log_sigma_std * drawn).exp())

    # Eq. 5.
    def noise_levels(self, num_steps: int, strength: float = 1.0) -> Tensor:
        """sigma / alpha of a sampler's steps, falling, [num_steps] float64: rho is 7.

        With a `strength` below 1, all are as much lower as makes the first that of this time.
        """
        ends = torch.tensor([self.sigma_max, self.sigma_min], dtype=torch.float64) ** (1 / 7)
        levels = (ends[0] + torch.linspace(0, 1, num_steps, dtype=torch.float64) * (ends[1] - ends[0])) ** 7
        highest = math.tan(strength * math.pi / 2) if strength < 1 else self.sigma_max
        return levels * min(1.0, highest / self.sigma_max)

    def sampled_times(self, num_steps: int, strength: float = 1.0) -> Tensor:
        """See `TableObjective`; of eq. 5."""
        return self.time_of(self.noise_levels(num_steps, strength))

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """F = (x_0 - c_skip (x_0 + s noise)) / c_out, which comes to sigma x_0 - alpha noise."""
        alpha, sigma = self._levels_of_clips(time, x0)
        return sigma * x0 - alpha * noise

    def denoised(self, output: Tensor, x: Tensor, time: Tensor) -> Denoised:
        """Eq. 7."""
        alpha, sigma = self._levels_of_clips(time, x)
        return Denoised(alpha * x + sigma * output, sigma * x - alpha * output)


# --------------------------------------------------------------------------------------------- rectified flow


@dataclass(frozen=True, kw_only=True)
class StraightObjective(Objective):
    """Straight lines from the latents to noise: rectified flow, arXiv:2209.03003, eq. 1."""

    shift: float = 1.0
    """Above 1: more of the times, in training and in sampling, are near noise (arXiv:2403.03206, eq. 23)."""

    def levels(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        return 1 - time, time

    def shifted(self, time: Tensor) -> Tensor:
        """Times as `shift` moves them; 0 and 1 stay."""
        return self.shift * time / (1 + (self.shift - 1) * time)

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The direction to noise, which is the same at all times."""
        return noise - x0

    def denoised(self, output: Tensor, x: Tensor, time: Tensor) -> Denoised:
        """The two ends of the straight line through x."""
        alpha, sigma = self._levels_of_clips(time, x)
        return Denoised(x - sigma * output, x + alpha * output)


@dataclass(frozen=True, kw_only=True)
class Flow(StraightObjective):
    """The network predicts the mean direction of the lines through x: rectified flow, arXiv:2209.03003."""

    kind: ClassVar[str] = "flow"

    time: Literal["uniform", "logit_normal"] = "logit_normal"
    """At which times clips are trained: logit-normal is that of arXiv:2403.03206, sec. 3.1."""
    time_mean: float = 0.0
    """Of the logit-normal distribution."""
    time_std: float = 1.0

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """As `time` says, then shifted."""
        if self.time == "uniform":
            return self.shifted(torch.rand(count, generator=generator))
        drawn = torch.randn(count, generator=generator)
        return self.shifted(torch.sigmoid(self.time_mean + self.time_std * drawn))


@dataclass(frozen=True, kw_only=True)
class Consistency(StraightObjective):
    """What a flow becomes by distillation (`distill.py`): a consistency model, arXiv:2303.01469.

    The network predicts the direction of the line from x to where the flow takes it, so `denoised` is the
    consistency function f (definition 1), and f(x, 0) = x without further ado. `target` is what would be
    right if clips were alone in the world.
    """

    kind: ClassVar[str] = "consistency"

    num_intervals: int = 16
    """N: training is at the ends of N parts of the way, even but for the shift."""

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """The later end of any interval, one as often as another."""
        ends = torch.randint(self.num_intervals, (count,), generator=generator) + 1
        return self.shifted(ends / self.num_intervals)

    def before(self, time: Tensor) -> Tensor:
        """The time one interval nearer to the latents, at least 0."""
        even = time / (self.shift - (self.shift - 1) * time)
        return self.shifted((even - 1 / self.num_intervals).clamp(min=0))


def _on_the_circle(time: Tensor) -> tuple[Tensor, Tensor]:
    angle = math.pi / 2 * time
    return angle.cos(), angle.sin()


OBJECTIVES: dict[str, type[Objective]] = {one.kind: one for one in (DDPM, Velocity, EDM, Flow, Consistency)}
"""By their kinds."""


def make_objective(values: Mapping[str, Any]) -> Objective:
    """Undo `to_dict`; raises `UserError` for what is no objective."""
    settings = dict(values)
    kind = settings.pop("kind", None)
    if kind not in OBJECTIVES:
        raise UserError(f"unknown objective {kind!r}: known are {', '.join(OBJECTIVES)}")
    try:
        return OBJECTIVES[kind](**settings)
    except TypeError as error:
        raise UserError(f"the objective {kind} cannot be read: {error}") from error
