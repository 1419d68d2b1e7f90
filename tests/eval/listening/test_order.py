"""Who hears what when: nobody the same system twice in a row, everybody's share the same."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkata.eval.listening.definition import Attribute, Definition, System
from tokkata.eval.listening.order import plan_trials, rated_systems, williams_row
from tokkata.eval.listening.stimuli import Manifest, Stimulus


def definition_of(num_systems, **changes):
    values = {
        "method": "acr",
        "attributes": [Attribute(name="quality", question="How good?")],
        "systems": [System(name=f"s{k}", path=".") for k in range(num_systems)],
        "items_per_listener": 4,
        "loudness_lufs": -23.0,
    } | changes
    return Definition(**values)


def manifest_of(definition, num_items):
    systems = [(system, [f"i{k}" for k in range(num_items)]) for system in rated_systems(definition)]
    systems.append(("attention", ["1", "2", "3", "4", "5"]))
    clips = [
        Stimulus(f"{system}:{item}", item, system, "scored", 1.0, 0.0, "")
        for system, items in systems
        for item in items
    ]
    return Manifest({clip.id: clip for clip in clips}, {})


def parts(trial):
    """Systems and items of a trial's clips."""
    return [tuple(clip.split(":")) for clip in trial.stimuli]


PLANS = st.fixed_dictionaries(
    {
        "num_systems": st.integers(1, 7),
        "num_items": st.integers(4, 9),
        "seed": st.integers(0, 99),
        "practice_items": st.integers(0, 6),
        "repeated_items": st.integers(0, 4),
        "attention_items": st.integers(0, 4),
    }
)


@settings(deadline=None, max_examples=60)
@given(plan=PLANS, number=st.integers(0, 50))
def test_each_clip_once_and_no_two_neighbours_of_one_system(plan, number):
    num_systems, num_items = plan.pop("num_systems"), plan.pop("num_items")
    definition = definition_of(num_systems, **plan)
    trials = plan_trials(definition, manifest_of(definition, num_items), number)
    assert trials == plan_trials(definition, manifest_of(definition, num_items), number)

    kinds = Counter((trial.kind, trial.repeat) for trial in trials)
    assert kinds["practice", 0] == plan["practice_items"]
    assert kinds["attention", 0] == plan["attention_items"]
    assert kinds["rated", 1] == plan["repeated_items"]
    assert kinds["rated", 0] == 4 * num_systems
    assert all(trial.kind == "practice" for trial in trials[: plan["practice_items"]])

    rated = [parts(trial)[0] for trial in trials if trial.kind == "rated" and not trial.repeat]
    items = {item for _, item in rated}
    assert len(items) == 4
    assert set(rated) == {(f"s{k}", item) for k in range(num_systems) for item in items}
    repeated = [parts(trial)[0] for trial in trials if trial.repeat]
    assert len(set(repeated)) == len(repeated)
    assert set(repeated) <= set(rated)

    if num_systems > 1:
        systems = [parts(trial)[0][0] for trial in trials]
        assert all(before != after for before, after in pairwise(systems))
    for trial in trials:
        if trial.kind == "attention":
            assert trial.expected == float(parts(trial)[0][1])


@settings(deadline=None, max_examples=20)
@given(num_systems=st.integers(2, 6), num_items=st.integers(4, 9), seed=st.integers(0, 99))
def test_over_the_listeners_all_is_balanced(num_systems, num_items, seed):
    definition = definition_of(num_systems, seed=seed, practice_items=0, repeated_items=0, attention_items=0)
    manifest = manifest_of(definition, num_items)
    num_listeners = 2 * num_systems * num_items
    plans = [plan_trials(definition, manifest, number) for number in range(num_listeners)]
    heard = Counter(clip for plan in plans for trial in plan for clip in trial.stimuli)
    assert set(heard.values()) == {num_listeners * 4 // num_items} or num_listeners * 4 % num_items
    assert max(heard.values()) - min(heard.values()) <= 1
    # Each system equally often at each place, and after each other.
    for place in range(4 * num_systems):
        systems = Counter(parts(plan[place])[0][0] for plan in plans)
        assert set(systems.values()) == {num_listeners // num_systems}
    first_rounds = [[parts(trial)[0][0] for trial in plan[:num_systems]] for plan in plans]
    following = Counter(pair for systems in first_rounds for pair in pairwise(systems))
    assert len(following) == num_systems * (num_systems - 1)
    assert len(set(following.values())) == 1


def test_listeners_have_different_orders():
    definition = definition_of(4)
    manifest = manifest_of(definition, 8)
    orders = {tuple(trial.stimuli for trial in plan_trials(definition, manifest, n)) for n in range(50)}
    assert len(orders) == 50


@given(num=st.integers(1, 12), shift=st.integers(0, 50), mirrored=st.booleans())
def test_a_row_holds_every_condition(num, shift, mirrored):
    assert sorted(williams_row(num, shift, mirrored)) == list(range(num))


def test_a_known_williams_square():
    # Of four treatments, as in textbooks.
    rows = [williams_row(4, shift, False) for shift in range(4)]
    assert rows == [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]


@settings(deadline=None, max_examples=20)
@given(num_systems=st.integers(2, 4), num_items=st.integers(4, 8), seed=st.integers(0, 99))
def test_in_ab_each_side_is_taken_equally_often(num_systems, num_items, seed):
    definition = definition_of(num_systems, method="ab", seed=seed, repeated_items=2)
    manifest = manifest_of(definition, num_items)
    num_pairs = num_systems * (num_systems - 1) // 2
    first = Counter()
    for number in range(2 * num_items):
        trials = plan_trials(definition, manifest, number)
        rated = {}
        for trial in trials:
            if trial.kind == "rated" and not trial.repeat:
                (one, item), (other, same) = parts(trial)
                assert (one != other, item) == (True, same)
                rated[frozenset(trial.stimuli)] = trial.stimuli
                first[trial.stimuli] += 1
        assert len(rated) == 4 * num_pairs
        for trial in trials:
            if trial.repeat:  # the sides are changed
                assert rated[frozenset(trial.stimuli)] == trial.stimuli[::-1]
        if num_pairs > 1:
            shown = [frozenset(system for system, _ in parts(trial)) for trial in trials]
            assert all(before != after for before, after in pairwise(shown))
    for one, other in list(first):
        assert abs(first[one, other] - first[other, one]) <= 1


def test_ab_attention_asks_which_has_more():
    definition = definition_of(2, method="ab", attention_items=4)
    manifest = manifest_of(definition, 5)
    expected = []
    for number in range(20):
        for trial in plan_trials(definition, manifest, number):
            if trial.kind == "attention":
                (_, one), (_, other) = parts(trial)
                assert trial.expected == float(int(one) > int(other))
                expected.append(trial.expected)
    assert 20 < sum(expected) < 60


def test_mushra_shows_all_versions_each_equally_often_at_each_place():
    definition = definition_of(
        2, method="mushra", reference="there", anchors_hz=[3500, 7000], attention_items=0
    )
    manifest = manifest_of(definition, 6)
    places = Counter()
    for number in range(10):
        trials = plan_trials(definition, manifest, number)
        assert len(trials) == 2 + 4 + 2
        for trial in trials:
            item = parts(trial)[0][1]
            assert trial.reference == f"reference:{item}"
            assert {system for system, _ in parts(trial)} == set(rated_systems(definition))
            assert {each for _, each in parts(trial)} == {item}
            if trial.kind == "rated" and not trial.repeat:
                places.update((system, place) for place, (system, _) in enumerate(parts(trial)))
    assert set(places.values()) == {8}


@pytest.mark.parametrize("method", ["acr", "ab"])
def test_items_matched_by_number_are_not_taken_for_one_item(method):
    definition = definition_of(2, method=method, paired=False, attention_items=0)
    items = {trial.item for trial in plan_trials(definition, manifest_of(definition, 4), 0)}
    if method == "acr":
        assert items == {f"s{k}/i{n}" for k in range(2) for n in range(4)}
    else:
        assert items == {f"i{n}" for n in range(4)}
