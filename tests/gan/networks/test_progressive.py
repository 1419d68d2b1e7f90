"""Progressively growing networks: sizes, fades, what is told, and that a pair of them learns."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tokkata.core.conditions import Condition, Conditions, GivenConditions, hide_all
from tokkata.core.errors import UserError
from tokkata.core.schema_gan import (
    ConditionedBy,
    DarkGanModel,
    DrumGanModel,
    GanSynthModel,
    ProgressiveSection,
)
from tokkata.gan.networks.family import Shape
from tokkata.gan.networks.progressive import ProgressiveDiscriminator, ProgressiveGenerator

SHAPE = Shape(2, 8, 16)
PITCH = Condition("pitch", "label", values=(60, 62, 64))
DEPTH = Condition("depth", "number", width=2, maximum=2.0)
CONDITIONS = Conditions((PITCH, DEPTH))
TOLD = CONDITIONS.encode({"pitch": [60, 64, None, 62], "depth": [0.5, 2.0, 1.0, None]})
NOTHING = torch.zeros(4, 0)
LEVELS = [0.0, 0.3, 1.0, 1.75, 2.0]


def section(channels: tuple[int, ...] = (6, 5, 4)) -> GanSynthModel:
    return GanSynthModel(kind="gansynth", channels=list(channels), noise_dim=7)


def generator(conditions: Conditions = CONDITIONS) -> ProgressiveGenerator:
    torch.manual_seed(0)
    return ProgressiveGenerator(section(), SHAPE, conditions)


def discriminator(conditions: Conditions = CONDITIONS) -> ProgressiveDiscriminator:
    torch.manual_seed(1)
    return ProgressiveDiscriminator(section(), SHAPE, conditions)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("level", LEVELS)
def test_images_have_the_size_of_their_level_and_a_verdict(level: float) -> None:
    g, d = generator(), discriminator()
    image = g(random(4, *g.noise_shape(16)), TOLD, level)
    size = 2 ** math.ceil(level)
    assert image.shape == (4, 2, 2 * size, 4 * size)
    assert image.abs().max() <= 1
    assert d.at_level(random(4, 2, 8, 16), level).shape == image.shape
    verdict = d(image, TOLD, NOTHING, level)
    assert [s.shape for s in verdict.scores] == [(4,)]
    assert {name: head.shape for name, head in verdict.heads.items()} == {"pitch": (4, 3), "depth": (4,)}


@pytest.mark.parametrize("below", [0, 1])
def test_growing_is_continuous(below: int) -> None:
    g, d = generator(), discriminator()
    noise, real = random(4, 7), random(4, 2, 8, 16)
    small, large = below + 1e-6, below + 1 - 1e-6
    with torch.no_grad():
        before, after = g(noise, TOLD, float(below)), g(noise, TOLD, float(below + 1))
        enlarged = before.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(g(noise, TOLD, small), enlarged, atol=1e-5, rtol=0)
        torch.testing.assert_close(g(noise, TOLD, large), after, atol=1e-5, rtol=0)
        for near, level in ((small, below), (large, below + 1)):
            one, other = (d(d.at_level(real, x), TOLD, NOTHING, x) for x in (near, float(level)))
            torch.testing.assert_close(one.scores[0], other.scores[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.heads["pitch"], other.heads["pitch"], atol=1e-4, rtol=1e-4)


def test_real_images_fade_as_made_ones_do() -> None:
    d = discriminator()
    real = random(4, 2, 8, 16)
    half = real.view(4, 2, 4, 2, 8, 2).mean((3, 5))
    enlarged = half.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(d.at_level(real, 2.0), real)
    torch.testing.assert_close(d.at_level(real, 1.0), half)
    torch.testing.assert_close(d.at_level(real, 1.25), 0.25 * real + 0.75 * enlarged)
    g, noise = generator(), random(4, 7)
    with torch.no_grad():
        levels = [g(noise, TOLD, level) for level in (1.0, 1.25, 2.0)]
    torch.testing.assert_close(
        levels[1], 0.25 * levels[2] + 0.75 * levels[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


def used(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("level", "blocks", "images"),
    [(0.0, {0}, {0}), (0.5, {0, 1}, {0, 1}), (1.0, {0, 1}, {1}), (2.0, {0, 1, 2}, {2})],
)
def test_only_the_layers_of_a_level_are_trained(level: float, blocks: set[int], images: set[int]) -> None:
    g, d = generator(), discriminator()
    verdict = d(g(random(4, 7), TOLD, level), TOLD, NOTHING, level)
    (verdict.scores[0].sum() + verdict.heads["pitch"].square().sum()).backward()
    for network, ends in ((g, "to_image"), (d, "from_image")):
        names = used(network)
        assert {int(n.split(".")[1]) for n in names if n.startswith("levels.")} == blocks
        assert {int(n.split(".")[1]) for n in names if n.startswith(ends)} == images
        others = {n for n, _ in network.named_parameters() if not n.startswith(("levels.", ends))}
        assert others <= names


def test_a_clip_follows_what_it_alone_is_told() -> None:
    g = generator()
    noise = random(1, 7).expand(4, -1)
    with torch.no_grad():
        image = g(noise, TOLD, 2.0)
        nothing = g(noise, {}, 2.0)
        torch.testing.assert_close(g(noise, hide_all(TOLD), 2.0), nothing)
        swapped = CONDITIONS.encode({"pitch": [64, 60, None, 62], "depth": [2.0, 0.5, 1.0, None]})
        torch.testing.assert_close(g(noise, swapped, 2.0), image[[1, 0, 2, 3]])
    for i in range(3):
        assert (image[i] - image[i + 1]).abs().max() > 1e-3
    assert (nothing - nothing[0]).abs().max() < 1e-5


def test_a_discriminator_compares_clips_within_groups() -> None:
    d = discriminator()
    image = random(12, 2, 8, 16)
    with torch.no_grad():
        together = d(image, {}, NOTHING, 2.0)
        for first in range(0, 12, 4):
            group = slice(first, first + 4)
            torch.testing.assert_close(together.scores[0][group], d(image[group], {}, NOTHING, 2.0).scores[0])
        alike = d(image[:1].expand(4, -1, -1, -1), {}, NOTHING, 2.0)
    assert (alike.scores[0][0] - together.scores[0][0]).abs() > 1e-4


def test_networks_without_conditions_have_no_heads() -> None:
    g, d = generator(Conditions()), discriminator(Conditions())
    assert d(g(random(4, 7), {}, 2.0), {}, NOTHING, 2.0).heads == {}


def test_the_published_shape_of_gansynth() -> None:
    published = GanSynthModel(kind="gansynth")
    with torch.device("meta"):
        pitches = Conditions((Condition("pitch", "label", values=tuple(range(24, 85))),))
        g = ProgressiveGenerator(published, Shape(2, 128, 1024), pitches)
        d = ProgressiveDiscriminator(published, Shape(2, 128, 1024), pitches)
    assert g.num_levels == d.num_levels == 7
    assert g.lowest == (2, 16)
    assert g.start.weight.shape == (256 * 2 * 16, 256 + 61)


@pytest.mark.parametrize("shape", [Shape(2, 8, 18), Shape(2, 6, 16)])
@pytest.mark.parametrize(
    "made",
    [
        section(),
        DrumGanModel(kind="drumgan", channels=[4, 4, 4]),
        DarkGanModel(kind="darkgan", channels=[4, 4, 4]),
    ],
)
def test_clips_that_cannot_be_halved_often_enough_are_refused(shape: Shape, made: ProgressiveSection) -> None:
    for network in (ProgressiveGenerator, ProgressiveDiscriminator):
        with pytest.raises(
            UserError, match=f"{shape.num_bins} frequencies and {shape.num_frames} frames.*of 4"
        ):
            network(made, shape, CONDITIONS)


# Images of two kinds: a bright half, above or below, of a brightness that differs from clip to clip.
def toy_images(kinds: Tensor, brightness: Tensor) -> Tensor:
    image = torch.full((len(kinds), 1, 8, 8), -0.8)
    image[kinds == 0, :, :4] = 0.0
    image[kinds == 1, :, 4:] = 0.0
    return torch.where(image == 0, brightness.view(-1, 1, 1, 1), image)


def critic_loss(
    d: ProgressiveDiscriminator,
    told: GivenConditions,
    real: Tensor,
    made: Tensor,
    share: Tensor,
    level: float,
) -> Tensor:
    """Of arXiv:1704.00028, algorithm 1, with the drift of arXiv:1710.10196, app. A.1."""
    none = torch.zeros(len(real), 0)
    mixture = torch.lerp(made, real, share.view(-1, 1, 1, 1)).requires_grad_()
    of_real, of_made = (d(x, told, none, level).scores[0] for x in (real, made))
    of_mixture = d(mixture, told, none, level).scores[0]
    (slope,) = torch.autograd.grad(of_mixture.sum(), mixture, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    loss: Tensor = of_made.mean() - of_real.mean() + 10 * penalty + 1e-3 * of_real.square().mean()
    return loss


def recognised(heads: Mapping[str, Tensor], kinds: Tensor) -> Tensor:
    return nn.functional.cross_entropy(heads["kind"], kinds) if heads else torch.tensor(0.0)


@pytest.mark.parametrize("by", ["heads", "projection"])
def test_a_pair_learns_to_make_images_of_the_kind_that_is_asked(by: ConditionedBy) -> None:
    torch.manual_seed(0)
    conditions = Conditions((Condition("kind", "label", values=(0, 1)),))
    made_of = GanSynthModel(kind="gansynth", channels=[8, 8], noise_dim=4, conditioned_by=by)
    g = ProgressiveGenerator(made_of, Shape(1, 8, 8), conditions)
    d = ProgressiveDiscriminator(made_of, Shape(1, 8, 8), conditions)
    by_g, by_d = (torch.optim.Adam(n.parameters(), 1e-2, betas=(0.0, 0.99)) for n in (g, d))
    none = torch.zeros(16, 0)
    for step in range(100):
        level = min(1.0, max(0.0, step / 40 - 0.5))
        kinds = torch.randint(2, (16,))
        told = conditions.encode({"kind": kinds.tolist()})
        real = d.at_level(toy_images(kinds, 0.2 + 0.4 * torch.rand(16)), level)
        noise = torch.randn(16, 4)
        made = g(noise, told, level)
        loss = critic_loss(d, told, real, made.detach(), torch.rand(16), level)
        loss = loss + recognised(d(real, told, none, level).heads, kinds)
        by_d.zero_grad()
        loss.backward()
        by_d.step()
        verdict = d(made, told, none, level)
        by_g.zero_grad()
        loss = recognised(verdict.heads, kinds) - verdict.scores[0].mean()
        loss.backward()
        by_g.step()
    kinds = torch.arange(64) % 2
    with torch.no_grad():
        images = g(torch.randn(64, 4), conditions.encode({"kind": kinds.tolist()}), 1.0)
    upper, lower = images[:, 0, :4].mean((1, 2)), images[:, 0, 4:].mean((1, 2))
    bright, dark = torch.where(kinds == 0, upper, lower), torch.where(kinds == 0, lower, upper)
    assert (bright > dark).float().mean() > 0.95
    assert bright.mean().item() == pytest.approx(0.4, abs=0.2)
    assert dark.mean().item() == pytest.approx(-0.8, abs=0.2)
