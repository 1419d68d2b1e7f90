"""What a discriminator does with what clips are told: for every family, heads or projection."""

import pytest
import torch
from torch import Tensor

from tokkata.core.conditions import Condition, Conditions, GivenConditions
from tokkata.core.schema_gan import (
    ConditionedBy,
    GanSection,
    GanSynthModel,
    LatentImage,
    MusikaModel,
    SpecGanModel,
    VqcpcGanModel,
    WaveGanModel,
)
from tokkata.gan.build import make_discriminator
from tokkata.gan.networks.family import ConditionJudge, Discriminator, Shape, Verdict

PITCH = Condition("pitch", "label", values=(60, 62, 64))
DEPTH = Condition("depth", "number", width=2, maximum=2.0)
FRAMES = 8
STATES = 5
SEQUENCE = Condition("tokens", "sequence", width=STATES)
CONDITIONS = Conditions((PITCH, DEPTH))
SECTIONS: list[tuple[GanSection, Shape]] = [
    (GanSynthModel(kind="gansynth", channels=[6, 5]), Shape(2, 8, FRAMES)),
    (SpecGanModel(kind="specgan", channels=2, num_layers=2), Shape(1, 8, FRAMES)),
    (WaveGanModel(kind="wavegan", channels=2, num_layers=2, kernel=9), Shape(1, None, 64)),
    (VqcpcGanModel(kind="vqcpc_gan", channels=[6, 5], local_frames=3), Shape(2, 8, FRAMES)),
    (
        MusikaModel(kind="musika", representation=LatentImage(kind="latents"), channels=[8, 8]),
        Shape(3, None, FRAMES),
    ),
]
EVERY_FAMILY = pytest.mark.parametrize(("section", "shape"), SECTIONS, ids=[s.kind for s, _ in SECTIONS])


def conditions_of(section: GanSection) -> Conditions:
    return Conditions((*CONDITIONS, SEQUENCE)) if section.kind == "vqcpc_gan" else CONDITIONS


def told(
    conditions: Conditions, pitch: int | None, depth: float | None, state: int | None
) -> GivenConditions:
    """Of three clips, all alike."""
    values: dict[str, list[object]] = {"pitch": [pitch] * 3, "depth": [depth] * 3}
    if any(one.name == "tokens" for one in conditions):
        one_hot = None if state is None else torch.eye(STATES)[[state] * FRAMES]
        values["tokens"] = [one_hot] * 3
    return conditions.encode(values)


def discriminator(section: GanSection, shape: Shape, by: ConditionedBy) -> Discriminator:
    torch.manual_seed(0)
    return make_discriminator(
        section.model_copy(update={"conditioned_by": by}), shape, conditions_of(section)
    )


def verdict(network: Discriminator, shape: Shape, given: GivenConditions) -> Verdict:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, *shape.of(), generator=generator)
    with torch.no_grad():
        return network(image, given, torch.full((3, network.num_draws), 0.5), 1.0)


def total(of: Verdict) -> Tensor:
    return torch.stack([score.reshape(3, -1).sum(1) for score in of.scores]).sum(0)


@EVERY_FAMILY
def test_heads_do_not_hear_what_is_told(section: GanSection, shape: Shape) -> None:
    network, conditions = discriminator(section, shape, "heads"), conditions_of(section)
    one = verdict(network, shape, told(conditions, 60, 0.5, 1))
    other = verdict(network, shape, told(conditions, 64, 2.0, 2))
    torch.testing.assert_close(total(one), total(other))
    assert one.heads.keys() == set(conditions.names)
    for name, head in one.heads.items():
        torch.testing.assert_close(head, other.heads[name])


@EVERY_FAMILY
def test_projection_adds_up_over_what_is_told_but_for_numbers(section: GanSection, shape: Shape) -> None:
    """What a label or token adds to a score does not depend on the rest, and hidden ones add nothing."""
    network, conditions = discriminator(section, shape, "projection"), conditions_of(section)

    def score(pitch: int | None, depth: float | None, state: int | None = None) -> Tensor:
        found = verdict(network, shape, told(conditions, pitch, depth, state))
        assert {name: head.shape for name, head in found.heads.items()} == {"depth": (3,)}
        return total(found)

    nothing = score(None, None)
    torch.testing.assert_close(
        score(60, None, 1) - score(None, None, 1), score(60, None) - nothing, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(score(60, 2.0), score(60, 1.0))
    assert (score(60, None) - score(64, None)).abs().min() > 1e-4
    if section.kind == "vqcpc_gan":
        assert (score(None, None, 1) - score(None, None, 2)).abs().min() > 1e-4


@EVERY_FAMILY
def test_both_see_the_same_features(section: GanSection, shape: Shape) -> None:
    """What projection adds for a label is what heads say of it: one layer, read in two ways."""
    conditions = conditions_of(section)
    heads = verdict(discriminator(section, shape, "heads"), shape, told(conditions, 62, None, None)).heads
    network = discriminator(section, shape, "projection")
    added = total(verdict(network, shape, told(conditions, 62, None, None)))
    added = added - total(verdict(network, shape, told(conditions, None, None, None)))
    torch.testing.assert_close(added, heads["pitch"][:, 1], atol=1e-5, rtol=1e-4)


def test_verdicts_by_hand() -> None:
    opinions, score = torch.tensor([[1.0, 2.0, 3.0, 10.0]]), torch.tensor([0.5])
    given = CONDITIONS.encode({"pitch": [64], "depth": [1.0]})
    found, heads = ConditionJudge(CONDITIONS, "projection").verdict(score, opinions, given)
    assert found.tolist() == [0.5 + 3.0]
    assert {name: head.tolist() for name, head in heads.items()} == {"depth": [10.0]}
    found, heads = ConditionJudge(CONDITIONS, "heads").verdict(score, opinions, given)
    assert found.tolist() == [0.5]
    assert {name: head.tolist() for name, head in heads.items()} == {
        "pitch": [[1.0, 2.0, 3.0]],
        "depth": [10.0],
    }
