"""VQCPC-GAN's networks: tokens frame by frame, clips of any length, and two discriminators."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokkata.core.conditions import Condition, Conditions, GivenConditions, hide_all
from tokkata.core.errors import UserError
from tokkata.core.schema_gan import VqcpcGanModel
from tokkata.gan.networks.family import Shape
from tokkata.gan.networks.vqcpc_gan import VqcpcGanDiscriminator, VqcpcGanGenerator, spread

V, T = 5, 12
SHAPE = Shape(2, 8, T)
PITCH = Condition("pitch", "label", values=(60, 62, 64))
CONDITIONS = Conditions((PITCH, Condition("tokens", "sequence", width=V)))
NOTHING = torch.zeros(4, 0)


def section(channels: tuple[int, ...] = (6, 5, 4), local_frames: int = 4) -> VqcpcGanModel:
    return VqcpcGanModel(kind="vqcpc_gan", channels=list(channels), noise_dim=7, local_frames=local_frames)


def generator() -> VqcpcGanGenerator:
    torch.manual_seed(0)
    return VqcpcGanGenerator(section(), SHAPE, CONDITIONS)


def discriminator(shape: Shape = SHAPE, local_frames: int = 4) -> VqcpcGanDiscriminator:
    torch.manual_seed(1)
    return VqcpcGanDiscriminator(section(local_frames=local_frames), shape, CONDITIONS)


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_hot(length: int, num_clips: int = 4, seed: int = 3) -> list[Tensor]:
    tokens = torch.randint(V, (num_clips, length), generator=torch.Generator().manual_seed(seed))
    return list(torch.nn.functional.one_hot(tokens, V).float())


def told(tokens: list[Tensor]) -> GivenConditions:
    return CONDITIONS.encode({"pitch": [60, 64, None, 62][: len(tokens)], "tokens": tokens})


@pytest.mark.parametrize("length", [1, 5, T, 40])
def test_there_are_as_many_frames_as_tokens(length: int) -> None:
    g = generator()
    assert g.has_any_length
    assert g.num_levels == 1
    assert g.noise_shape(length) == (7,)
    image = g(random(4, 7), told(one_hot(length)), 0.0)
    assert image.shape == (4, 2, 8, length)
    assert image.abs().max() <= 1


def test_without_tokens_a_clip_is_as_long_as_in_training_and_hidden_is_not_given() -> None:
    g, noise = generator(), random(4, 7)
    with torch.no_grad():
        torch.testing.assert_close(g(noise, hide_all(told(one_hot(T))), 0.0), g(noise, {}, 0.0))
    assert g(noise, {}, 0.0).shape == (4, 2, 8, T)


@settings(deadline=None, max_examples=10)
@given(shared=st.integers(8, 20), more=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_a_longer_clip_has_the_same_frames_where_the_tokens_are_the_same(
    shared: int, more: int, seed: int
) -> None:
    g, noise = generator(), random(1, 7, seed=seed)
    (tokens,), (others,) = one_hot(shared, 1, seed), one_hot(more, 1, seed + 1)
    with torch.no_grad():
        short = g(noise, told([tokens]), 0.0)
        long = g(noise, told([torch.cat([tokens, others])]), 0.0)
        late = g(noise, told([torch.cat([others, tokens])]), 0.0)
    same = shared - g.seen_frames
    torch.testing.assert_close(long[..., :same], short[..., :same], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        late[..., more + g.seen_frames :], short[..., g.seen_frames :], atol=1e-5, rtol=1e-4
    )


def test_a_token_changes_the_frames_that_see_it_and_no_others() -> None:
    g, noise = generator(), random(1, 7)
    (tokens,) = one_hot(40, 1)
    other = tokens.clone()
    other[20] = other[20].roll(1)
    with torch.no_grad():
        changed = (g(noise, told([other]), 0.0) - g(noise, told([tokens]), 0.0)).abs().amax((0, 1, 2)) > 1e-7
    assert changed.nonzero()[:, 0].tolist() == list(range(20 - g.seen_frames, 21 + g.seen_frames))


def test_a_long_clip_of_one_token_is_stationary_away_from_its_ends() -> None:
    g, noise = generator(), random(1, 7)
    with torch.no_grad():
        image = g(noise, told([torch.eye(V)[[2] * 60]]), 0.0)
    inside = image[..., g.seen_frames : -g.seen_frames]
    assert inside.shape[3] > 40
    torch.testing.assert_close(inside, inside[..., :1].expand_as(inside), atol=1e-5, rtol=1e-4)


def test_labels_are_followed_clip_by_clip() -> None:
    g, noise = generator(), random(1, 7).expand(4, -1)
    with torch.no_grad():
        image = g(noise, told(one_hot(T, 1) * 4), 0.0)
    for i in range(3):
        assert (image[i] - image[i + 1]).abs().max() > 1e-3


@pytest.mark.parametrize("num_frames", [12, 8, 6, 7])
@pytest.mark.parametrize("local_frames", [1, 4, 7])
def test_verdicts_are_of_windows_and_of_clips(num_frames: int, local_frames: int) -> None:
    d = discriminator(Shape(2, 8, num_frames), local_frames)
    verdict = d(random(4, 2, 8, num_frames), {}, NOTHING, 0.0)
    assert [s.shape for s in verdict.scores] == [(4, num_frames), (4,)]
    assert verdict.heads["pitch"].shape == (4, 3)
    assert verdict.heads["tokens"].shape == (4, V, num_frames)


@pytest.mark.parametrize("local_frames", [1, 4, 7])
def test_a_window_has_as_many_frames_as_asked(local_frames: int) -> None:
    d = discriminator(local_frames=local_frames)
    image = random(1, 2, 8, T)
    image.requires_grad_()
    middle = T // 2
    verdict = d(image, {}, NOTHING, 0.0)
    for opinion in (verdict.scores[0][0, middle], verdict.heads["tokens"][0, 1, middle]):
        (slope,) = torch.autograd.grad(opinion, image, retain_graph=True)
        seen = slope.abs().amax((0, 1, 2)).nonzero()[:, 0]
        first = middle - (local_frames - 1) // 2
        assert seen.tolist() == list(range(first, first + local_frames))


def test_the_global_one_compares_clips_within_groups() -> None:
    d = discriminator()
    image = random(12, 2, 8, T)
    with torch.no_grad():
        together = d(image, {}, NOTHING, 0.0)
        alone = d(image[4:8], {}, NOTHING, 0.0)
    for all_scores, scores in zip(together.scores, alone.scores, strict=True):
        torch.testing.assert_close(all_scores[4:8], scores)


@given(total=st.integers(0, 60), places=st.integers(1, 9))
def test_kernels_share_the_frames_evenly(total: int, places: int) -> None:
    shares = spread(total, places)
    assert sum(shares) == total
    assert len(shares) == places
    assert max(shares) - min(shares) <= 1


def test_frequencies_that_cannot_be_halved_often_enough_are_refused() -> None:
    for network in (VqcpcGanGenerator, VqcpcGanDiscriminator):
        with pytest.raises(UserError, match="6 frequencies cannot be halved 2 times"):
            network(section(), Shape(2, 6, T), CONDITIONS)


# Clips in which a frame's token says which band is bright.
def test_a_pair_learns_to_follow_tokens_and_does_so_beyond_the_length_of_training() -> None:
    torch.manual_seed(0)
    conditions = Conditions((Condition("tokens", "sequence", width=2),))
    made_of = VqcpcGanModel(kind="vqcpc_gan", channels=[8, 8], noise_dim=2, local_frames=3)
    shape = Shape(1, 4, 8)
    g = VqcpcGanGenerator(made_of, shape, conditions)
    d = VqcpcGanDiscriminator(made_of, shape, conditions)
    by_g, by_d = (torch.optim.Adam(n.parameters(), 1e-2, betas=(0.0, 0.99)) for n in (g, d))
    none = torch.zeros(8, 0)

    def spelled(tokens: Tensor) -> GivenConditions:
        return conditions.encode({"tokens": list(torch.nn.functional.one_hot(tokens, 2).float())})

    def shown(tokens: Tensor) -> Tensor:
        upper = 1 - 2 * tokens.float()
        return 0.6 * torch.stack([upper, upper, -upper, -upper], dim=1)[:, None]

    def recognised(heads: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(heads["tokens"], tokens)

    for _ in range(150):
        tokens = torch.randint(2, (8, 4)).repeat_interleave(2, 1)
        real, made = shown(tokens), g(torch.randn(8, 2), spelled(tokens), 0.0)
        mixture = torch.lerp(made.detach(), real, torch.rand(8, 1, 1, 1)).requires_grad_()
        of_real, of_made, of_mixture = (d(x, {}, none, 0.0) for x in (real, made.detach(), mixture))
        loss = recognised(of_real.heads, tokens)
        for a, b, c in zip(of_real.scores, of_made.scores, of_mixture.scores, strict=True):
            (slope,) = torch.autograd.grad(c.view(8, -1).mean(1).sum(), mixture, create_graph=True)
            loss = loss + b.mean() - a.mean() + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        by_d.zero_grad()
        loss.backward()
        by_d.step()
        verdict = d(made, {}, none, 0.0)
        loss = recognised(verdict.heads, tokens) - sum(s.mean() for s in verdict.scores)
        by_g.zero_grad()
        loss.backward()
        by_g.step()
    tokens = torch.randint(2, (8, 20)).repeat_interleave(2, 1)
    with torch.no_grad():
        image = g(torch.randn(8, 2), spelled(tokens), 0.0)
    assert image.shape == (8, 1, 4, 40)
    follows = (image[:, 0, :2].mean(1) > image[:, 0, 2:].mean(1)) == (tokens == 0)
    assert follows.float().mean() > 0.95
