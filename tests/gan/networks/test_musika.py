"""Musika: any windows are the whole, a stream has no end, and no frame is special."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.core.conditions import Condition, Conditions
from tokkata.core.errors import UserError
from tokkata.core.schema_gan import MusikaModel
from tokkata.gan.networks.family import Shape
from tokkata.gan.networks.musika import DrawnNoise, MusikaDiscriminator, MusikaGenerator, generate_stream

D, T = 5, 21
CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 62, 64)),
        Condition("warmth", "number", width=2, maximum=1.0),
    )
)
TOLD = CONDITIONS.encode({"pitch": [60, None], "warmth": [0.5, None]})


def section(**changes):
    values = {"coordinate_dim": 6, "style_dim": 3, "anchor_frames": 10, "channels": [12, 8, 8]} | changes
    return MusikaModel(kind="musika", **values)


def make_generator(**changes):
    torch.manual_seed(0)
    return MusikaGenerator(section(**changes), Shape(D, None, T), CONDITIONS).eval()


def draw(generator, num_frames, seed=0, num_clips=2):
    num_anchors = generator.noise_shape(num_frames)[0] - 1
    return torch.stack([generator.draw_noise_window(seed, clip, 0, num_anchors) for clip in range(num_clips)])


@torch.no_grad()
def whole(generator, num_frames, told=TOLD, seed=0):
    return generator(draw(generator, num_frames, seed), told, 0.0)[:, :, :num_frames]


def test_clips_of_training_have_its_length_and_longer_ones_are_asked_for_by_their_noise():
    generator = make_generator()
    assert generator(draw(generator, T), TOLD, 0.0).shape == (2, D, T)
    assert generator(draw(generator, 3), TOLD, 0.0).shape == (2, D, T)
    for num_frames in range(T, T + 40):
        made = generator(draw(generator, num_frames), TOLD, 0.0)
        assert num_frames <= made.shape[2] < num_frames + generator.anchor_frames


@pytest.mark.parametrize("style_dim", [3, 9])
@pytest.mark.parametrize("channels", [[8], [12, 8], [8, 12, 8, 8]])
def test_windows_in_parallel_are_the_whole(channels, style_dim):
    generator = make_generator(channels=channels, style_dim=style_dim)
    noise = draw(generator, 107)
    expected = whole(generator, 107)
    for windows in (1, 2, 5):
        window = windows * generator.lowest_frames
        with torch.no_grad():
            found = generator.make_in_windows(noise, TOLD, range(107), window)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 3))
def test_any_frames_are_those_of_the_whole_and_need_the_anchors_that_they_say(start, length, seed):
    generator = make_generator()
    start *= generator.lowest_frames
    frames = range(start, start + length)
    anchors = generator.anchors_of(frames)
    noise = torch.stack(
        [generator.draw_noise_window(seed, clip, anchors.start, len(anchors)) for clip in range(2)]
    )
    with torch.no_grad():
        found = generator.make(noise, TOLD, frames, anchors.start)
    expected = whole(generator, frames.stop, seed=seed)[:, :, start:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window_frames", [None, 4])
def test_a_stream_is_the_whole(window_frames):
    generator = make_generator()
    noises = [DrawnNoise(generator, 0, clip) for clip in range(2)]
    chunks = list(
        generate_stream(generator, noises, TOLD, chunk_frames=16, num_frames=75, window_frames=window_frames)
    )
    assert [chunk.shape[2] for chunk in chunks] == [16, 16, 16, 16, 11]
    torch.testing.assert_close(torch.cat(chunks, 2), whole(generator, 75), atol=1e-5, rtol=0)


def test_a_stream_without_an_end_asks_for_no_more_noise_as_it_goes_on():
    generator = make_generator()
    asked = []

    class Watched(DrawnNoise):
        def rows(self, first_anchor, num_anchors):
            asked.append((first_anchor, num_anchors))
            return super().rows(first_anchor, num_anchors)

    stream = generate_stream(generator, [Watched(generator, 0, 0)], {}, chunk_frames=20)
    chunks = list(itertools.islice(stream, 50))
    assert {chunk.shape for chunk in chunks} == {(1, D, 20)}
    assert [first for first, _ in asked] == list(range(0, 100, 2))
    assert len({number for _, number in asked}) == 1
    assert not torch.allclose(chunks[10], chunks[11], atol=1e-2)


def test_far_along_a_stream_positions_are_exact():
    generator = make_generator()
    far = 10**9 * generator.anchor_frames
    near = draw(generator, T, num_clips=1)
    with torch.no_grad():
        found = generator.make(near, {}, range(far, far + T), far // generator.anchor_frames)
        expected = generator.make(near, {}, range(T))
    assert torch.equal(found, expected)


def test_between_two_anchors_coordinates_are_interpolated_and_the_phase_says_where_a_clip_begins():
    generator = make_generator()
    noise = torch.randn(64, 5, generator.noise_width, generator=torch.Generator().manual_seed(1))
    places = torch.arange(0, 31).expand(64, -1)
    found = generator.coordinates(noise, 2 * places)
    anchors = noise[:, 1:, : generator.coordinate_dim].transpose(1, 2)
    assert torch.equal(found[:, :, ::10], anchors)
    for part in range(3):
        bend = torch.diff(found[:, :, 10 * part : 10 * part + 11], n=2)
        torch.testing.assert_close(bend, torch.zeros_like(bend), atol=1e-5, rtol=0)
    assert set(generator.phase(noise).tolist()) == set(range(10))


def test_the_phase_moves_a_clip_along_its_stream():
    generator = make_generator()
    noise = draw(generator, T, num_clips=1)
    step = generator.lowest_frames
    early, late = noise.clone(), noise.clone()
    for one, phase in ((early, 1), (late, 1 + step)):
        one[:, 0, generator.style_dim] = torch.special.ndtri(torch.tensor((phase + 0.5) / 10))
    with torch.no_grad():
        found = [generator(one, {}, 0.0) for one in (early, late)]
    torch.testing.assert_close(found[1][:, :, :-step], found[0][:, :, step:], atol=1e-5, rtol=0)


def test_grains_are_each_frames_own():
    generator = make_generator()
    noise = torch.zeros(1, 6, generator.noise_width)
    noise[:, 1:] = torch.arange(5 * generator.noise_width).reshape(5, -1)
    frames = torch.arange(50)[None]
    found = generator.grains(noise, frames)
    assert found.unique().numel() == found.numel()
    late = torch.cat([noise[:, :1], noise[:, 3:]], dim=1)
    assert torch.equal(generator.grains(late, frames[:, 20:], first_anchor=2), found[:, :, 20:])


def test_where_coordinates_stand_still_all_frames_of_a_resolution_are_alike():
    """Style and conditions act alike everywhere, and ends are not special."""
    generator = make_generator()
    noise = draw(generator, 60)
    noise[:, 1:, : generator.coordinate_dim] = 0.5
    noise[:, 1:, generator.coordinate_dim :] = -0.5
    with torch.no_grad():
        made = generator(noise, TOLD, 0.0)
    step = generator.lowest_frames
    torch.testing.assert_close(made[:, :, :-step], made[:, :, step:], atol=1e-5, rtol=0)
    other = noise.clone()
    other[:, 0, 0] += 1.0
    with torch.no_grad():
        changed = (generator(other, TOLD, 0.0) - made).abs().amax(1)
    assert (changed > 1e-4).all()


def test_what_a_clip_is_told_changes_it_and_no_other():
    generator = make_generator()
    other = CONDITIONS.encode({"pitch": [64, None], "warmth": [0.5, None]})
    found, changed = whole(generator, T), whole(generator, T, other)
    assert (found[0] - changed[0]).abs().max() > 1e-3
    torch.testing.assert_close(found[1], changed[1])


def test_noise_is_of_its_seed_clip_and_anchor():
    generator = make_generator()
    noise = generator.draw_noise_window(3, 1, 0, 9)
    assert torch.equal(generator.draw_noise_window(3, 1, 4, 3)[1:], noise[5:8])
    assert torch.equal(generator.draw_noise_window(3, 1, 4, 3)[0], noise[0])
    for other in (generator.draw_noise_window(4, 1, 0, 9), generator.draw_noise_window(3, 2, 0, 9)):
        assert not (other == noise).any()


def test_windows_and_chunks_that_do_not_fit_are_refused():
    generator = make_generator()
    noise = draw(generator, T)
    with pytest.raises(UserError, match="windows of 6 frames do not fit: this model needs a multiple of 4"):
        generator.make_in_windows(noise, TOLD, range(T), 6)
    with pytest.raises(UserError, match="chunks of 6 frames"):
        next(generate_stream(generator, [DrawnNoise(generator, 0, 0)], {}, chunk_frames=6))


@pytest.mark.parametrize("num_frames", [16, 21])
def test_the_discriminator_can_be_punished_for_its_gradient(num_frames):
    torch.manual_seed(0)
    critic = MusikaDiscriminator(section(), Shape(D, None, num_frames), CONDITIONS)
    image = torch.randn(4, D, num_frames, requires_grad=True)
    verdict = critic(image, {}, torch.zeros(4, 0), 0.0)
    assert [score.shape for score in verdict.scores] == [(4,)]
    assert {name: head.shape for name, head in verdict.heads.items()} == {"pitch": (4, 3), "warmth": (4,)}
    (gradient,) = torch.autograd.grad(verdict.scores[0].sum(), image, create_graph=True)
    penalty = gradient.square().sum((1, 2)).mean()
    penalty.backward()
    assert penalty > 0
    for name, weight in critic.named_parameters():
        if name.endswith("weight") and not name.startswith("opinions"):
            assert weight.grad.isfinite().all(), name
            assert weight.grad.any(), name


def test_a_clip_is_judged_alone():
    torch.manual_seed(0)
    critic = MusikaDiscriminator(section(), Shape(D, None, T), Conditions())
    image = torch.randn(4, D, T)
    with torch.no_grad():
        together = critic(image, {}, torch.zeros(4, 0), 0.0)
        alone = critic(image[2:3], {}, torch.zeros(1, 0), 0.0)
    assert together.heads == {}
    torch.testing.assert_close(alone.scores[0], together.scores[0][2:3])


def test_every_weight_of_the_generator_is_trained():
    generator = make_generator()
    image = generator(draw(generator, T), TOLD, 0.0)
    image.square().sum().backward()
    for name, weight in generator.named_parameters():
        assert weight.grad.any(), name
