"""WaveGAN and SpecGAN: the papers' sizes, what decides their output, and phase shuffle.

Shapes: B batch, W channels, T places of a layer.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tokkata.core.conditions import Condition, Conditions, GivenConditions
from tokkata.core.errors import UserError
from tokkata.core.schema_gan import SpecGanModel, WaveGanModel
from tokkata.gan.networks.family import Shape
from tokkata.gan.networks.specgan import SpecGanDiscriminator, SpecGanGenerator
from tokkata.gan.networks.strided import StridedDiscriminator, StridedGenerator, StridedLayers
from tokkata.gan.networks.wavegan import PostFilter, WaveGanDiscriminator, WaveGanGenerator, phase_shuffle

CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 61, 62)),
        Condition("warmth", "number", width=2, maximum=100.0),
    )
)
WAVE = WaveGanModel(kind="wavegan", channels=2, num_layers=3, kernel=9, noise_dim=5, phase_shuffle=1)
SPEC = SpecGanModel(kind="specgan", channels=2, num_layers=3, noise_dim=5)
WAVE_SHAPE, SPEC_SHAPE = Shape(1, None, 256), Shape(2, 16, 32)
KINDS = ["wavegan", "specgan"]


def networks(kind: str, conditions: Conditions = CONDITIONS) -> tuple[StridedGenerator, StridedDiscriminator]:
    torch.manual_seed(0)
    if kind == "wavegan":
        return (
            WaveGanGenerator(WAVE, WAVE_SHAPE, conditions),
            WaveGanDiscriminator(WAVE, WAVE_SHAPE, conditions),
        )
    return SpecGanGenerator(SPEC, SPEC_SHAPE, conditions), SpecGanDiscriminator(SPEC, SPEC_SHAPE, conditions)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def noise_of(generator: StridedGenerator, batch_size: int, seed: int = 0) -> Tensor:
    return 2 * uniform(batch_size, *generator.noise_shape(7), seed=seed) - 1


def told(*pitches: int | None, warmth: float = 40.0) -> GivenConditions:
    return CONDITIONS.encode({"pitch": list(pitches), "warmth": [warmth] * len(pitches)})


def num_weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


# ------------------------------------------------------------------------------------- the papers' networks

NUM_GENERATOR_WEIGHTS = (
    (100 * 16384 + 16384)
    + (25 * 1024 * 512 + 512)
    + (25 * 512 * 256 + 256)
    + (25 * 256 * 128 + 128)
    + (25 * 128 * 64 + 64)
    + (25 * 64 * 1 + 1)
)
NUM_DISCRIMINATOR_WEIGHTS = (
    (25 * 1 * 64 + 64)
    + (25 * 64 * 128 + 128)
    + (25 * 128 * 256 + 256)
    + (25 * 256 * 512 + 512)
    + (25 * 512 * 1024 + 1024)
    + (16384 + 1)
)


@pytest.mark.parametrize("kind", KINDS)
def test_default_networks_have_the_sizes_of_the_papers_tables(kind):
    """arXiv:1802.04208, app. D: the layers of tables 3 to 6, of which both pairs have as many weights."""
    with torch.device("meta"):
        if kind == "wavegan":
            section, shape = WaveGanModel(kind="wavegan"), Shape(1, None, 16384)
            generator: StridedGenerator = WaveGanGenerator(section, shape, Conditions())
            discriminator: StridedDiscriminator = WaveGanDiscriminator(section, shape, Conditions())
        else:
            spec_section, shape = SpecGanModel(kind="specgan"), Shape(1, 128, 128)
            generator = SpecGanGenerator(spec_section, shape, Conditions())
            discriminator = SpecGanDiscriminator(spec_section, shape, Conditions())
        sizes = []
        for layer in discriminator.layers:
            layer.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
        image = generator(torch.rand(2, 100), {}, 0.0)
        verdict = discriminator(image, {}, torch.rand(2, discriminator.num_draws), 0.0)
    assert num_weights(generator) == NUM_GENERATOR_WEIGHTS == 19_065_345
    assert num_weights(discriminator) == NUM_DISCRIMINATOR_WEIGHTS
    assert image.shape == (2, *shape.of())
    assert verdict.scores[0].shape == (2,)
    assert verdict.heads == {}
    if kind == "wavegan":
        assert sizes == [(64, 4096), (128, 1024), (256, 256), (512, 64), (1024, 16)]
        assert discriminator.num_draws == 4
    else:
        assert sizes == [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)]


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 12),
    stride=st.integers(2, 5),
    num_layers=st.integers(1, 3),
    lowest=st.integers(1, 3),
    num_sides=st.integers(1, 2),
)
def test_layers_change_sides_by_the_stride_whatever_the_kernel(kernel, stride, num_layers, lowest, num_sides):
    layers = StridedLayers(1, num_layers, kernel, stride, num_sides)
    side = lowest * layers.factor
    shape = Shape(1, None, side) if num_sides == 1 else Shape(1, side, side)
    image = StridedGenerator(layers, 2, shape, Conditions())(torch.rand(1, 2), {}, 0.0)
    assert image.shape == (1, *shape.of())
    discriminator = StridedDiscriminator(layers, shape, Conditions(), "heads")
    assert discriminator(image, {}, torch.rand(1, 0), 0.0).scores[0].shape == (1,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: WaveGanGenerator(WaveGanModel(kind="wavegan"), Shape(1, None, 16000), CONDITIONS),
            "model.num_layers 5 with stride 4 makes clips whose samples are multiples of 1024, not 16000:"
            " change train.crop_s, the representation or num_layers",
        ),
        (
            lambda: SpecGanDiscriminator(SpecGanModel(kind="specgan"), Shape(1, 128, 125), CONDITIONS),
            "whose frequencies and frames are multiples of 32, not 128 × 125",
        ),
        (
            lambda: WaveGanGenerator(WAVE, SPEC_SHAPE, CONDITIONS),
            "whose samples are multiples of 64, not 16 × 32",
        ),
        (
            lambda: WaveGanDiscriminator(
                WAVE.model_copy(update={"phase_shuffle": 4}), Shape(1, None, 64), CONDITIONS
            ),
            "model.phase_shuffle 4 is as long as what it shifts: of clips of 64 samples the last layer but"
            " one has 4 values; lower it",
        ),
    ],
)
def test_clips_that_do_not_fit_are_refused(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


# ------------------------------------------------------------------------------------------ what decides what


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_its_own_whatever_stands_beside_it(kind):
    generator, discriminator = networks(kind)
    noise, draws = noise_of(generator, 3), uniform(3, discriminator.num_draws)
    images = generator(noise, told(60, 61, 62), 0.0)
    verdict = discriminator(images, told(60, 61, 62), draws, 0.0)
    alone = generator(noise[1:2], told(61), 0.0)
    verdict_alone = discriminator(alone, told(61), draws[1:2], 0.0)
    torch.testing.assert_close(alone, images[1:2])
    torch.testing.assert_close(verdict_alone.scores[0], verdict.scores[0][1:2])
    assert verdict.heads["pitch"].shape == (3, 3)
    assert verdict.heads["warmth"].shape == (3,)
    for name, head in verdict.heads.items():
        torch.testing.assert_close(verdict_alone.heads[name], head[1:2])


@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_what_is_told_decide_an_image(kind):
    generator, _ = networks(kind)
    noise = noise_of(generator, 1)
    image = generator(noise, told(60), 0.0)
    assert torch.equal(image, generator(noise, told(60), 0.0))
    assert not torch.allclose(image, generator(noise, told(61), 0.0))
    assert not torch.allclose(image, generator(noise, told(60, warmth=90.0), 0.0))
    assert not torch.allclose(image, generator(noise_of(generator, 1, seed=1), told(60), 0.0))
    torch.testing.assert_close(
        generator(noise, told(None), 0.0),
        generator(noise, {"warmth": told(60)["warmth"]}, 0.0),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_learn(kind):
    generator, discriminator = networks(kind)
    draws = uniform(4, discriminator.num_draws)
    image = generator(noise_of(generator, 4), told(60, 61, 62, 60), 0.0)
    verdict = discriminator(image, {}, draws, 0.0)
    torch.stack(
        [verdict.scores[0].square().sum(), *(h.sum() for h in verdict.heads.values())]
    ).sum().backward()
    for name, weight in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_penalty_reaches_the_weights(kind):
    _, discriminator = networks(kind)
    image = uniform(2, *(WAVE_SHAPE if kind == "wavegan" else SPEC_SHAPE).of()).requires_grad_()
    score = discriminator(image, {}, uniform(2, discriminator.num_draws), 0.0).scores[0]
    (gradient,) = torch.autograd.grad(score.sum(), image, create_graph=True)
    gradient.square().sum().backward()
    weight = discriminator.layers[0].weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("num_sides", [1, 2])
def test_new_networks_are_as_loud_whatever_their_width(num_sides):
    def levels(channels: int) -> tuple[float, float]:
        torch.manual_seed(1)
        layers = StridedLayers(channels, 4, 25 if num_sides == 1 else 5, 4 // num_sides, num_sides)
        shape = Shape(1, None, 1024) if num_sides == 1 else Shape(1, 32, 32)
        generator = StridedGenerator(layers, 50, shape, Conditions())
        image = generator(noise_of(generator, 16), {}, 0.0).detach()
        discriminator = StridedDiscriminator(layers, shape, Conditions(), "heads")
        judged = discriminator.layers[0](image).square().mean()
        score = discriminator(image, {}, uniform(16, 0), 0.0).scores[0]
        assert score.isfinite().all()
        return float(image.square().mean().sqrt()), float(judged.detach().sqrt())

    for narrow, wide in zip(levels(2), levels(16), strict=True):
        assert narrow == pytest.approx(wide, rel=0.5)
        assert 0.2 < wide < 2


# ---------------------------------------------------------------------------------------------- WaveGAN's own


@settings(max_examples=30, deadline=None)
@given(length=st.integers(4, 20), at_most=st.integers(1, 3), seed=st.integers(0, 1000))
def test_phase_shuffle_is_padding_by_reflection_and_cutting(length, at_most, seed):
    x, draws = uniform(5, 2, length, seed=seed), uniform(5, seed=seed + 1)
    shuffled = phase_shuffle(x, draws, at_most)
    for clip, draw, found in zip(x, draws, shuffled, strict=True):
        padded = nn.functional.pad(clip, (at_most, at_most), mode="reflect")
        first = 2 * at_most - math.floor(float(draw) * (2 * at_most + 1))
        assert torch.equal(found, padded[:, first : first + length])


def test_all_shifts_are_alike_likely_and_none_is_further():
    x = torch.arange(100.0).expand(4000, 1, 100)
    shifts = 50 - phase_shuffle(x, uniform(4000), 2)[:, 0, 50]
    counts = torch.bincount((shifts + 2).long(), minlength=5)
    assert len(counts) == 5
    assert (counts / 4000 - 0.2).abs().max() < 0.03
    assert torch.equal(phase_shuffle(x[:1], torch.ones(1), 2), phase_shuffle(x[:1], torch.tensor([0.99]), 2))


def test_draws_shuffle_all_layers_but_the_last():
    _, discriminator = networks("wavegan")
    assert discriminator.num_draws == 2
    image, middle = uniform(1, 1, 256), torch.full((1, 2), 0.5)
    still = discriminator(image, {}, middle, 0.0).scores[0]
    for layer in range(2):
        draws = middle.clone()
        draws[0, layer] = 0.0
        assert not torch.allclose(discriminator(image, {}, draws, 0.0).scores[0], still)
    plain = WaveGanDiscriminator(WAVE.model_copy(update={"phase_shuffle": 0}), WAVE_SHAPE, CONDITIONS)
    plain.load_state_dict(discriminator.state_dict())
    assert plain.num_draws == 0
    torch.testing.assert_close(plain(image, {}, torch.rand(1, 0), 0.0).scores[0], still)


@pytest.mark.parametrize("length", [512, 5, 1])
def test_a_new_post_filter_changes_nothing_and_learns(length):
    section = WAVE.model_copy(update={"post_filter": length})
    torch.manual_seed(0)
    generator = WaveGanGenerator(section, Shape(2, None, 256), CONDITIONS)
    assert generator.post_filter is not None
    without = WaveGanGenerator(WAVE, Shape(2, None, 256), CONDITIONS)
    without.load_state_dict({k: v for k, v in generator.state_dict().items() if "post_filter" not in k})
    noise = noise_of(generator, 2)
    samples = generator(noise, told(60, 61), 0.0)
    torch.testing.assert_close(samples, without(noise, told(60, 61), 0.0))
    samples.square().sum().backward()
    assert generator.post_filter.weight.grad is not None
    assert generator.post_filter.weight.grad.abs().sum() > 0


def test_a_post_filter_is_a_convolution_centred_on_its_sample():
    post_filter = PostFilter(3, 1)
    with torch.no_grad():
        post_filter.weight.copy_(torch.tensor([[[1.0, 2.0, 3.0]]]))
    impulse = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
    assert post_filter(impulse).tolist() == [[[0.0, 3.0, 2.0, 1.0]]]
