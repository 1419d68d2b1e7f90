"""Samplers, on data whose best prediction is known: every dimension is normal with a mean and deviation of
its own.

Shapes: B batch, D latent width, T frames.
"""

import pytest
import torch
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.core.schema_generate import SAMPLERS
from tokkata.diffusion.objective import DDPM, EDM, NUM_STEPS, Denoised, Flow, Objective, Velocity
from tokkata.diffusion.sampler import Start, choose_sampler, clip_generators, draw_noise, sample

OBJECTIVES: dict[str, Objective] = {
    "ddpm": DDPM(),
    "cosine": DDPM(schedule="cosine"),
    "v": Velocity(),
    "v-linear": Velocity(schedule="linear"),
    "edm": EDM(),
    "flow": Flow(),
    "flow-shifted": Flow(shift=2.0),
}
EACH_WITH_EACH = [(name, one) for name, objective in OBJECTIVES.items() for one in SAMPLERS[objective.kind]]

MEAN = torch.tensor([[0.5], [-1.0], [0.0]], dtype=torch.float64)
STD = torch.tensor([[1.0], [0.5], [0.2]], dtype=torch.float64)


class Known:
    """The mean of the clean latents given the noisy ones, where those are normal."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.times: list[float] = []

    def __call__(self, x: Tensor, time: Tensor) -> Denoised:
        self.times.append(float(time[0]))
        alpha, sigma = (level.to(x.dtype)[:, None, None] for level in self.objective.levels(time))
        mean, std = MEAN.to(x.dtype), STD.to(x.dtype)
        variance = alpha**2 * std**2 + sigma**2
        distance = x - alpha * mean
        return Denoised(mean + alpha * std**2 / variance * distance, sigma / variance * distance)


def noise_of(batch_size: int, num_frames: int = 40, seed: int = 0) -> tuple[Tensor, list[torch.Generator]]:
    generators = clip_generators(seed, 0, batch_size)
    return draw_noise(generators, 3, num_frames), generators


@pytest.mark.parametrize(("name", "sampler"), EACH_WITH_EACH)
def test_each_sampler_with_each_objective_gives_the_distribution(name: str, sampler: str) -> None:
    objective = OBJECTIVES[name]
    noise, generators = noise_of(25)
    steps = 400 if sampler == "ddpm" else 100
    found = sample(Known(objective), objective, noise, steps=steps, sampler=sampler, generators=generators)
    pooled = found.transpose(0, 1).flatten(1)  # 1,000 draws of each dimension
    # Five standard errors, and what the step length costs.
    assert ((pooled.mean(1) - MEAN[:, 0]).abs() < 0.17 * STD[:, 0] + 0.02).all()
    assert ((pooled.std(1) / STD[:, 0] - 1).abs() < 0.17).all()


@pytest.mark.parametrize(("name", "sampler"), EACH_WITH_EACH)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_sampler_takes_as_many_steps_as_it_is_told(name: str, sampler: str, steps: int) -> None:
    objective = OBJECTIVES[name]
    noise, generators = noise_of(2, 4)
    known, seen = Known(objective), []
    found = sample(
        known,
        objective,
        noise,
        steps=steps,
        sampler=sampler,
        generators=generators,
        callback=lambda step, x0: seen.append((step, x0)),
    )
    assert torch.isfinite(found).all()
    assert [step for step, _ in seen] == list(range(steps))
    assert known.times == sorted(known.times, reverse=True)
    if sampler in ("dpm++2m", "ddim", "euler"):
        torch.testing.assert_close(found, seen[-1][1], atol=1e-5, rtol=1e-5)  # the last step ends there


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_the_order_of_convergence_of_a_flow(name: str, order: int) -> None:
    """Half as long a step makes the error 2^order times as small."""
    flow, noise = Flow(), noise_of(1)[0].double()
    # What noise flows to, from the known solution: the same number of deviations from the mean.
    exact = MEAN + STD * noise
    errors = [
        float((sample(Known(flow), flow, noise, steps=steps, sampler=name) - exact).abs().max())
        for steps in (160, 320, 640)
    ]
    for coarse, fine in ((errors[0], errors[1]), (errors[1], errors[2])):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


def test_heun_of_edm_converges_to_the_solution_too() -> None:
    edm, noise = EDM(), noise_of(1)[0].double()
    exact = MEAN + STD * noise
    coarse, fine = (
        float((sample(Known(edm), edm, noise, steps=steps, sampler="heun") - exact).abs().max())
        for steps in (25, 100)
    )
    assert fine < 0.02
    assert fine < coarse / 5


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_edm_is_sampled_at_its_own_levels_as_in_diffusers(steps: int) -> None:
    """There, noisy latents are x_0 + s noise."""
    from diffusers import EDMDPMSolverMultistepScheduler

    edm, noise = EDM(), noise_of(2)[0]
    known = Known(edm)
    theirs = EDMDPMSolverMultistepScheduler(
        sigma_min=edm.sigma_min, sigma_max=edm.sigma_max, sigma_data=1.0, prediction_type="epsilon"
    )
    theirs.set_timesteps(steps)
    x = noise * (1 + edm.sigma_max**2) ** 0.5
    for timestep, s in zip(theirs.timesteps, theirs.sigmas[:-1].double(), strict=True):
        time = edm.time_of(s).repeat(2)
        scale = float(1 + s**2) ** 0.5
        x0 = known(x / scale, time).x0
        output = (x0 - x / scale**2) * scale / float(s)  # EDM's F, of eq. 7
        x = theirs.step(output, timestep, x).prev_sample
    known.times.clear()
    found = sample(known, edm, noise, steps=steps, sampler="dpm++2m")
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)
    assert known.times == pytest.approx(edm.time_of(edm.noise_levels(steps)).tolist(), rel=1e-6)


def test_ddim_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    ddpm, known = DDPM(), Known(DDPM())
    noise = noise_of(2)[0]
    theirs = DDIMScheduler(
        NUM_STEPS, clip_sample=False, prediction_type="sample", timestep_spacing="trailing"
    )
    theirs.set_timesteps(20)
    x = noise
    for timestep in theirs.timesteps:
        time = torch.full((2,), (int(timestep) + 1) / NUM_STEPS)
        x = theirs.step(known(x, time).x0, timestep, x).prev_sample
    found = sample(known, ddpm, noise, steps=20, sampler="ddim")
    torch.testing.assert_close(found, x, atol=2e-4, rtol=2e-4)


def test_ddpm_is_eq_11_step_for_step() -> None:
    ddpm, known = DDPM(), Known(DDPM())
    noise, generators = noise_of(2, 4)
    x, own = noise, noise_of(2, 4)[1]  # which have drawn the noise of the beginning, as the others have
    for step in reversed(range(NUM_STEPS)):
        output = known(x, torch.full((2,), (step + 1) / NUM_STEPS)).noise
        more = draw_noise(own, 3, 4) if step else torch.zeros(())
        x = ddpm.reverse_step(output, x, step, more)
    found = sample(known, ddpm, noise, steps=NUM_STEPS, sampler="ddpm", generators=generators)
    torch.testing.assert_close(found, x, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize(("name", "sampler"), EACH_WITH_EACH)
def test_a_clip_does_not_depend_on_its_batch(name: str, sampler: str) -> None:
    objective = OBJECTIVES[name]

    def clips(first: int, count: int) -> Tensor:
        generators = clip_generators(7, first, count)
        noise = draw_noise(generators, 3, 5)
        return sample(Known(objective), objective, noise, steps=4, sampler=sampler, generators=generators)

    together = clips(0, 4)
    assert torch.equal(together, torch.cat([clips(0, 1), clips(1, 3)]))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(("name", "sampler"), EACH_WITH_EACH)
def test_known_frames_stay_and_little_strength_changes_little(name: str, sampler: str) -> None:
    objective = OBJECTIVES[name]
    latents = MEAN.float() + STD.float() * noise_of(2, 6, seed=3)[0]
    known = torch.tensor([True, True, False, False, True, False])

    def from_(strength: float, kept: Tensor | None = None) -> Tensor:
        noise, generators = noise_of(2, 6)
        start = Start(latents, strength, kept)
        return sample(
            Known(objective),
            objective,
            noise,
            steps=4,
            sampler=sampler,
            generators=generators,
            start=start,
        )

    found = from_(1.0, known)
    assert torch.equal(found[..., known], latents[..., known])
    assert not torch.isclose(found[..., ~known], latents[..., ~known]).any()
    little, much = ((from_(strength) - latents)[:, 0].abs().mean() for strength in (0.05, 0.9))
    assert float(little) < float(much) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "0 steps: at least 1 is needed"),
        ({"steps": 1001, "sampler": "ddpm"}, "1001 steps: there are 1000 at most"),
        ({"sampler": "euler"}, "the sampler euler does not go with the objective ddpm, which has dpm"),
        ({"start": Start(torch.zeros(1, 3, 4), 0.0)}, "strength 0 must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(changes: dict, message: str) -> None:  # type: ignore[type-arg]
    noise, generators = noise_of(1, 4)
    with pytest.raises(UserError, match=message):
        sample(Known(DDPM()), DDPM(), noise, **{"steps": 4, "generators": generators} | changes)


def test_usual_samplers() -> None:
    assert [choose_sampler(None, OBJECTIVES[name]) for name in ("ddpm", "v", "edm", "flow")] == [
        "dpm++2m",
        "dpm++2m",
        "heun",
        "euler",
    ]
