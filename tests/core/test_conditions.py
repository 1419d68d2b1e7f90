"""What people write about clips, as tensors; and the one sentence for what a model cannot be told."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokkata.core.conditions import (
    Condition,
    Conditions,
    Given,
    condition_coins,
    hide_all,
    join,
    label_condition,
    select,
)
from tokkata.core.errors import UserError
from tokkata.tests.lm.tiny_lm import EVERYTHING, LABELS, some_of_everything

TOLD: dict[str, list[Any]] = {
    "pitch": [62],
    "form": ["note"],
    "player": ["ann"],
    "mood": [("glad",)],
    "tags": [()],
    "tempo": [120.0],
    "start": [0],
    "style": [torch.zeros(1, 4)],
    "text": [torch.zeros(2, 6)],
    "melody": [None],
    "chroma": [torch.zeros(2, 3)],
}


def test_labels_become_rows_of_their_tables() -> None:
    encoded = LABELS.encode({"form": ["note", "chord", None], "pitch": [60, None, np.int64(62)]})
    assert encoded["pitch"].values.dtype == torch.int64
    assert encoded["pitch"].values.tolist() == [[1], [0], [2]]
    assert encoded["pitch"].mask.tolist() == [[True], [False], [True]]
    assert encoded["form"].values.tolist() == [[2], [1], [0]]
    assert [condition.num_rows for condition in LABELS] == [4, 3]
    assert Conditions().encode({}) == {}


def test_tags_become_ones_in_the_order_of_the_table() -> None:
    moods = EVERYTHING.encode({"mood": [("wild", "calm"), (), None, ["glad", "glad"]]}, partial=True)["mood"]
    assert moods.values.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert moods.mask.tolist() == [[True], [True], [False], [True]]


def test_sequences_are_padded_to_the_longest_or_cut_to_their_length() -> None:
    states = torch.arange(15.0).view(5, 3)
    free, fixed = (
        EVERYTHING.encode({name: [states, states[:2], None]}, partial=True)[name]
        for name in ("melody", "chroma")
    )
    assert free.values.shape == (3, 5, 3)
    assert free.mask.sum(1).tolist() == [5, 2, 0]
    assert fixed.values.shape == (3, 3, 3)
    assert fixed.mask.sum(1).tolist() == [3, 2, 0]
    for given_, length in ((free, 5), (fixed, 3)):
        assert torch.equal(given_.values[0], states[:length])
        assert torch.equal(given_.values[given_.mask], torch.cat([states[:length], states[:2]]))
        assert not given_.values[~given_.mask].any()
    nothing = EVERYTHING.encode({"melody": [None, None]}, partial=True)["melody"]
    assert nothing.values.shape == (2, 1, 3)
    assert not nothing.mask.any()
    assert EVERYTHING.encode({"melody": []}, partial=True)["melody"].batch_size == 0


def test_short_sequences_can_be_repeated() -> None:
    loop = Conditions((Condition("loop", "sequence", width=2, length=5, repeat=True),))
    states = torch.arange(4.0).view(2, 2)
    found = loop.encode({"loop": [states, None]})["loop"]
    assert torch.equal(found.values[0], states[[0, 1, 0, 1, 0]])
    assert found.mask.sum(1).tolist() == [5, 0]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"pich": [60]}, r"unknown condition 'pich' \(did you mean 'pitch'\?\): known are 'pitch', 'form'"),
        ({"pitch": [61]}, "unknown value 61 for label 'pitch': known are 60, 62, 64"),
        ({"form": ["notes"]}, r"unknown value 'notes' for label 'form' \(did you mean 'note'\?\)"),
        ({"mood": [("calm", "wilder")]}, r"unknown tag 'wilder' for tags 'mood' \(did you mean 'wild'\?\)"),
        ({"mood": ["calm"]}, "tags 'mood' must be a list of tags a clip, not 'calm'"),
        ({"mood": [3]}, "tags 'mood' must be a list of tags a clip, not 3"),
        ({"tempo": [241]}, "'tempo' goes from 0 to 240 in this model, which does not reach 241"),
        ({"tempo": ["fast"]}, "'tempo' needs a number, not 'fast'"),
        ({"text": ["a sad song"]}, r"'text' needs vectors \[L, 6\] for this model, not 'a sad song'"),
        ({"text": [torch.zeros(2, 5)]}, r"'text' needs vectors \[L, 6\] for this model, not \[2, 5\]"),
        ({"text": [torch.zeros(6)]}, r"'text' needs vectors \[L, 6\] for this model, not \[6\]"),
        ({"pitch": 60}, "condition 'pitch' needs a list with one value a clip, not 60"),
        ({"form": "note"}, "condition 'form' needs a list with one value a clip, not 'note'"),
        ({"pitch": [60, 60]}, "their numbers differ: {'pitch': 2, 'form': 1, "),
    ],
)
def test_what_the_model_does_not_know_is_told_in_one_sentence(told: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        EVERYTHING.encode({**TOLD, **told})
    assert "\n" not in str(caught.value)


def test_a_condition_that_is_not_there_is_missed() -> None:
    assert EVERYTHING.encode(TOLD).keys() == set(EVERYTHING.names)
    with pytest.raises(UserError, match="condition 'form' is missing: this model needs 'pitch', 'form'"):
        LABELS.encode({"pitch": [60]})
    assert LABELS.encode({"pitch": [60]}, partial=True).keys() == {"pitch"}
    with pytest.raises(UserError, match="unknown condition 'pitch': this model was trained without cond"):
        Conditions().encode({"pitch": [1]})


def test_a_long_list_of_values_is_cut_in_the_sentence() -> None:
    many = Conditions((Condition("piece", "label", values=tuple(range(100))),))
    with pytest.raises(UserError, match=r"known are 0, 1, .*, 11 and 88 more$"):
        many.encode({"piece": [-1]})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("pitch", torch.zeros(2, dtype=torch.int64), r"'pitch' must have the shape \[B, 1\], not \[2\]"),
        ("pitch", torch.tensor([[4]]), "'pitch' must hold rows of a table of 4, 0 for hidden"),
        ("pitch", torch.tensor([[-1]]), "'pitch' must hold rows of a table of 4, 0 for hidden"),
        ("mood", torch.zeros(1, 2), r"'mood' must have the shape \[B, 3\], not \[1, 2\]"),
        ("text", torch.zeros(1, 6), r"'text' must have the shape \[B, L, 6\], not \[1, 6\]"),
        ("tempo", torch.zeros(1, 2), r"'tempo' must have the shape \[B, 1\], not \[1, 2\]"),
        ("beat", torch.zeros(1, 1), "unknown condition 'beat'"),
    ],
)
def test_tensors_of_another_form_are_refused(name: str, values: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EVERYTHING.check({name: Given(values, torch.ones(1, 1, dtype=torch.bool))})


def test_tensors_of_the_right_form_pass() -> None:
    EVERYTHING.check(some_of_everything())
    EVERYTHING.check({})


def test_values_are_those_found_in_order() -> None:
    assert label_condition("pitch", [64, 60, 64]) == Condition("pitch", "label", values=(60, 64))
    assert label_condition("form", ["note", "chord"], "cross").values == ("chord", "note")
    tags = label_condition("mood", [("wild", "calm"), (), ("calm",)])
    assert (tags.kind, tags.values) == ("tags", ("calm", "wild"))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1, "C4"], r"label 'x' mixes numbers and text \(1 and 'C4'\)"),
        ([1, 0.5], "label 'x' has fractions"),
        ([], "no clips to learn the values of label 'x' from"),
        ([(), ()], "no clip has any tag in 'x': leave that condition out"),
    ],
)
def test_values_that_a_model_cannot_be_told(found: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        label_condition("x", found)


def test_conditions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="'text' is a sequence and needs the width of its vectors"):
        Condition("text", "sequence")
    with pytest.raises(UserError, match="'pitch' has no values"):
        Condition("pitch", "label")
    with pytest.raises(UserError, match=r"two conditions have the same name: \['a', 'a'\]"):
        Conditions((Condition("a", "label", values=(1,)), Condition("a", "label", values=(2,))))


def test_conditions_survive_json() -> None:
    written = json.loads(json.dumps(EVERYTHING.to_list()))
    assert Conditions.from_list(written) == EVERYTHING
    for broken in ([{"name": "pitch"}], [{**written[0], "colour": 1}]):
        with pytest.raises(UserError, match="the model's conditions cannot be read"):
            Conditions.from_list(broken)


def test_clips_can_be_joined_selected_and_hidden() -> None:
    three = some_of_everything()
    both = join(three, hide_all(three))
    assert {one.batch_size for one in both.values()} == {6}
    first, second = select(both, slice(0, 3)), select(both, slice(3, 6))
    for name, one in three.items():
        assert torch.equal(first[name].values, one.values)
        assert torch.equal(first[name].mask, one.mask)
        assert torch.equal(second[name].values, one.values)
        assert not second[name].mask.any()
        kept = one.hide(torch.tensor([True, False, True]))
        assert torch.equal(kept.mask[[0, 2]], one.mask[[0, 2]])
        assert not kept.mask[1].any()


def test_conditions_are_dropped_clip_by_clip() -> None:
    keep = condition_coins(1000, 0.5, torch.Generator().manual_seed(1))
    assert keep.dtype == torch.bool
    assert 440 < keep.sum() < 560
    assert torch.equal(keep, condition_coins(1000, 0.5, torch.Generator().manual_seed(1)))
    assert condition_coins(1000, 0.0).all()
    assert not condition_coins(1000, 1.0).any()


@given(st.lists(st.lists(st.sampled_from(["calm", "glad", "wild"]), max_size=5), min_size=1, max_size=5))
def test_neither_order_nor_repetition_of_tags_matters(moods: list[list[str]]) -> None:
    a = EVERYTHING.encode({"mood": [tuple(tags) for tags in moods]}, partial=True)["mood"]
    b = EVERYTHING.encode({"mood": [tuple(sorted(set(tags))) for tags in moods]}, partial=True)["mood"]
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.mask, b.mask)
