"""Conditions inside the model: hidden is not given, and no clip depends on the others' lengths.

Shapes: B batch, K codebooks, S pattern steps, V codebook size.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokkata.core.conditioner import Conditioner
from tokkata.core.conditions import Condition, Conditions, Given, GivenConditions, hide_all, select
from tokkata.tests.lm.tiny_lm import (
    EVERYTHING,
    MUSICGEN,
    PITCH,
    STYLES,
    random_codes,
    shifted,
    some_of_everything,
    tiny,
)


def logits_of(lm: Any, given: GivenConditions | None, batch_size: int = 3) -> Tensor:
    _, inputs = shifted(lm, random_codes(batch_size))
    with torch.no_grad():
        return lm.logits(inputs, given)


def only(*names: str) -> Conditions:
    return Conditions(tuple(EVERYTHING[name] for name in names))


def padded(given: Given, more: int) -> Given:
    """The same with states after the last that are no states, and not zero either."""
    batch_size, _, width = given.values.shape
    noise = torch.full((batch_size, more, width), 7.0)
    return Given(torch.cat([given.values, noise], dim=1), F.pad(given.mask, (0, more)))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", EVERYTHING.names)
def test_what_is_hidden_is_what_is_not_given(style: str, name: str) -> None:
    lm = tiny(only(name), **STYLES[style])
    given = {name: some_of_everything()[name]}
    nothing = logits_of(lm, None)
    torch.testing.assert_close(logits_of(lm, hide_all(given)), nothing, atol=1e-5, rtol=1e-5)
    shown = given[name].mask.any(1)
    differs = (logits_of(lm, given) - nothing).abs().amax((1, 2, 3)) > 1e-3
    told = shown & (given[name].values.flatten(1) != 0).any(1)  # clips without any tag are told nothing
    assert torch.equal(differs, told)


@pytest.mark.parametrize("style", ["modern", "musicgen"])
def test_clips_hide_their_conditions_one_by_one(style: str) -> None:
    lm = tiny(EVERYTHING, **STYLES[style])
    given = some_of_everything()
    keep = torch.tensor([True, False, True])
    mixed = logits_of(lm, {name: one.hide(keep) for name, one in given.items()})
    expected = torch.where(keep[:, None, None, None], logits_of(lm, given), logits_of(lm, hide_all(given)))
    torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("style", STYLES)
def test_a_clip_does_not_depend_on_the_lengths_of_the_others(style: str) -> None:
    lm = tiny(EVERYTHING, **STYLES[style])
    given = some_of_everything()
    _, inputs = shifted(lm, random_codes(3))
    with torch.no_grad():
        together = lm.logits(inputs, given)
    for row in range(3):
        alone = select(given, slice(row, row + 1))
        for name in ("style", "text", "melody"):  # only as long as this clip's is
            length = max(1, int(alone[name].mask.sum()))
            alone[name] = Given(alone[name].values[:, :length], alone[name].mask[:, :length])
        with torch.no_grad():
            found = lm.logits(inputs[row : row + 1], alone)
        torch.testing.assert_close(found[0], together[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("style", ["modern", "sinusoidal", "musicgen", "grouped"])
@pytest.mark.parametrize("name", ["style", "text", "melody"])
def test_padding_is_not_told(style: str, name: str) -> None:
    lm = tiny(only(name), **STYLES[style])
    given = some_of_everything()[name]
    expected = logits_of(lm, {name: given})
    for more in (1, 4):
        found = logits_of(lm, {name: padded(given, more)})
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_that_is_attended_to_is_told() -> None:
    conditions = Conditions((Condition("chroma", "sequence", "prepend", width=3, attend_padding=True),))
    lm = tiny(conditions, **MUSICGEN)
    given = some_of_everything()["melody"]
    longer = logits_of(lm, {"chroma": padded(given, 2)})
    assert not torch.allclose(longer, logits_of(lm, {"chroma": given}), atol=1e-3)


def test_tags_are_the_mean_of_their_embeddings() -> None:
    torch.manual_seed(0)
    conditioner = Conditioner(only("pitch", "mood"), 5)
    table = conditioner.table.weight.detach()
    hidden, calm, glad, wild = table[PITCH.num_rows :]
    moods = [("calm",), ("calm", "wild"), ("glad", "wild", "calm"), (), None]
    given = EVERYTHING.encode({"pitch": [60, 62, 64, 60, None], "mood": moods}, partial=True)
    added = conditioner(given, 5).added - table[given["pitch"].values[:, 0]]
    expected = [calm, (calm + wild) / 2, (calm + glad + wild) / 3, hidden, hidden]
    torch.testing.assert_close(added, torch.stack(expected))


def test_a_summed_sequence_is_the_mean_of_its_states() -> None:
    torch.manual_seed(0)
    conditioner = Conditioner(only("style"), 5)
    states = torch.randn(3, 4)
    given = EVERYTHING.encode({"style": [states, states[:1], None]}, partial=True)
    project = conditioner.projections["style"]
    expected = torch.stack([project(states).mean(0), project(states[0]), torch.zeros(5)])
    torch.testing.assert_close(conditioner(given, 3).added, expected)


def test_states_stand_in_the_order_of_the_conditions() -> None:
    torch.manual_seed(0)
    conditioner = Conditioner(EVERYTHING, 5)
    fused = conditioner(some_of_everything(), 3)
    assert fused.added.shape == (3, 5)
    assert fused.prefix.shape == (3, 1 + 1 + 5 + 3, 5)  # form, tags, melody, chroma
    assert fused.prefix_mask[:, :2].all()
    assert fused.prefix_mask[:, 2:7].sum(1).tolist() == [2, 5, 0]
    assert fused.prefix_mask[:, 7:].all()
    assert fused.memory.shape == (3, 1 + 1 + 4, 5)  # player, start, text
    assert fused.memory_mask.sum(1).tolist() == [6, 2, 4]
    assert not fused.memory[~fused.memory_mask].any()
    chroma = conditioner.projections["chroma"](some_of_everything()["chroma"].values)
    torch.testing.assert_close(fused.prefix[2, 7:], chroma[2])
    assert not fused.prefix[0, 9].any()  # attended to, as zeros
    assert conditioner({}, 3).memory.shape == (3, 3, 5)


def test_every_condition_learns() -> None:
    lm = tiny(EVERYTHING)
    lm(random_codes(3), some_of_everything()).mean.backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("style", ["modern", "musicgen"])
def test_conditions_work_under_autocast(style: str) -> None:
    lm, codes = tiny(EVERYTHING, scale=2.0, **STYLES[style]), random_codes(3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = lm(codes, some_of_everything()).mean
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(lm(codes, some_of_everything()).mean.item(), rel=0.05)


def test_a_model_in_half_precision_takes_what_people_give() -> None:
    lm = tiny(EVERYTHING, scale=2.0)
    expected = logits_of(lm, some_of_everything())
    found = logits_of(lm.to(torch.bfloat16), some_of_everything())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.1)
