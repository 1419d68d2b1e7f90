"""Adversarial training of any autoencoder: discriminators, their phase, and what they tell the generator.

The discriminators are the package's of the Descript Audio Codec (arXiv:2306.06546, sec. 3.3): multi-period
ones after HiFi-GAN (arXiv:2010.05646) and ones of complex spectrograms in bands. Losses are least squares
(arXiv:1611.04076, eq. 9 with a = 0, b = c = 1) and the distance of features (arXiv:1910.06711, eq. 4 without
its normalisation), summed as the package does.

In a step the generator's phase comes first. Its output is then handed, without gradient, to the
discriminators' phase (`core.job.Loss.made`): one forward pass of the generator serves both, whatever the
number of micro-batches and processes.

Shapes: B batch, C channels, N samples.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from dac.model.discriminator import Discriminator
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from ...core.job import Batch, Loss, Phase, num_rows
from ...core.optimizer import adamw
from ...core.other_network import bare, frozen
from ...core.schema import Train
from ...core.schema_trained_codecs import Adversarial
from ..families.codec_dac import with_parametrized_weight_norm

DISCRIMINATOR = "discriminator"
"""Its name among a job's modules and phases."""

DECODED = "decoded"
"""Under this name the generator's `Loss.made` hands its audio `[B, C, N]` to the discriminators."""

# Discriminators divide by the peak. Of what is quieter than this there is nothing to tell, and the gradient
# would be that of an amplification without bounds.
_QUIETEST = 1e-3

Features = list[list[Tensor]]  # of each discriminator, layer by layer; the last is its verdict


@dataclass
class GeneratorTerms:
    """What the discriminators make of generated audio; scalars, differentiable."""

    adversarial: Tensor
    features: Tensor


class Adversary:
    """Discriminators to train beside an autoencoder.

    A job takes `modules[DISCRIMINATOR] = adversary.module` and, after the generator's phase,
    `adversary.phase`; while `is_active`, the generator's loss adds `generator_terms` with its weights.
    """

    def __init__(self, config: Adversarial, sample_rate: int, train: Train) -> None:
        self.config = config
        self._in_bf16 = config.precision == "bf16"
        self.module: nn.Module = with_parametrized_weight_norm(
            lambda: Discriminator(
                periods=list(config.periods),
                fft_sizes=list(config.fft_sizes),
                sample_rate=sample_rate,
                bands=[list(band) for band in config.bands],
            )
        )
        optimizer = adamw(self.module, train, config.betas)
        for group in optimizer.param_groups:
            group["lr_scale"] = config.lr / train.lr
        self.phase = Phase(
            DISCRIMINATOR,
            DISCRIMINATOR,
            optimizer,
            functools.partial(discriminator_loss, in_bf16=self._in_bf16),
            first_step=config.start_step,
            clip_grad_norm=config.clip_grad_norm,
        )

    def generator_terms(
        self, modules: Mapping[str, nn.Module], decoded: Tensor, audio: Tensor
    ) -> GeneratorTerms:
        """The terms for `decoded` `[B, C, N]`, which has a gradient, beside the real `audio` `[B, C, N]`.

        The discriminators get no gradient. Crops that are silent add nothing.
        """
        discriminator = bare(modules[DISCRIMINATOR])
        audio, decoded = _as_mono(audio), _as_mono(decoded)
        decoded = torch.where(_is_audible(audio), decoded, audio)
        with frozen(discriminator):
            with torch.no_grad():
                real = _verdicts(discriminator, audio, self._in_bf16)
            fake = _verdicts(discriminator, decoded, self._in_bf16)
        adversarial = torch.stack([(1 - maps[-1]).square().mean() for maps in fake]).sum()
        pairs = [pair for f, r in zip(fake, real, strict=True) for pair in zip(f[:-1], r[:-1], strict=True)]
        return GeneratorTerms(adversarial, torch.stack([l1_loss(f, r) for f, r in pairs]).sum())

    def is_active(self, batch: Batch) -> bool:
        """Whether the adversarial phase has begun; `batch["step"]` is the step's number, a scalar."""
        return int(batch["step"]) >= self.config.start_step


def discriminator_loss(modules: Mapping[str, nn.Module], batch: Batch, *, in_bf16: bool = False) -> Loss:
    """Least squares: `batch["audio"]` `[B, C, N]` is to be told as 1, `batch[DECODED]` as 0."""
    audio, decoded = _as_mono(batch["audio"]), _as_mono(batch[DECODED])
    audio = audio[..., : decoded.shape[-1]]
    decoded = torch.where(_is_audible(audio), decoded, audio)
    # One forward pass: DDP counts on one for each backward pass.
    made = _verdicts(modules[DISCRIMINATOR], torch.cat([audio, decoded]), in_bf16)
    verdicts = [maps[-1] for maps in made]
    halves = [verdict.chunk(2) for verdict in verdicts]
    of_real = torch.stack([(1 - real).square().mean() for real, _ in halves]).sum()
    of_fake = torch.stack([fake.square().mean() for _, fake in halves]).sum()
    told = torch.stack(
        [(real.mean((1, 2, 3)) > fake.mean((1, 2, 3))).float().mean() for real, fake in halves]
    )
    weight = num_rows(batch["audio"])
    return Loss(of_real + of_fake, weight, {"real": of_real, "fake": of_fake, "told": told.mean()})


def _as_mono(audio: Tensor) -> Tensor:
    """`[B, C, N]` → `[B · C, 1, N]` in fp32: the discriminators look at channels one by one."""
    return audio.float().flatten(0, 1)[:, None]


def _verdicts(discriminator: nn.Module, audio: Tensor, in_bf16: bool) -> Features:
    """What `discriminator` makes of `[B · C, 1, N]`, in fp32."""
    if not in_bf16:
        return cast(Features, discriminator(audio))
    with torch.autocast(audio.device.type, torch.bfloat16):
        features: Features = discriminator(audio)
    return [[layer.float() for layer in layers] for layers in features]


def _is_audible(audio: Tensor) -> Tensor:
    return audio.abs().amax(-1, keepdim=True) > _QUIETEST
