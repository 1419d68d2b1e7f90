"""The averaged weights: how they decay, when they are taken in, and that validation leaves no trace."""

import pytest
import torch
from torch import nn

from tokkata.core.average import Average
from tokkata.tests.core.toy_training import BlockNet, Outcome, settings, train_toy


def layer():
    module = nn.BatchNorm1d(1)
    with torch.no_grad():
        module.weight.fill_(2.0)
    return module


@pytest.mark.parametrize(
    ("step", "every", "decay"),
    [(1, 1, 2 / 11), (8, 1, 9 / 18), (1000, 1, 0.9), (10, 10, 2 / 11), (80, 10, 9 / 18), (11, 10, 1.0)],
)
def test_decay(step, every, decay):
    module = layer()
    average = Average(module, 0.9, every)
    with torch.no_grad():
        module.weight.fill_(5.0)
    average.update(step)
    assert average.tensors["weight"].item() == pytest.approx(decay * 2.0 + (1 - decay) * 5.0)
    assert average.tensors["bias"].item() == 0.0
    assert module.weight.item() == 5.0


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_the_power_function_weighs_steps_as_it_says(sigma_rel):
    """The weight of step t in the average at step T is about (t / T)^gamma: eq. 6, with that width."""
    module, num_steps = layer(), 400
    average = Average(module, 0.0, sigma_rel=sigma_rel)
    weights = []
    for probe in range(1, num_steps + 1):  # the decay of each step, from an average of 1 over weights of 0
        with torch.no_grad():
            average.tensors["weight"].fill_(1.0)
            module.weight.fill_(0.0)
        average.update(probe)
        weights.append(average.tensors["weight"].item())
    decays = torch.tensor(weights, dtype=torch.float64)
    share = (1 - decays) * torch.cat([decays.flip(0).cumprod(0).flip(0)[1:], torch.ones(1)])
    steps = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    mean = (share * steps).sum()
    assert float(share.sum()) == pytest.approx(1, abs=1e-6)  # the initial weights are forgotten
    assert float((share * (steps - mean) ** 2).sum().sqrt()) == pytest.approx(sigma_rel, rel=0.02)


def test_the_module_has_its_own_weights_back_and_always_its_own_buffers():
    module = layer()
    average = Average(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(0.1)
        module.running_mean.fill_(7.0)
    with average.in_place() as averaged:
        assert averaged is module
        assert (module.weight.item(), module.running_mean.item(), module.training) == (2.0, 7.0, False)
        assert not torch.is_grad_enabled()
    assert (module.weight.item(), module.training) == (torch.tensor(0.1).item(), True)
    assert average.tensors["weight"].item() == 2.0


def test_only_trained_parameters_take_memory():
    module = layer()
    module.bias.requires_grad_(False)
    assert list(Average(module, 0.9).tensors) == ["weight"]
    assert Average(module, 0.0).tensors == {}


@pytest.mark.usefixtures("on_the_cpu")
def test_every_third_step_is_taken_in(tmp_path):
    """What is saved is the average over the weights that a run without averaging has at those steps."""
    weights = {}
    for steps in (3, 6, 7):
        config = settings(steps=steps, schedule="constant", ema_decay=0.0)
        train_toy(tmp_path / str(steps), config)
        weights[steps] = Outcome(tmp_path / str(steps)).averaged["output.weight"]
    train_toy(tmp_path / "ema", settings(steps=7, schedule="constant", ema_every=3))
    expected = BlockNet().output.weight.detach()
    for number, step in ((1, 3), (2, 6)):
        expected = expected.lerp(weights[step], 1 - (1 + number) / (10 + number))
    torch.testing.assert_close(Outcome(tmp_path / "ema").averaged["output.weight"], expected)
