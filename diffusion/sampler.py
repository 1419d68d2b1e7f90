"""From noise to latents: the samplers of `diffusers`, and Heun's method, over any objective.

A `Predict` says what the clean latents and the noise are in noisy latents; it hides the network, guidance and
windows. Every sampler goes through falling times, and whoever asks sees its estimate at each.

Noise is each clip's own: a function of (seed, number of the clip), so a clip does not depend on its batch.

Latents have mean 0 and standard deviation 1 here. Shapes: B batch, D latent width, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.loop import step_seed
from ..core.schema_generate import SAMPLERS, Sampler
from .objective import EDM, NUM_STEPS, Consistency, Denoised, Flow, Objective, TableObjective

if TYPE_CHECKING:  # importing it takes a second
    from diffusers import DPMSolverMultistepScheduler

Predict = Callable[[Tensor, Tensor], Denoised]
"""(noisy latents [B, D, T], time [B] on the CPU) → what is in them.

Whoever decides something by the time need not wait for a GPU to say it.
"""

Callback = Callable[[int, Tensor], None]
"""(number of the step from 0, estimate of the clean latents [B, D, T])."""


@dataclass(frozen=True)
class Start:
    """What sampling begins with, where it is more than noise."""

    latents: Tensor  # [B, D, T], normalised
    strength: float = 1.0
    """Which time to begin at, from these latents; 1: they are not seen."""
    known: Tensor | None = None  # [T] bool: frames that stay as they are


def choose_sampler(name: Sampler | None, objective: Objective) -> Sampler:
    """`name`, or the usual sampler of the objective; raises `UserError` if they do not go together."""
    known = SAMPLERS[objective.kind]
    if name is None:
        return known[0]
    if name not in known:
        raise UserError(
            f"the sampler {name} does not go with the objective {objective.kind}, which has"
            f" {', '.join(known)}"
        )
    return name


def usual_steps(objective: Objective) -> int:
    """How many steps are enough for most models: a distilled one needs few."""
    return 4 if isinstance(objective, Consistency) else 50


def clip_generators(seed: int, first_clip: int, count: int) -> list[torch.Generator]:
    """One a clip, on the CPU: everything random about a clip comes from its own."""
    return [torch.Generator().manual_seed(step_seed(seed, first_clip + i)) for i in range(count)]


def draw_noise(generators: Sequence[torch.Generator], num_dims: int, num_frames: int) -> Tensor:
    """Noise [B, D, T], each clip's from its generator."""
    return torch.stack([torch.randn(num_dims, num_frames, generator=one) for one in generators])


@torch.no_grad()
def sample(
    predict: Predict,
    objective: Objective,
    noise: Tensor,
    *,
    steps: int,
    sampler: Sampler | None = None,
    generators: Sequence[torch.Generator] = (),
    start: Start | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Latents [B, D, T] from `noise` [B, D, T].

    Args:
        predict: what is asked at every step; twice a step by `heun`.
        objective: how noise was added in training.
        noise: what the clips are at time 1; samplers that are stochastic draw more from `generators`.
        steps: how many.
        sampler: `ddpm` (arXiv:2006.11239), `ddim` (arXiv:2010.02502), `dpm++2m` and `dpm++2m-sde`
            (arXiv:2211.01095), `euler`, `heun` (arXiv:2206.00364, algorithm 1, without churn),
            `consistency` (arXiv:2303.01469, algorithm 1); the objective's usual one if None.
        generators: one a clip.
        start: latents to begin from or to keep.
        callback: is shown the estimate of every step, before the next.

    Raises `UserError` for fewer than one step, more than there are times, and a sampler of other objectives.
    """
    if steps < 1:
        raise UserError(f"{steps} steps: at least 1 is needed")
    if start is not None and not 0 < start.strength <= 1:
        raise UserError(f"strength {start.strength:g} must be above 0 and at most 1")
    name = choose_sampler(sampler, objective)
    walk = _Walk(predict, objective, noise, start, callback)
    strength = 1.0 if start is None else start.strength
    if name == "heun":
        found = _heun(walk, objective, steps, strength)
    elif name == "consistency":
        assert isinstance(objective, Consistency)
        found = _consistency(walk, objective, steps, strength, generators)
    elif name == "euler":
        assert isinstance(objective, Flow)
        found = _euler(walk, objective, steps, strength)
    else:
        assert isinstance(objective, TableObjective | Flow)
        found = _scheduled(walk, objective, name, steps, strength, generators)
    return walk.with_known(found, 0.0)


class _Walk:
    """Latents on their way: known parts are put back at every time, and every estimate is shown."""

    def __init__(
        self,
        predict: Predict,
        objective: Objective,
        noise: Tensor,
        start: Start | None,
        callback: Callback | None,
    ) -> None:
        self._predict, self._objective, self._callback = predict, objective, callback
        self._noise, self._start = noise, start
        self._step = 0

    def begin(self, time: float) -> Tensor:
        """Latents at the first time."""
        if self._start is None or self._start.strength == 1:
            return self.with_known(self._noise, time)
        return self._objective.add_noise(self._start.latents, self._noise, self._clips(time))

    def with_known(self, x: Tensor, time: float) -> Tensor:
        """x with the known frames as they are at `time`, under the noise that they began with."""
        if self._start is None or self._start.known is None:
            return x
        known = self._start.latents
        if time > 0:
            known = self._objective.add_noise(known, self._noise, self._clips(time))
        return torch.where(self._start.known, known, x)

    def estimate(self, x: Tensor, time: float, *, shown: bool = True) -> Denoised:
        """What the model sees in x."""
        found = self._predict(x, torch.full((len(x),), time))
        if shown:
            if self._callback is not None:
                self._callback(self._step, self.with_known(found.x0, 0.0))
            self._step += 1
        return found

    def _clips(self, time: float) -> Tensor:
        return torch.full((len(self._noise),), time, device=self._noise.device)


def _grid(steps: int, strength: float) -> Tensor:
    """Times of a flow from `strength` to 0, [steps + 1] float64."""
    return torch.linspace(strength, 0, steps + 1, dtype=torch.float64)


def _euler(walk: _Walk, objective: Flow, steps: int, strength: float) -> Tensor:
    from diffusers import FlowMatchEulerDiscreteScheduler

    times = objective.shifted(_grid(steps, 1.0)) * strength
    scheduler = FlowMatchEulerDiscreteScheduler(NUM_STEPS)
    scheduler.set_timesteps(sigmas=times[:-1].tolist())
    x = walk.begin(float(times[0]))
    for timestep, time, following in zip(scheduler.timesteps, times[:-1], times[1:], strict=True):
        found = walk.estimate(x, float(time))
        x = scheduler.step(found.noise - found.x0, timestep, x).prev_sample
        x = walk.with_known(x, float(following))
    return x


def _consistency(
    walk: _Walk, objective: Consistency, steps: int, strength: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Each step goes to the end; all but the last come back part of the way with new noise."""
    times: list[float] = (objective.shifted(_grid(steps, 1.0)) * strength).tolist()
    x = walk.begin(times[0])
    for time, following in pairwise(times):
        x = walk.estimate(x, time).x0
        if following > 0:
            noise = draw_noise(generators, *x.shape[1:]).to(x)
            x = objective.add_noise(x, noise, torch.full((len(x),), following, device=x.device))
        x = walk.with_known(x, following)
    return x


# diffusers' FlowMatchHeunDiscreteScheduler ends with a step from time 0.001, a waste of one in few, and takes
# no times of one's own.
def _heun(walk: _Walk, objective: Objective, steps: int, strength: float) -> Tensor:
    """Trapezoids along dx/dt = noise - x_0 of a flow, or d(x / alpha)/ds = noise of EDM, where s is
    sigma / alpha; the last step of EDM is one of Euler's, as in its algorithm 1."""
    ode = _FlowOde(objective) if isinstance(objective, Flow) else _EdmOde(objective)
    clocks = ode.clocks(steps, strength)
    time = ode.time(clocks[0])
    position = ode.position(walk.begin(time), clocks[0])
    for clock, following in pairwise(clocks):
        slope = ode.slope(walk.estimate(ode.latents(position, clock), ode.time(clock)))
        ahead = position + (following - clock) * slope
        if following > 0 or isinstance(ode, _FlowOde):
            there = walk.estimate(ode.latents(ahead, following), ode.time(following), shown=False)
            ahead = position + (following - clock) * (slope + ode.slope(there)) / 2
        x = walk.with_known(ode.latents(ahead, following), ode.time(following))
        position = ode.position(x, following)
    return ode.latents(position, 0.0)


class _FlowOde:
    """A flow as it is."""

    def __init__(self, objective: Flow) -> None:
        self._objective = objective

    def clocks(self, steps: int, strength: float) -> list[float]:
        times: list[float] = (self._objective.shifted(_grid(steps, 1.0)) * strength).tolist()
        return times

    def time(self, clock: float) -> float:
        return clock

    def position(self, x: Tensor, clock: float) -> Tensor:
        return x

    def latents(self, position: Tensor, clock: float) -> Tensor:
        return position

    def slope(self, found: Denoised) -> Tensor:
        return found.noise - found.x0


class _EdmOde(_FlowOde):
    """Latents divided by alpha, against sigma / alpha."""

    def __init__(self, objective: Objective) -> None:
        assert isinstance(objective, EDM)
        self._edm = objective

    def clocks(self, steps: int, strength: float) -> list[float]:
        found: list[float] = self._edm.noise_levels(steps, strength).tolist()
        return [*found, 0.0]

    def time(self, clock: float) -> float:
        return float(self._edm.time_of(torch.tensor(clock, dtype=torch.float64)))

    def position(self, x: Tensor, clock: float) -> Tensor:
        return x * math.hypot(1, clock)

    def latents(self, position: Tensor, clock: float) -> Tensor:
        return position / math.hypot(1, clock)

    def slope(self, found: Denoised) -> Tensor:
        return found.noise


def _scheduled(
    walk: _Walk,
    objective: TableObjective | Flow,
    name: Sampler,
    steps: int,
    strength: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    scheduler = (
        _flow_solver(objective, name, steps, strength)
        if isinstance(objective, Flow)
        else _table_scheduler(objective, name, steps, strength)
    )
    timesteps: list[float] = scheduler.timesteps.tolist()
    times = [t / NUM_STEPS if isinstance(objective, Flow) else (t + 1) / NUM_STEPS for t in timesteps]
    x = walk.begin(times[0])
    following = [*times[1:], 0.0]
    for timestep, time, after in zip(scheduler.timesteps, times, following, strict=True):
        found = walk.estimate(x, time)
        # The schedulers take the clean latents, so they need not know what the network predicts.
        x = scheduler.step(found.x0, timestep, x, generator=list(generators)).prev_sample
        x = walk.with_known(x, after)
    return x


def _table_scheduler(objective: TableObjective, name: Sampler, steps: int, strength: float) -> Any:
    """A scheduler over the objective's own times, or where it has none over steps of its table.

    DDIM is the first order of DPM-Solver++ (arXiv:2211.01095, sec. 4.1): `DDIMScheduler` takes steps of one
    length only, so that 24 of 1000 would end before the last.
    """
    from diffusers import DDPMScheduler

    times = objective.sampled_times(steps, strength)
    if times is not None and name != "ddpm":
        solver = _solver(name)
        solver.set_timesteps(steps)
        solver.sigmas = torch.cat([(times * torch.pi / 2).tan(), times.new_zeros(1)]).float()
        solver.timesteps = times * NUM_STEPS - 1
        return solver
    betas = objective.betas.numpy()
    timesteps = _table_steps(objective, steps, strength)
    if name == "ddpm":
        scheduler = DDPMScheduler(NUM_STEPS, trained_betas=betas, prediction_type="sample", clip_sample=False)
        scheduler.set_timesteps(timesteps=timesteps)
        return scheduler
    # With noise alone at the last step, sigma / alpha is infinite there; the scheduler then takes 4096.
    solver = _solver(name, trained_betas=betas, rescale_betas_zero_snr=float(objective.cumprod[-1]) == 0)
    solver.set_timesteps(timesteps=timesteps)
    return solver


def _table_steps(objective: TableObjective, steps: int, strength: float) -> list[int]:
    """Steps of the table, falling: evenly from the last on (arXiv:2305.08891, sec. 3.3)."""
    times = _grid(steps, strength)[:-1]
    found: list[int] = ((times * NUM_STEPS).round().long().clamp(min=1) - 1).tolist()
    distinct = sorted(set(found), reverse=True)
    if len(distinct) < steps:
        raise UserError(f"{steps} steps: there are {round(strength * NUM_STEPS)} at most")
    return distinct


def _flow_solver(objective: Flow, name: Sampler, steps: int, strength: float) -> DPMSolverMultistepScheduler:
    solver = _solver(name, use_flow_sigmas=True)
    solver.set_timesteps(steps)
    # Its own times begin at 0.999; these begin where ours do, but for the logarithm of alpha = 0.
    times = (objective.shifted(_grid(steps, 1.0)) * strength).clamp(max=0.9995).float()
    solver.sigmas, solver.timesteps = times, times[:-1] * NUM_STEPS
    return solver


def _solver(name: Sampler, **settings: Any) -> DPMSolverMultistepScheduler:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        NUM_STEPS,
        prediction_type="sample",
        solver_order=1 if name == "ddim" else 2,
        algorithm_type="sde-dpmsolver++" if name == "dpm++2m-sde" else "dpmsolver++",
        final_sigmas_type="zero",
        **settings,
    )
