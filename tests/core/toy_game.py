"""A small game of two networks that grow, with a penalty on gradients, in float64.

What it has of adversarial training: a phase that runs in one of three steps, weights without a gradient in
the first steps, weights that are never trained, a loss made of a gradient, and verdicts in a dataclass.
"""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tokkata.core.job import Job, Loss, Phase
from tokkata.core.optimizer import adamw

GROWN_AT = 5
"""From this step on the networks have their second layer."""


class Growing(nn.Module):
    """Numbers to numbers, after a layer that is not trained."""

    def __init__(self, num_in, num_out, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.fixed = nn.Linear(num_in, 8).requires_grad_(False)
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.output, self.later_output = nn.Linear(8, num_out), nn.Linear(8, num_out)
        self.double()

    def forward(self, x, grown):
        x = torch.tanh(self.first(torch.tanh(self.fixed(x))))
        return self.later_output(torch.tanh(self.second(x))) if grown else self.output(x)


@dataclass
class Verdict:
    scores: list[torch.Tensor]


class Critic(Growing):
    def forward(self, x, grown):
        return Verdict([super().forward(x, grown)[:, 0]])


def bare(module):
    return module.module if isinstance(module, DistributedDataParallel) else module


@contextlib.contextmanager
def frozen(module):
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    yield
    for parameter in trained:
        parameter.requires_grad_(True)


def critic_loss(modules, batch):
    """WGAN-GP (arXiv:1704.00028, alg. 1), with one forward pass of the critic."""
    grown = bool(batch["grown"][0])
    with torch.no_grad():
        made = bare(modules["maker"])(batch["noise"], grown)
    mixture = torch.lerp(made, batch["real"], batch["share"]).requires_grad_()
    scores = modules["critic"](torch.cat([batch["real"], made, mixture]), grown).scores[0]
    real, fake, mixed = scores.chunk(3)
    (gradient,) = torch.autograd.grad(mixed.sum(), mixture, create_graph=True)
    penalty = (gradient.norm(dim=1) - 1).square().mean()
    weight = torch.tensor(float(len(real)))
    return Loss(fake.mean() - real.mean() + 10 * penalty, weight, {"penalty": penalty})


def maker_loss(modules, batch):
    grown = bool(batch["grown"][0])
    critic = bare(modules["critic"])
    made = modules["maker"](batch["noise"], grown)
    with frozen(critic):
        scores = critic(made, grown).scores[0]
    return Loss(-scores.mean(), torch.tensor(float(len(made))))


def game_job(config, toy, at_step=lambda step: None):
    def batch(step, rows):
        at_step(step)
        rng = np.random.default_rng([3, step])
        whole = {
            "real": rng.standard_normal((config.batch_size, 6)) + 1,
            "noise": rng.standard_normal((config.batch_size, 4)),
            "share": rng.uniform(size=(config.batch_size, 1)),
            "grown": np.full((config.batch_size, 1), step >= GROWN_AT),
        }
        return {name: torch.tensor(values[rows.start : rows.stop]) for name, values in whole.items()}

    maker, critic = Growing(4, 6, 0), Critic(6, 1, 1)
    return Job(
        modules={"maker": maker, "critic": critic},
        phases=[
            Phase("maker", "maker", adamw(maker, config), maker_loss, every=3),
            Phase("critic", "critic", adamw(critic, config), critic_loss),
        ],
        averaged="maker",
        batch=batch,
        validate=lambda module: {},
        save=lambda module, scores: None,
        unit="clips",
        unused_parameters=True,
    )
