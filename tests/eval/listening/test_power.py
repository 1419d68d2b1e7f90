"""How many listeners a difference needs."""

import numpy as np
import pytest
from scipy import stats

from tokkata.core.errors import UserError
from tokkata.eval.listening.intervals import NoIntervalError
from tokkata.eval.listening.power import Plan, model_of_test, power_of, whole_numbers
from tokkata.eval.listening.simulation import RaterModel, fitted_model
from tokkata.tests.eval.listening.made_ratings import honest_ratings, made_definition

CALM = RaterModel(listener=0.4, item=0.3, listener_system=0.1, item_system=0.1, rest=0.7)


def test_power_without_a_difference_is_the_error_of_the_test():
    found = power_of(Plan(1e-9, num_items=12, num_studies=200), 12, RaterModel())
    assert found.power == pytest.approx(0.05, abs=0.03)


def test_power_grows_with_listeners_and_with_the_difference():
    small = power_of(Plan(0.3, num_items=10, num_studies=60), 6, CALM).power
    more = power_of(Plan(0.3, num_items=10, num_studies=60), 24, CALM).power
    larger = power_of(Plan(0.6, num_items=10, num_studies=60), 6, CALM).power
    assert small < more
    assert small < larger


def test_power_is_near_that_of_a_normal_test_with_the_known_variance():
    model, listeners, items, difference = CALM, 24, 20, 0.2
    rest = model.rest**2 + 1 / 12  # and what rounding adds
    variance = 2 * (model.listener_system**2 / listeners + model.item_system**2 / items)
    variance += 2 * rest / (listeners * items)
    expected = stats.norm.sf(1.96 - difference / variance**0.5)
    found = power_of(Plan(difference, num_items=items, num_studies=120), listeners, model)
    assert found.power == pytest.approx(expected, abs=0.1)


def test_more_comparisons_need_more():
    one = power_of(Plan(0.4, num_items=10, num_studies=60), 10, CALM).power
    six = power_of(Plan(0.4, num_items=10, comparisons=6, num_studies=60), 10, CALM).power
    assert six < one


def test_fewer_items_per_listener_find_less():
    whole = power_of(Plan(0.3, num_items=16, num_studies=60), 16, CALM).power
    part = power_of(Plan(0.3, num_items=16, items_per_listener=4, num_studies=60), 16, CALM).power
    assert part < whole


def test_the_command_prints_a_table(tokkata):
    told = tokkata("listen", "power", "--difference", 1, "--listeners", "12,6", "--items", 8, "--studies", 20)
    assert told.returncode == 0
    assert "Chance of finding a difference of 1" in told.stdout
    assert told.stdout.index(" 6 ") < told.stdout.index(" 12 ")
    assert "single ratings 0.70" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--difference", "0"], "--difference is 0"),
        (["--difference", "4.5"], "from 1 to 5"),
        (["--difference", "0.5", "--listeners", "ten"], "--listeners 'ten' must be whole numbers"),
        (["--difference", "0.5", "--listeners", "1"], "at least 2"),
        (["--difference", "0.5", "--items", "1"], "--items is 1"),
        (["--difference", "0.5", "--items-per-listener", "30"], "--items-per-listener is 30"),
    ],
)
def test_impossible_studies_are_refused_in_a_sentence(tokkata, arguments, said):
    told = tokkata("listen", "power", *arguments)
    assert told.returncode == 2
    assert said in told.stderr
    assert "Traceback" not in told.stderr


def test_numbers_of_listeners_are_read():
    assert whole_numbers("5, 10,20") == [5, 10, 20]


@pytest.fixture
def held(monkeypatch):
    """`held(definition, ratings)`: what a test on disk would hold."""

    def hold(definition, ratings):
        monkeypatch.setattr("tokkata.eval.listening.power.load_definition", lambda path: definition)
        monkeypatch.setattr("tokkata.eval.listening.power.read_ratings", lambda path: ratings)

    return hold


def test_variances_come_from_a_test_that_was_held(held, tmp_path):
    means = {"ours": 3.4, "baseline": 3.0, "older": 2.8}
    ratings = honest_ratings(means, 30, 20, model=RaterModel(), seed=1)
    held(made_definition(list(means)), ratings)
    model, scale = model_of_test(tmp_path / "test.yaml")
    assert scale == (1.0, 5.0)
    assert model.rest == pytest.approx(0.7, abs=0.1)
    assert model.item_system == pytest.approx(0.4, abs=0.15)


def test_a_test_that_cannot_tell_is_refused(held, tmp_path):
    held(made_definition(["ours", "baseline"], method="ab"), [])
    with pytest.raises(UserError, match="A/B"):
        model_of_test(tmp_path / "test.yaml")
    held(made_definition(["ours"]), honest_ratings({"ours": 3.0}, 8, 6))
    with pytest.raises(UserError, match="cannot say how much ratings vary"):
        model_of_test(tmp_path / "test.yaml")


def test_a_model_needs_two_systems():
    with pytest.raises(NoIntervalError, match="two systems"):
        fitted_model(CALM.rest * np.random.default_rng(0).standard_normal((1, 5, 5)))
