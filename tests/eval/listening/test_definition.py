"""TEST.yaml: what it says, and the sentence for each mistake in it."""

import pytest
import yaml

from tokkata.core.errors import UserError
from tokkata.core.recipe import check_section
from tokkata.eval.listening.definition import (
    Definition,
    database_path,
    dump_definition,
    load_definition,
    stimuli_folder,
)


@pytest.fixture
def values(tmp_path):
    return {
        "method": "acr",
        "attributes": [{"name": "quality", "question": "How good is it?"}],
        "systems": [{"name": "one", "path": str(tmp_path)}, {"name": "two", "path": str(tmp_path)}],
        "items_per_listener": 4,
        "loudness_lufs": -23.0,
    }


def test_what_is_written_is_read_back(values, tmp_path):
    definition = check_section(Definition, values | {"reference": "there", "anchors_hz": [3500]})
    path = tmp_path / "test.yaml"
    path.write_text(dump_definition(definition), encoding="utf-8")
    assert load_definition(path) == definition


def test_clips_and_answers_lie_beside_it(tmp_path):
    path = tmp_path / "piano.yaml"
    assert stimuli_folder(path) == tmp_path / "piano-stimuli"
    assert database_path(path) == tmp_path / "piano.sqlite"


@pytest.mark.parametrize(
    ("method", "scale"), [("acr", (1.0, 5.0)), ("ab", (0.0, 1.0)), ("mushra", (0.0, 100.0))]
)
def test_the_scale_follows_from_the_method(values, method, scale):
    changes = {"method": method, "reference": "there", "attention_items": 0}
    assert check_section(Definition, values | changes).scale == scale


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "mos"}, "'method' cannot be 'mos'"),
        ({"items_per_listner": 3}, "unknown key 'items_per_listner', did you mean 'items_per_listener'?"),
        ({"items_per_listener": True}, "'items_per_listener' cannot be true: a number is expected"),
        ({"loudness_lufs": 3}, "'loudness_lufs' cannot be 3: a number up to -10 is expected"),
        ({"exclusions": {"min_repeat_agreement": 2}}, "'exclusions.min_repeat_agreement' cannot be 2"),
        ({"name": "Is One better?"}, "listeners would read the system's name 'one' in 'Is One better?'"),
        ({"contact": "two@example.org"}, "listeners would read the system's name 'two'"),
        ({"codec": "pocket"}, "give a reference"),
        ({"anchors_hz": [3500]}, "give a reference"),
        ({"reference": "there", "anchors_hz": [24000]}, "half the sample rate"),
        ({"repeated_items": 5}, "more repeated or attention items than items_per_listener"),
        ({"method": "ab", "reference": "there", "anchors_hz": [3500]}, "leave out the codec and the anchors"),
        ({"method": "mushra", "attention_items": 0}, "MUSHRA compares with a reference: give one"),
        ({"method": "mushra", "reference": "there"}, "MUSHRA has no attention items"),
        (
            {"method": "mushra", "reference": "there", "attention_items": 0, "paired": False},
            "share file names",
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence(values, tmp_path, changes, sentence):
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    with pytest.raises(UserError) as told:
        load_definition(path)
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["reference", "anchor_3500", "attention"])
def test_names_of_the_report_are_no_names_of_systems(values, name):
    values["systems"][0]["name"] = name
    with pytest.raises(UserError, match=f"no system can be named '{name}'"):
        check_section(Definition, values)


def test_systems_have_names_of_their_own(values):
    values["systems"][0]["name"] = "two"
    with pytest.raises(UserError, match="two systems 'two'"):
        check_section(Definition, values)


def test_ab_needs_two(values):
    with pytest.raises(UserError, match="A/B compares: give a second system"):
        check_section(Definition, values | {"method": "ab", "systems": values["systems"][:1]})


def test_a_file_that_is_no_definition(tmp_path):
    path = tmp_path / "test.yaml"
    with pytest.raises(UserError, match="cannot be read: no such file"):
        load_definition(path)
    path.write_text("- a\n", encoding="utf-8")
    with pytest.raises(UserError, match="must hold sections such as 'systems:'"):
        load_definition(path)
