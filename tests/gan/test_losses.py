"""Losses against the formulas of the papers, and what the games are known to lead to.

Shapes: B batch, n places, V values, L states.
"""

import math

import pytest
import torch
from torch import Tensor

from tokkata.core.conditions import Condition, Conditions, Given
from tokkata.core.schema_gan import (
    GanLoss,
    HingeLoss,
    MinimaxLoss,
    NonSaturatingLoss,
    WassersteinLoss,
)
from tokkata.gan.losses import Game, head_loss, make_game

SECTIONS: list[GanLoss] = [
    MinimaxLoss(kind="minimax"),
    NonSaturatingLoss(kind="non_saturating"),
    WassersteinLoss(kind="wgan_gp"),
    HingeLoss(kind="hinge"),
]

CONDITIONS = Conditions(
    (
        Condition("pitch", "label", values=(60, 61, 62)),
        Condition("warmth", "number", width=2, maximum=5.0),
        Condition("token", "sequence", width=4),
    )
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


# By kind: what the discriminator pays for a real score and for one of something made, and the generator.
FORMULAS = {
    "minimax": (
        lambda s: -math.log(sigmoid(s)),
        lambda s: -math.log(1 - sigmoid(s)),
        lambda s: math.log(1 - sigmoid(s)),
    ),
    "non_saturating": (
        lambda s: -math.log(sigmoid(s)),
        lambda s: -math.log(1 - sigmoid(s)),
        lambda s: -math.log(sigmoid(s)),
    ),
    "wgan_gp": (lambda s: -s, lambda s: s, lambda s: -s),
    "hinge": (lambda s: max(0, 1 - s), lambda s: max(0, 1 + s), lambda s: -s),
}


def mean(formula, scores: Tensor) -> float:
    values = [formula(s) for s in scores.flatten().tolist()]
    return sum(values) / len(values)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.kind)
def test_losses_are_those_of_the_papers_summed_over_discriminators(section):
    game = make_game(section)
    real, fake = [randn(6), randn(6, 5, seed=1)], [randn(6, seed=2), randn(6, 5, seed=3)]
    of_real, of_fake, of_made = FORMULAS[section.kind]
    expected = sum(mean(of_real, r) + mean(of_fake, f) for r, f in zip(real, fake, strict=True))
    assert float(game.discriminator(real, fake)) == pytest.approx(expected, rel=1e-5)
    assert float(game.generator(fake)) == pytest.approx(sum(mean(of_made, f) for f in fake), rel=1e-5)


def best_scores(game: Game, p: Tensor, q: Tensor) -> Tensor:
    """The discriminator's best scores over a few points that are real with `p` and made with `q`.

    Clips stand for points as often as their probabilities say, in eighths.
    """
    scores = torch.zeros(len(p), requires_grad=True)
    real = torch.repeat_interleave(torch.arange(len(p)), (8 * p).long())
    fake = torch.repeat_interleave(torch.arange(len(q)), (8 * q).long())
    optimizer = torch.optim.Adam([scores], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        game.discriminator([scores[real]], [scores[fake]]).backward()
        optimizer.step()
    return scores.detach()


P, Q = torch.tensor([1, 3, 4]) / 8, torch.tensor([4, 3, 1]) / 8


@pytest.mark.parametrize("section", SECTIONS[:2], ids=lambda s: s.kind)
def test_the_best_discriminator_knows_the_densities(section):
    """arXiv:1406.2661, prop. 1 and theorem 1: p / (p + q), and log 4 less twice the divergence."""
    game = make_game(section)
    scores = best_scores(game, P, Q)
    torch.testing.assert_close(scores.sigmoid(), P / (P + Q), atol=1e-3, rtol=0)
    middle = (P + Q) / 2
    divergence = float((P * (P / middle).log() + Q * (Q / middle).log()).sum()) / 2
    real = torch.repeat_interleave(scores, (8 * P).long())
    fake = torch.repeat_interleave(scores, (8 * Q).long())
    assert float(game.discriminator([real], [fake])) == pytest.approx(math.log(4) - 2 * divergence, abs=1e-4)


def test_the_best_discriminator_of_the_hinge_game_says_which_is_more_likely():
    scores = best_scores(make_game(SECTIONS[3]), P, Q)
    torch.testing.assert_close(scores[[0, 2]], torch.tensor([-1.0, 1.0]), atol=0.1, rtol=0)


def generator_gradient(section: GanLoss, score: float) -> float:
    fake = torch.tensor([score], requires_grad=True)
    (gradient,) = torch.autograd.grad(make_game(section).generator([fake]), fake)
    return float(gradient)


def test_only_the_minimax_generator_learns_nothing_from_a_sure_discriminator():
    found = {section.kind: generator_gradient(section, -12.0) for section in SECTIONS}
    assert found["minimax"] == pytest.approx(-sigmoid(-12.0), rel=1e-4)  # next to nothing
    assert found["non_saturating"] == pytest.approx(-1, rel=1e-4)
    assert found["wgan_gp"] == found["hinge"] == -1


def test_the_gradient_penalty_of_linear_critics():
    """Of w · x it is (|w| - 1)², whatever x; of two discriminators their sum."""
    game = make_game(WassersteinLoss(kind="wgan_gp", gradient_weight=10.0))
    weights = [randn(2, 3), 0.2 * randn(2, 3, seed=1)]
    mixture = randn(5, 2, 3, seed=2).requires_grad_()
    # The second judges two places, which together weigh as much as one would.
    scores = [(weights[0] * mixture).sum((1, 2)), (2 * weights[1] * mixture).sum(2)]
    expected = 10 * sum((float(w.norm()) - 1) ** 2 for w in weights)
    assert float(game.gradient_penalty(scores, mixture)) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_penalty_has_one_norm_a_clip_and_a_gradient():
    game = make_game(WassersteinLoss(kind="wgan_gp", gradient_weight=1.0))
    weight = torch.tensor(0.5, requires_grad=True)
    mixture = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    # The gradient of w |x|² in x is 2 w x, so the norms are 1 and 2.
    penalty = game.gradient_penalty([weight * mixture.square().sum(1)], mixture)
    assert float(penalty.detach()) == pytest.approx(((1 - 1) ** 2 + (2 - 1) ** 2) / 2)
    # d/dw of the mean of (2 w |x| - 1)².
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert float(gradient) == pytest.approx((2 * (1 - 1) * 2 + 2 * (2 - 1) * 4) / 2)


WITH_R1 = pytest.mark.parametrize(
    "section",
    [HingeLoss(kind="hinge", r1_weight=3.0), NonSaturatingLoss(kind="non_saturating", r1_weight=3.0)],
    ids=lambda s: s.kind,
)


@WITH_R1
def test_r1_of_a_linear_discriminator(section):
    game = make_game(section)
    weight = randn(2, 3).requires_grad_()
    real = randn(5, 2, 3, seed=1).requires_grad_()
    term = game.r1([(weight * real).sum((1, 2))], real)
    assert game.needs_real_gradient(0)
    assert game.needs_real_gradient(1)
    assert float(term.detach()) == pytest.approx(0.5 * 3.0 * float(weight.norm()) ** 2, rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(term, weight)[0], 3.0 * weight)


@WITH_R1
def test_r1_of_some_steps_weighs_as_much_as_that_of_all(section):
    of_all, of_some = make_game(section), make_game(section.model_copy(update={"r1_every": 4}))
    real = randn(5, 2, 3).requires_grad_()
    scores = [(real**2).sum((1, 2))]
    spent = [
        float(game.r1(scores, real)) * game.needs_real_gradient(step)
        for game in (of_all, of_some)
        for step in range(12)
    ]
    assert sum(spent[:12]) == pytest.approx(sum(spent[12:]))
    assert [step for step in range(12) if of_some.needs_real_gradient(step)] == [0, 4, 8]


def test_drift_is_the_mean_square_of_real_scores():
    game = make_game(WassersteinLoss(kind="wgan_gp", drift_weight=0.5))
    assert float(game.drift([torch.tensor([1.0, 3.0]), torch.tensor([[2.0, 2.0]])])) == pytest.approx(4.5)


def test_what_is_not_asked_for_is_not_needed():
    games = {section.kind: make_game(section) for section in SECTIONS}
    needs = {kind: (game.needs_mixture, game.needs_real_gradient(0)) for kind, game in games.items()}
    assert needs == dict.fromkeys(("minimax", "non_saturating", "hinge"), (False, False)) | {
        "wgan_gp": (True, False)
    }
    assert not make_game(WassersteinLoss(kind="wgan_gp", gradient_weight=0.0)).needs_mixture


# ------------------------------------------------------------------------------------------------------ heads


def shown(values: Tensor, *mask: bool) -> Given:
    return Given(values, torch.tensor(mask)[:, None])


def test_labels_by_cross_entropy_numbers_by_square_and_soft_labels_by_binary_cross_entropy():
    pitch, warmth = randn(3, 3), randn(3, seed=1)
    told = {
        "pitch": shown(torch.tensor([[1], [3], [2]]), True, True, True),
        "warmth": shown(torch.tensor([[0.0], [2.0], [5.0]]), True, True, True),
    }
    heads = {"pitch": pitch, "warmth": warmth}
    squared = head_loss(CONDITIONS, {"pitch": "cross_entropy", "warmth": "squared_error"}, heads, told)
    soft = head_loss(CONDITIONS, {"pitch": "cross_entropy", "warmth": "binary_cross_entropy"}, heads, told)
    shares = pitch.exp() / pitch.exp().sum(1, keepdim=True)
    of_values = [float(shares[i, value]) for i, value in enumerate((0, 2, 1))]
    assert float(squared["pitch"]) == pytest.approx(-sum(map(math.log, of_values)) / 3, rel=1e-5)
    targets, found = [0.0, 0.4, 1.0], warmth.tolist()
    pairs = list(zip(targets, found, strict=True))
    assert float(squared["warmth"]) == pytest.approx(sum((t - f) ** 2 for t, f in pairs) / 3, rel=1e-5)
    binary = [-t * math.log(sigmoid(f)) - (1 - t) * math.log(1 - sigmoid(f)) for t, f in pairs]
    assert float(soft["warmth"]) == pytest.approx(sum(binary) / 3, rel=1e-5)


def test_sequences_by_cross_entropy_of_their_states():
    logits, tokens = randn(2, 4, 3), torch.tensor([[0, 3, 1], [2, 2, 0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    told = {"token": Given(torch.nn.functional.one_hot(tokens, 4).float(), mask)}
    found = head_loss(CONDITIONS, {"token": "cross_entropy"}, {"token": logits}, told)
    log_shares = logits - logits.exp().sum(1, keepdim=True).log()
    counted = [log_shares[0, 0, 0], log_shares[0, 3, 1], log_shares[1, 2, 0]]
    assert float(found["token"]) == pytest.approx(-float(torch.stack(counted).mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["squared_error", "binary_cross_entropy"])
def test_hidden_clips_do_not_count(kind):
    heads = {"pitch": randn(3, 3), "warmth": randn(3, seed=1)}
    values = {"pitch": torch.tensor([[0], [2], [1]]), "warmth": torch.tensor([[0.0], [2.0], [4.0]])}
    kinds = {"pitch": "cross_entropy", "warmth": kind}
    some = head_loss(
        CONDITIONS, kinds, heads, {name: shown(v, False, True, True) for name, v in values.items()}
    )
    rest = head_loss(
        CONDITIONS,
        kinds,
        {name: head[1:] for name, head in heads.items()},
        {name: shown(v[1:], True, True) for name, v in values.items()},
    )
    for name in heads:
        torch.testing.assert_close(some[name], rest[name])


@pytest.mark.parametrize("is_given", [True, False])
def test_where_all_is_hidden_heads_cost_nothing_and_have_gradients(is_given):
    heads = {
        "pitch": randn(2, 3).requires_grad_(),
        "warmth": randn(2).requires_grad_(),
        "token": randn(2, 4, 3).requires_grad_(),
    }
    told = {
        "pitch": shown(torch.zeros(2, 1, dtype=torch.int64), False, False),
        "warmth": shown(torch.zeros(2, 1), False, False),
        "token": Given(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)),
    }
    kinds = {"pitch": "cross_entropy", "warmth": "squared_error", "token": "cross_entropy"}
    found = head_loss(CONDITIONS, kinds, heads, told if is_given else {})
    torch.stack(list(found.values())).sum().backward()
    for name, head in heads.items():
        assert float(found[name]) == 0
        assert torch.equal(head.grad, torch.zeros_like(head))
