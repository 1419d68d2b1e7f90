"""Objectives: marginals, targets, and the way back from a prediction.

Shapes: B batch, D latent width, T frames.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.diffusion.objective import (
    DDPM,
    EDM,
    NUM_STEPS,
    Flow,
    Objective,
    TableObjective,
    Velocity,
    alphas_cumprod,
    make_objective,
)

ALL = [
    DDPM(),
    DDPM(schedule="cosine"),
    Velocity(),
    Velocity(schedule="linear"),
    Velocity(schedule="cosine", zero_terminal_snr=False),
    EDM(),
    Flow(),
    Flow(time="uniform", shift=3.0),
]


def name_of(objective: Objective) -> str:
    return "-".join(str(value) for value in objective.to_dict().values())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("objective", ALL, ids=name_of)
@settings(max_examples=30, deadline=None)
@given(time=st.floats(0.001, 0.98), seed=st.integers(0, 100))
def test_a_perfect_prediction_gives_latents_and_noise_back(
    objective: Objective, time: float, seed: int
) -> None:
    x0, noise = randn(2, 3, 5, seed=seed), randn(2, 3, 5, seed=seed + 1000)
    times = torch.tensor([time, 0.5])
    x = objective.add_noise(x0, noise, times)
    found = objective.denoised(objective.target(x0, noise, times), x, times)
    scale = 1 / float(objective.levels(times)[0].min())  # dividing by alpha makes rounding larger
    torch.testing.assert_close(found.x0, x0, atol=1e-5 * scale, rtol=1e-4)
    torch.testing.assert_close(found.noise, noise, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("objective", ALL, ids=name_of)
def test_times_are_drawn_in_0_to_1_and_reproduce(objective: Objective) -> None:
    times = objective.draw_times(4000, torch.Generator().manual_seed(1))
    assert times.dtype == torch.float32
    assert float(times.min()) >= 0
    assert float(times.max()) <= 1
    assert torch.equal(times, objective.draw_times(4000, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("objective", ALL, ids=name_of)
def test_objectives_travel_as_json_values(objective: Objective) -> None:
    assert make_objective(objective.to_dict()) == objective


def test_what_is_no_objective_is_refused() -> None:
    with pytest.raises(UserError, match="unknown objective 'gan': known are ddpm, v, edm, flow"):
        make_objective({"kind": "gan"})
    with pytest.raises(UserError, match=r"the objective flow cannot be read: .*'shfit'"):
        make_objective({"kind": "flow", "shfit": 1})


# ------------------------------------------------------------------------------------------------------- DDPM


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_many_small_steps_are_the_closed_form(schedule: str) -> None:
    """Of x_t = a x_0 + noise of variance v, a step makes sqrt(1 - beta) a and (1 - beta) v + beta."""
    ddpm = DDPM(schedule=schedule)
    signal, variance = torch.ones(1, 1, 1, dtype=torch.float64), 0.0
    for step in range(NUM_STEPS):
        signal = ddpm.forward_step(signal, step, torch.zeros(()))
        beta = float(ddpm.forward_step(torch.zeros(()), step, torch.ones((), dtype=torch.float64))) ** 2
        variance = (1 - beta) * variance + beta
        if step % 111 == 0 or step == NUM_STEPS - 1:
            alpha, sigma = ddpm.levels(torch.tensor([(step + 1) / NUM_STEPS]))
            assert float(signal) == pytest.approx(float(alpha), abs=1e-6)
            assert math.sqrt(variance) == pytest.approx(float(sigma), abs=1e-6)


def test_marginals_of_samples_have_the_closed_forms_mean_and_deviation() -> None:
    ddpm, x = DDPM(), torch.full((20000,), 3.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        x = ddpm.forward_step(x, step, torch.randn(20000, generator=generator))
    alpha, sigma = ddpm.levels(torch.tensor(0.2))
    # Five standard errors of 20,000 draws.
    assert float(x.mean()) == pytest.approx(3 * float(alpha), abs=5 * float(sigma) / 141)
    assert float(x.std()) == pytest.approx(float(sigma), rel=5 / 200)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_reverse_is_that_of_diffusers_step_for_step(schedule: str) -> None:
    from diffusers import DDPMScheduler

    ddpm = DDPM(schedule=schedule)
    theirs = DDPMScheduler(
        NUM_STEPS,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule],
        clip_sample=False,
        variance_type="fixed_small",
    )
    torch.testing.assert_close(ddpm.betas.float(), theirs.betas, atol=1e-6, rtol=1e-4)
    for step in [999, 998, 500, 17, 2, 1, 0]:
        x, output = randn(2, 3, 4, seed=step), randn(2, 3, 4, seed=step + 5)
        noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(step))
        ours = ddpm.reverse_step(output, x, step, noise)
        expected = theirs.step(output, step, x, generator=torch.Generator().manual_seed(step)).prev_sample
        # Theirs computes 1 - alpha² in float32, which loses digits where nearly no signal is left.
        torch.testing.assert_close(ours, expected, atol=2e-3 if step > 990 else 2e-4, rtol=2e-3)


def test_levels_of_ours_are_those_of_diffusers_add_noise() -> None:
    from diffusers import DDPMScheduler

    x0, noise, steps = randn(4, 3, 5), randn(4, 3, 5, seed=1), torch.tensor([0, 10, 500, 999])
    expected = DDPMScheduler(NUM_STEPS).add_noise(x0, noise, steps)
    found = DDPM().add_noise(x0, noise, (steps + 1) / NUM_STEPS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------- noise alone at the last step


@pytest.mark.parametrize("schedule", ["linear", "cosine", "trigonometric"])
def test_the_last_step_is_noise_alone(schedule: str) -> None:
    objective = Velocity(schedule=schedule)
    assert float(objective.cumprod[-1]) == 0
    assert float(objective.levels(torch.ones(1))[0]) == pytest.approx(0, abs=1e-7)
    if schedule != "trigonometric":
        assert float(objective.cumprod[0]) == pytest.approx(float(alphas_cumprod(schedule)[0]))
    assert bool((objective.cumprod.diff() < 0).all())
    assert float(Velocity(schedule="linear", zero_terminal_snr=False).cumprod[-1]) > 0


def test_the_rescaled_table_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(NUM_STEPS, rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(Velocity(schedule="linear").cumprod.float(), theirs, atol=2e-6, rtol=1e-4)


def test_the_table_and_the_circle_of_stable_audio_agree() -> None:
    steps = torch.arange(1, NUM_STEPS + 1) / NUM_STEPS
    for objective in (Velocity(), EDM()):
        assert isinstance(objective, TableObjective)
        alpha, sigma = objective.levels(steps)
        torch.testing.assert_close(alpha.double() ** 2, objective.cumprod, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(NUM_STEPS))


# -------------------------------------------------------------------------------------------------------- EDM


@settings(max_examples=50, deadline=None)
@given(log_s=st.floats(-5, 4))
def test_edm_is_its_table_with_a_sigma_data_of_1(log_s: float) -> None:
    """Preconditioning and weight written as in table 1 give the same loss, whatever the network says."""
    s, edm = math.exp(log_s), EDM()
    y, n, network = (randn(1, 2, 3, seed=seed).double() for seed in (0, 1, 2))
    c_skip, c_out, c_in = 1 / (s**2 + 1), s / math.sqrt(1 + s**2), 1 / math.sqrt(s**2 + 1)
    denoised = c_skip * (y + s * n) + c_out * network
    expected = (s**2 + 1) / s**2 * (denoised - y).square().mean()

    time = edm.time_of(torch.tensor([s], dtype=torch.float64))
    x = edm.add_noise(y, n, time)
    torch.testing.assert_close(x, c_in * (y + s * n))
    torch.testing.assert_close(
        (network - edm.target(y, n, time)).square().mean(), expected, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(edm.denoised(network, x, time).x0, denoised)


def test_edm_draws_log_normal_levels_and_samples_at_the_papers() -> None:
    edm = EDM()
    times = edm.draw_times(20000, torch.Generator().manual_seed(0))
    logs = (math.pi / 2 * times.double()).tan().log()
    assert float(logs.mean()) == pytest.approx(-0.5, abs=0.05)
    assert float(logs.std()) == pytest.approx(1.2, rel=0.03)
    levels = edm.noise_levels(18)
    assert levels[[0, -1]].tolist() == pytest.approx([160, 0.004])
    roots = levels ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(17))


# ------------------------------------------------------------------------------------------------------- flow


def test_logit_normal_times_and_shift() -> None:
    times = Flow(time_mean=0.5, time_std=2.0).draw_times(20000, torch.Generator().manual_seed(0))
    logits = times.double().logit()
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.07)
    assert float(logits.std()) == pytest.approx(2.0, rel=0.03)
    shifted = Flow(shift=3.0).shifted(torch.tensor([0.0, 0.5, 1.0]))
    assert shifted.tolist() == pytest.approx([0, 0.75, 1])


def test_the_velocity_of_a_flow_is_the_derivative_of_its_path() -> None:
    flow = Flow()
    x0, noise = randn(1, 2, 3).double(), randn(1, 2, 3, seed=1).double()
    a, b = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    slope = (flow.add_noise(x0, noise, b) - flow.add_noise(x0, noise, a)) / 0.4
    torch.testing.assert_close(flow.target(x0, noise, a), slope)
