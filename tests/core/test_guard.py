"""Judging steps a step late, as on a GPU: a run's result stays the same, and its end comes a step later."""

import math
import os
import signal

import pytest
import torch

from tokkata.core.checkpoint import list_checkpoints
from tokkata.core.errors import UserError
from tokkata.core.guard import MAX_SKIPPED_IN_A_ROW
from tokkata.core.loop import StoppedError
from tokkata.tests.core.toy_training import Outcome, Toy, settings, train_toy

pytestmark = pytest.mark.usefixtures("on_the_cpu")

DROPOUT = Toy(dropout=0.3)
SELDOM = {"log_every": 500, "validate_every": 500, "save_every": 500}


@pytest.fixture
def a_step_late(monkeypatch):
    monkeypatch.setattr("tokkata.core.readback.steps_late", lambda device: 1)


def spoilt(*steps):
    """A change of a job: in these steps nothing is finite."""

    def change(job):
        batch = job.batch

        def spoil(step, rows):
            made = batch(step, rows)
            return made | {"x": made["x"] * (math.nan if step in steps else 1.0)}

        job.batch = spoil

    return change


def saved_steps(folder):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder / "checkpoints")]


@pytest.mark.parametrize("kind", ["blocks", "recurrent"])
def test_a_late_judgement_changes_nothing(tmp_path, request, kind):
    config, toy = settings(log_every=3), Toy(kind, dropout=0.3)
    train_toy(tmp_path / "at-once", config, toy, change=spoilt(1, 6))
    request.getfixturevalue("a_step_late")
    train_toy(tmp_path / "late", config, toy, change=spoilt(1, 6))
    late = Outcome(tmp_path / "late")
    late.assert_same(Outcome(tmp_path / "at-once"))
    assert [row["skipped_steps"] for row in late.rows if "lr" in row] == [1, 1, 2, 2]


def test_a_run_that_has_to_end_takes_one_step_more(tmp_path, a_step_late):
    steps = []
    with pytest.raises(UserError, match=rf"for {MAX_SKIPPED_IN_A_ROW} steps \(now 54\)"):
        train_toy(tmp_path, settings(steps=500, **SELDOM), None, steps.append, spoilt(*range(5, 500)))
    assert steps == list(range(56))


def test_a_checkpoint_waits_for_the_judgement(tmp_path, a_step_late):
    config = settings(keep_checkpoints=9, **{**SELDOM, "save_every": 2})
    train_toy(tmp_path, config, change=spoilt(2, 3, 4))
    assert saved_steps(tmp_path) == [2, 6, 8, 10]


def test_stopped_a_step_late(tmp_path, a_step_late):
    def ask(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    train_toy(tmp_path / "whole", settings(), DROPOUT)
    with pytest.raises(StoppedError, match="stopped at step 7 of 10"):
        train_toy(tmp_path / "cut", settings(**SELDOM), DROPOUT, ask)
    assert saved_steps(tmp_path / "cut") == [7]
    train_toy(tmp_path / "cut", settings(), DROPOUT)
    whole, resumed = Outcome(tmp_path / "whole"), Outcome(tmp_path / "cut")
    assert all(torch.equal(resumed.averaged[name], value) for name, value in whole.averaged.items())


def test_an_optimizer_that_cannot_leave_a_step_out(tmp_path):
    def change(job):
        job.phases[0].optimizer = torch.optim.AdamW(job.modules["net"].parameters())

    with pytest.raises(TypeError, match="AdamW has to be fused"):
        train_toy(tmp_path, settings(), change=change)
