"""Adversarial terms: those of the package, gradients that go only where they should, crops without sound.

Shapes: B batch, N samples.
"""

import pytest
import torch
from audiotools import AudioSignal
from dac.nn.loss import GANLoss
from torch import nn

from tokkata.core.schema import Train
from tokkata.core.schema_trained_codecs import Adversarial
from tokkata.tokenize.training.adversarial import DECODED, DISCRIMINATOR, Adversary, discriminator_loss

RATE = 16000
SMALL = {"periods": [2], "fft_sizes": [64], "bands": [(0.0, 0.5), (0.5, 1.0)]}


@pytest.fixture
def adversary():
    torch.manual_seed(0)
    return Adversary(Adversarial(**SMALL, lr=2e-4, start_step=3), RATE, Train(steps=1, lr=1e-3))


def modules_of(adversary):
    return {DISCRIMINATOR: adversary.module}


def sounds(seed, num_rows=2):
    """[B, 1, N]"""
    return 0.1 * torch.randn(num_rows, 1, 640, generator=torch.Generator().manual_seed(seed))


def test_losses_are_those_of_the_package(adversary):
    decoded, audio = sounds(0), sounds(1)
    package = GANLoss(adversary.module)
    fake, real = AudioSignal(decoded, RATE), AudioSignal(audio, RATE)
    loss = discriminator_loss(modules_of(adversary), {"audio": audio, DECODED: decoded})
    torch.testing.assert_close(loss.mean, package.discriminator_loss(fake, real))
    terms = adversary.generator_terms(modules_of(adversary), decoded, audio)
    torch.testing.assert_close([terms.adversarial, terms.features], list(package.generator_loss(fake, real)))


def test_discriminators_in_bf16_leave_the_codec_in_float32():
    """Their terms are nearly those of float32, and what they hand back is float32."""
    torch.manual_seed(0)
    config = Adversarial(**SMALL, precision="bf16")
    half = Adversary(config, RATE, Train(steps=1, lr=1e-3))
    torch.manual_seed(0)
    whole = Adversary(Adversarial(**SMALL), RATE, Train(steps=1, lr=1e-3))
    batch = {"audio": sounds(1), DECODED: sounds(0)}
    losses, gradients = [], []
    for one in (half, whole):
        decoded = sounds(0).requires_grad_()
        terms = one.generator_terms(modules_of(one), decoded, sounds(1))
        (terms.adversarial + terms.features).backward()
        gradients.append(decoded.grad)
        phase_loss = one.phase.loss(modules_of(one), batch)
        losses.append(torch.stack([terms.adversarial, terms.features, phase_loss.mean]))
    assert losses[0].dtype == gradients[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=0.02)
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.98
    assert not torch.equal(losses[0], losses[1]), "bf16 was not used"


def test_the_generator_alone_learns_in_its_phase(adversary):
    decoded = sounds(0).requires_grad_()
    terms = adversary.generator_terms(modules_of(adversary), decoded, sounds(1))
    (terms.adversarial + terms.features).backward()
    assert decoded.grad.abs().amin() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.module.parameters())


def test_the_discriminators_alone_learn_in_theirs(adversary):
    decoded = sounds(0).requires_grad_()
    discriminator_loss(modules_of(adversary), {"audio": sounds(1), DECODED: decoded.detach()}).mean.backward()
    assert decoded.grad is None
    assert all(p.grad is not None for p in adversary.module.parameters())


def test_the_discriminators_learn_to_tell():
    torch.manual_seed(0)
    adversary = Adversary(Adversarial(**{**SMALL, "periods": []}), RATE, Train(steps=1, lr=1e-3))
    batch = {"audio": sounds(1, 4), DECODED: sounds(1, 4).clamp(-0.05, 0.05)}
    losses = []
    for _ in range(20):
        loss = discriminator_loss(modules_of(adversary), batch)
        losses.append(float(loss.mean))
        loss.mean.backward()
        adversary.phase.optimizer.step()
        adversary.phase.optimizer.zero_grad()
    assert losses[-1] < min(0.45, 0.5 * losses[0])  # 0.5 is that of not knowing
    assert float(loss.metrics["told"]) == 1.0


@pytest.mark.parametrize("level", [0.0, 1e-5])
def test_silence_has_no_say(adversary, level):
    """Beside a silent row, the other's terms are halved; its own gradient would be that of 1 / peak."""
    audio, decoded = sounds(1), 1e-4 * sounds(0)
    decoded[0], audio[1] = sounds(0)[0], level * audio[1]
    decoded.requires_grad_()
    terms = adversary.generator_terms(modules_of(adversary), decoded, audio)
    terms.features.backward()
    assert decoded.grad[0].abs().amin() > 0
    assert torch.count_nonzero(decoded.grad[1]) == 0
    alone = adversary.generator_terms(modules_of(adversary), decoded[:1], audio[:1])
    torch.testing.assert_close(terms.features, alone.features / 2)


@pytest.mark.parametrize("sound", [torch.zeros(2, 1, 640), 1e9 * sounds(0), sounds(0).sign()])
def test_silent_and_clipping_crops_are_finite(adversary, sound):
    decoded = sounds(1).requires_grad_()
    terms = adversary.generator_terms(modules_of(adversary), decoded, sound)
    loss = discriminator_loss(modules_of(adversary), {"audio": sound, DECODED: decoded.detach()})
    (terms.adversarial + terms.features).backward()
    loss.mean.backward()
    assert torch.isfinite(decoded.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in adversary.module.parameters())


def test_channels_are_judged_alike(adversary):
    stereo, other = sounds(0, 4).reshape(2, 2, 640), sounds(1, 4).reshape(2, 2, 640)
    both = adversary.generator_terms(modules_of(adversary), stereo, other)
    mono = adversary.generator_terms(
        modules_of(adversary), stereo.reshape(4, 1, 640), other.reshape(4, 1, 640)
    )
    assert torch.equal(both.adversarial, mono.adversarial)


def test_its_optimizer_is_its_own(adversary):
    phase = adversary.phase
    assert (phase.first_step, phase.clip_grad_norm) == (3, 10.0)
    assert {group["betas"] for group in phase.optimizer.param_groups} == {(0.8, 0.99)}
    assert [group["lr_scale"] for group in phase.optimizer.param_groups] == pytest.approx([0.2, 0.2])
    assert not adversary.is_active({"step": torch.tensor(2)})
    assert adversary.is_active({"step": torch.tensor(3)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"periods": [], "fft_sizes": []}, "periods and fft_sizes are both empty"),
        ({"fft_sizes": [16]}, r"the band \[0.0, 0.1\] has no frequencies in a window of 16 samples"),
        ({"bands": [(0.5, 0.5)]}, r"the band \[0.5, 0.5\] has no frequencies"),
    ],
)
def test_discriminators_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Adversarial(**settings)


def test_either_kind_of_discriminator_may_be_left_out():
    for left_out in ("periods", "fft_sizes"):
        adversary = Adversary(Adversarial(**{**SMALL, left_out: []}), RATE, Train(steps=1))
        assert isinstance(adversary.module, nn.Module)
        assert len(adversary.module.discriminators) == 1
